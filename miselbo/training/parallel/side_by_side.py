"""Members that are independent of each other, trained at the same time by worker processes.

A worker trains one member after another as the main process would, and sends its curves and progress there: the main
process alone writes ``metrics.csv`` and dashboards. A member that fails is tried once more; the others go on.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loggers.logger import Logger

from miselbo.data.interface import Data
from miselbo.errors import InputError, MembersFailedError, Stopped, TrainingDivergedError
from miselbo.runs.plan import Loggers, TrainingPlan, rebuild
from miselbo.runtime import faults, machine, processes, progress, stopping

TRIES = 2


def number_of_workers(plan: TrainingPlan, count: int) -> int:
    """How many processes train ``count`` members.

    ``ensemble.workers``: "auto" is one per GPU, and on a CPU one per ``num_threads`` cores.

    Raises:
        InputError: several processes for each member are asked for as well.
    """
    asked, trainer = plan.workers, plan.trainer
    if asked == 1 or count < 2:
        return 1
    if trainer["strategy"] != "auto" or trainer["devices"] not in (1, "1", "auto"):
        raise InputError(
            f"ensemble.workers={asked} trains every member on one device, but trainer.strategy="
            f"{trainer['strategy']} trainer.devices={trainer['devices']} asks for several per member: choose one"
        )
    if asked == "auto":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        asked = torch.cuda.device_count() if uses_gpu(trainer) else cores // (plan.num_threads or cores)
    count = max(1, min(int(asked), count))
    if count > 1 and plan.recipe is None:
        raise InputError(
            f"workers={asked}: processes of their own build the members anew from a run's configuration, and this "
            "plan has none: leave workers at 1, or train by miselbo.run(compose_config([...]))"
        )
    return count


def uses_gpu(trainer: Mapping[str, object]) -> bool:
    """Whether members are trained on CUDA devices."""
    return torch.cuda.is_available() and trainer["accelerator"] in ("auto", "gpu", "cuda")


def fit_in_processes(plan: TrainingPlan, members: Sequence[int], count: int, loggers: Loggers) -> None:
    """Train members with ``count`` processes; each ends as a checkpoint in the run folder.

    Args:
        plan: of the training; the workers rebuild the run from its recipe and train with ``only=<member>``.
        members: their numbers.
        count: of processes.
        loggers: makes the loggers of a member, which are used here alone.

    Raises:
        MembersFailedError: some failed twice, or cannot be trained; the others are finished.
        Stopped: a stop was asked for; what was in training has its resume point.
    """
    waiting, tries, failed = list(members), Counter[int](), dict[int, str]()
    board = Board(loggers, plan.progress)
    workers = [Worker(plan, slot) for slot in range(count)]
    asked: float | None = None  # when the workers were told to stop
    with stopping.holding():
        try:
            while waiting or any(worker.member for worker in workers):
                if asked is None and stopping.requested():
                    asked = time.monotonic()
                    waiting.clear()
                    processes.ask([worker.process for worker in workers])
                if asked is not None and time.monotonic() - asked > processes.GRACE:
                    break
                for worker in workers:
                    if waiting and not worker.member:
                        worker.train(waiting.pop(0))
                        tries[worker.member] += 1
                busy = {worker.pipe: worker for worker in workers if worker.member}
                for pipe in connection.wait(list(busy), timeout=0.2):
                    member = busy[pipe].member
                    outcome = busy[pipe].receive(board)
                    if outcome is None or asked is not None:
                        continue
                    if outcome.again and tries[member] < TRIES:
                        print(f"q{member}: {outcome.problem}; once more", file=sys.stderr, flush=True)
                        waiting.append(member)
                    else:
                        failed[member] = outcome.problem
        finally:
            board.close()
            for worker in workers:
                worker.close()
        stopping.check()
    if failed:
        raise MembersFailedError(failure_text(members, failed))


def failure_text(members: Sequence[int], failed: Mapping[int, str]) -> str:
    """One message about all failures.

    Example:
        >>> failure_text([2, 3, 4], {3: "killed by signal 9"})
        'q3: killed by signal 9. Finished and kept: q2, q4. The same command trains what is missing.'
    """
    kept = ", ".join(f"q{s}" for s in members if s not in failed)
    problems = "; ".join(f"q{s}: {problem}" for s, problem in failed.items())
    return f"{problems}. {f'Finished and kept: {kept}. ' if kept else ''}The same command trains what is missing."


@dataclass(frozen=True)
class Failure:
    """Why a member is not finished, and whether another try may help."""

    problem: str
    again: bool


class Board:
    """What the workers report: curves to the loggers, progress to one line per member."""

    def __init__(self, loggers: Loggers, show: bool):
        self.make_loggers, self.show = loggers, show
        self.bars = progress.bars() if show else None
        self.loggers: dict[int, Sequence[Logger]] = {}
        self.meters: dict[int, progress.Meter] = {}

    def curves(self, member: int, metrics: dict[str, float], step: int | None) -> None:
        """Log one step's values."""
        for logger in self.loggers.setdefault(member, self.make_loggers(member)):
            logger.log_metrics(metrics, step)

    def progress(self, member: int, what: str, *arguments: Any) -> None:
        """Repeat a call of the worker's meter."""
        if what == "start":
            label, total = arguments
            self.meters[member] = progress.Meter(label, total, self.show, shared=self.bars)
        else:
            getattr(self.meters[member], what)(*arguments)

    def end(self, member: int, status: str) -> None:
        """A member's training ended; another try starts anew."""
        for logger in self.loggers.pop(member, []):
            logger.finalize(status)

    def close(self) -> None:
        """Leave the terminal as it was."""
        for member in list(self.loggers):
            self.end(member, "failed")
        if self.bars is not None:
            self.bars.stop()


class Worker:
    """A process that trains one member after another; a new one where it has died.

    Args:
        plan: of the training.
        slot: number of the worker, which chooses its GPU.
    """

    def __init__(self, plan: TrainingPlan, slot: int):
        self.recipe = plan.recipe or ""
        self.device = slot % torch.cuda.device_count() if uses_gpu(plan.trainer) else None
        self.member = 0  # in training; 0: none
        self.process: Any = None
        self.pipe: Any = None

    def train(self, member: int) -> None:
        """Let the process train a member."""
        if self.process is None:
            context = torch.multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_work, args=(self.recipe, self.device, theirs))
            self.process.start()
            theirs.close()
        self.member = member
        with contextlib.suppress(OSError):  # it has died since: the answer says so
            self.pipe.send(member)

    def receive(self, board: Board) -> Failure | None:
        """One message of the process; a failure when it says or shows that the member is not finished."""
        member = self.member
        try:
            kind, *content = self.pipe.recv()
        except (EOFError, OSError):
            return self._ended(board)
        if kind in ("curves", "progress"):
            getattr(board, kind)(member, *content)
            return None
        self.member = 0
        board.end(member, "success" if kind == "finished" else "failed")
        return Failure(*content) if kind == "failed" else None

    def _ended(self, board: Board) -> Failure:
        self.process.join()
        code, member = self.process.exitcode, self.member
        self.pipe.close()
        self.process, self.member = None, 0
        board.end(member, "failed")
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return Failure(f"its process {how}{hint}", again=True)

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            if not self.member:
                self.pipe.close()  # an idle one ends by itself
                self.process.join(5.0)
            processes.end([self.process], processes.GRACE if self.member else 5.0)
            if self.member:
                self.pipe.close()


class PipeLogger(Logger):
    """Sends a member's curves to the main process."""

    def __init__(self, send: Callable[..., None]):
        super().__init__()
        self.send = send

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "pipe"

    @property
    def version(self) -> int:
        """Version of the messages."""
        return 1

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """The main process has the configuration."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send the values of one step."""
        self.send("curves", {name: float(value) for name, value in metrics.items()}, step)


def _work(recipe: str, device: int | None, pipe: Connection) -> None:
    processes.follow_parent()
    try:
        with stopping.watching():
            _train_what_comes(recipe, device, pipe)
    except Stopped:
        sys.exit(stopping.STATUS)


def _train_what_comes(recipe: str, device: int | None, pipe: Connection) -> None:
    def send(*message: object) -> None:
        with contextlib.suppress(OSError):  # the main process is gone: what follows it ends this one
            pipe.send(message)

    progress.forward_to(lambda *message: send("progress", *message))
    data: Data | None = None
    while True:
        try:
            member = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            run = rebuild(recipe, data)  # members anew: their initial values are those of their seeds
            data, plan = run.data, run.plan
            machine.prepare(plan.num_threads)
            if device is not None:
                plan = replace(plan, trainer={**plan.trainer, "accelerator": "gpu", "devices": [device]})
            run.fit(
                run.target,
                run.members,
                run.data,
                plan,
                Path(run.folder),
                lambda _: [PipeLogger(send)],
                only=member,
            )
            send("finished")
        except (InputError, TrainingDivergedError) as error:
            send("failed", " ".join(str(error).split()), False)
        except Exception as error:
            if (fault := faults.explain(error)) is not None:
                send("failed", fault, False)
                continue
            traceback.print_exc()
            send("failed", f"{type(error).__name__}: {' '.join(str(error).split())} (trace above)", True)
