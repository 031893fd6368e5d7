"""Locks on parts of a run folder, so that two commands never train the same member. A killed process leaves none."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from lightning_utilities.core.rank_zero import rank_zero_only  # Lightning's own, which sets its rank

from miselbo.errors import InputError
from miselbo.runtime.files import write_json


@contextlib.contextmanager
def hold(folder: Path, part: str) -> Iterator[None]:
    """Hold the lock ``<folder>/.locks/<part>``; the operating system releases it however the process ends.

    Only the first of several processes of one training takes it. A file system without locks is used without them.

    Args:
        folder: run folder.
        part: what is worked on, such as "q3".

    Raises:
        InputError: another process holds it.

    Example:
        >>> import tempfile
        >>> with hold(Path(tempfile.mkdtemp()), "q3"):
        ...     pass
    """
    if getattr(rank_zero_only, "rank", 0):
        yield
        return
    place = folder / ".locks"
    place.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(place / f"{part}.lock", timeout=0), place / f"{part}.json"
    try:
        lock.acquire()
    except NotImplementedError:
        print(f"{folder} is on a file system without locks: start no other command on it", flush=True)
        yield
        return
    except Timeout:
        raise InputError(
            f"{part} of {folder} is being trained by another process ({_owner(owner)}): wait for it, or stop it"
        ) from None
    try:
        write_json(owner, {"host": socket.gethostname(), "process": os.getpid()})
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _owner(path: Path) -> str:
    try:
        found = json.loads(path.read_text())
        return f"number {found['process']} on {found['host']}"
    except (OSError, ValueError, KeyError):
        return "which has just started"
