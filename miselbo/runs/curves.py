"""Training curves of members that were trained by jobs of their own, until one command brings them together.

Several processes must not write one ``metrics.csv``: a job of ``task=fit_member`` writes ``curves/q<s>.csv``, and the
command that evaluates the whole moves it to ``metrics.csv`` and to the run's dashboard.
"""

import csv
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from miselbo.runs import checkpoints

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
        with path.open(newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == 4][1:]
        own = loggers(member)
        for step, group in groupby(rows, key=lambda row: int(row[1])):
            values = {name: float(value) for _, _, name, value in group}
            for logger in own:
                logger.log_metrics(values, step)
        for logger in own:
            logger.finalize("success")
        path.unlink()
    folder_of_files = folder / "curves"
    if folder_of_files.is_dir() and not any(folder_of_files.iterdir()):
        folder_of_files.rmdir()


def _path(folder: Path, member: int) -> Path:
    return folder / "curves" / f"q{member}.csv"
