"""The training curves of a run: in ``metrics.csv``, and in memory for resume points and checkpoints."""

import csv
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from miselbo.runs.rows import LEFT_OUT, Curve, curve_rows, read_rows, write_rows
from miselbo.runtime.files import naming


class TidyMetrics(Logger):
    """``metrics.csv``: one row per value (member, step, metric, value), for all members of a run in one file.

    A member that goes on from a resume point first drops its rows from later steps.

    Args:
        path: of the file; one process at a time writes to it.
        member: s.
        left_out: metrics without a row.
    """

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

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
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
        rows = read_rows(self.path)
        write_rows(self.path, (row for row in rows if int(row[0]) != self.member or int(row[1]) < step))
        self._rewound = True


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

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """The resolved configuration is in the run folder already."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values of one step."""
        self.rows += curve_rows(metrics, step or 0)

    def restore(self, rows: Iterable[Sequence[str | float]] | None) -> None:
        """Go on from the rows of a resume point; None in that of an early version, whose rows are in the file alone."""
        self._whole = rows is not None
        self.rows = [(int(step), str(name), float(value)) for step, name, value in rows or ()]

    def kept(self, more: Curve | None = None) -> list[list[str | float]] | None:
        """The rows, and ``more``, as plain JSON types; None where the first ones are missing."""
        return [[*row] for row in (*self.rows, *(more or ()))] if self._whole else None
