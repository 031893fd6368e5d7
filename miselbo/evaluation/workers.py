"""Several processes share one evaluation: each writes the shards of its own batches, none is counted twice."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from miselbo.errors import Stopped
from miselbo.evaluation.multilevel import write_pieces
from miselbo.evaluation.scoring import NetworkSource, refined
from miselbo.evaluation.settings import Settings
from miselbo.evaluation.shards import write_shards
from miselbo.runs.plan import reopen
from miselbo.runs.restore import restore
from miselbo.runtime import faults, machine, stopping
from miselbo.runtime.processes import end, follow_parent
from miselbo.runtime.progress import Meter

Units = tuple[Sequence[int], bool]  # of each level, and whether of the pilot


def number_of_processes(workers: int | str, device: str) -> int:
    """``evaluation.workers``: "auto" is one process per GPU, and one without."""
    if workers != "auto":
        return int(workers)
    return torch.cuda.device_count() if device == "cuda" else 1


def score_in_processes(
    recipe: str,
    show: bool,
    settings: Settings,
    device: str,
    count: int,
    num_data: int,
    shards: Path,
    units: Units | None = None,
) -> None:
    """Write the shards of an evaluation with ``count`` processes, rank r taking batches r, r + count, ...

    Args:
        recipe: configuration as YAML; the processes load the members from its run folder.
        show: progress.
        settings: of the evaluation.
        device: "cpu", or "cuda" for one GPU per process.
        count: number of processes.
        num_data: examples in all, for the progress.
        shards: folder to write to.
        units: of every level of a multilevel evaluation, whose pieces are written then, and whether
            they are the pilot's.

    Raises:
        RuntimeError: a process failed; finished shards are kept, and the same command goes on from them.
    """
    context = torch.multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_work, args=(recipe, settings, device, rank, count, shards, units))
        for rank in range(count)
    ]
    meter = Meter(f"evaluate in {count} processes", num_data, show)
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            time.sleep(0.2)
            finished = len(list(shards.glob("[0-9]*.npz"))) * settings.batch_size
            if finished:
                meter.update(min(finished, num_data))
    finally:
        meter.close()
        end([process for process in processes if process.pid is not None])
    failed = [rank for rank, process in enumerate(processes) if process.exitcode]
    if failed:
        raise RuntimeError(
            f"evaluation process {failed[0]} of {count} failed (exit status {processes[failed[0]].exitcode}); "
            "its error is above, finished shards are kept"
        )


def _work(
    text: str,
    settings: Settings,
    device: str,
    rank: int,
    count: int,
    shards: Path,
    units: tuple[Sequence[int], bool] | None,
) -> None:
    """What one process scores."""
    follow_parent()
    with _in_a_line(rank), stopping.watching():
        run = reopen(text)
        machine.prepare(run.num_threads)
        ensemble = refined(restore(run.source, run.data), settings)
        place = f"cuda:{rank % torch.cuda.device_count()}" if device == "cuda" else device
        source = NetworkSource(ensemble, run.data, settings, place)
        if units is not None:
            with torch.inference_mode():
                write_pieces(source, settings, shards, units[0], units[1], rank, count)
            return
        write_shards(source, settings, shards, Meter("", source.num_data, enabled=False), rank, count)


@contextlib.contextmanager
def _in_a_line(rank: int) -> Iterator[None]:
    """A stop and what the machine lacks as a status of the process, the latter with a line."""
    try:
        yield
    except Stopped:
        sys.exit(stopping.STATUS)
    except Exception as error:
        if (fault := faults.explain(error)) is None:
            raise
        print(f"error in evaluation process {rank}: {fault}", file=sys.stderr)
        sys.exit(faults.STATUS)
