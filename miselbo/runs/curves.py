"""Training curves: ``metrics.csv`` while members are trained, and once more from what their checkpoints keep.

A member's rows travel in its resume point and in its checkpoint (:class:`Recorder`), so that a kill, of whichever
process, loses none: :func:`complete` writes ``metrics.csv`` from them when training ends. Several processes must not
write one ``metrics.csv``: a job of ``task=fit_member`` writes ``curves/q<s>.csv``, and the command that evaluates the
whole moves it to ``metrics.csv`` and to the run's dashboard.
"""

import math
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from miselbo.runs import checkpoints
from miselbo.runs.rows import LEFT_OUT, Curve, read_rows, write_rows

if TYPE_CHECKING:  # Lightning takes seconds to import
    from pytorch_lightning.loggers.logger import Logger


def logger_of(folder: Path, member: int) -> "list[Logger]":
    """The loggers of a member's own job: one file of its own, with the epochs that dashboards need."""
    from miselbo.runs.tidy import TidyMetrics

    path = _path(folder, member)
    path.parent.mkdir(parents=True, exist_ok=True)
    return [TidyMetrics(path, member, left_out=())]


def waiting(folder: Path, size: int) -> list[int]:
    """Numbers of the finished members whose curves are still in files of their own."""
    return [s for s in checkpoints.finished_members(folder, size) if _path(folder, s).exists()]


def collect(folder: Path, size: int, loggers: "Callable[[int], list[Logger]]") -> None:
    """Log the curves of :func:`waiting` members once more, with the run's own loggers, and remove their files."""
    for member in waiting(folder, size):
        path = _path(folder, member)
        rows = checkpoints.curve(folder, member)
        if rows is None:
            rows = [(int(step), name, float(value)) for _, step, name, value in read_rows(path)]
        own = loggers(member)
        for step, group in groupby(rows, key=lambda row: row[0]):
            values = {name: value for _, name, value in group}
            for logger in own:
                logger.log_metrics(values, step)
        for logger in own:
            logger.finalize("success")
        path.unlink()
    folder_of_files = folder / "curves"
    if folder_of_files.is_dir() and not any(folder_of_files.iterdir()):
        folder_of_files.rmdir()


def complete(folder: Path, size: int) -> None:
    """Write ``metrics.csv`` anew from the finished members' checkpoints: q_1's rows first, joint training's last.

    Members whose checkpoints keep no rows (of an earlier version) keep those of the file.
    """
    path = folder / "metrics.csv"
    before = read_rows(path)
    kept: dict[int, list[list[str]]] = {}
    for member in checkpoints.finished_members(folder, size):
        if not _path(folder, member).exists():
            kept[member] = _lines(member, checkpoints.curve(folder, member))
    joint = checkpoints.curve(folder, 1, "joint_curve") if 1 in kept else None
    kept[0] = _lines(0, joint)
    members = sorted({*(int(row[0]) for row in before), *kept}, key=lambda member: member or math.inf)
    rows = [row for s in members for row in kept.get(s) or [row for row in before if int(row[0]) == s]]
    if rows and rows != before:
        write_rows(path, rows)


def _path(folder: Path, member: int) -> Path:
    return folder / "curves" / f"q{member}.csv"


def _lines(member: int, curve: Curve | None) -> list[list[str]]:
    return [
        [str(member), str(step), name, repr(value)]
        for step, name, value in curve or []
        if name not in LEFT_OUT
    ]
