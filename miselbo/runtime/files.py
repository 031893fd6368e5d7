"""Atomic writes: a reader, or a run that goes on after a kill, never sees half a file."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block ends without an error.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic(folder / "a.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> [file.name for file in folder.iterdir()]
        ['a.txt']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Write plain JSON types atomically, indented."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_csv(frame: "pd.DataFrame", path: Path) -> None:
    """Write a table atomically."""
    with atomic(path) as temporary:
        frame.to_csv(temporary, index=False)


def write_parquet(frame: "pd.DataFrame", path: Path) -> None:
    """Write a table atomically."""
    with atomic(path) as temporary:
        frame.to_parquet(temporary, index=False)


def add_column(folder: Path, name: str, text: str) -> None:
    """Add a column of one text to every table of a folder."""
    import pandas as pd  # slow to import

    for path in sorted(folder.iterdir()):
        if path.suffix == ".csv":
            write_csv(pd.read_csv(path, dtype=str, keep_default_na=False).assign(**{name: text}), path)
        elif path.suffix == ".parquet":
            write_parquet(pd.read_parquet(path).assign(**{name: text}), path)
