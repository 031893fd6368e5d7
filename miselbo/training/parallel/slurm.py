"""Processes that srun has started, all with one command: rank 0 leads, the others hear from it what to train.

They meet at a store of keys that rank 0 serves (``MASTER_ADDR`` and ``MASTER_PORT``, by default the SLURM job's first
machine and a port from its number). Every job of a sweep has a key there: rank 0 sets it to the path of the run's
configuration, or to nothing when there is nothing to train.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from miselbo.errors import InputError

if TYPE_CHECKING:
    from pytorch_lightning.plugins.environments import SLURMEnvironment
    from torch.distributed import PrefixStore, TCPStore

JOIN = timedelta(minutes=10)  # to find one another
WAIT = timedelta(days=7)  # rank 0 evaluates a job of a sweep while the others wait for the next one
_numbers = itertools.count()
_jobs: list[str] = []  # the key of the job that runs


def asked(trainer: Mapping[str, object]) -> bool:
    """Whether the trainer's arguments are for processes that srun starts (``trainer=slurm``).

    Example:
        >>> asked({"devices": 2})
        False
    """
    return trainer.get("plugins") is not None


def number(trainer: Mapping[str, object]) -> int:
    """Rank of this process among those srun has started for the run; 0 where it has not."""
    return int(os.environ.get("SLURM_PROCID", 0)) if asked(trainer) else 0


def check(processes: int) -> None:
    """Whether srun has started as many processes as the configuration says.

    Raises:
        InputError: it has not.
    """
    found = os.environ.get("SLURM_NTASKS")
    if found is None or "SLURM_PROCID" not in os.environ:
        raise InputError(
            "trainer=slurm is for processes that srun starts, and SLURM_PROCID or SLURM_NTASKS is not set: use "
            "'srun python run.py trainer=slurm ...' in a SLURM job, or trainer=ddp elsewhere"
        )
    if int(found) != processes:
        raise InputError(
            f"srun has started {found} processes, but trainer.num_nodes x trainer.devices = {processes}: give them as "
            "the job's --nodes and --ntasks-per-node"
        )


@contextlib.contextmanager
def leading(trainer: Mapping[str, object], task: str) -> Iterator[None]:
    """Rank 0, around a job: the processes that wait hear of it, whatever becomes of the job."""
    if not asked(trainer) or task != "run" or int(os.environ.get("SLURM_NTASKS", 1)) == 1:
        yield
        return
    key = f"job{next(_numbers)}"
    _jobs.append(key)
    try:
        yield
    finally:
        if key in _jobs:  # nothing was told
            tell(None)
            others = range(1, int(os.environ["SLURM_NTASKS"]))
            with contextlib.suppress(RuntimeError):  # one that is gone need not hear
                store().wait([f"{key} heard {rank}" for rank in others], JOIN)


def tell(path: Path | None) -> "PrefixStore":
    """Rank 0: the configuration to train with in this job; returns the part of the store that is the job's own."""
    key = _jobs.pop()
    store().set(key, str(path or ""))
    return own(key)


def listen() -> "tuple[Path, PrefixStore] | None":
    """Another rank: the configuration to train with in this job and the job's part of the store; or None."""
    key = f"job{next(_numbers)}"
    store().wait([key], WAIT)
    told = store().get(key).decode()
    store().set(f"{key} heard {os.environ['SLURM_PROCID']}", "")
    return (Path(told), own(key)) if told else None


def own(key: str) -> "PrefixStore":
    """A job's part of the store."""
    from torch.distributed import PrefixStore

    return PrefixStore(key, store())


@cache
def store() -> "TCPStore":
    """The store, served by rank 0."""
    from torch.distributed import TCPStore

    place, leads = environment(), os.environ["SLURM_PROCID"] == "0"
    return TCPStore(place.main_address, place.main_port, None, leads, JOIN, wait_for_workers=False)


def environment() -> "SLURMEnvironment":
    """Lightning's reading of SLURM's variables; a killed job is submitted again by the job's script, not by it."""
    from pytorch_lightning.plugins.environments import SLURMEnvironment

    return SLURMEnvironment(auto_requeue=False)
