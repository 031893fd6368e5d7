"""A fit function for tests of worker processes: members that fail in different ways."""

import os
import signal
from pathlib import Path
from typing import Any

from miselbo.errors import InputError


def fit(target: Any, members: Any, data: Any, plan: Any, folder: Path, loggers: Any, only: int) -> None:
    """q2 is fine, q3 always fails, q4 dies at its first try, q5 has bad input."""
    (logger,) = loggers(only)
    logger.log_metrics({"train/elbo": float(only), "epoch": 0}, 7)
    with (folder / f"tries{only}").open("a") as file:
        file.write("x")
    if only == 3:
        raise RuntimeError("no luck")
    if only == 4 and (folder / "tries4").read_text() == "x":
        os.kill(os.getpid(), signal.SIGKILL)
    if only == 5:
        raise InputError("no such file")
