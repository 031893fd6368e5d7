"""Where an ensemble fails: Delta_L below 0, and members that collapse to one optimum where a joint mixture does not."""

import math
import time
from pathlib import Path
from typing import TypedDict

import numpy as np
import pandas as pd
import torch

from miselbo.commands.experiments.figure3 import normal_of
from miselbo.commands.study import SubRun, bounds_of, finish, results_folder, run_parts
from miselbo.data import densities
from miselbo.data.quadrature import expected_log_means, standard_normal_points
from miselbo.runs.plan import Study
from miselbo.runtime.files import atomic, write_csv, write_text

COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Case(TypedDict):
    """A target, two normals in the weights below, and two members."""

    means: list[float]
    sd: float
    members: list[float]
    member_sd: float


CASES: dict[str, Case] = {
    "wide": {"means": [-1.5, 1.5], "sd": 0.5, "members": [-1.0, 1.0], "member_sd": 2.5},
    "apart": {"means": [-4.0, 4.0], "sd": 1.0, "members": [-4.0, 4.0], "member_sd": 1.2},
}
WEIGHTS = [0.9, 0.1]
ADVICE = (
    "Read Delta_L beside the slack and the joint bound: when Delta_L < 0 the members share the posterior unequally, "
    "equal weights cost MISELBO up to the slack, and the joint bound (or fitted mixture weights) is the number "
    "to report. "
    "When the JSD is near 0 the members have found the same optimum, and more of them add nothing: start them further "
    "apart, or train them jointly with ensemble.objective=mixture. "
    "When the JSD is near log S the members do not overlap, and Delta_1 = log S says nothing about their quality: "
    "judge the best member and the joint bound."
)


def run(
    study: Study,
    results: str,
    size: int = 10,
    epochs: int = 4,
    steps_per_epoch: int = 1000,
    num_samples: int = 20,
    replicates: int = 1000,
    workers: int = 1,
) -> dict[str, object]:
    """Score two pairs on unequal mixtures, train ensembles and mixtures on the composition of log-normals.

    Args:
        study: the whole.
        results: folder for ``delta.csv``, ``collapse.csv``, ``failure.md``, ``failure.png``.
        size: components on the composition of log-normals.
        epochs: of their training.
        steps_per_epoch: see there.
        num_samples: per step and component.
        replicates: of the evaluation of the pairs.
        workers: processes.
    """
    started, folder = time.monotonic(), results_folder(results)
    parts = [pair(name, replicates) for name in CASES]
    joint = [
        trained(target, objective, size, epochs, steps_per_epoch, num_samples)
        for target in ("coln_bi", "coln_quad")
        for objective in ("independent", "mixture")
    ]
    folders = run_parts(study, [*parts, *joint], workers)
    delta = pd.concat([compare(name, folders[name]) for name in CASES])
    collapse = pd.DataFrame([ensemble_row(part.name, folders[part.name]) for part in joint])
    write_csv(delta, folder / "delta.csv")
    write_csv(collapse, folder / "collapse.csv")
    draw(delta, folders, folder / "failure.png")
    text = markdown(delta, collapse, study.seed)
    write_text(folder / "failure.md", text)
    return finish("failure", folder, text, started)


def pair(name: str, replicates: int) -> SubRun:
    """Two fixed members on a mixture with weights 0.9 and 0.1."""
    case = CASES[name]
    members = [f"{{fixed: {{loc: [{mean}], scale: {case['member_sd']}}}}}" for mean in case["members"]]
    return SubRun(
        name,
        [
            "model=gaussian",
            "dataset=unequal",
            f"dataset.density.means={case['means']}",
            f"dataset.density.sds={[case['sd']] * 2}",
            f"dataset.density.weights={WEIGHTS}",
            "ensemble.size=2",
            f"model.members=[{', '.join(members)}]",
            f"dataset.replicates={replicates}",
            f"evaluation.num_samples={COUNTS[-1]}",
            f"evaluation.grid={list(COUNTS)}",
            "evaluation.batch_size=200",
            "evaluation.dtype=float64",
        ],
    )


def trained(target: str, objective: str, size: int, epochs: int, steps: int, samples: int) -> SubRun:
    """Components on the composition of log-normals, one by one or jointly, from the same initial points."""
    return SubRun(
        f"{target}-{objective}",
        [
            "model=gaussian",
            f"dataset={target}",
            f"ensemble.size={size}",
            f"ensemble.objective={objective}",
            f"trainer.max_epochs={epochs}",
            f"model.objective.steps_per_epoch={steps}",
            f"model.objective.num_samples={samples}",
            "model.objective.learning_rate=2e-2",
            "model.objective.learning_rate_end=1e-3",
            "evaluation.num_samples=100",
            "evaluation.grid=[1, 10, 100]",
            "dataset.replicates=100",
        ],
    )


def compare(name: str, path: Path) -> pd.DataFrame:
    """MISELBO, average IWELBO and joint bound of a pair against L, with the first two and Delta by quadrature."""
    case = CASES[name]
    table = bounds_of(path).query("S == 2").copy()
    u, log_mass = standard_normal_points(1500, 8.0)
    members = [normal_of(mean, case["member_sd"]) for mean in case["members"]]
    together, alone = np.zeros(len(COUNTS)), np.zeros(len(COUNTS))
    for member in members:
        z = member.loc + member.scale * u
        log_p = densities.normal_mixture(z[:, None], case["means"], [case["sd"]] * 2, WEIGHTS)
        log_q = torch.stack([q.log_prob(z) for q in members])
        mixture = torch.logsumexp(log_q, 0) - math.log(2)
        together += 0.5 * np.array(expected_log_means(log_p - mixture, log_mass, COUNTS))
        alone += 0.5 * np.array(expected_log_means(log_p - member.log_prob(z), log_mass, COUNTS))
    kept = ["L", "miselbo", "average_iwelbo", "joint_bound", "delta", "delta_se", "slack"]
    table = table[kept].assign(miselbo_quadrature=together, average_iwelbo_quadrature=alone)
    table["delta_quadrature"] = together - alone
    table.insert(0, "case", name)
    return table


def ensemble_row(name: str, path: Path) -> dict[str, object]:
    """MISELBO at L = 1 over all draws, average ELBO, JSD of a trained ensemble."""
    target, objective = name.split("-")
    row = bounds_of(path).iloc[-1]
    return {
        "target": target,
        "objective": objective,
        "S": int(row["S"]),
        "miselbo_1": row["average_elbo"] + row["jsd"],
        "average_elbo": row["average_elbo"],
        "jsd": row["jsd"],
        "jsd_se": row["jsd_se"],
        "joint_bound_100": row["joint_bound"],
    }


def markdown(delta: pd.DataFrame, collapse: pd.DataFrame, seed: int) -> str:
    """Both failures in numbers, and the advice."""
    lines = [
        "# Where an ensemble fails",
        "",
        f"Nats; seed {seed}; ± one standard error over the replicates. {ADVICE}",
        "",
        "Members that cover an unequal target (weights 0.9, 0.1): *wide* is 0.9 N(-1.5, 0.5) + 0.1 N(1.5, 0.5) with "
        "members N(-1, 2.5), N(1, 2.5); *apart* is 0.9 N(-4, 1) + 0.1 N(4, 1) with N(-4, 1.2), N(4, 1.2). log Z = 0.",
        "",
        "| case | L | MISELBO | average IWELBO | joint bound | Delta | Delta by quadrature | slack |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in delta[delta["L"].isin((1, 10, 100, 1000))].to_dict("records"):
        cells = [f"{row[name]:.4f}" for name in ("miselbo", "average_iwelbo", "joint_bound")]
        cells.append(f"{row['delta']:.4f} ± {row['delta_se']:.4f}")
        cells += [f"{row['delta_quadrature']:.4f}", f"{row['slack']:.4f}"]
        lines.append(f"| {row['case']} | {row['L']} | {' | '.join(cells)} |")
    lines += [
        "",
        "Compositions of log-normals (in logit(theta)), from the same initial points, trained one by one or jointly:",
        "",
        "| target | objective | S | MISELBO (L = 1) | average ELBO | JSD | joint bound (L = 100) |",
        "| :-- | :-- | --: | --: | --: | --: | --: |",
    ]
    for row in collapse.to_dict("records"):
        cells = [f"{row[name]:.3f}" for name in ("miselbo_1", "average_elbo", "jsd", "joint_bound_100")]
        lines.append(f"| {row['target']} | {row['objective']} | {row['S']} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def draw(delta: pd.DataFrame, folders: dict[str, Path], path: Path) -> None:
    """Above: the bounds of the two pairs against L. Below: members trained one by one and jointly."""
    from miselbo.report.density import draw_plane, load
    from miselbo.report.style import BOUND_STYLES, label, legend_below, new_figure
    from miselbo.report.tables import NAMES

    figure, axes = new_figure(
        9.0, 2, 2, "lines: Monte Carlo with markers, thin quadrature; below: bi-modal CoLN"
    )
    titles = {"wide": "Wide members: Delta_L < 0", "apart": "Members apart: MISELBO keeps the slack"}
    for axis, (case, rows) in zip(axes, delta.groupby("case", sort=False), strict=False):
        for name in ("joint_bound", "miselbo", "average_iwelbo"):
            axis.plot(
                rows["L"], rows[name], **BOUND_STYLES[name], linewidth=1.6, markersize=5, label=NAMES[name]
            )
            if f"{name}_quadrature" in rows:
                axis.plot(
                    rows["L"], rows[f"{name}_quadrature"], color=BOUND_STYLES[name]["color"], linewidth=0.8
                )
        axis.set_xscale("log")
        if case == "wide":
            axis.set_ylim(-0.3, 0.02)
        label(axis, titles[str(case)], "L, samples per member (log axis)", "nats (log Z = 0)")
    for axis, objective in zip(axes[2:], ("independent", "mixture"), strict=True):
        grid = load(folders[f"coln_bi-{objective}"] / "results" / "density.npz")
        assert grid is not None
        draw_plane(figure, axis, grid, bar=False)
        axis.set_xlim(-4, 4)
        axis.set_ylim(-4, 4)
        axis.set_title(
            {"independent": "Trained one by one", "mixture": "Trained jointly"}[objective],
            loc="left",
            fontsize=11,
        )
    legend_below(figure, axes[0])
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
