"""Figures about the bounds: data frame in, matplotlib Figure out, no global state."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from miselbo.report.folder import member_label
from miselbo.report.style import (
    BOUND_STYLES,
    GREY,
    INK,
    VERMILLION,
    contrast,
    integer_ticks,
    label,
    legend_below,
    member_style,
    new_figure,
)
from miselbo.report.tables import NAMES, fixed


def _errors(frame: pd.DataFrame, column: str) -> np.ndarray:
    return frame[column].to_numpy(float) if column in frame.columns else np.full(len(frame), np.nan)


def _curves(axis: Axes, frame: pd.DataFrame, x: str) -> None:
    """The four bounds against one column: line, band of one s.e. over data, bar of one Monte Carlo s.e."""
    at = frame[x].to_numpy(float)
    for name, look in BOUND_STYLES.items():
        value, band = frame[name].to_numpy(float), np.nan_to_num(_errors(frame, f"{name}_se"))
        bar = np.nan_to_num(_errors(frame, f"{name}_se_mc"))
        axis.fill_between(at, value - band, value + band, color=look["color"], alpha=0.08, linewidth=0)
        axis.errorbar(at, value, bar, **look, label=NAMES[name], linewidth=1.8, markersize=6, capsize=3)


def _gains(axis: Axes, frame: pd.DataFrame, x: str) -> None:
    """What the three others have over the average ELBO of the same row (same examples, same samples)."""
    for name, look in BOUND_STYLES.items():
        if name != "average_elbo":
            axis.plot(frame[x], frame[name] - frame["average_elbo"], **look, linewidth=1.8, markersize=6)
    axis.axhline(0.0, color=INK, linestyle=":", linewidth=1.8)


def bounds_against_samples(bounds: pd.DataFrame, size: int, footer: str = "") -> Figure:
    """The four bounds against L (log axis) for the whole ensemble, and their gain over the average ELBO."""
    frame = bounds[bounds["S"] == size].sort_values("L")
    figure, (left, right) = new_figure(4.2, 1, 2, footer)
    _gains(left, frame, "L")
    _curves(right, frame, "L")
    for axis in (left, right):
        axis.set_xscale("log")
        integer_ticks(axis, _spread(frame["L"].tolist()))
    label(left, "Gain over the average ELBO", "L, samples per member (log axis)", "nats")
    label(right, "Value", "L, samples per member (log axis)", "nats")
    legend_below(figure, right)
    return figure


def _spread(values: list[float]) -> list[float]:
    """Values at least a factor 1.5 apart, the largest kept: ticks on a log axis that do not touch."""
    kept: list[float] = []
    for value in sorted(values, reverse=True):
        if not kept or kept[-1] / value >= 1.5:
            kept.append(value)
    return kept


def bounds_against_size(
    bounds: pd.DataFrame, per_example: pd.DataFrame, num_samples: int, footer: str = ""
) -> Figure:
    """The four bounds of the first S' members at full L, and the difference to member 1 alone."""
    frame = bounds[bounds["L"] == num_samples].sort_values("S")
    figure, (left, right) = new_figure(4.2, 1, 2, footer)
    _curves(right, frame, "S")
    alone = frame[frame["S"] == 1]
    for beside, name in enumerate(("joint_bound", "miselbo", "average_iwelbo")):
        if len(alone):
            gain = frame[name] - float(alone[name].iloc[0])
            left.plot(frame["S"], gain, **BOUND_STYLES[name], linewidth=1.8, markersize=6)
            error = paired_error(per_example, name)
            if math.isfinite(error):
                at = float(frame["S"].iloc[-1]) + 0.02 * len(frame) * (beside - 1)  # three bars side by side
                left.errorbar(
                    at, gain.iloc[-1], error, color=BOUND_STYLES[name]["color"], capsize=4, linewidth=1.8
                )
    left.axhline(0.0, color=GREY, linewidth=1.0)
    for axis in (left, right):
        integer_ticks(axis, frame["S"].tolist())
    label(left, "Difference to member 1 alone", "S, number of members", "nats")
    label(right, "Value", "S, number of members", "nats")
    legend_below(figure, right)
    return figure


def paired_error(per_example: pd.DataFrame, name: str) -> float:
    """Standard error over the data of the difference of a bound to member 1's IWELBO, example by example."""
    if "iwelbo_1" not in per_example.columns:
        return math.nan
    difference = (per_example[name] - per_example["iwelbo_1"]).to_numpy(float)
    difference = difference[np.isfinite(difference)]
    return float(difference.std(ddof=1) / math.sqrt(len(difference))) if len(difference) > 1 else math.nan


def delta_against_jsd(per_example: pd.DataFrame, bounds: pd.DataFrame, size: int, footer: str = "") -> Figure:
    """Left: every example at full L. Right: means of the grid, a line for each S', a point for each L'."""
    figure, (left, right) = new_figure(4.6, 1, 2, footer)
    examples = per_example[["jsd", "delta"]].replace([np.inf, -np.inf], np.nan).dropna()
    alpha = float(np.clip(8 / math.sqrt(max(len(examples), 1)), 0.08, 0.7))
    left.scatter(examples["jsd"], examples["delta"], s=16, color=GREY, alpha=alpha, linewidths=0)
    sizes = sorted(number for number in bounds["S"].unique() if number > 1)
    step = max(1, -(-len(sizes) // 5))  # at most five lines, the full S first
    for position, number in enumerate(sizes[::-step]):
        line = bounds[bounds["S"] == number].sort_values("L")
        right.plot(
            line["jsd"],
            line["delta"],
            **member_style(position),
            markersize=5,
            linewidth=1.2,
            label=f"S = {number:.0f}",
        )
    low, high = 0.0, 1.06 * math.log(size)
    for axis in (left, right):
        axis.plot([low, high], [low, high], color=INK, linewidth=1.2, label="Delta = JSD")
        axis.axhline(0.0, color=GREY, linewidth=1.0)
    most = f"log {size}, the most JSD can be"
    left.axvline(math.log(size), color=INK, linestyle="--", linewidth=1.5, label=most)
    _leave_out_far_limit(left, examples, math.log(size))
    left.legend(frameon=False, fontsize=9, loc="upper left")
    _fit_means(right, bounds[bounds["S"] > 1], bounds[bounds["S"] == size].sort_values("L"))
    label(left, "Every example, at full L", "JSD of the example (nats)", "Delta of the example (nats)")
    label(right, "Means over the examples", "mean JSD (nats)", "mean Delta (nats)")
    legend_below(figure, right, columns=6)
    return figure


def _leave_out_far_limit(axis: Axes, examples: pd.DataFrame, most: float) -> None:
    """Limits around the examples when they lie far below the most JSD can be."""
    reach = examples["jsd"].max()
    if not reach < most / 3:
        return
    low = min(0.0, examples["jsd"].min(), examples["delta"].min())
    high = max(reach, examples["delta"].max())
    axis.set_xlim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    axis.set_ylim(low - 0.1 * (high - low), high + 0.3 * (high - low))
    axis.text(
        0.97,
        0.03,
        f"log S = {most:.2f} is far to the right",
        transform=axis.transAxes,
        ha="right",
        fontsize=9,
    )
    axis.lines[-1].set_label("_left out")  # the limit's line is not in the picture, nor in the legend


def _fit_means(axis: Axes, every: pd.DataFrame, full: pd.DataFrame) -> None:
    """Limits around the points and the origin; L beside the points of the full ensemble, where it fits."""
    every = every[np.isfinite(every[["delta", "jsd"]]).all(axis=1)]
    if every.empty:
        return
    ends = [min(0.0, every["delta"].min()), max(every["delta"].max(), every["jsd"].max(), 1e-3)]
    margin = 0.08 * (ends[1] - ends[0])
    axis.set_xlim(min(0.0, every["jsd"].min()) - margin, 1.25 * every["jsd"].max() + margin)
    axis.set_ylim(ends[0] - margin, ends[1] + margin)
    last = math.inf
    for _, row in full[np.isfinite(full[["delta", "jsd"]]).all(axis=1)].iterrows():
        if abs(last - row["delta"]) > 0.9 * margin:
            axis.annotate(
                f"L = {row['L']:.0f}", (row["jsd"], row["delta"]), (9, 0), textcoords="offset points",
                va="center", fontsize=9,
            )  # fmt: skip
            last = row["delta"]


def pairwise_jsd(pairwise: pd.DataFrame, footer: str = "") -> Figure:
    """Members by members, colours from the smallest to the largest JSD of two, the number in every cell as measured."""
    names = list(
        dict.fromkeys([*pairwise["member_i"].map(member_label), *pairwise["member_j"].map(member_label)])
    )
    names.sort(key=lambda name: (len(name), name))
    place = {name: position for position, name in enumerate(names)}
    matrix = np.full((len(names), len(names)), np.nan)
    for _, row in pairwise.iterrows():
        first, second = place[member_label(row["member_i"])], place[member_label(row["member_j"])]
        matrix[first, second] = matrix[second, first] = row["jsd"]
    figure, (axis,) = new_figure(min(2.2 + 0.5 * len(names), 7.0), footer=footer)
    figure.set_layout_engine("compressed")
    np.fill_diagonal(matrix, np.nan)  # 0, and no pair
    there = matrix[np.isfinite(matrix)]
    least, most = (float(there.min()), float(there.max())) if len(there) else (0.0, math.log(2))
    if most - least < 1e-6:
        least, most = min(0.0, least), max(most, 1e-3)
    places = min(5, max(2, 2 - math.floor(math.log10(abs(most)))))
    shown = axis.imshow(matrix, cmap="cividis", vmin=least, vmax=most)
    axis.grid(False)
    axis.spines[["left", "bottom"]].set_visible(False)
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(length=0, labelsize=11)
    size = float(np.clip((140 if places < 4 else 100) / len(names), 3.0, 12))
    for (first, second), value in np.ndenumerate(matrix):
        background = to_hex(tuple(shown.to_rgba(np.array([value]))[0])) if math.isfinite(value) else "#FFFFFF"
        colour = "#000000" if contrast("#000000", background) > contrast("#FFFFFF", background) else "#FFFFFF"
        axis.text(
            second,
            first,
            fixed(value, places) if first != second else "",
            ha="center",
            va="center",
            fontsize=size,
            color=colour,
        )
    bar = figure.colorbar(shown, ax=axis)
    bar.ax.set_title(f"log 2 = {math.log(2):.3f}\nat most", fontsize=8, color=GREY)
    bar.ax.tick_params(labelsize=9)
    bar.outline.set_visible(False)
    label(axis, "JSD of every pair of members (nats)")
    return figure


def _histogram(axis: Axes, values: np.ndarray, from_zero: bool = False) -> None:
    if len(values):
        bins = min(40, max(20, int(math.sqrt(len(values)))))
        low, high = float(values.min()), float(values.max())
        span = (0.0, high or 1.0) if from_zero else (low, high)
        if span[1] - span[0] < 1e-6 * max(1.0, abs(high)):  # too narrow for floating-point bin edges
            span = (high - 0.5, high + 0.5)
        axis.hist(values, bins=bins, range=span, color=GREY, edgecolor="white")
    axis.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def finite(frame: pd.DataFrame, column: str) -> np.ndarray:
    """The finite values of a column."""
    values = frame[column].to_numpy(float)
    return values[np.isfinite(values)]


def delta_histogram(per_example: pd.DataFrame, footer: str = "") -> Figure:
    """How the gain is spread over the examples, with zero and the mean."""
    values = finite(per_example, "delta")
    figure, (axis,) = new_figure(3.6, footer=footer)
    _histogram(axis, values)
    axis.axvline(0.0, color=INK, linewidth=1.5, label="0")
    if len(values):
        axis.axvline(
            values.mean(), color=VERMILLION, linestyle="--", linewidth=2, label=f"mean {values.mean():.3f}"
        )
    axis.legend(frameon=False, fontsize=10)
    label(axis, "Delta of every example, at full L", "Delta (nats)", "examples")
    return figure


def weight_diagnostics(per_example: pd.DataFrame, footer: str = "") -> Figure:
    """Effective sample size, largest weight and Pareto k of every example, whichever were recorded."""
    panels = {
        "ess": ("Effective sample size", "samples"),
        "max_weight": ("Largest weight", "share of the sum of weights"),
        "pareto_k": ("Pareto k", "k"),
    }
    present = [name for name in panels if name in per_example.columns]
    figure, axes = new_figure(3.2, 1, len(present), footer)
    for axis, name in zip(axes, present, strict=True):
        title, unit = panels[name]
        _histogram(axis, finite(per_example, name), from_zero=name != "pareto_k")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=4))
        if name != "pareto_k":
            axis.set_xlim(left=0.0)
        if name == "pareto_k":
            axis.axvline(0.7, color=VERMILLION, linestyle="--", linewidth=2, label="0.7")
            axis.legend(frameon=False, fontsize=10)
        label(axis, title, unit, "examples" if axis is axes[0] else "")
    return figure
