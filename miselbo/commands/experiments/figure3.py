"""Section 5.1.2, figure 3: Delta_L against JSD of two Gaussians that move apart; quadrature beside Monte Carlo."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.distributions import Normal

from miselbo.commands.study import PUBLISHED, SubRun, bounds_of, finish, results_folder, run_parts
from miselbo.data.quadrature import expected_log_means, standard_normal_points
from miselbo.errors import InputError
from miselbo.runs.building import build
from miselbo.runs.config import compose_config
from miselbo.runs.plan import Study
from miselbo.runtime.files import atomic, write_csv, write_text

ANCHORS = PUBLISHED / "5_1_2_diversity" / "paper.csv"
COUNTS = (1, 2, 10, 100, 1000)
LINES = ("bimodal", "trimodal", "sixmodal")
TOP, SCALE = (
    10.0,
    2.0,
)  # mean of every q(m) of the hierarchical target; standard deviation of all other members
NARROW = 1e-3
TITLES = {
    "bimodal": "Two modes",
    "trimodal": "Three modes",
    "sixmodal": "Six modes",
    "hierarchical": "Hierarchical",
}


def run(
    study: Study,
    results: str,
    means: Sequence[float],
    deviations: Sequence[float],
    levels: Sequence[int],
    replicates: Sequence[int],
    anchor_factor: int = 1,
    workers: int = 2,
) -> dict[str, object]:
    """Score every pair of members on every target; write table, figure and text.

    Args:
        study: the whole.
        results: folder for ``figure3.csv``, ``figure3.md``, ``figure3.png``.
        means: mu of q_1 = N(mu, sd 2); q_2 = N(0, sd 2).
        deviations: sd of q_2(m) on the hierarchical target; q_1(m) has 0.001.
        levels: the L that are scored, increasing; every other L of the grid comes from the next larger one.
        replicates: of each level.
        anchor_factor: times as many replicates where there is an anchor for Delta.
        workers: processes.
    """
    started, folder = time.monotonic(), results_folder(results)
    anchors = pd.read_csv(ANCHORS)
    if len(levels) != len(replicates) or list(levels) != sorted(set(levels)):
        raise InputError(
            f"study.levels must increase, with as many study.replicates; got {list(levels)}, {list(replicates)}"
        )
    budget = dict(zip(levels, replicates, strict=True))
    cases = [(target, float(mu)) for target in LINES for mu in means]
    cases += [("hierarchical", float(sd)) for sd in deviations]
    known = anchors[anchors["quantity"] == "delta"]
    anchored = set(zip(known["target"], known["mu"].astype(float), strict=True))
    parts = {
        (case, level): part(case, level, number * (anchor_factor if case in anchored else 1))
        for case in cases
        for level, number in budget.items()
    }
    folders = run_parts(study, list(parts.values()), workers)
    rows = []
    for case in cases:
        paths = {level: folders[parts[case, level].name] for level in levels}
        rows += measured(case, paths, truth(*case))
    table = pd.DataFrame(rows)
    write_csv(table, folder / "figure3.csv")
    draw(table, folder / "figure3.png")
    text = markdown(table, anchors, study.seed)
    write_text(folder / "figure3.md", text)
    return finish("figure3", folder, text, started)


def part(case: tuple[str, float], level: int, replicates: int) -> SubRun:
    """One pair of members, scored with L = ``level``; nothing is trained."""
    target, value = case
    if target == "hierarchical":
        tril = [f"[[{sd}, 0], [{sd}, {SCALE}]]" for sd in (NARROW, value)]
        family = "MultivariateNormal"
        fixed = [f"{{loc: [{TOP}, {TOP}], scale_tril: {matrix}}}" for matrix in tril]
    else:
        family = "Normal"
        fixed = [f"{{loc: [{mean}], scale: {SCALE}}}" for mean in (value, 0.0)]
    grid = [count for count in COUNTS if count <= level]
    return SubRun(
        f"{target}-{value:g}-L{level}",
        [
            "model=gaussian",
            f"dataset={target}",
            "ensemble.size=2",
            f"model.approximation.family={family}",
            f"model.members=[{{fixed: {fixed[0]}}}, {{fixed: {fixed[1]}}}]",
            f"dataset.replicates={replicates}",
            f"evaluation.num_samples={level}",
            f"evaluation.grid={grid}",
            "evaluation.batch_size=2000",
            "evaluation.dtype=float64",
        ],
    )


class Truth(TypedDict):
    """By quadrature: the JSD, and Delta_L by L."""

    jsd: float
    delta: dict[int, float]


def measured(case: tuple[str, float], paths: dict[int, Path], exact: Truth) -> list[dict[str, object]]:
    """Monte Carlo beside quadrature, one row per L: each L from the smallest level that reaches it."""
    target, value = case
    tables = {level: bounds_of(path).query("S == 2").set_index("L") for level, path in sorted(paths.items())}
    largest = tables[max(tables)].iloc[-1]
    rows = []
    for count in (count for count in COUNTS if count <= max(tables)):
        level = min(level for level in tables if level >= count)
        cell = tables[level].loc[count]
        rows.append(
            {
                "target": target,
                "mu": value,
                "L": count,
                "jsd": largest["jsd"],
                "jsd_se": largest["jsd_se"],
                "delta": cell["delta"],
                "delta_se": cell["delta_se"],
                "miselbo": cell["miselbo"],
                "average_iwelbo": cell["average_iwelbo"],
                "joint_bound": cell["joint_bound"],
                "replicates": int(cell["num_data"]),
                "jsd_quadrature": exact["jsd"],
                "delta_quadrature": exact["delta"][count],
            }
        )
    return rows


def truth(target: str, value: float) -> Truth:
    """JSD and Delta_L of the two members by quadrature (one dimension: the conditional of the hierarchy cancels)."""
    u, log_mass = standard_normal_points(1000, 8.0)
    if target == "hierarchical":
        members = [normal_of(TOP, sd) for sd in (NARROW, value)]
        log_p: Callable[[Tensor], Tensor] = normal_of(10.0, 3.0).log_prob
    else:
        members = [normal_of(mean, SCALE) for mean in (value, 0.0)]
        data = build(compose_config([f"dataset={target}", "model=gaussian", "run_dir=none"]).dataset)

        def log_p(z: Tensor) -> Tensor:
            values: Tensor = data.density(z[:, None])
            return values

    jsd, gains = 0.0, np.zeros(len(COUNTS))
    for member in members:
        z = member.loc + member.scale * u
        own = member.log_prob(z)
        mixture = torch.logsumexp(torch.stack([q.log_prob(z) for q in members]), 0) - math.log(2)
        p = log_p(z)
        jsd += 0.5 * float((log_mass.exp() * (own - mixture)).sum())
        together = expected_log_means(p - mixture, log_mass, COUNTS)
        gains += 0.5 * (np.array(together) - expected_log_means(p - own, log_mass, COUNTS))
    return {"jsd": jsd, "delta": dict(zip(COUNTS, gains.tolist(), strict=True))}


def normal_of(mean: float, sd: float) -> Normal:
    """N(mean, sd^2) in float64."""
    return Normal(torch.tensor(mean, dtype=torch.float64), torch.tensor(sd, dtype=torch.float64))


def markdown(table: pd.DataFrame, anchors: pd.DataFrame, seed: int) -> str:
    """Anchors beside the values here, and what the figure says."""
    lines = [
        "# Figure 3: Delta_L against JSD",
        "",
        f"Nats, ± one standard error over the replicates; seed {seed}. All values: `figure3.csv`. At L = 1 Delta is "
        "the JSD. On two modes it shrinks as L grows, because more samples repair each member on its own; elsewhere it "
        "need not at every step. Thin lines of the figure are the same expectations by quadrature. Of the hierarchical "
        "target our source states only the top level (q(m) and its prior); its conditional is read as N(x; m, sd 2) in "
        "target and members, so that it cancels.",
        "",
        "| quantity | target | mu | L | here | quadrature | anchor |",
        "| :-- | :-- | --: | --: | --: | --: | --: |",
    ]
    for anchor in anchors.to_dict("records"):
        rows = table[(table["mu"] == anchor["mu"]) & (table["target"] != "hierarchical")]
        name = anchor["quantity"]
        if name == "jsd":
            rows = rows[(rows["target"] == LINES[0]) & (rows["L"] == 1)]
        else:
            rows = rows[(rows["target"] == anchor["target"]) & (rows["L"] == anchor["L"])]
        for row in rows.to_dict("records"):
            count = "" if name == "jsd" else f"{int(anchor['L'])}"
            value = f"{row[name]:.4f} ± {row[f'{name}_se']:.4f}"
            lines.append(
                f"| {name} | {anchor['target']} | {anchor['mu']:g} | {count} | {value} "
                f"| {row[f'{name}_quadrature']:.4f} | {anchor['value']:.4f} |"
            )
    return "\n".join([*lines, ""])


def draw(table: pd.DataFrame, path: Path) -> None:
    """Four panels: a colour and marker per L with error bars, quadrature as thin lines, log 2 dotted, mu on top."""
    from miselbo.report.style import GREY, INK, label, legend_below, member_style, new_figure

    figure, axes = new_figure(
        8.4, 2, 2, "points: Monte Carlo, bars of one standard error; thin lines: quadrature"
    )
    most = math.log(2)
    for axis, (target, panel) in zip(axes, table.groupby("target", sort=False), strict=False):
        for position, (count, rows) in enumerate(panel.sort_values("mu").groupby("L")):
            style = member_style(position)
            axis.plot(rows["jsd_quadrature"], rows["delta_quadrature"], color=style["color"], linewidth=0.9)
            axis.errorbar(
                rows["jsd"], rows["delta"], rows["delta_se"], color=style["color"], marker=style["marker"],
                linestyle="none", markersize=5, capsize=2, label=f"L = {count}",
            )  # fmt: skip
        axis.axvline(most, color=INK, linestyle=":", linewidth=1.4)
        axis.axhline(most, color=INK, linestyle=":", linewidth=1.4)
        axis.text(0.02, most - 0.02, "log 2", fontsize=9, color=INK, va="top")
        axis.set_xlim(-0.02, 0.76)
        label(axis, TITLES[str(target)], "JSD (nats)", "Delta_L (nats)")
        top = axis.twiny()
        top.set_xlim(axis.get_xlim())
        once = panel.drop_duplicates("mu").sort_values("jsd_quadrature")
        at, names = spread_ticks(once["jsd_quadrature"].tolist(), [f"{value:g}" for value in once["mu"]])
        top.set_xticks(at, names, fontsize=8, color=GREY)
        top.spines[["right", "left", "bottom"]].set_visible(False)
        top.set_xlabel("sd of q2(m)" if target == "hierarchical" else "mu", fontsize=9, color=GREY)
    legend_below(figure, axes[0], columns=5)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def spread_ticks(
    at: Sequence[float], names: Sequence[str], gap: float = 0.055
) -> tuple[list[float], list[str]]:
    """Ticks at least ``gap`` apart, from the left.

    Example:
        >>> spread_ticks([0.0, 0.01, 0.5], ["a", "b", "c"])
        ([0.0, 0.5], ['a', 'c'])
    """
    kept: list[tuple[float, str]] = []
    for place, name in zip(at, names, strict=True):
        if not kept or place - kept[-1][0] >= gap:
            kept.append((place, name))
    return [place for place, _ in kept], [name for _, name in kept]
