"""A machine that fails: what ran out, where, and the fix, in one sentence; the same command goes on afterwards."""

import errno
import os
import shutil
from pathlib import Path

from miselbo.runtime import memory
from miselbo.runtime.words import shown

STATUS = 74  # EX_IOERR of sysexits.h
AGAIN = "what is done is kept, the same command goes on from there"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
_BROKEN = (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ENOLCK)


def explain(error: BaseException) -> str | None:
    """One sentence about an error that is the machine's; None for any other.

    Looks at what the error came from, too: libraries wrap the system's word in their own.

    Example:
        >>> explain(PermissionError(errno.EACCES, "Permission denied", "/data/run"))
        '/data/run: permission denied: choose another run_dir, or ask for the right to write there'
        >>> explain(ValueError("sizes differ")) is None
        True
    """
    below: BaseException | None = error
    seen = set[int]()
    while below is not None and id(below) not in seen:
        seen.add(id(below))
        found = _of_system(below) if isinstance(below, OSError) else None
        if found is None and memory.out_of_memory(below):
            found = _of_memory(below)
        if found is None and "too many open files" in str(below).lower():
            found = _of_descriptors()
        if found is not None:
            return found
        below = below.__cause__ or (None if below.__suppress_context__ else below.__context__)
    return None


def _of_system(error: OSError) -> str | None:
    place = shown(error.filename) if isinstance(error.filename, str | bytes) else "an open file"
    if error.errno in _FULL:
        return f"{place}: {_room(error)}; {AGAIN}"
    if error.errno == errno.EROFS:
        return f"{place}: the file system is read-only: choose another run_dir"
    if error.errno in _CLOSED:
        return f"{place}: permission denied: choose another run_dir, or ask for the right to write there"
    if error.errno in _DESCRIPTORS:
        return _of_descriptors()
    if error.errno == errno.ENOMEM:
        return _of_memory(error)
    if error.errno in _BROKEN:
        return f"{place}: the disk or its file system failed ({error.strerror}): see to it; {AGAIN}"
    return None


def _room(error: OSError) -> str:
    """What is full: the disk, a quota, or the size a file may have."""
    if error.errno == errno.EFBIG:
        return "larger than a file may be here (ulimit -f): raise it"
    what = "no space left" if error.errno == errno.ENOSPC else "the disk quota is used up"
    with_room = ""
    if isinstance(error.filename, str | bytes):
        folder = Path(os.fsdecode(error.filename)).absolute().parent
        while not folder.exists():
            folder = folder.parent
        with_room = f" ({shutil.disk_usage(folder).free / 2**20:,.0f} MB free)"
    return f"{what}{with_room}: make room, or choose another run_dir"


def _of_memory(error: BaseException) -> str:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return (
        f"out of memory ({reason}): lower dataset.batch_size, evaluation.samples_per_pass, evaluation.batch_size "
        f"or the number of workers, or close other programs; {AGAIN}"
    )


def _of_descriptors() -> str:
    limit = ""
    try:
        import resource  # not on Windows

        limit = f" ({resource.getrlimit(resource.RLIMIT_NOFILE)[0]} are allowed)"
    except ImportError:
        pass
    return f"too many open files{limit}: raise the limit (ulimit -n), or lower the number of workers; {AGAIN}"
