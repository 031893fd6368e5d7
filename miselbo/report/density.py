"""The section of a classical target: its density with the members, in one or two dimensions."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from miselbo.errors import InputError
from miselbo.report.folder import RunFolder, number
from miselbo.report.style import GREY, INK, label, legend_below, member_style, new_figure
from miselbo.report.tables import Table, error_text, fixed
from miselbo.runtime.reading import check_archive

LEVELS = (0.1, 0.5, 0.9)  # shares of a member's mass inside its contours


def load(path: Path) -> dict[str, np.ndarray] | None:
    """The grid of a run folder, None without one.

    Raises:
        InputError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        check_archive(path)
        with np.load(path, allow_pickle=False) as archive:
            grid = {name: np.asarray(archive[name], dtype=float) for name in archive.files}
        _ = grid["axis_0"], grid["log_p"], grid["log_q"]
    except Exception as error:
        raise InputError(f"{path} cannot be read ({error}); make it with task=evaluate") from None
    return grid


def kl_table(run: RunFolder) -> Table:
    """KL of the mixture and mean KL of the members to the target, unnormalised and (where log Z is known) normalised.

    KL(q_mix to p) = log Z - E_mix[log p - log q_mix]; the expectation is the average ELBO plus the JSD, over all draws.
    """
    row, log_z = run.headline, number(run.protocol.get("log_normaliser"))
    average, jsd = number(row["average_elbo"]), number(row["jsd"])
    both = run.per_example["average_elbo"] + run.per_example["jsd"]
    errors = [both.std() / np.sqrt(len(both)), number(row.get("average_elbo_se")), number(row.get("jsd_se"))]
    names = ["KL of the mixture", "Mean KL of the members", "Difference = JSD"]
    values = [-(average + jsd), -average, jsd]
    rows = []
    for name, value, error, shift in zip(names, values, errors, (log_z, log_z, 0.0), strict=True):
        rows.append([name, fixed(value, 3), fixed(value + shift, 3), error_text(error)])
    return Table(["", "c = 1 (nats)", "c = 1/Z (nats)", "s.e. (replicates)"], rows, "lrrr")


def mass_levels(log_q: np.ndarray, shares: tuple[float, ...] = LEVELS) -> list[float]:
    """Density levels whose contours hold the given shares of the mass on an even grid, ascending.

    >>> mass_levels(np.log(np.array([0.5, 0.3, 0.2])), (0.5,)) == [np.log(0.5)]
    True
    """
    values = np.sort(log_q.ravel())[::-1]
    mass = np.exp(values - values.max()).cumsum()
    found = {float(values[int(np.searchsorted(mass / mass[-1], share - 1e-9))]) for share in shares}
    return sorted(found)


def density_figure(grid: dict[str, np.ndarray], footer: str = "") -> Figure:
    """Two dimensions: the target shaded, each member's contours. One dimension: target and members as curves."""
    if grid["log_p"].ndim == 2:
        figure, (axis,) = new_figure(6.4, 1, 1, footer)
        draw_plane(figure, axis, grid)
    else:
        figure, (axis,) = new_figure(4.2, 1, 1, footer)
        _draw_line(axis, grid)
    legend_below(figure, axis, columns=6)
    return figure


def draw_plane(figure: Figure, axis: Axes, grid: dict[str, np.ndarray], bar: bool = True) -> None:
    """The target's density in grey on one axis, contours and mean of every member in its colour."""
    x, y, density = grid["axis_0"], grid["axis_1"], np.exp(grid["log_p"]).T
    shown = axis.pcolormesh(x, y, density, cmap=_greys(), shading="nearest", rasterized=True)
    for position, log_q in enumerate(grid["log_q"]):
        style = member_style(position)
        levels = mass_levels(log_q)
        axis.contour(
            x, y, log_q.T, levels=levels, colors=style["color"], linewidths=1.8, linestyles=style["linestyle"]
        )
        peak = np.unravel_index(int(log_q.argmax()), log_q.shape)
        axis.plot(x[peak[0]], y[peak[1]], color=style["color"], marker=style["marker"], markersize=8,
                  markeredgecolor="white", linestyle="none", label=f"q{position + 1}")  # fmt: skip
    axis.grid(False)
    axis.set_aspect("equal")
    axis.set_xlim(x[0], x[-1])
    axis.set_ylim(y[0], y[-1])
    label(axis, "", "z1", "z2")
    if bar:
        made = figure.colorbar(shown, ax=axis, shrink=0.8)
        made.set_label("target density", fontsize=10)
        made.ax.tick_params(labelsize=9)


def _greys() -> Colormap:
    colours = matplotlib.colormaps["Greys"](np.linspace(0.0, 0.6, 128))
    return matplotlib.colors.ListedColormap(colours)


def _draw_line(axis: Axes, grid: dict[str, np.ndarray]) -> None:
    x, density = grid["axis_0"], np.exp(grid["log_p"])
    axis.fill_between(x, density, color=GREY, alpha=0.25, linewidth=0)
    axis.plot(x, density, color=INK, linewidth=2.2, label="target")
    highest = density.max()
    for position, log_q in enumerate(grid["log_q"]):
        style = member_style(position)
        axis.plot(x, np.exp(log_q), **style, linewidth=1.8, markevery=len(x) // 12, label=f"q{position + 1}")
        highest = max(highest, min(float(np.exp(log_q).max()), 4 * density.max()))
    axis.set_ylim(0, 1.08 * highest)
    label(axis, "", "z", "density")
