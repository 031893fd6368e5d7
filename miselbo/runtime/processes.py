"""Worker processes that never outlive the process that started them."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess

GRACE = 60.0  # seconds in which a process may save what it has after it was asked to stop


_WHEN_PARENT_DIES = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
_following = False


def follow_parent() -> None:
    """In a worker: stop, as on SIGTERM, when the parent process is gone, however it ended; Ctrl-C is the parent's.

    Linux tells at once; elsewhere it is looked for twice a second.
    """
    global _following
    if not _following:
        _following = True
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        parent = parent_process()
        number = os.getppid() if parent is None else parent.pid
        prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
        if prctl is not None:
            prctl(_WHEN_PARENT_DIES, signal.SIGTERM, 0, 0, 0)
        threading.Thread(target=_follow, args=(number,), daemon=True).start()


def _follow(parent: int | None) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


def ask(processes: Sequence[BaseProcess | None]) -> None:
    """Ask processes to stop: they save what they have and end."""
    for process in processes:
        if process is not None and process.is_alive():
            process.terminate()


def end(processes: Sequence[BaseProcess], grace: float = GRACE) -> None:
    """Ask processes to stop, wait for them, and kill those that have not ended after ``grace`` seconds."""
    ask(processes)
    deadline = time.monotonic() + grace
    for process in processes:
        if process.pid is not None:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
