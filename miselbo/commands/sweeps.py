"""Sweeps: a folder that the same command finds again, a record per job, failures that stop nothing, tables at the end.

Every job writes ``<sweep>/jobs/<run folder>.json``, whatever process or machine it runs in; :mod:`miselbo.report.sweep`
makes the tables from these records and the run folders alone.
"""

import hashlib
import json
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from miselbo.errors import InputError, InUseError, Stopped
from miselbo.runs import config
from miselbo.runs.folder import is_free
from miselbo.runtime import faults, locks
from miselbo.runtime.files import write_json
from miselbo.runtime.reading import read_json
from miselbo.training.parallel import slurm as srun

# beside run_dir, what may differ between two commands of which the second finds the job finished
HARMLESS = (
    "run_dir", "sweep_dir", "num_threads", "logger", "optimized_metric", "from_run", "model.cost",
    "runs", "allow", "json",
    "ensemble.resume_interval", "ensemble.workers",
    "evaluation.workers", "member",
    "dataset.num_workers", "dataset.download", "dataset.cache", "trainer.enable_progress_bar", "trainer.max_time",
    "trainer.log_every_n_steps",
)  # fmt: skip
STATES = ("running", "stopped", "failed", "finished")
NAMED = (
    "experiment",
    "model",
    "dataset",
    "seed",
    "ensemble.size",
)  # in the readable part of a run folder's name


def folder_overrides(overrides: Sequence[Override]) -> list[str]:
    """Hydra overrides that give a sweep a folder of its own, the same one for the same command.

    The folder depends on which keys are swept and on the fixed overrides that decide what is trained, but not on the
    swept values: the same sweep with more seeds goes on in the same folder. A swept key that a run folder's name leaves
    out otherwise (``evaluation.num_samples``) is part of it here, so that two jobs never share a folder.

    Example:
        >>> folder_overrides(config.parse(["seed=0,1", "model=vae", "num_threads=2"]))
        ['hydra.sweep.dir=outputs/sweeps/seed-...']
        >>> a, b = (folder_overrides(config.parse([f"seed={values}", "model=vae"])) for values in ("0,1", "0,1,2"))
        >>> a == b
        True
    """
    ours = [override for override in overrides if not is_hydra(override)]
    added = []
    if not any(override.key_or_group == "hydra.sweep.dir" for override in overrides):
        swept = [override.key_or_group for override in ours if override.is_sweep_override()]
        fixed = sorted(override.input_line or "" for override in ours if decides(override))
        stamp = hashlib.sha256(json.dumps([sorted(swept), fixed]).encode()).hexdigest()[:6]
        readable = re.sub(r"[^\w.]+", "_", "-".join(swept) or "single")[:60]
        added.append(f"hydra.sweep.dir=outputs/sweeps/{readable}-{stamp}")
    left_out = OmegaConf.load(config.CONF / "config.yaml").hydra.job.config.override_dirname.exclude_keys
    missing = [o.key_or_group for o in ours if o.is_sweep_override() and o.key_or_group not in NAMED]
    if set(missing) & set(left_out):
        kept = ",".join(key for key in left_out if key not in missing)
        added.append(f"hydra.job.config.override_dirname.exclude_keys=[{kept}]")
    return added


def is_hydra(override: Override) -> bool:
    """Whether an override is Hydra's own, such as the choice of a launcher."""
    return re.split("[./]", override.key_or_group)[0] == "hydra"


def decides(override: Override) -> bool:
    """Whether a fixed override decides what is trained."""
    key = override.key_or_group
    return not override.is_sweep_override() and (key == "ensemble.size" or not is_free(key))


def run_job(
    cfg: DictConfig,
    folder: Path,
    sweep: Path,
    overrides: Sequence[str],
    execute: Callable[[DictConfig], None],
    value: Callable[[DictConfig], float] | None = None,
) -> float | None:
    """One job: skipped when it is finished, recorded when it fails. Raises nothing but a request to stop.

    Args:
        cfg: the job's configuration; its ``run_dir`` becomes ``folder``.
        folder: run folder.
        sweep: folder of the sweep.
        overrides: the job's own.
        execute: does the work.
        value: of a finished job, for a sweeper that tunes by it.

    Returns:
        The job's value where one is asked for; NaN of a job that failed.
    """
    path = sweep / "jobs" / f"{relative(folder, sweep).replace('/', '__')}.json"
    try:
        with locks.hold(sweep, path.stem, "in use"):
            return _run_job(cfg, folder, sweep, overrides, execute, value, path)
    except InUseError as error:  # its record is the other process'
        print(f"failed: {' '.join(overrides)}: {error}", file=sys.stderr)
    return None if value is None else math.nan


def _run_job(
    cfg: DictConfig,
    folder: Path,
    sweep: Path,
    overrides: Sequence[str],
    execute: Callable[[DictConfig], None],
    value: Callable[[DictConfig], float] | None,
    path: Path,
) -> float | None:
    before = read_record(path)
    record = {"overrides": list(overrides), "run_dir": relative(folder, sweep), "status": "running"}
    started = time.monotonic()
    try:
        with open_dict(cfg):
            cfg.run_dir = str(folder)
            if "group" in cfg.logger and cfg.logger.group is None:
                cfg.logger.group = sweep.name
        record |= {"configuration": stamp(cfg, seed=0), "fingerprint": stamp(cfg)}
        if is_finished(before, record, folder, cfg.report):
            write_changed(path, {**before, "overrides": list(overrides)})
            print(f"finished before: {folder}")
            return None if value is None else value(cfg)
        write_json(path, record)
        execute(cfg)
        found = None if value is None else value(cfg)
        more = {} if found is None else {"optimized": {cfg.optimized_metric: found}}
        write_json(path, {**record, **more, "status": "finished", "seconds": time.monotonic() - started})
        return found
    except Stopped as stop:  # the sweep ends, its jobs go on with the same command
        write_json(
            path, {**record, "status": "stopped", "error": str(stop), "seconds": time.monotonic() - started}
        )
        raise
    except Exception as error:  # whatever it is, the other jobs run
        fault = faults.explain(error)
        line = fault or first_line(error)
        text = "" if isinstance(error, InputError) or fault else traceback.format_exc()
        seconds = time.monotonic() - started
        failed = {**record, "status": "failed", "error": line, "traceback": text, "seconds": seconds}
        write_json(path, failed)
        print(f"failed: {' '.join(overrides)}: {line}", file=sys.stderr)
    return None if value is None else math.nan


def first_line(error: BaseException) -> str:
    """First line of a message, with the kind of error where the message is not written for users.

    Example:
        >>> first_line(InputError("seed must be ...")), first_line(KeyError("a"))
        ('seed must be ...', "KeyError: 'a'")
    """
    lines = str(error).strip().splitlines() or [""]
    return lines[0] if isinstance(error, InputError) else f"{type(error).__name__}: {lines[0]}"


def stamp(cfg: DictConfig, seed: int | None = None) -> str:
    """Fingerprint of what decides a job's results; with ``seed``, as if that were its seed."""
    copy = cfg.copy()
    if seed is not None:
        copy.seed = seed
    leaves = config.flatten(OmegaConf.to_container(copy, resolve=True))
    kept = {
        key: value
        for key, value in leaves.items()
        if not isinstance(value, dict) and not any(key == h or key.startswith(f"{h}.") for h in HARMLESS)
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def is_finished(before: Mapping[str, object], now: Mapping[str, object], folder: Path, report: bool) -> bool:
    """Whether an earlier command has done this job with all its files."""
    files = ["results/summary.json", *(["report.html"] if report else [])]
    same = before.get("status") == "finished" and before.get("fingerprint") == now["fingerprint"]
    return same and all((folder / name).is_file() for name in files)


def write_changed(path: Path, value: dict[str, object]) -> None:
    """Write a file only where it would change: its time then says since when a sweep's tables are out of date."""
    if read_record(path) != value:
        write_json(path, value)


def relative(folder: Path, sweep: Path) -> str:
    """Path of a run folder inside the sweep's, so that the whole may be moved."""
    return Path(os.path.relpath(folder, sweep)).as_posix()


def read_record(path: Path) -> dict[str, object]:
    """A job's record, or a sweep's; empty when there is none that can be read."""
    try:
        found = read_json(path)
    except InputError:
        return {}
    return found if isinstance(found, dict) else {}


def is_record(found: dict[str, object]) -> bool:
    """Whether a record has what the tables of a sweep need.

    Example:
        >>> is_record({"overrides": ["seed=0"], "status": "failed", "run_dir": "a"}), is_record({"overrides": 3})
        (True, False)
    """
    jobs = found.get("overrides")
    words = all(isinstance(found.get(key, ""), str) for key in ("run_dir", "error", "configuration"))
    seconds = found.get("seconds")
    return (
        isinstance(jobs, list)
        and all(isinstance(job, str) for job in jobs)
        and found.get("status") in STATES
        and words
        and isinstance(found.get("run_dir"), str)
        and (seconds is None or type(seconds) in (int, float))
    )


def read_jobs(sweep: Path) -> list[dict[str, Any]]:
    """Records of a sweep's jobs: those of its last command, in its order, then finished ones of earlier commands.

    A job of the last command that has left no record has the status "not started".

    Raises:
        InputError: the folder is not one of a sweep.
    """
    records = [read_record(path) for path in sorted((sweep / "jobs").glob("*.json"))]
    by_overrides: dict[tuple[str, ...], dict[str, object]] = {}
    for record in records:
        words = record.get("overrides")
        if is_record(record) and isinstance(words, list):
            by_overrides[tuple(words)] = record
    planned = read_record(sweep / "sweep.json").get("jobs")
    if planned is not None and not (
        isinstance(planned, list)
        and all(isinstance(job, list) and all(isinstance(word, str) for word in job) for job in planned)
    ):
        raise InputError(f"{sweep / 'sweep.json'} is damaged: jobs must list the overrides of every job")
    if planned is None and not by_overrides:
        raise InputError(f"{sweep} is no folder of a sweep: it has neither sweep.json nor jobs/")
    if planned is None:  # another sweeper chose the jobs
        return list(by_overrides.values())
    missing = {"status": "not started", "run_dir": ""}
    ours = [by_overrides.pop(tuple(job), {**missing, "overrides": job}) for job in planned]
    return ours + [record for record in by_overrides.values() if record.get("status") == "finished"]


class SweepReport(Callback):
    """Hydra callback: notes the jobs before a sweep, makes its tables and report after it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        """Write ``sweep.json``."""
        if srun.number(config.trainer) == 0:
            overrides = list(config.hydra.overrides.task)
            jobs = None if tunes(config.hydra.sweeper) else plan(overrides)
            write_changed(Path(config.hydra.sweep.dir) / "sweep.json", {"overrides": overrides, "jobs": jobs})

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        """Write ``sweep.csv``, ``summary.csv``, the figure and ``report.html``; status 1 when a job has failed."""
        if srun.number(config.trainer) == 0 and not conclude(Path(config.hydra.sweep.dir), rebuild=False):
            sys.exit(1)


def tunes(sweeper: DictConfig) -> bool:
    """Whether a sweeper chooses its jobs by the values of earlier ones."""
    return not str(sweeper.get("_target_", "")).endswith("BasicSweeper")


def plan(overrides: Sequence[str]) -> list[list[str]]:
    """The jobs of Hydra's own sweeper.

    Example:
        >>> plan(["seed=0,1", "ensemble.size=2"])
        [['seed=0', 'ensemble.size=2'], ['seed=1', 'ensemble.size=2']]
    """
    batches = BasicSweeper.split_arguments(config.parse(list(overrides)), None)
    return [list(job) for batch in batches for job in batch]


def conclude(sweep: Path, rebuild: bool = True) -> bool:
    """Make and print the tables of a sweep; whether all its jobs are finished.

    Args:
        sweep: its folder.
        rebuild: false leaves tables alone that are newer than everything they are made from.

    Raises:
        InputError: the folder is not one of a sweep, or another command is writing its tables.
    """
    jobs = read_jobs(sweep)
    if not rebuild and up_to_date(sweep):
        print(f"nothing new in {sweep}\nreport: {sweep / 'report.html'}")
    else:
        from miselbo.report.sweep import write  # pandas and matplotlib are slow to import

        with locks.hold(sweep, locks.WHOLE, "having its tables written"):
            print(write(sweep, jobs))
    return all(job["status"] == "finished" for job in jobs)


def up_to_date(sweep: Path) -> bool:
    """Whether all tables are there and newer than the records and the jobs' results."""
    made = [sweep / name for name in ("sweep.csv", "summary.csv", "figures/sweep.png", "report.html")]
    sources = [sweep / "sweep.json", *(sweep / "jobs").glob("*.json"), *sweep.glob("*/results/summary.json")]
    if not all(path.is_file() for path in made):
        return False
    newest = max((path.stat().st_mtime_ns for path in sources if path.is_file()), default=0)
    return newest < min(path.stat().st_mtime_ns for path in made)
