"""``metrics.csv``, the training curves of a run."""

import csv
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from miselbo.runtime.files import atomic


class TidyMetrics(Logger):
    """``metrics.csv``: one row per value (member, step, metric, value), for all members of a run in one file.

    A member that goes on from a resume point first drops its rows from later steps.

    Args:
        path: of the file; one process at a time writes to it.
        member: s.
        left_out: metrics without a row.
    """

    FIELDS = ("member", "step", "metric", "value")

    def __init__(self, path: Path, member: int, left_out: Collection[str] = ("epoch",)):
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
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            for name, value in metrics.items():
                if name not in self.left_out:
                    writer.writerow([self.member, step, name, repr(float(value))])

    def _rewind(self, step: int) -> None:
        rows: list[list[str]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.reader(file) if len(row) == 4][1:]
        with atomic(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(self.FIELDS)
            writer.writerows(row for row in rows if int(row[0]) != self.member or int(row[1]) < step)
        self._rewound = True
