"""Experiments of several runs: each part is an ordinary run folder, so a killed study goes on with the same command.

A study is a function ``run(study, **arguments)`` named by the node ``study`` of a yaml in ``conf/experiment``. It lists
its :class:`SubRun` parts, calls :func:`run_parts`, and reads what it needs from their folders.
"""

import contextlib
import io
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path

import pandas as pd

from miselbo.errors import InputError
from miselbo.report.checked import read_table
from miselbo.runs import config
from miselbo.runs.plan import Study
from miselbo.runtime.processes import end, follow_parent
from miselbo.runtime.progress import Meter

# folders with the papers' values; a wheel carries them as miselbo.published (results go below the current folder)
PUBLISHED = config.PACKAGE / "published" if config.INSTALLED else config.PACKAGE.parent / "experiments"


@dataclass(frozen=True)
class SubRun:
    """One part: the name of its folder and the overrides that make it."""

    name: str
    overrides: Sequence[str]


def inherited(study: Study) -> list[str]:
    """What every part takes over from the study: seed, threads, device. Progress is the study's own."""
    return [
        f"seed={study.seed}",
        f"num_threads={'null' if study.num_threads is None else study.num_threads}",
        f"trainer.accelerator={study.accelerator}",
        "trainer.enable_progress_bar=false",
        "report=false",
        *config.searchpath(config.SEARCHED),
    ]


def run_parts(study: Study, parts: Sequence[SubRun], workers: int = 1) -> dict[str, Path]:
    """Run every part in ``<run_dir>/<name>`` through :func:`miselbo.pipeline.run`; finished work is not redone.

    Args:
        study: the whole.
        parts: with different names.
        workers: processes that share the parts; 1 runs them here.

    Returns:
        The folder of every part.

    Raises:
        InputError: from a part, its name before the message.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise InputError(f"study.workers must be a whole number of at least 1, got {workers!r}")
    folder = study.folder
    study.claim()
    jobs = [
        (part.name, [*inherited(study), *part.overrides, f"run_dir={folder / part.name}"]) for part in parts
    ]
    meter = Meter("runs", len(jobs), study.progress, interval=5.0)
    if workers == 1:
        for done, job in enumerate(jobs, start=1):
            _run_part(job)
            meter.update(done, job[0])
    else:
        run_in_processes(jobs, workers, meter)
    meter.close()
    return {part.name: folder / part.name for part in parts}


def run_in_processes(jobs: Sequence[tuple[str, list[str]]], workers: int, meter: Meter) -> None:
    """The parts in worker processes; where one fails or a stop is asked for, the others are stopped too."""
    before = set(active_children())
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=follow_parent)
    try:
        futures = {pool.submit(_run_part, job): job[0] for job in jobs}
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            meter.update(done, futures[future])
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        end([process for process in active_children() if process not in before])
        raise
    pool.shutdown()


def _run_part(job: tuple[str, list[str]]) -> None:
    from miselbo.pipeline import run  # torch and Lightning take seconds to import

    name, overrides = job
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            run(config.compose_config(overrides))
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def bounds_of(folder: Path) -> pd.DataFrame:
    """``results/bounds.csv`` of a run folder."""
    return read_table(folder / "results" / "bounds.csv")


def examples_of(folder: Path) -> pd.DataFrame:
    """``results/per_example.parquet`` of a run folder."""
    return read_table(folder / "results" / "per_example.parquet")


def results_folder(given: object) -> Path:
    """The folder a study writes its tables and figures to.

    Raises:
        InputError: it cannot be made.
    """
    folder = Path(str(given)).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to study.results={folder}: {error.strerror}") from None
    return folder


def finish(name: str, folder: Path, text: str, started: float) -> dict[str, object]:
    """Print the study's text and where its files are; what the command returns."""
    seconds = time.monotonic() - started
    print(f"{text}\n\n{name}: {folder} ({seconds:.0f} s)")
    return {"study": name, "results": str(folder), "seconds": seconds}
