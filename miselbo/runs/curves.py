"""Training curves: ``metrics.csv`` while members are trained, and once more from what their checkpoints keep.

A member's rows travel in its resume point and in its checkpoint (:class:`Recorder`), so that a kill, of whichever
process, loses none: :func:`complete` writes ``metrics.csv`` from them when training ends. Several processes must not
write one ``metrics.csv``: a job of ``task=fit_member`` writes ``curves/q<s>.csv``, and the command that evaluates the
whole moves it to ``metrics.csv`` and to the run's dashboard.
"""

import csv
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from miselbo.runs import checkpoints
from miselbo.runtime.files import atomic, naming

Curve = list[tuple[int, str, float]]


def logger_of(folder: Path, member: int) -> list[Logger]:
    """The loggers of a member's own job: one file of its own, with the epochs that dashboards need."""
    path = _path(folder, member)
    path.parent.mkdir(parents=True, exist_ok=True)
    return [TidyMetrics(path, member, left_out=())]


def waiting(folder: Path, size: int) -> list[int]:
    """Numbers of the finished members whose curves are still in files of their own."""
    return [s for s in checkpoints.finished_members(folder, size) if _path(folder, s).exists()]


def collect(folder: Path, size: int, loggers: Callable[[int], list[Logger]]) -> None:
    """Log the curves of :func:`waiting` members once more, with the run's own loggers, and remove their files."""
    for member in waiting(folder, size):
        path = _path(folder, member)
        rows = checkpoints.curve(folder, member)
        if rows is None:
            rows = [(int(step), name, float(value)) for _, step, name, value in _read(path)]
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
    before = _read(path)
    kept: dict[int, list[Any]] = {}
    for member in checkpoints.finished_members(folder, size):
        if not _path(folder, member).exists():
            kept[member] = _lines(member, checkpoints.curve(folder, member))
    joint = checkpoints.curve(folder, 1, "joint_curve") if 1 in kept else None
    kept[0] = _lines(0, joint)
    members = sorted({*(int(row[0]) for row in before), *kept}, key=lambda member: member or math.inf)
    rows = [row for s in members for row in kept.get(s) or [row for row in before if int(row[0]) == s]]
    if rows and rows != before:
        _write(path, rows)


def _path(folder: Path, member: int) -> Path:
    return folder / "curves" / f"q{member}.csv"


def _lines(member: int, curve: "Curve | None") -> list[list[str]]:
    return [
        [str(member), str(step), name, repr(value)]
        for step, name, value in curve or []
        if name not in TidyMetrics.LEFT_OUT
    ]


def _read(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.reader(file) if len(row) == 4][1:]


def _write(path: Path, rows: Iterable[Sequence[str]]) -> None:
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(TidyMetrics.FIELDS)
        writer.writerows(rows)


class Recorder(Logger):
    """A member's curve in memory, for its resume point and its checkpoint.

    Attributes:
        rows: (step, metric, value), in the order in which they were logged.

    Example:
        >>> recorder = Recorder()
        >>> recorder.log_metrics({"train/elbo": -1.5}, 3)
        >>> recorder.rows
        [(3, 'train/elbo', -1.5)]
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: Curve = []
        self._whole = True

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "recorder"

    @property
    def version(self) -> int:
        """Version of the rows."""
        return 1

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The resolved configuration is in the run folder already."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values of one step."""
        self.rows += curve_rows(metrics, step or 0)

    def restore(self, rows: Iterable[Sequence[Any]] | None) -> None:
        """Go on from the rows of a resume point; None in that of an early version, whose rows are in the file alone."""
        self._whole = rows is not None
        self.rows = [(int(step), str(name), float(value)) for step, name, value in rows or ()]

    def kept(self, more: "Curve | None" = None) -> list[list[Any]] | None:
        """The rows, and ``more``, as plain JSON types; None where the first ones are missing."""
        return [list(row) for row in (*self.rows, *(more or ()))] if self._whole else None


def curve_rows(metrics: Mapping[str, float], step: int) -> "Curve":
    """Rows of one step's values."""
    return [(step, name, float(value)) for name, value in metrics.items()]


class TidyMetrics(Logger):
    """``metrics.csv``: one row per value (member, step, metric, value), for all members of a run in one file.

    A member that goes on from a resume point first drops its rows from later steps.

    Args:
        path: of the file; one process at a time writes to it.
        member: s.
        left_out: metrics without a row.
    """

    FIELDS = ("member", "step", "metric", "value")
    LEFT_OUT = ("epoch",)

    def __init__(self, path: Path, member: int, left_out: Collection[str] = LEFT_OUT):
        super().__init__()
        self.path = path
        self.member = member
        self.left_out = left_out
        self._rewound = False

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "tidy"

    @property
    def version(self) -> int:
        """Version of the file format."""
        return 1

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The resolved configuration is in the run folder already."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append values of one step."""
        step = step or 0
        if not self._rewound:
            self._rewind(step)
        with naming(self.path), self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            for name, value in metrics.items():
                if name not in self.left_out:
                    writer.writerow([self.member, step, name, repr(float(value))])

    def _rewind(self, step: int) -> None:
        rows = _read(self.path)
        _write(self.path, (row for row in rows if int(row[0]) != self.member or int(row[1]) < step))
        self._rewound = True
