"""The section on bounds from below and above, on data that the model simulated."""

import pandas as pd
from matplotlib.figure import Figure

from miselbo.report.style import (
    BLUE,
    VERMILLION,
    integer_ticks,
    label,
    legend_below,
    member_style,
    new_figure,
)
from miselbo.report.tables import Table, decimals, fixed, plus_minus


def figure(rows: pd.DataFrame, footer: str = "") -> Figure:
    """Both bounds of all members against L with their certified ends, and the width for each number of members."""
    drawn, (left, right) = new_figure(4.2, 1, 2, footer)
    full = rows[rows["S"] == rows["S"].max()].sort_values("L")
    left.plot(full["L"], full["upper"], color=VERMILLION, marker="v", label="upper bound")
    left.plot(full["L"], full["lower"], color=BLUE, marker="^", label="joint bound")
    left.fill_between(
        full["L"], full["certified_low"], full["certified_high"], color=BLUE, alpha=0.08, linewidth=0
    )
    for size, frame in rows.groupby("S"):
        look = member_style(int(str(size)) - 1)
        right.errorbar(
            frame["L"], frame["width"], frame["width_se"], **look, linewidth=1.4, label=f"S = {size}"
        )
    for axis, title in ((left, "Below and above, all members"), (right, "Upper bound minus joint bound")):
        axis.set_xscale("log")
        integer_ticks(axis, full["L"].tolist())
        label(axis, title, "L, samples per member (log axis)", "nats")
    if (rows["width"] > 0).all():
        right.set_yscale("log")
    legend_below(drawn, left)
    right.legend(fontsize=8)
    return drawn


def table(rows: pd.DataFrame) -> Table:
    """One line per (S', L')."""
    lines = [
        [
            str(int(row["S"])),
            str(int(row["L"])),
            plus_minus(row["lower"], row["lower_se"]),
            plus_minus(row["upper"], row["upper_se"]),
            plus_minus(row["width"], row["width_se"]),
            *(fixed(row[name], decimals(row["lower_se"])) for name in ("certified_low", "certified_high")),
        ]
        for row in rows.to_dict("records")
    ]
    columns = ["S", "L", "Joint bound", "Upper bound", "Width", "Certified from", "to"]
    return Table(columns, lines, "rrrrrrr")
