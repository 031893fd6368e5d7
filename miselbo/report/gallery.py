"""The examples at both ends: which gain most and least by the ensemble, and whose weights are trusted least."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from miselbo.report.folder import RunFolder
from miselbo.report.pictures import strip
from miselbo.report.style import DPI, GREY, WIDTH
from miselbo.report.tables import Table, fixed
from miselbo.runtime.reading import check_archive

EACH = 8
GROUPS = (
    ("most Delta", "delta", False), ("least Delta", "delta", True), ("highest k-hat", "pareto_k", False),
    ("lowest joint bound", "joint_bound", True), ("unequal shares", "largest_share", False),
)  # fmt: skip


def chosen(examples: pd.DataFrame, each: int = EACH) -> dict[str, pd.DataFrame]:
    """Rows of ``per_example.parquet`` at the ends of each quantity, the most extreme first; constant ones are left out.

    Example:
        >>> frame = pd.DataFrame({"index": [7, 8, 9], "delta": [0.1, -0.2, 0.3], "joint_bound": [-1.0, -1.0, -1.0]})
        >>> {name: list(rows["index"]) for name, rows in chosen(frame, 2).items()}
        {'most Delta': [9, 7], 'least Delta': [8, 7]}
    """
    shares = [name for name in examples.columns if name.startswith("responsibility_")]
    frame = examples.assign(largest_share=examples[shares].max(axis=1)) if len(shares) > 1 else examples
    found = {}
    for name, column, ascending in GROUPS:
        if column not in frame.columns:
            continue
        kept = frame[np.isfinite(frame[column].to_numpy(float))]
        if kept[column].nunique() > 1:
            order = kept.sort_values([column, "index"], ascending=[ascending, True])
            found[name] = order.head(each)
    return found


def indices(examples: pd.DataFrame) -> list[int]:
    """Numbers of all chosen examples, in order."""
    return sorted({int(index) for rows in chosen(examples).values() for index in rows["index"]})


def load(results: Path) -> dict[int, np.ndarray]:
    """Images [C, H, W] of the chosen examples by number, from ``gallery.npz``; empty where there is none."""
    path = results / "gallery.npz"
    if not path.is_file():
        return {}
    try:
        check_archive(path)
        with np.load(path, allow_pickle=False) as archive:
            numbers, images = archive["index"], np.asarray(archive["images"], dtype=float)
    except Exception:  # damaged: the table stands without pictures
        return {}
    fits = images.ndim == 4 and len(images) == len(numbers)
    return {int(number): image for number, image in zip(numbers, images, strict=True)} if fits else {}


def table(run: RunFolder) -> Table:
    """A line for each chosen example."""
    columns = {"delta": "Delta", "joint_bound": "Joint bound", "pareto_k": "k-hat", "ess": "ESS"}
    present = [name for name in columns if name in run.per_example.columns]
    rows = []
    for name, found in chosen(run.per_example).items():
        for _, row in found.iterrows():
            cells = [fixed(row[column], 4 if column == "delta" else 2) for column in present]
            rows.append([name, f"{row['index']:.0f}", *cells])
    return Table(["Why", "Example", *(columns[name] for name in present)], rows, "lr" + "r" * len(present))


def figure(run: RunFolder, images: dict[int, np.ndarray], footer: str) -> Figure | None:
    """The chosen images, a row for each reason with its value below each; None without images."""
    groups = {
        name: found
        for name, found in chosen(run.per_example).items()
        if all(int(index) in images for index in found["index"])
    }
    if not groups:
        return None
    one = next(iter(images.values()))
    _, height, width = one.shape
    gap = max(1, width // 8)
    picture = WIDTH - 1.5
    row_height = picture / (EACH * (width + gap) - gap) * height
    made = Figure(figsize=(WIDTH, (row_height + 0.32) * len(groups) + 0.4), dpi=DPI, facecolor="white")
    tall = made.get_figheight()
    columns = {name: column for name, column, _ in GROUPS}
    for place, (name, found) in enumerate(groups.items()):
        bottom = 1 - (0.1 + place * (row_height + 0.32) + row_height) / tall
        axis = made.add_axes((1.4 / WIDTH, bottom, picture / WIDTH, row_height / tall))
        shown = np.stack([images[int(index)] for index in found["index"]])
        axis.imshow(strip(shown, EACH, gap), interpolation="nearest", aspect="auto")
        axis.set_axis_off()
        made.text(1.3 / WIDTH, bottom + row_height / tall / 2, name, ha="right", va="center", fontsize=9)
        for position, value in enumerate(_values(found, columns[name])):
            at = (
                1.4 + picture * (position * (width + gap) + width / 2) / (EACH * (width + gap) - gap)
            ) / WIDTH
            made.text(at, bottom - 0.03 / tall, value, ha="center", va="top", fontsize=8, color=GREY)
    made.text(0.995, 0.06 / tall, footer, fontsize=8, color=GREY, ha="right", va="bottom")
    return made


def _values(found: pd.DataFrame, column: str) -> Sequence[str]:
    values = found[column]
    spread = float(values.max() - values.min())
    places = min(4, max(1, 2 - math.floor(math.log10(spread)))) if spread > 0 else 2
    return [fixed(value, places) for value in values]
