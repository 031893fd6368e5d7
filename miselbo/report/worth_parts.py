"""The section "Is the ensemble worth it?": bounds against decoder passes, and the members against the best one."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from miselbo.report.folder import RunFolder
from miselbo.report.style import INK, label, legend_below, member_style, new_figure
from miselbo.report.tables import Table, decimals, fixed, interval


def of(run: RunFolder) -> dict[str, Any]:
    """``worth`` of the summary, or an empty dictionary."""
    found = run.summary.get("worth")
    return found if isinstance(found, dict) and found.get("rows") else {}


def figure(run: RunFolder, footer: str = "") -> Figure:
    """The joint bound against decoder passes, a line for each number of members, and the best member alone."""
    drawn, (axis,) = new_figure(4.2, 1, 1, footer)
    for size, frame in run.bounds.groupby("S"):
        look = member_style(int(size) - 1)
        axis.plot(frame["S"] * frame["L"], frame["joint_bound"], **look, linewidth=1.6, label=f"S = {size}")
    rows = pd.DataFrame(of(run)["rows"])
    axis.plot(rows["passes"], rows["best_iwelbo"], color=INK, linestyle=":", marker="x", label="best alone")
    axis.set_xscale("log")
    label(axis, "Joint bound", "decoder passes per example, S L (log axis)", "nats")
    legend_below(drawn, axis)
    return drawn


def table(run: RunFolder) -> Table:
    """One line per number of passes."""
    lines = []
    for row in of(run)["rows"]:
        places = decimals(row["joint_gain_se"])
        lines.append(
            [
                str(row["passes"]),
                f"{row['S']} x {row['L']}",
                fixed(row["joint_bound"], places),
                f"{fixed(row['best_iwelbo'], places)} ({row['best'].replace('+', ', ')})",
                *(
                    f"{fixed(row[name], decimals(row[f'{name}_se']))} ({interval(row, name)})"
                    for name in ("joint_gain", "miselbo_gain")
                ),
            ]
        )
    columns = ["Passes", "S x L", "Joint bound", "Best alone", "Joint bound - best", "MISELBO - best"]
    return Table(columns, lines, "lrrrrr")
