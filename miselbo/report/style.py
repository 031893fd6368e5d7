"""How figures look: a colour-blind safe palette (Okabe and Ito), one page width, quiet axes."""

from collections.abc import Sequence
from typing import TypedDict

from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH, DPI = 8.0, 150  # inches, pixels per inch; shown 800 px wide, font size 10 is 14 px high
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#B3528D"
INK, GREY = "#1A1A1A", "#5F6670"


class Look(TypedDict, total=False):
    """How a line is drawn, in matplotlib's words."""

    color: str
    marker: str
    linestyle: str
    markersize: float
    markerfacecolor: str


BOUND_STYLES: dict[str, Look] = {  # told apart by colour, by marker and by line
    "joint_bound": {"color": VERMILLION, "marker": "s", "linestyle": "--"},
    "miselbo": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "average_iwelbo": {"color": GREEN, "marker": "^", "linestyle": "-."},
    "average_elbo": {"color": INK, "marker": "x", "linestyle": ":"},
}
_MEMBER_COLOURS = (  # none of a bound: a colour means one thing in a report
    "#332288", "#AA4499", "#8F8420", "#882255", "#4A7C87", "#CC6677", "#6B4C2A",
)  # fmt: skip
_MEMBER_LINES = ("-", "--", "-.", ":")
_MEMBER_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def member_style(position: int) -> Look:
    """Colour, line and marker of the member at that position; 28 different ones.

    >>> member_style(0)["linestyle"], member_style(7)["linestyle"]
    ('-', '--')
    """
    colours = len(_MEMBER_COLOURS)
    return {
        "color": _MEMBER_COLOURS[position % colours],
        "marker": _MEMBER_MARKERS[position % colours],
        "linestyle": _MEMBER_LINES[position // colours % len(_MEMBER_LINES)],
    }


def new_figure(height: float, rows: int = 1, columns: int = 1, footer: str = "") -> tuple[Figure, list[Axes]]:
    """A figure of page width with ``rows`` x ``columns`` axes; the footer says how it was made."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")
    if footer:
        figure.supxlabel(footer, fontsize=8, color=GREY, x=0.995, ha="right")
    axes = [axis for row in figure.subplots(rows, columns, squeeze=False) for axis in row]
    for axis in axes:
        plain(axis)
    return figure, axes


def plain(axis: Axes) -> None:
    """No box, a light grid behind the data, readable ticks."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(GREY)
    axis.grid(True, color="#E3E6EA", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=9, colors=INK)


def label(axis: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Title at the left, axis labels in one size."""
    if title:
        axis.set_title(title, loc="left", fontsize=11, color=INK)
    axis.set_xlabel(x, fontsize=10)
    axis.set_ylabel(y, fontsize=10)


def legend_below(figure: Figure, axis: Axes, columns: int = 4) -> None:
    """One legend for the whole figure, above the axes, where it covers no data."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", ncols=min(columns, len(labels)), frameon=False,
        fontsize=10, handlelength=3,
    )  # fmt: skip


def integer_ticks(axis: Axes, values: Sequence[float]) -> None:
    """Ticks at those whole numbers only (a log axis would add its own); at most about ten."""
    wanted = sorted({int(value) for value in values})
    wanted = wanted[:: -max(1, -(-len(wanted) // 10))]  # from the end: the largest always has its tick
    axis.set_xticks(wanted, [str(value) for value in wanted])
    axis.minorticks_off()


def _channel(value: int) -> float:
    share = value / 255
    return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two #RRGGBB colours (WCAG 2.1): 1 to 21; text should have 4.5, lines 3.

    >>> round(contrast("#000000", "#FFFFFF"), 1)
    21.0
    """
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    red, green, blue = (_channel(int(colour[start : start + 2], 16)) for start in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
