"""The charts of dashboards.md from offline W&B files, drawn without W&B.

    python docs/dashboard.py outputs/sweeps/<folder> --out docs/images/dashboard.png

Curves and the S x L grid are those of the run with the most members; the groups are over all runs of the folder.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from miselbo.report.style import (
    BLUE,
    BOUND_STYLES,
    VERMILLION,
    integer_ticks,
    label,
    member_style,
    new_figure,
)
from miselbo.report.tables import NAMES
from miselbo.runs.wandb_file import WandbFile

GAINS: dict[str, dict[str, Any]] = {
    "delta": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "jsd": {"color": VERMILLION, "marker": "s", "linestyle": "--"},
}


def read(folder: Path) -> tuple[dict[str, list[WandbFile]], dict[str, pd.DataFrame]]:
    """Per run id its files in the order of their start, and its last table ``bounds``."""
    runs: dict[str, list[WandbFile]] = {}
    tables = {}
    for path in sorted(folder.rglob("offline-run-*/run-*.wandb"), key=lambda path: path.parent.name):
        if path.parent.is_symlink():  # latest-run
            continue
        shown = WandbFile(path)
        runs.setdefault(shown.run.run_id, []).append(shown)
        for row in shown.history:
            if "bounds" in row:
                table = json.loads((path.parent / "files" / row["bounds"]["path"]).read_text())
                tables[shown.run.run_id] = pd.DataFrame(table["data"], columns=table["columns"])
    if not tables:
        raise SystemExit(
            f"no finished offline W&B run below {folder}; make some with logger=wandb logger.mode=offline"
        )
    return runs, tables


def curve(history: list[dict[str, Any]], member: int, name: str) -> tuple[list[int], list[float]]:
    """Epochs and values of one metric of one member."""
    key = f"q{member}/{name}"
    rows = [row for row in history if key in row]
    return [row["epoch"] for row in rows], [row[key] for row in rows]


def members_panel(axis: Axes, history: list[dict[str, Any]], members: int, name: str, **look: Any) -> None:
    """One line per member against its epoch."""
    for s in range(1, members + 1):
        style = {**member_style(s - 1), "label": f"q{s}", "markersize": 3.5, **look}
        axis.plot(*curve(history, s, name), **style)


def grouped(axis: Axes, headlines: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> None:
    """Mean and standard deviation over the runs of a group, the group being S."""
    groups = headlines.groupby("S")
    for offset, (name, style) in enumerate(styles.items()):
        mean, sd = groups[name].mean(), groups[name].std()
        at = mean.index + 0.06 * (offset - (len(styles) - 1) / 2)
        axis.errorbar(at, mean, yerr=sd.fillna(0), **style, label=NAMES[name], capsize=3, markersize=5)
    integer_ticks(axis, list(groups.groups))


def main(folder: Path, out: Path) -> None:
    """Draw eight charts into one picture."""
    runs, tables = read(folder)
    headlines = pd.DataFrame(
        [{**tables[key].iloc[-1], "seed": runs[key][-1].config["seed"]} for key in tables]
    )
    headlines.index = pd.Index(list(tables))
    key = str(headlines.sort_values(["S", "seed"], ascending=[False, True]).index[0])
    history = [row for shown in runs[key] for row in shown.history]
    table, members = tables[key], int(headlines.loc[key, "S"])
    shown = runs[key][-1]
    footer = f"A: {shown.run.display_name}; B: {len(tables)} runs of the group {shown.run.run_group}"
    figure, axes = new_figure(13.5, 4, 2, footer)

    members_panel(axes[0], history, members, "val/miselbo")
    members_panel(axes[0], history, members, "val/average_elbo", label=None, marker="", linestyle=":")
    later = [value for s in range(2, members + 1) for value in curve(history, s, "val/average_elbo")[1]]
    if later:  # q1 starts from nothing, far below
        axes[0].set_ylim(bottom=min(later) - 0.1)
    label(axes[0], "A1  val/miselbo (lines), average_elbo (dots)", "epoch of the member", "nats")
    members_panel(axes[1], history, members, "train/elbo", markevery=2)
    label(axes[1], "A2  train/elbo", "epoch of the member", "nats")
    at_largest = table[table["L"] == table["L"].max()]
    for name, style in GAINS.items():
        axes[2].errorbar(at_largest["S"], at_largest[name], yerr=at_largest[f"{name}_se"], **style,
                         label=NAMES[name], capsize=3, markersize=5)  # fmt: skip
    axes[2].axhline(0, color="#5F6670", linewidth=0.8)
    integer_ticks(axes[2], at_largest["S"])
    label(axes[2], f"A3  Delta and JSD at L = {table['L'].max():.0f} (± s.e.)", "first S members", "nats")
    for position, (size, rows) in enumerate(table.groupby("S")):
        axes[3].plot(rows["L"], rows["miselbo"], **member_style(position), label=f"S = {size}", markersize=4)
    axes[3].set_xscale("log")
    integer_ticks(axes[3], table["L"])
    label(axes[3], "A4  S x L grid: MISELBO", "L, samples per member", "nats")
    members_panel(axes[4], history, members, "train/learning_rate", markevery=2)
    label(axes[4], "A5  train/learning_rate", "epoch of the member")
    members_panel(axes[5], history, members, "train/skipped_steps", markevery=2)
    label(axes[5], "A6  train/skipped_steps (so far)", "epoch of the member", "steps")
    axes[5].set_ylim(-0.5, max(3, axes[5].get_ylim()[1]))
    grouped(axes[6], headlines, BOUND_STYLES)
    label(axes[6], "B1  Bounds by S (mean ± sd over seeds)", "S", "nats")
    axes[6].set_ylim(top=axes[6].get_ylim()[1] + 0.3 * np.ptp(axes[6].get_ylim()))  # room for the legend
    grouped(axes[7], headlines, GAINS)
    axes[7].axhline(0, color="#5F6670", linewidth=0.8)
    label(axes[7], "B2  Delta and JSD by S (mean ± sd)", "S", "nats")
    for axis in axes:
        place: dict[str, Any] = {"loc": "upper left", "ncols": 2} if axis is axes[6] else {}
        axis.legend(fontsize=8, frameon=False, handlelength=2.5, **place)
    figure.get_layout_engine().set(hspace=0.04)  # type: ignore[union-attr, call-arg]
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Software": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="run folder or folder of a sweep")
    parser.add_argument("--out", type=Path, default=Path("dashboard.png"))
    main(**vars(parser.parse_args()))
