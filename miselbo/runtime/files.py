"""Atomic writes: a reader, or a run that goes on after a kill, never sees half a file.

An error of the machine (no space, no permission, ...) leaves no temporary file and carries the path that was written.
"""

import contextlib
import json
import os
import re
import socket
import stat
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_HOST = re.sub(r"[^\w.]", "_", socket.gethostname())[:60]
_TEMPORARY = re.compile(rf"\..+\.{re.escape(_HOST)}-(\d+)\.tmp")  # of this machine; the number is a process


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block ends without an error.

    A link at ``path`` is replaced, not followed.

    Raises:
        OSError: the machine's, with ``path`` as its ``filename``.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic(folder / "a.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> [file.name for file in folder.iterdir()]
        ['a.txt']
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}.tmp")
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the machine inside the block name ``path``, unless it names another file already."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename).endswith(".tmp"):
            error.filename = str(path)
        raise


def is_temporary(path: Path) -> bool:
    """Whether a name is one that :func:`atomic` gives to what is not yet whole, on whatever machine.

    Example:
        >>> is_temporary(Path(".a.csv.host-12.tmp")), is_temporary(Path("a.tmp"))
        (True, False)
    """
    return re.fullmatch(r"\..+\.[\w.]+-\d+\.tmp", path.name) is not None


def forget_temporaries(folder: Path) -> None:
    """Remove what processes of this machine that were killed left half written below ``folder``."""
    for place, _, names in os.walk(folder):
        for name in names:
            found = _TEMPORARY.fullmatch(name)
            if found is not None and not alive(int(found[1])):
                with contextlib.suppress(OSError):
                    Path(place, name).unlink()


def alive(process: int) -> bool:
    """Whether a process of this machine runs.

    Example:
        >>> alive(os.getpid())
        True
    """
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@cache
def own_temporary() -> Path | None:
    """A folder below the temporary one that nobody else writes to, as code is loaded from it; None if none can be."""
    try:
        folder = Path(tempfile.gettempdir(), f"miselbo-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
    except OSError:
        return None
    own = stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o077
    return folder if own else None


def memory_map(path: Path, shape: tuple[int, ...], dtype: str) -> np.memmap:
    """A new .npy file as a writable array in memory; its space is taken from the disk at once.

    A map of a file with holes is cheaper, and ends the process without a word (SIGBUS) when the disk is full.

    Raises:
        OSError: no room; the file is gone then.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "a.npy"
        >>> memory_map(path, (2, 3), "uint8").shape, np.load(path).sum()
        ((2, 3), np.uint64(0))
    """
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                file.flush()
                size = file.tell() + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                else:  # macOS
                    file.truncate(size)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return np.lib.format.open_memmap(path, mode="r+")


def write_tensors(path: Path, content: object) -> None:
    """Write what ``torch.save`` takes atomically."""
    import torch  # slow to import

    with atomic(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's, about its place in the file; the system's is below it
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            if cause is None:
                raise
            raise OSError(cause.errno, cause.strerror) from None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
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
