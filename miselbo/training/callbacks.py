"""What happens beside the training steps: resume points, the ensemble's validation scores, progress, tidy metrics."""

import csv
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from miselbo.files import atomic
from miselbo.streaming import RunningBounds
from miselbo.training import collectives


class ResumePoint(pl.callbacks.Checkpoint):
    """Save the whole training state at the end of an epoch, atomically, at most once in ``interval`` seconds."""

    def __init__(self, path: Path, interval: float = 20.0):
        self.path = path
        self.interval = interval
        self._last = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write, then rename: a kill leaves the previous resume point."""
        due = bool(time.monotonic() - self._last >= self.interval)
        if trainer.strategy.broadcast(due):
            temporary = self.path.with_name(f".{self.path.name}.tmp")
            trainer.save_checkpoint(temporary, weights_only=False)
            if trainer.is_global_zero:
                os.replace(temporary, self.path)
            self._last = time.monotonic()


class EnsembleMonitor(pl.Callback):
    """Scores the members trained so far on the validation data at every validation epoch.

    Logs ``val/miselbo``, ``val/average_elbo``, ``val/delta``, ``val/jsd`` and the new member's own ``val/elbo``: means
    over all validation examples, each counted once.

    Args:
        num_samples: L of these scores; at 1 delta is the JSD exactly.
        seed: of the noise, the same at every epoch.
    """

    NAMES = ("miselbo", "joint_bound", "average_elbo", "average_iwelbo", "delta", "jsd")

    def __init__(self, num_samples: int = 5, seed: int = 0):
        self.num_samples = num_samples
        self.seed = seed

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last epoch; score one and the same ensemble in all processes."""
        collectives.same_buffers(pl_module)
        self._sums = torch.zeros(len(self.NAMES) + 2, dtype=torch.float64, device=pl_module.device)

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add one batch's bounds."""
        ensemble = pl_module.ensemble
        size = len(ensemble.members)
        running = RunningBounds(size, [self.num_samples])
        for log_p, log_q in ensemble.passes(
            batch["image"], self.num_samples, seed=self.seed, index=batch["index"]
        ):
            running.update(log_p, log_q)
        values = running.result()
        columns = [values[name][:, -1, -1] for name in self.NAMES] + [values["member_elbo"][:, -1, -1]]
        sums = torch.stack([column.sum() for column in columns])
        self._sums += torch.cat([sums, sums.new_tensor([len(batch["index"])])])

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Means over all ranks' examples."""
        if trainer.sanity_checking:
            return
        sums = trainer.strategy.reduce(self._sums, reduce_op="sum")
        means = (sums[:-1] / sums[-1]).tolist()
        names = [f"val/{name}" for name in (*self.NAMES, "elbo")]
        pl_module.log_dict(dict(zip(names, means, strict=True)), rank_zero_only=True, batch_size=1)


class TidyMetrics(Logger):
    """``metrics.csv``: one row per value (member, step, metric, value), for all members of a run in one file.

    A member that goes on from a resume point first drops its rows from later steps.
    """

    FIELDS = ("member", "step", "metric", "value")

    def __init__(self, path: Path, member: int):
        super().__init__()
        self.path = path
        self.member = member
        self._rewound = False

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "tidy"

    @property
    def version(self) -> int:
        """Version of the file format."""
        return 1

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The resolved configuration is in the run folder already."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append values of one step."""
        step = step or 0
        if not self._rewound:
            self._rewind(step)
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            for name, value in metrics.items():
                if name != "epoch":
                    writer.writerow([self.member, step, name, repr(float(value))])

    def _rewind(self, step: int) -> None:
        rows: list[list[str]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.reader(file) if len(row) == 4][1:]
        with atomic(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(self.FIELDS)
            writer.writerows(row for row in rows if int(row[0]) != self.member or int(row[1]) < step)
        self._rewound = True
