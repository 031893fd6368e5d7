"""Requests to stop from outside: SIGTERM (a scheduler takes the machine back), or the end of ``trainer.max_time``.

Inside :func:`watching` such a request raises :class:`~miselbo.errors.Stopped` at once; inside :func:`holding`, where a
step must be whole, it waits until the block calls :func:`check`. The command line then ends with status ``STATUS``.
"""

import contextlib
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta
from types import FrameType

from miselbo.errors import InputError, Stopped

STATUS = 75  # EX_TEMPFAIL of sysexits.h: not finished, the same command goes on
_reason: str | None = None
_raised = _watching = False
_held = _process = 0


@contextlib.contextmanager
def watching(limit: float | None = None) -> Iterator[None]:
    """Turn SIGTERM, and the end of ``limit`` seconds, into :class:`~miselbo.errors.Stopped` inside the block.

    Nested blocks share the outermost one's handler. Outside the main thread SIGTERM is left alone.

    Example:
        >>> with watching():
        ...     try:
        ...         os.kill(os.getpid(), signal.SIGTERM)
        ...     except Stopped as stop:
        ...         print(stop)
        SIGTERM
    """
    global _reason, _raised, _watching, _process
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    timer = threading.Timer(limit, _time_is_over) if limit is not None else None
    outermost = not _watching
    if outermost:
        before = signal.signal(signal.SIGTERM, _on_signal)
        _reason, _raised, _watching, _process = None, False, True, os.getpid()
    try:
        if timer is not None:
            timer.daemon = True
            timer.start()
        yield
    finally:
        if timer is not None:
            timer.cancel()
        if outermost:
            _watching = False
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def holding() -> Iterator[None]:
    """Inside, a request waits for :func:`check`, so that nothing is left half done."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1


def requested() -> bool:
    """Whether a request to stop waits."""
    return _reason is not None and not _raised


def check() -> None:
    """Raise :class:`~miselbo.errors.Stopped` if a request waits."""
    global _raised
    if requested():
        _raised = True
        raise Stopped(_reason)


def _on_signal(signum: int, frame: FrameType | None) -> None:
    global _reason
    _reason = _reason or "SIGTERM"
    if not _held and os.getpid() == _process:  # a forked process is stopped by what forked it
        check()


def _time_is_over() -> None:
    global _reason
    _reason = _reason or "trainer.max_time is over"
    os.kill(os.getpid(), signal.SIGTERM)


def seconds(given: object) -> float | None:
    """``trainer.max_time`` in seconds: "DD:HH:MM:SS", or units by name as in {hours: 12}; None for no limit.

    Raises:
        InputError: neither, or nothing at all.

    Example:
        >>> seconds("00:12:00:30"), seconds({"hours": 1, "minutes": 30}), seconds(None)
        (43230.0, 5400.0, None)
    """
    if given is None:
        return None
    try:
        if isinstance(given, Mapping):
            found = timedelta(**{str(key): float(value) for key, value in given.items()}).total_seconds()
        else:
            days, hours, minutes, rest = map(int, re.fullmatch(r"(\d+):(\d+):(\d+):(\d+)", given).groups())  # type: ignore
            found = timedelta(days=days, hours=hours, minutes=minutes, seconds=rest).total_seconds()
    except (TypeError, AttributeError, ValueError, OverflowError):
        found = 0.0
    if not found > 0:
        raise InputError(
            f"trainer.max_time must be DD:HH:MM:SS, such as 00:12:00:00 for 12 hours, or {{hours: 12}}; got {given!r}"
        )
    return found
