"""Section 5.1.1, table 2 and figure 2: ensembles of Gaussians with trained means on U_1..U_4."""

import math
import time
from pathlib import Path

import pandas as pd
import torch

from miselbo.commands.study import PUBLISHED, SubRun, examples_of, finish, results_folder, run_parts
from miselbo.data import densities
from miselbo.data.quadrature import midpoints
from miselbo.report.checked import read_summary
from miselbo.runs import checkpoints
from miselbo.runs.plan import Study
from miselbo.runtime.files import atomic, write_csv, write_text

ANCHORS = PUBLISHED / "5_1_1_ensembling" / "paper.csv"
SIZES = {"u1": 2, "u2": 3, "u3": 3, "u4": 3}
VARIANCE = 0.8  # of every density in the published script, which draws with standard deviation 0.8
DIFFERENCE = (
    "The published script draws its training samples with standard deviation 0.8 but uses 0.8 as the variance "
    "(standard deviation 0.894) in every density and in its evaluation; the trained means are the same in both "
    "readings. With standard deviation 0.8 throughout, the members are narrower: they stay closer to the targets' "
    "ridges, so every KL is lower, and overlap less, so the JSD is higher."
)


def run(
    study: Study,
    results: str,
    epochs: int = 10,
    steps_per_epoch: int = 1000,
    num_samples: int = 1000,
    replicates: int = 400,
    evaluation_samples: int = 1000,
    workers: int = 2,
) -> dict[str, object]:
    """Train and score the four targets in both readings; write table, figure and text.

    Args:
        study: the whole.
        results: folder for ``table2.csv``, ``table2.md``, ``figure2.png``.
        epochs: of ``steps_per_epoch`` optimisation steps each.
        steps_per_epoch: see there.
        num_samples: per step and member.
        replicates: of the evaluation.
        evaluation_samples: per replicate and member.
        workers: processes.
    """
    started, folder = time.monotonic(), results_folder(results)
    budget = [
        f"dataset.replicates={replicates}",
        f"evaluation.num_samples={evaluation_samples}",
        f"evaluation.grid=[{evaluation_samples}]",
        "evaluation.batch_size=50",
        f"model.objective.steps_per_epoch={steps_per_epoch}",
        f"model.objective.num_samples={num_samples}",
        f"trainer.max_epochs={epochs}",
    ]
    parts = [SubRun(f"{target}-consistent", [*trained(target), *budget]) for target in SIZES]
    folders = run_parts(study, parts, workers)
    # the density's variance does not enter the gradient of the means, so both readings have the same trained means
    shipped = [
        SubRun(f"{target}-shipped", [*rescored(target, folders[f"{target}-consistent"]), *budget])
        for target in SIZES
    ]
    folders |= run_parts(study, shipped)
    table = pd.DataFrame([row(name, path) for name, path in folders.items()])
    table = table.merge(pd.read_csv(ANCHORS), on=["target", "reading", "S"], suffixes=("", "_anchor"))
    write_csv(table.drop(columns="source"), folder / "table2.csv")
    draw(folders, folder / "figure2.png")
    budget_text = (
        f"{epochs * steps_per_epoch:,} steps of {num_samples:,} samples; "
        f"{replicates * evaluation_samples:,} draws per member in the evaluation; seed {study.seed}."
    )
    text = markdown(table, budget_text)
    write_text(folder / "table2.md", text)
    return finish("table2", folder, text, started)


def common(target: str, members: list[str], scale: float) -> list[str]:
    """Gaussians with a fixed scale on one target, each with arguments of its own."""
    return [
        "model=gaussian",
        f"dataset={target}",
        f"ensemble.size={SIZES[target]}",
        f"model.members=[{', '.join(members)}]",
        f"model.approximation.fixed={{scale: {scale}}}",
    ]


def trained(target: str) -> list[str]:
    """Standard deviation 0.8; means start at [3 s - 3, 0] as in the published script, Adam at rate 0.001.

    On U_1 they start at [6 s - 3, 0], which that script intends: its [0, 0] is a saddle point between the two modes,
    and the noise alone decides to which of them the member goes.
    """
    step = 6 if target == "u1" else 3
    members = [f"{{initial: {{loc: [{step * s - 3}, 0]}}}}" for s in range(SIZES[target])]
    rates = ["model.objective.learning_rate=1e-3", "model.objective.learning_rate_end=1e-3"]
    return [*common(target, members, 0.8), *rates]


def rescored(target: str, folder: Path) -> list[str]:
    """The means of a trained run with variance 0.8; nothing is trained."""
    members = []
    for s in range(1, SIZES[target] + 1):
        mean = checkpoints.read(checkpoints.member_path(folder, s), "member")["state"]["free.loc"]
        members.append(f"{{fixed: {{loc: {mean.tolist()}}}}}")
    return common(target, members, math.sqrt(VARIANCE))


def row(name: str, path: Path) -> dict[str, object]:
    """KL of the mixture, mean KL and JSD of a run, over all its draws, with standard errors over the replicates."""
    target, reading = name.split("-")
    examples = examples_of(path)
    protocol = read_summary(path / "results" / "summary.json")["protocol"]
    columns = {
        "kl_mix": -(examples["average_elbo"] + examples["jsd"]),
        "kl_avg": -examples["average_elbo"],
        "jsd": examples["jsd"],
    }
    values: dict[str, object] = {"target": target, "reading": reading, "S": protocol["S"]}
    for key, value in columns.items():
        values[key] = value.mean()
        values[f"{key}_se"] = value.std() / math.sqrt(len(value))
    values |= exact(target, path, int(protocol["S"]))
    return {**values, "log_z_box": protocol["log_normaliser"], "normaliser": protocol["normaliser_rule"]}


@torch.no_grad()
def exact(target: str, path: Path, size: int) -> dict[str, float | str]:
    """The members' means, and the same three values by quadrature on [-10, 10]^2 at their parameters."""
    density = getattr(densities, target)
    z, log_cell = midpoints([[-10, 10], [-10, 10]], 800)
    log_q, means = [], dict[str, float | str]()
    for s in range(1, size + 1):
        state = checkpoints.read(checkpoints.member_path(path, s), "member")["state"]
        mean = state.get("free.loc", state.get("fixed_loc"))
        means[f"mean_{s}"] = f"({mean[0]:.2f}, {mean[1]:.2f})"
        log_q.append(densities.normal_log_density(z, mean.double(), state["fixed_scale"].double()).sum(-1))
    every = torch.stack(log_q)
    mixture = torch.logsumexp(every, 0) - math.log(size)
    mass = (every + log_cell).exp()
    average = float((mass * (every - density(z))).sum(1).mean())
    jsd = float((mass * (every - mixture)).sum(1).mean())
    values = {"kl_mix": average - jsd, "kl_avg": average, "jsd": jsd}
    return means | {f"{name}_quadrature": value for name, value in values.items()}


def markdown(table: pd.DataFrame, budget: str) -> str:
    """The table as text, each value beside its anchor."""
    lines = [
        "# Table 2: KL to U_1..U_4, c = 1 (the function as given, not normalised)",
        "",
        f"Nats, ± one standard error over the replicates; then by quadrature at the same means; in brackets the "
        f"anchor. {budget}",
        "Anchors are recomputations of the published script, not the paper's printed table.",
        "",
        "| target | reading | S | KL of the mixture | mean KL of the members | JSD | log S | log Z on [-4, 4]^2 |",
        "| :-- | :-- | --: | --: | --: | --: | --: | --: |",
    ]
    for row in table.to_dict("records"):
        cells = [
            f"{row[name]:.3f} ± {row[f'{name}_se']:.3f}; {row[f'{name}_quadrature']:.3f} [{row[f'{name}_anchor']:.3f}]"
            for name in ("kl_mix", "kl_avg", "jsd")
        ]
        lines.append(
            f"| {row['target']} | {row['reading']} | {row['S']} | {' | '.join(cells)} | {math.log(row['S']):.3f} "
            f"| {row['log_z_box']:.3f} |"
        )
    lines += [
        "",
        DIFFERENCE,
        "",
        "On U_1 the means start at (-3, 0) and (3, 0): the shipped start of q2, (0, 0), is a saddle point between the "
        "modes, from which the noise alone decides where it goes. On U_2 the middle member ends at (1, 0.45) or "
        "(-1, -0.45), which is the same by symmetry.",
        "",
        "U_2, U_3 and U_4 do not decay along z_1 (U_3 and U_4 have a floor of 10^-6 besides): they have no normaliser "
        "on R^2, and log Z is that of the box. For U_1, whose mass is inside the box, adding log Z gives the KL to "
        "the normalised density.",
        "",
    ]
    return "\n".join(lines)


def draw(folders: dict[str, Path], path: Path) -> None:
    """Figure 2: the four targets with the members of the reading as shipped."""
    from miselbo.report.density import draw_plane, load
    from miselbo.report.style import legend_below, new_figure

    footer = "grey: target; contours: 10, 50, 90 % of a member's mass (variance 0.8, as shipped)"
    figure, axes = new_figure(7.4, 2, 2, footer)
    for axis, target in zip(axes, SIZES, strict=True):
        grid = load(folders[f"{target}-shipped"] / "results" / "density.npz")
        assert grid is not None
        draw_plane(figure, axis, grid, bar=False)
        axis.set_title(f"U_{target[1:]}", loc="left", fontsize=11)
    legend_below(figure, axes[1])
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
