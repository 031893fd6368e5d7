"""Runs that are killed and go on, pairs of commands on one folder, and what must be the same afterwards."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import runs

SMALL = (
    *runs.VAE,
    *runs.TINY,
    "trainer.max_epochs=6",
    "ensemble.size=3",
    "ensemble.resume_interval=0",
)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command on a run folder, with a process group of its own."""
    return subprocess.Popen(
        [sys.executable, str(runs.PROJECT / "run.py"), *arguments, f"run_dir={folder}"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(runs.PROJECT)},
        cwd=folder.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str], group: bool) -> None:
    """kill -9 of the main process, or of all."""
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdout, process.stderr):
        pipe.close()  # type: ignore[union-attr]


def killed(folder: Path, moment: float | Callable[[], bool], group: bool, *arguments: str) -> bool:
    """Start a run and kill it after so many seconds, or when something is there; False when it had ended before."""
    process = start(folder, *arguments)
    began = time.monotonic()
    while process.poll() is None:
        if moment() if callable(moment) else time.monotonic() - began >= moment:
            kill(process, group)
            return True
        time.sleep(0.005)
    process.communicate()
    return False


def finish(folder: Path, *arguments: str) -> str:
    """The same command to its end; what it said on standard error."""
    process = start(folder, *arguments)
    _, err = process.communicate(timeout=1200)
    assert process.returncode == 0, err
    return err


def differences(folder: Path, other: Path, size: int) -> list[str]:
    """What differs between two runs: tensors, tables (but for seconds) and curves."""
    found = []
    for name in ("target", *(f"q{s}" for s in range(1, size + 1))):
        if not runs.same_tensors(runs.state(folder, name), runs.state(other, name)):
            found.append(name)
    for name in ("bounds", "per_member", "subsets"):
        one, two = (pd.read_csv(place / "results" / f"{name}.csv") for place in (folder, other))
        if not one.drop(columns="seconds", errors="ignore").equals(
            two.drop(columns="seconds", errors="ignore")
        ):
            found.append(f"{name}.csv")
    if (folder / "metrics.csv").read_bytes() != (other / "metrics.csv").read_bytes():
        found.append("metrics.csv")
    return found


def pair(folder: Path, whole: Path, first: str, second: str) -> str:
    """Two commands at once on a copy of a finished folder: what became of them, in words; raises when one is wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "results" / "shards")
    arguments = {
        "run": SMALL,
        "evaluate": ("task=evaluate",),
        "report": ("task=report",),
    }
    processes = [start(folder, *arguments[task]) for task in (first, second)]
    outcomes = []
    for process in processes:
        _, err = process.communicate(timeout=1200)
        refused = process.returncode == 2 and " is in use (task=" in err and "wait for it, or stop it" in err
        assert process.returncode == 0 or refused, err
        outcomes.append("refused" if refused else "done")
    assert "done" in outcomes, outcomes
    assert not differences(folder, whole, 3)
    return " and ".join(outcomes)
