"""Numba's ``njit`` with a cache that never stands in the way: kept where it can be, else compiled anew each time.

Numba keeps compiled code beside the source or in the user's cache, and raises where neither can be written to: an
installation of the system's, a container without a home. Here the order is: these two (or ``NUMBA_CACHE_DIR``), a
folder of the user's own in the temporary one, none; what is not the usual place is said once.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numba
from numba.core.caching import FunctionCache
from numba.core.dispatcher import Dispatcher

from miselbo.runtime.files import own_temporary


class Options(TypedDict, total=False):
    """Those of ``numba.njit`` that are used."""

    nogil: bool
    error_model: Literal["python", "numpy"]
    fastmath: bool | set[str]
    inline: Literal["never", "always"]


def compiled(**options: Unpack[Options]) -> Callable[[Callable[..., object]], Dispatcher]:
    """Decorator: ``numba.njit(**options)`` with the cache of this module.

    Example:
        >>> @compiled(error_model="numpy")
        ... def halved(x):
        ...     return x / 2
        >>> halved(3.0)
        1.5
    """

    def decorate(function: Callable[..., object]) -> Dispatcher:
        kernel = numba.njit(**options)(function)
        cache = _cache(function)
        if cache is not None:
            kernel._cache = cache  # type: ignore[attr-defined]
        return kernel

    return decorate


class KernelCache(FunctionCache):
    """A cache whose failures cost time, nothing else."""

    def load_overload(self, sig: object, target_context: object) -> object:
        """What is kept for a signature; None where nothing can be read."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a damaged file may raise anything when it is unpickled
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: object, data: object) -> None:
        """Keep what was compiled, if there is room."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            self.disable()
            say(
                f"cannot be kept in {self.cache_path} ({error.strerror or error}): each run compiles them anew"
            )


@functools.cache
def say(what: str) -> None:
    """One notice, of the main process alone."""
    if parent_process() is None:
        print(f"compiled kernels {what}", file=sys.stderr, flush=True)


def _cache(function: Callable[..., object]) -> KernelCache | None:
    with contextlib.suppress(RuntimeError):  # numba's word for no place
        return KernelCache(function)
    folder = own_temporary()
    if folder is not None:
        with contextlib.suppress(RuntimeError), _numba_keeps_in(folder):
            cache = KernelCache(function)
            say(f"are kept in {folder}, as neither the installation nor the user's cache can be written to")
            return cache
    say("cannot be kept anywhere: each run compiles them anew")
    return None


@contextlib.contextmanager
def _numba_keeps_in(folder: Path) -> Iterator[None]:
    config: Any = numba.config
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        config.CACHE_DIR = before
