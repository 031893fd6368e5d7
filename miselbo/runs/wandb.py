"""Training curves on W&B: every value of ``metrics.csv`` is there once, however often a run is killed and goes on.

A member that goes on from a resume point repeats steps, and a kill may take rows along that W&B had not yet written to
its file. So at the start the rows of ``metrics.csv`` that the dashboard lacks are sent, and none of them again later.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from miselbo.runs.wandb_file import WandbFile

if TYPE_CHECKING:
    from wandb import Run

Key = tuple[int, int, str]  # member, step, metric


class WandbCurves(Logger):
    """A member's curves in the one W&B run of its ensemble: its number is the prefix, the epoch the x-axis.

    Args:
        run: of W&B.
        member: s; 0 for joint training.
        steps_per_epoch: gives the epoch where a trainer logs steps alone.
        known: what the dashboard has, left out here; what is sent is added.
    """

    def __init__(
        self, run: "Run", member: int, steps_per_epoch: int | None = None, known: set[Key] | None = None
    ):
        super().__init__()
        self.run, self.member, self.steps_per_epoch = run, member, steps_per_epoch
        self.known = set[Key]() if known is None else known
        define(run, member)

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "wandb"

    @property
    def version(self) -> str:
        """The run's id."""
        return str(self.run.id)

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """The run holds the whole configuration already."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One row: the values under the member's prefix, and the epoch, counted from 0."""
        step, values = step or 0, dict(metrics)
        epoch = values.pop("epoch", None)
        if epoch is None:
            epoch = max(0, -(-step // (self.steps_per_epoch or 1)) - 1)
        new = {name: value for name, value in values.items() if (self.member, step, name) not in self.known}
        if new:
            send(self.run, self.member, step, int(epoch), new)
            self.known.update((self.member, step, name) for name in new)


def define(run: "Run", member: int) -> None:
    """The epoch is on the x-axis of the member's curves."""
    run.define_metric("epoch", hidden=True)
    run.define_metric(f"q{member}/*", step_metric="epoch")


def send(run: "Run", member: int, step: int, epoch: int, values: Mapping[str, float]) -> None:
    """One row of one member."""
    row = {f"q{member}/{name}": float(value) for name, value in values.items()}
    run.log({**row, "epoch": epoch, f"q{member}/step": step})


def catch_up(run: "Run", metrics: Path, known: set[Key]) -> None:
    """Send the rows of ``metrics.csv`` that are not ``known``, and add them to it.

    Every epoch leaves rows at its last step, so a member's e-th step in the file is the end of its epoch e.
    """
    curves: dict[int, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for (member, step, name), value in tidy_rows(metrics).items():
        curves[member][step][name] = value
    for member, steps in curves.items():
        define(run, member)
        for epoch, (step, values) in enumerate(sorted(steps.items())):
            new = {name: value for name, value in values.items() if (member, step, name) not in known}
            if new:
                send(run, member, step, epoch, new)
                known.update((member, step, name) for name in new)


def tidy_rows(metrics: Path) -> dict[Key, float]:
    """The values of a ``metrics.csv``, without a last row that a kill cut short; empty when there is no file."""
    if not metrics.exists():
        return {}
    text = metrics.read_text()
    rows = list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))[1:]
    return {(int(member), int(step), name): float(value) for member, step, name, value in rows}


def on_dashboard(run: "Run", folder: Path) -> set[Key]:
    """What W&B has of this run's curves already.

    Args:
        run: just started. Online and resumed, its summary holds the last step of each member and the last value of each
            metric. Offline, the files of earlier starts in ``folder/wandb`` hold the rows, and ``wandb sync`` appends
            this one to them.
        folder: run folder.
    """
    if run.offline:
        files = sorted((folder / "wandb").glob(f"*run-*-{run.id}/run-{run.id}.wandb"))
        return {key for file in files for row in WandbFile(file).history for key in keys(row)}
    if not run.resumed:
        return set()
    there = run.summary.get
    return {
        (member, step, name)
        for (member, step, name), value in tidy_rows(folder / "metrics.csv").items()
        if (last := there(f"q{member}/step")) is not None
        and (step < last or (step == last and there(f"q{member}/{name}") == value))
    }


def keys(row: Mapping[str, object]) -> Iterator[Key]:
    """Member, step and metric of a history row's curves.

    Example:
        >>> list(keys({"q2/val/jsd": 0.1, "q2/step": 9, "epoch": 0}))
        [(2, 9, 'val/jsd')]
    """
    for name in row:
        if (found := re.fullmatch(r"q(\d+)/(.+)", name)) and found[2] != "step":
            yield int(found[1]), int(str(row[f"q{found[1]}/step"])), found[2]
