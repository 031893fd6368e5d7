"""Shares out compiled work over torch's number of threads."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch


def share(count: int, work: Callable[[int, int, int], None]) -> None:
    """Call ``work(part, first, last)`` for consecutive ranges that make up ``range(count)``, side by side.

    Args:
        count: number of pieces of work.
        work: must release the interpreter (``nogil``) to gain anything; parts are numbered from 0, at most
            ``torch.get_num_threads()`` of them.

    Example:
        >>> done = []
        >>> share(3, lambda part, first, last: done.extend(range(first, last)))
        >>> sorted(done)
        [0, 1, 2]
    """
    threads = max(1, min(torch.get_num_threads(), count))
    if threads == 1:
        work(0, 0, count)
        return
    cuts = [count * part // threads for part in range(threads + 1)]
    parts = range(threads)
    list(_pool(threads, os.getpid()).map(work, parts, cuts[:-1], cuts[1:]))


@lru_cache(maxsize=4)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)  # of this process: threads do not survive a fork
