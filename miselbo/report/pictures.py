"""Figures that are not about bounds: example images and training curves."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from miselbo.report.style import DPI, GREY, WIDTH, label, legend_below, member_style, new_figure

MOST_COLUMNS, MOST_SAMPLE_ROWS, MOST_MEMBERS = 10, 4, 12


def strip(images: np.ndarray, columns: int, gap: int) -> np.ndarray:
    """Images [N, C, H, W] in [0, 1] side by side on white: [H, columns (W + gap) - gap, 3].

    >>> strip(np.zeros((2, 1, 8, 8)), columns=3, gap=1).shape
    (8, 26, 3)
    """
    _, channels, height, width = images.shape
    canvas = np.ones((height, columns * (width + gap) - gap, 3))
    for position, image in enumerate(images[:columns]):
        colour = image[:3] if channels >= 3 else np.repeat(image[:1], 3, axis=0)
        start = position * (width + gap)
        canvas[:, start : start + width] = np.clip(np.nan_to_num(colour), 0.0, 1.0).transpose(1, 2, 0)
    return canvas


def image_rows(images: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """The rows of the picture, label and images [n, C, H, W]: originals, reconstructions, samples."""
    rows = []
    if "originals" in images:
        rows.append(("original", images["originals"][:MOST_COLUMNS]))
    for position, member in enumerate(images.get("reconstructions", [])[:MOST_MEMBERS]):
        rows.append((f"through q{position + 1}", member[:MOST_COLUMNS]))
    samples = images.get("samples", np.zeros((0, 1, 1, 1)))
    columns = max([len(row) for _, row in rows], default=MOST_COLUMNS)
    for start in range(0, min(len(samples), columns * MOST_SAMPLE_ROWS), columns):
        rows.append(("prior sample" if start == 0 else "", samples[start : start + columns]))
    return rows


def image_grid(images: dict[str, np.ndarray], footer: str = "") -> Figure:
    """Originals, what every member's latent code decodes to, samples from the prior: labelled rows."""
    rows = image_rows(images)
    columns = max(len(row) for _, row in rows)
    height, width = rows[0][1].shape[-2:]
    gap = max(1, width // 14)
    picture_width = WIDTH - 1.3
    row_height = picture_width / (columns * (width + gap) - gap) * height
    figure = Figure(figsize=(WIDTH, (row_height + 0.1) * len(rows) + 0.6), dpi=DPI, facecolor="white")
    figure_height = figure.get_figheight()
    for position, (name, row) in enumerate(rows):
        apart = 0.15 if name in ("prior sample", "") and rows[0][0] == "original" else 0.0
        top = 0.1 + position * (row_height + 0.1) + apart
        bottom = 1 - (top + row_height) / figure_height
        axis = figure.add_axes((1.2 / WIDTH, bottom, picture_width / WIDTH, row_height / figure_height))
        axis.imshow(strip(row, columns, gap), interpolation="nearest", aspect="auto")
        axis.set_axis_off()
        middle = bottom + row_height / figure_height / 2
        figure.text(1.1 / WIDTH, middle, name, ha="right", va="center", fontsize=10)
    figure.text(0.995, 0.08 / figure_height, footer, fontsize=8, color=GREY, ha="right", va="bottom")
    return figure


def family(metric: str) -> str:
    """The panel a metric belongs to: what follows train/ or val/.

    >>> family("val/elbo"), family("lr")
    ('elbo', 'lr')
    """
    return metric.split("/", 1)[1] if metric.startswith(("train/", "val/")) else metric


def _smooth(values: pd.Series) -> pd.Series:
    """A running median over about 2 % of a long curve; short curves stay as they are."""
    if len(values) < 200:
        return values
    return values.rolling(len(values) // 50, center=True, min_periods=1).median()


def training_curves(metrics: pd.DataFrame, footer: str = "") -> Figure:
    """One panel per metric family, one colour per member; training thin, validation with markers.

    A family with a single value per member (the pair of q1 and that one) is drawn against the member.
    """
    families = sorted({family(name) for name in metrics["metric"].unique()}, key=_order)
    members = sorted(metrics["member"].unique(), key=lambda name: (len(name), name))
    rows = -(-len(families) // 2)
    figure, axes = new_figure(2.3 * rows + 0.9, rows, 2, footer)
    for axis, name in zip(axes, families, strict=False):
        panel = metrics[metrics["metric"].map(family) == name]
        if len(panel) > 1 and panel.groupby(["member", "metric"]).size().max() == 1:
            _once_per_member(axis, panel, members)
            label(axis, name, "member")
        else:
            _lines(axis, panel, members)
            label(axis, name, "step")
    for axis in axes[len(families) :]:
        axis.set_visible(False)
    for position, member in enumerate(members):
        axes[0].plot([], [], **member_style(position), linewidth=1.8, label=member)
    legend_below(figure, axes[0], columns=7)
    return figure


def _once_per_member(axis: Axes, panel: pd.DataFrame, members: list[str]) -> None:
    for _, line in panel.groupby("metric", sort=False):
        at = line["member"].map(members.index)
        axis.plot(sorted(at), line["value"].to_numpy()[at.argsort()], color=GREY, linewidth=1.2)
        for position, value in zip(at, line["value"], strict=True):
            axis.plot([position], [value], **member_style(position), markersize=6)
    ticks = range(0, len(members), max(1, -(-len(members) // 10)))
    axis.set_xticks(ticks, [members[position] for position in ticks])
    axis.margins(0.12)


def _lines(axis: Axes, panel: pd.DataFrame, members: list[str]) -> None:
    """Lines against the step; the limits leave out the first tenth of each, where losses are still huge."""
    kept: list[np.ndarray] = []
    for (member, metric), line in panel.groupby(["member", "metric"], sort=False):
        style = member_style(members.index(str(member)))
        validation = str(metric).startswith("val/")
        if not validation and len(line) > 1:
            style.pop("marker")
        values = _smooth(line["value"]).to_numpy()
        axis.plot(
            line["step"], values, **style, linewidth=1.6 if validation else 1.2, markersize=4.5,
            alpha=1.0 if validation else 0.75, markevery=max(1, len(line) // 12),
        )  # fmt: skip
        kept.append(values[len(values) // 10 :])
    inside = np.concatenate(kept)
    margin = 0.06 * (inside.max() - inside.min()) or 0.05 * abs(inside.max()) or 1.0
    axis.set_ylim(inside.min() - margin, inside.max() + margin)


def _order(name: str) -> tuple[int, str]:
    """Losses and bounds first, the learning rate last, the rest by name."""
    first = ("loss", "elbo", "miselbo", "average_elbo", "delta", "jsd")
    return (first.index(name) if name in first else 98 + (name == "lr"), name)
