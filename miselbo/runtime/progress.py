"""Progress of long work: a rich bar on a terminal, a line now and then elsewhere; both with the time left."""

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_forward: Callable[..., None] | None = None


def forward_to(send: Callable[..., None]) -> None:
    """In a worker process: give what every meter would show to ``send``, for the main process to show."""
    global _forward
    _forward = send


def bars() -> Progress | None:
    """A display for several meters at once, running; None where standard output is not a terminal."""
    if not sys.stdout.isatty():
        return None
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    display = Progress(
        TextColumn("{task.description}"), *columns, TextColumn("{task.fields[note]}"), console=Console()
    )
    display.start()
    return display


class Meter:
    """Counts steps of one piece of work.

    Args:
        label: shown before the bar, such as "q3" or "evaluate".
        total: number of steps.
        enabled: False for silence.
        interval: seconds between lines where standard output is not a terminal.
        shared: display of several meters; without it a meter has one of its own.

    Example:
        >>> meter = Meter("evaluate", total=2, interval=0)
        >>> meter.update(1)
        evaluate  1/2  elapsed 0:00  left 0:00
        >>> meter.close()
    """

    def __init__(
        self,
        label: str,
        total: int,
        enabled: bool = True,
        interval: float = 10.0,
        shared: Progress | None = None,
    ):
        self.label = label
        self.total = total
        self.interval = interval
        self.enabled = enabled
        self._start = self._last = time.monotonic()
        self._first = 0
        self._send = _forward if enabled else None
        self._shared = shared
        self._bar = (shared or bars()) if enabled and self._send is None else None
        if self._bar is not None:
            self._task = self._bar.add_task(label, total=total, note="")
        if self._send is not None:
            self._send("start", label, total)

    def update(self, done: int, note: str = "") -> None:
        """``done`` steps of the total are finished; ``note`` is shown beside them."""
        if self._send is not None:
            self._send("update", done, note)
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        if not self.enabled or now - self._last < self.interval:
            return
        self._last = now
        elapsed = now - self._start
        left = elapsed / max(done - self._first, 1) * (self.total - done)
        times = f"elapsed {clock(elapsed)}  left {clock(left)}"
        print(
            "  ".join(part for part in (self.label, f"{done}/{self.total}", times, note) if part), flush=True
        )

    def skip(self, done: int) -> None:
        """``done`` steps were finished by an earlier process: they say nothing about this one's speed."""
        self._first = done
        if self._send is not None:
            self._send("skip", done)
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def close(self) -> None:
        """Stop the bar."""
        if self._bar is not None and self._shared is None:
            self._bar.stop()


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss.

    Example:
        >>> clock(75), clock(3700)
        ('1:15', '1:01:40')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
