"""Settings of the process that make small networks fast on a CPU; results do not depend on them."""

import ctypes
import os
import sys
from pathlib import Path

import torch

from miselbo.errors import InputError
from miselbo.runtime.files import own_temporary

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's mallopt
_LARGEST = 32 * 2**20


def prepare(num_threads: int | None) -> None:
    """Set torch's threads and let the C library keep freed memory.

    By default glibc gives blocks of some megabytes back to the kernel when a tensor dies and asks for them again
    for the next one; the page faults cost a third of a training step at 32 x 32 pixels. Does nothing without glibc.

    Args:
        num_threads: of one process; None leaves torch's choice.
    """
    if num_threads:
        torch.set_num_threads(num_threads)
    find_room_for_matplotlib()
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def find_room_for_matplotlib() -> None:
    """Where the home cannot be written to, let matplotlib keep its fonts elsewhere, without three lines of warning."""
    home = Path(os.path.expanduser("~"))
    places = (home / ".config" / "matplotlib", home / ".config", home)
    there = next((place for place in places if place.exists()), None)
    if "MPLCONFIGDIR" not in os.environ and not (there and os.access(there, os.W_OK)):
        own = own_temporary()
        if own is not None:
            os.environ["MPLCONFIGDIR"] = str(own / "matplotlib")


def check_accelerator(name: object) -> None:
    """Refuse to train on a GPU that is not there.

    Raises:
        InputError: ``trainer.accelerator`` asks for one and torch finds none.

    Example:
        >>> check_accelerator("auto")
    """
    found = torch.cuda.is_available() or (name == "gpu" and torch.backends.mps.is_available())
    if name in ("gpu", "cuda") and not found:
        raise InputError(
            f"trainer.accelerator={name}, but torch finds no GPU here: use trainer=default, or for several processes "
            "on a CPU trainer=ddp_fork trainer.devices=<number>"
        )


def device(accelerator: object) -> str:
    """Where to compute: "cuda" where ``trainer.accelerator`` allows it and torch finds one, else "cpu".

    Example:
        >>> device("cpu")
        'cpu'
    """
    return "cuda" if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda") else "cpu"
