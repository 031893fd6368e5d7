"""The section "Which members": figures, tables and text about subsets, added members and mixture weights."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from miselbo.report import texts
from miselbo.report.folder import RunFolder, number
from miselbo.report.style import (
    BLUE,
    BOUND_STYLES,
    GREY,
    VERMILLION,
    Look,
    integer_ticks,
    label,
    legend_below,
    new_figure,
)
from miselbo.report.tables import NAMES, Table, decimals, fixed, interval, plus_minus

_BEST: Look = {
    "color": VERMILLION,
    "marker": "s",
    "linestyle": "--",
    "markersize": 8,
    "markerfacecolor": "none",
}
_GREEDY: Look = {"color": BLUE, "marker": "o", "linestyle": "-", "markersize": 5}
_PATHS = {"order": "In the order of training", "greedy": "Greedy order"}


def weights_of(run: RunFolder) -> dict[str, Any]:
    """``mixture_weights`` of the summary, or an empty dictionary."""
    found = run.summary.get("mixture_weights")
    return dict(found) if isinstance(found, dict) and found.get("weights") else {}


def all_scored(subsets: pd.DataFrame) -> bool:
    """Whether every subset is there, and not a greedy path alone."""
    return bool(subsets["best_of_size"].any())


def subsets_figure(subsets: pd.DataFrame, footer: str = "") -> Figure:
    """MISELBO and joint bound of every subset against its size; the greedy path and the best as lines."""
    figure, axes = new_figure(4.2, 1, 2, footer)
    for axis, name in zip(axes, ("miselbo", "joint_bound"), strict=True):
        if all_scored(subsets):
            axis.scatter(_side_by_side(subsets), subsets[name], s=18, color=GREY, alpha=0.6, linewidths=0)
            best = subsets[subsets["best_of_size"].astype(bool)].drop_duplicates("size").sort_values("size")
            axis.plot(best["size"], best[name], **_BEST, linewidth=1.5, label="best MISELBO of its size")
        path = subsets.dropna(subset=["greedy"]).sort_values("greedy")
        axis.plot(path["size"], path[name], **_GREEDY, linewidth=1.5, label="greedy path")
        integer_ticks(axis, subsets["size"].tolist())
        label(axis, NAMES[name], "members in the subset", "nats")
    if all_scored(subsets):
        axes[0].scatter([], [], s=18, color=GREY, alpha=0.6, label="every subset")
    legend_below(figure, axes[0])
    return figure


def _side_by_side(subsets: pd.DataFrame) -> np.ndarray:
    """The size of each subset, the subsets of one size spread a little in the order of the table."""
    place = subsets.groupby("size").cumcount()
    count = subsets.groupby("size")["size"].transform("size")
    return (subsets["size"] + 0.3 * ((place + 0.5) / count - 0.5)).to_numpy(float)


def marginal_figure(marginal: pd.DataFrame, footer: str = "") -> Figure:
    """What each added member brings to MISELBO and to the joint bound, a panel for each path."""
    paths = [path for path in _PATHS if (marginal["path"] == path).any()]
    figure, axes = new_figure(3.8, 1, len(paths), footer)
    for axis, path in zip(axes, paths, strict=True):
        rows = marginal[(marginal["path"] == path) & (marginal["size"] > 1)].sort_values("size")
        for shift, name in ((-0.08, "miselbo"), (0.08, "joint_bound")):
            _bars(axis, rows, name, shift)
        axis.axhline(0.0, color=GREY, linewidth=1.0)
        names = [f"+q{member:.0f}" for member in rows["member"]]
        step = max(1, -(-len(names) // 10))
        axis.set_xticks(rows["size"].tolist()[::step], names[::step])
        first = marginal[(marginal["path"] == path) & (marginal["size"] == 1)]["member"]
        start = f"added to q{first.iloc[0]:.0f}, one after the other" if len(first) else "added member"
        label(axis, _PATHS[path], start, "nats gained")
    legend_below(figure, axes[0])
    return figure


def _bars(axis: Axes, rows: pd.DataFrame, name: str, shift: float) -> None:
    gain = rows[f"{name}_gain"].to_numpy(float)
    ends = [f"{name}_gain_low", f"{name}_gain_high"]
    error = np.abs(rows[ends].to_numpy(float).T - gain) if set(ends) <= set(rows.columns) else None
    look: Look = {**BOUND_STYLES[name], "linestyle": "none"}
    axis.errorbar(rows["size"] + shift, gain, error, **look, label=NAMES[name], markersize=6, capsize=4)


def text(run: RunFolder) -> list[str]:
    """The paragraphs, of what is there."""
    out: list[str] = []
    if run.subsets is not None:
        wording = texts.WHICH_MEMBERS if all_scored(run.subsets) else texts.GREEDY_ONLY
        samples = run.subsets["L"].iloc[0] if "L" in run.subsets.columns else run.num_samples
        out += texts.paragraphs(wording, num_samples=f"{samples:.0f}", size=run.size)
    if run.marginal is not None:
        out += texts.paragraphs(texts.MARGINAL)
    has = weights_of(run)
    if has:
        out += texts.paragraphs(
            texts.MIXTURE_WEIGHTS,
            fitted_on=has.get("fitted_on", "first half of the draws"),
            measured_on=has.get("measured_on", "other half"),
            gain=plus_minus(has.get("gain"), has.get("gain_se")),
            interval=interval(has, "gain"),
            optimistic=fixed(has.get("optimistic_gain"), decimals(number(has.get("gain_se")))),
            verdict=has.get("sentence", ""),
        )
    return out


def tables_of(run: RunFolder) -> list[Table]:
    """Best and greedy subset of every size; uniform against fitted weights."""
    out: list[Table] = []
    if run.subsets is not None:
        out.append(_best_table(run.subsets))
    if weights_of(run):
        out += _weight_tables(weights_of(run))
    return out


def _best_table(subsets: pd.DataFrame) -> Table:
    """One row per size: the best subset where all were scored, its paired lead over the next, and the greedy one."""
    rows = []
    for size, same in subsets.groupby("size"):
        greedy = same[same["greedy"].notna()]
        chosen = same[same["best_of_size"].astype(bool)] if all_scored(subsets) else greedy
        for _, row in chosen.head(1).iterrows():
            values = [plus_minus(row[name], row.get(f"{name}_se")) for name in ("miselbo", "joint_bound")]
            gain = plus_minus(row.get("delta"), row.get("delta_se"))
            lead = _lead(same)
            rows.append(
                [
                    f"{size}",
                    _named(row["members"]),
                    *values,
                    lead,
                    gain,
                    *map(_named, greedy["members"].head(1)),
                ]
            )
    columns = [
        "Members",
        "Best subset",
        "MISELBO",
        "Joint bound",
        "Lead over the next",
        "Delta",
        "Greedy subset",
    ]
    if not all_scored(subsets):
        rows = [[*row[:4], row[5]] for row in rows]
        columns = ["Members", "Greedy subset", *columns[2:4], columns[5]]
    return Table(columns, [row + [""] * (len(columns) - len(row)) for row in rows], "llrrrrl"[: len(columns)])


def _lead(same: pd.DataFrame) -> str:
    """95% interval, paired, of the best subset's MISELBO minus that of the second of its size; empty without one."""
    if "to_best" not in same.columns or same["to_best"].isna().all():
        return ""
    row = same.loc[same["to_best"].idxmax()]
    lead = {"lead_se": row["to_best_se"], "lead_low": -row["to_best_high"], "lead_high": -row["to_best_low"]}
    return interval(lead, "lead")


def _named(members: object) -> str:
    """Members as in the rest of the report.

    >>> _named("1+3")
    'q1 + q3'
    """
    return " + ".join(f"q{member}" for member in str(members).split("+"))


def _weight_tables(has: dict[str, Any]) -> list[Table]:
    """The weights, and the bounds that uniform and fitted ones give on the draws that the fit has not seen."""
    size, names = len(has["weights"]), ("miselbo", "joint_bound")
    parts = [part for part in (has, has.get("at_full_length")) if part]
    weights, rows = [], []
    for kind, values in (("uniform", [1 / size] * size), ("fitted", has["weights"])):
        weights.append([kind, *(fixed(value, 3) for value in values)])
        if kind == "fitted" and "weights_se" in has:
            weights.append(["s.e.", *(fixed(error, 3) for error in has["weights_se"])])
        cells = [
            plus_minus(part[kind][name], part[kind].get(f"{name}_se")) for part in parts for name in names
        ]
        rows.append([kind, *cells])
    gains = [interval(part, name) for part in parts for name in ("gain", "joint_gain")]
    rows.append(["change, 95% interval", *gains])
    members = [f"q{s + 1}" for s in range(size)]
    columns = [f"{NAMES[name]}, L = {part['L']}" for part in parts for name in names]
    return [
        Table(["Weights", *members], weights, "l" + "r" * size),
        Table(["Bounds with weights", *columns], rows, "l" + "r" * len(columns)),
    ]
