"""The rows of ``metrics.csv``: member, step, metric, value."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from miselbo.runtime.files import atomic

FIELDS = ("member", "step", "metric", "value")
LEFT_OUT = ("epoch",)  # metrics without a row
Curve = list[tuple[int, str, float]]  # step, metric, value


def curve_rows(metrics: Mapping[str, float], step: int) -> Curve:
    """Rows of one step's values.

    Example:
        >>> curve_rows({"train/elbo": -1.5}, 3)
        [(3, 'train/elbo', -1.5)]
    """
    return [(step, name, float(value)) for name, value in metrics.items()]


def read_rows(path: Path) -> list[list[str]]:
    """The whole rows of a file; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.reader(file) if len(row) == 4][1:]


def write_rows(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """A file of these rows, written at once."""
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        writer.writerows(rows)
