"""Locks on parts of a run folder, so that two commands never do the same work. A killed process leaves none."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from multiprocessing import parent_process
from pathlib import Path

from filelock import FileLock, Timeout
from lightning_utilities.core.rank_zero import rank_zero_only  # Lightning's own, which sets its rank

from miselbo.errors import InUseError
from miselbo.runtime.files import alive, write_json
from miselbo.runtime.processes import GRACE

WHOLE = "folder"  # the part that a command holds which reads or writes all of a folder


@contextlib.contextmanager
def hold(folder: Path, part: str, doing: str = "being trained") -> Iterator[None]:
    """Hold the lock ``<folder>/.locks/<part>``; the operating system releases it however the process ends.

    Only the first of several processes of one training takes it. A worker whose main process was killed is waited for:
    it ends by itself. A file system without locks is used without them.

    Args:
        folder: run folder.
        part: what is worked on, such as "q3", or :data:`WHOLE`.
        doing: what is done to it, for another process' message.

    Raises:
        InUseError: another process holds it.

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
        acquire(lock, owner, GRACE)
    except NotImplementedError:
        print(f"{folder} is on a file system without locks: start no other command on it", flush=True)
        yield
        return
    except Timeout:
        found = _read(owner)
        what = f"{folder}" if part == WHOLE else f"{part} of {folder}"
        raise InUseError(
            f"{what} is {found.get('doing', doing)} by another process ({_number(found)}): wait for it, or stop it"
        ) from None
    try:
        parent = None if parent_process() is None else os.getppid()
        mine = {"host": socket.gethostname(), "process": os.getpid(), "parent": parent, "doing": doing}
        write_json(owner, mine)
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink(missing_ok=True)
        lock.release()


def holders(folder: Path) -> dict[str, dict[str, object]]:
    """What processes hold of a folder, as far as one can see: part -> host, process, what it does.

    A process of this machine that has ended is left out; one of another machine is believed.
    """
    found = {}
    for path in sorted((folder / ".locks").glob("*.json")):
        owner = _read(path)
        number = owner.get("process")
        if isinstance(number, int) and (owner.get("host") != socket.gethostname() or alive(number)):
            found[path.stem] = owner
    return found


def acquire(lock: FileLock, owner: Path, patience: float) -> None:
    """Take a lock, at once or, where its owner is a worker that a killed command has left, when that one has ended.

    Raises:
        Timeout: another process holds it.
    """
    end = time.monotonic() + patience
    while True:
        try:
            lock.acquire()
            return
        except Timeout:
            if time.monotonic() > end or not _left_alone(_read(owner)):
                raise
        time.sleep(0.1)


def _left_alone(owner: dict[str, object]) -> bool:
    parent = owner.get("parent")
    return owner.get("host") == socket.gethostname() and isinstance(parent, int) and not alive(parent)


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(owner: dict[str, object]) -> str:
    if "process" not in owner or "host" not in owner:
        return "which has just started"
    return f"number {owner['process']} on {owner['host']}"
