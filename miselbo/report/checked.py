"""What the files of ``results/`` must hold: a damaged or foreign one ends in a sentence that names it."""

from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import TypeGuard

import pandas as pd
from pandas.api import types

from miselbo.errors import InputError
from miselbo.report.summary import Summary
from miselbo.runtime.reading import read_json

LARGEST, MOST_ROWS = 2**32, 10**8  # bytes of a table in memory, rows
FLAGS = ("best_of_size",)
WORDS = (
    "member",
    "member_i",
    "member_j",
    "members",
    "path",
    "metric",
    "step",
    "value",
)  # no numbers, or with words


def is_number(value: object) -> bool:
    """A number or a flag, or null, which stands for not a number."""
    return value is None or isinstance(value, Real)


def _each(kind: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(kind, value))


def _mapping(value: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(value, Mapping)


def _text(value: object) -> bool:
    return isinstance(value, str)


KINDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "headline": ("numbers by name", lambda value: _mapping(value) and all(map(is_number, value.values()))),
    "headline_finite": ("numbers by name or null", lambda value: value is None or _mapping(value)),
    "members": ("a list of members", _each(lambda row: _mapping(row) and all(map(is_number, row.values())))),
    "protocol": ("values by name", _mapping),
    "trust": ("sentences", lambda value: _mapping(value) and _each(_text)(value.get("sentences", []))),
    "cost": ("a list of stages", _each(_mapping)),
    "num_dims": ("a number", lambda value: is_number(value) and not isinstance(value, bool)),
    "words": ("words by name", lambda value: _mapping(value) and all(map(_text, value.values()))),
    "sections": ("names", _each(_text)),
    "mixture_weights": ("values by name or null", lambda value: value is None or _mapping(value)),
}


def read_summary(path: Path, needed: Iterable[str] = ("S", "L"), fix: str = "") -> Summary:
    """``results/summary.json``.

    Args:
        path: of the file.
        needed: names that the headline must have.
        fix: a sentence for the end of the message.

    Raises:
        InputError: naming the file and what is wrong in it.
    """
    try:
        content = read_json(path)
    except InputError as error:
        raise InputError(f"{error}. {fix}".strip()) from None
    headline = content.get("headline") if isinstance(content, dict) else None
    absent = [key for key in needed if not isinstance(headline, dict) or key not in headline]
    if absent:
        raise InputError(f"{path} has no headline value for {', '.join(absent)}. {fix}".strip())
    for key, (words, fits) in KINDS.items():
        if key in content and not fits(content[key]):
            raise InputError(
                f"{path}: {key} must hold {words}, got {str(content[key])[:80]!r}. {fix}".strip()
            )
    summary: Summary = content
    for key in ("S", "L"):
        if type(summary["headline"][key]) is not int or not 1 <= summary["headline"][key] < 2**31:
            raise InputError(
                f"{path}: {key} must be a whole number of at least 1, got {summary['headline'][key]!r}"
            )
    return summary


def read_table(path: Path, columns: Iterable[str] = ()) -> pd.DataFrame:
    """A table of ``results/``, CSV or parquet, with numbers where numbers belong.

    Raises:
        InputError: it cannot be read, is too large, or lacks one of ``columns``, or one of them holds no numbers.
    """
    try:
        if path.suffix == ".parquet":
            from pyarrow.parquet import ParquetFile  # slow to import

            with ParquetFile(path) as file:
                about = file.metadata
                groups = [about.row_group(number).total_byte_size for number in range(about.num_row_groups)]
                rows, size = about.num_rows, sum(groups)
        else:
            rows, size = 0, path.stat().st_size
        if size > LARGEST or rows > MOST_ROWS:
            raise InputError(
                f"{path} would take {size:,} bytes ({rows:,} rows): damaged, or not of this project"
            )
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except InputError:
        raise
    except Exception as error:  # every reader has its own exceptions; all mean the same to the user
        raise InputError(f"{path} cannot be read ({str(error)[:200]})") from error
    wanted = list(columns)
    absent = [column for column in wanted if column not in frame.columns]
    if absent:
        raise InputError(f"{path} has no column {', '.join(absent)}; it has {list(frame.columns)[:30]}")
    for column in wanted:
        numeric = types.is_numeric_dtype(frame[column]) and (
            column in FLAGS or not types.is_bool_dtype(frame[column])
        )
        if column not in WORDS and not numeric and not frame.empty:
            wrong = frame[column][pd.to_numeric(frame[column], errors="coerce").isna()]
            raise InputError(f"{path}: column {column} must hold numbers, got {str(list(wrong[:1]))[:80]}")
    return frame
