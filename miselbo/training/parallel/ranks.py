"""One training in several processes ("ranks"): rank 0 is the run's own, the others only train beside it.

A rank reads the run's resolved configuration from ``.hydra/config.yaml``, never the command line, so it is all the same
whether the run is a single one, a job of a sweep, under a launcher, or started from a notebook:

* ``trainer=ddp`` and ``trainer=ddp_fork``: rank 0 starts the others on its machine, each as
  ``python -m miselbo.training.parallel.ranks <configuration> <rank> <folder to meet in>``;
* ``trainer=slurm``: srun has started them all (:mod:`miselbo.training.parallel.slurm`).

Only ``model.fit`` runs in all of them. Rank 0 alone writes, and evaluates and reports when the others have gone.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from miselbo.errors import InputError, TrainingDivergedError
from miselbo.runtime import stopping
from miselbo.training.parallel import slurm as srun

if TYPE_CHECKING:
    from torch.distributed import Store

STRATEGIES = ("auto", "ddp", "ddp_fork")
Process = subprocess.Popen[bytes]


def check(trainer: Mapping[str, object], single: str | None) -> None:
    """Refuse what several processes cannot do.

    Args:
        trainer: arguments of the trainer.
        single: what trains in one process alone, in words; None where several can train together.

    Raises:
        InputError: the strategy, the number of devices, the model, or SLURM's variables.
    """
    strategy, total = trainer["strategy"], processes(trainer)
    if strategy not in STRATEGIES:
        raise InputError(f"trainer.strategy={strategy} is not offered; known are {', '.join(STRATEGIES)}")
    if strategy == "ddp_fork" and on_gpu(trainer):
        raise InputError("trainer.strategy=ddp_fork is for processes on a CPU: on GPUs use trainer=ddp")
    if srun.asked(trainer):
        srun.check(total)
    if total > 1 and single:
        raise InputError(
            f"{single} in one process, got trainer.devices={trainer['devices']}: use trainer=default"
        )


def processes(trainer: Mapping[str, object]) -> int:
    """Processes that train together, on all machines.

    Raises:
        InputError: ``trainer.devices`` or ``trainer.num_nodes`` is no such number.

    Example:
        >>> processes({"accelerator": "cpu", "devices": 2})
        2
    """
    return devices(trainer.get("num_nodes", 1), False) * devices(trainer["devices"], on_gpu(trainer))


def devices(given: object, gpu: bool) -> int:
    """How many devices ``trainer.devices`` means: a number, a list of GPUs, "auto" or -1.

    Example:
        >>> devices(4, gpu=True), devices("0,2", gpu=True), devices("auto", gpu=False)
        (4, 2, 1)
    """
    if isinstance(given, str) and "," in given:
        return len([part for part in given.split(",") if part])
    if isinstance(given, list):
        return len(given)
    if given in ("auto", -1, "-1"):
        import torch

        return torch.cuda.device_count() if gpu else 1
    if not str(given).isdecimal() or int(str(given)) < 1:
        raise InputError(f"trainer.devices must be a whole number of at least 1, or auto, got {given!r}")
    return int(str(given))


def on_gpu(trainer: Mapping[str, object]) -> bool:
    """Whether training is on GPUs."""
    if trainer["accelerator"] not in ("auto", "gpu", "cuda"):
        return False
    import torch  # takes seconds

    return torch.cuda.is_available()


@contextlib.contextmanager
def together(trainer: Mapping[str, object], path: Path) -> Iterator[None]:
    """Rank 0, around ``model.fit``: the other ranks train beside it.

    Args:
        trainer: arguments of the trainer.
        path: of the run's resolved configuration.

    Raises:
        RuntimeError: one of them failed.
    """
    total, path = processes(trainer), path.absolute()
    if total == 1:
        yield
    elif srun.asked(trainer):
        with group(trainer, 0, srun.tell(path)):
            yield
    else:
        with (
            tempfile.TemporaryDirectory(prefix="miselbo-") as meeting,
            started(path, total, meeting) as others,
            group(trainer, 0, file_store(meeting, total)),
            blaming(others),
        ):
            yield


@contextlib.contextmanager
def started(path: Path, total: int, meeting: str) -> Iterator[list[Process]]:
    """The other ranks on this machine, which have read their data when the block starts and have gone when it ends."""
    others = [start(path, rank, meeting) for rank in range(1, total)]
    try:
        with blaming(others):
            wait_until_there(others, Path(meeting))
        yield others
        for process in others:
            process.wait(60)
    finally:
        for process in others:
            if process.poll() is None:
                process.kill()
                process.wait()


@contextlib.contextmanager
def blaming(others: Sequence[Process]) -> Iterator[None]:
    """Turn an error that comes of another rank's end, such as a connection that is cut, into one that names the rank.

    Raises:
        RuntimeError: such an error.
    """
    try:
        yield
    except TrainingDivergedError:
        raise
    except RuntimeError as error:
        stopping.check()  # a scheduler stops all processes at once
        raise failure(others) or error from error


def start(path: Path, rank: int, meeting: str) -> Process:
    """Start a rank on this machine; it finds what this process can import."""
    places = [place or os.getcwd() for place in sys.path]
    return subprocess.Popen(
        [sys.executable, "-m", "miselbo.training.parallel.ranks", str(path), str(rank), meeting],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for rank 0, which ends the others
    )


def wait_until_there(others: Sequence[Process], meeting: Path) -> None:
    """Until every process has read its data; RuntimeError when one has ended instead."""
    while not all((meeting / f"{rank}").exists() for rank in range(1, len(others) + 1)):
        if any(process.poll() is not None for process in others):
            raise RuntimeError("a training process did not start")
        time.sleep(0.05)


def failure(others: Sequence[Process]) -> RuntimeError | None:
    """An error that names the process that failed; None when none did."""
    end = time.monotonic() + 2  # its connection is cut before it has ended
    while time.monotonic() < end and all(process.poll() is None for process in others):
        time.sleep(0.05)
    for rank, process in enumerate(others, start=1):
        if process.poll():
            return RuntimeError(
                f"training process {rank} of {len(others) + 1} failed (exit status {process.returncode}), its error is "
                "above; the same command goes on from the last resume point"
            )
    return None


def file_store(meeting: str, total: int) -> "Store":
    """torch's store of keys in a file of this machine."""
    from torch.distributed import FileStore

    return FileStore(str(Path(meeting) / "store"), total)


@contextlib.contextmanager
def group(trainer: Mapping[str, object], rank: int, store: "Store") -> Iterator[None]:
    """torch's process group inside the block."""
    from torch import distributed

    backend = "cpu:gloo,cuda:nccl" if on_gpu(trainer) else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=processes(trainer))
    try:
        yield
    finally:
        distributed.destroy_process_group()


def trainer_arguments(trainer: Mapping[str, object], find_unused: bool) -> dict[str, object]:
    """What Lightning's trainer must know of the processes, which are there already.

    Args:
        trainer: its arguments so far.
        find_unused: whether a step may leave out parameters in training.
    """
    from miselbo.training.parallel.strategy import Local, Together, collectives

    if collectives.size() == 1:
        return {"strategy": "auto"}
    environment = srun.environment() if srun.asked(trainer) else Local()
    # buffers are the same in all processes where batch norms are synchronised; validation makes the others so
    together = Together(
        cluster_environment=environment, broadcast_buffers=False, find_unused_parameters=find_unused
    )
    return {"strategy": together, "plugins": None}


def follow(trainer: Mapping[str, object]) -> None:
    """A job of a rank that srun has started: train what rank 0 tells."""
    told = srun.listen()
    if told is not None:
        path, store = told
        end = time.monotonic() + 60  # a file that another machine wrote may show late
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.2)
        train_beside(path, srun.number(trainer), lambda trainer: store)


def train_beside(path: Path, rank: int, meet: "Callable[[Mapping[str, object]], Store]") -> None:
    """A rank's whole work.

    Args:
        path: of the run's resolved configuration.
        rank: of this process, 1 or more.
        meet: called with the trainer's arguments when the data are there; returns the store to meet at.
    """
    from miselbo.runs.plan import rebuild
    from miselbo.runtime import machine

    run = rebuild(path)
    trainer = run.plan.trainer
    machine.prepare(run.plan.num_threads)
    # all processes diverge in the same step: rank 0 says so
    with contextlib.suppress(TrainingDivergedError), group(trainer, rank, meet(trainer)):
        run.fit(run.target, run.members, run.data, run.plan, Path(run.folder), lambda member: [])


def main() -> None:
    """A rank that rank 0 has started."""
    path, rank, meeting = sys.argv[1:]

    def meet(trainer: Mapping[str, object]) -> "Store":
        (Path(meeting) / rank).touch()
        return file_store(meeting, processes(trainer))

    try:
        train_beside(Path(path), int(rank), meet)
    except InputError as error:
        print(f"error in training process {rank}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        from miselbo.runtime import faults

        if (fault := faults.explain(error)) is None:
            raise
        print(f"error in training process {rank}: {fault}", file=sys.stderr)
        sys.exit(faults.STATUS)


if __name__ == "__main__":
    main()
