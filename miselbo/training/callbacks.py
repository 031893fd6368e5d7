"""What happens beside the training steps: resume points, the ensemble's validation scores, progress, tidy metrics."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from miselbo.bounds.quantities import QUANTITIES
from miselbo.bounds.running import RunningBounds
from miselbo.runs.rows import curve_rows
from miselbo.runs.tidy import Recorder
from miselbo.runtime import stopping
from miselbo.runtime.files import write_tensors
from miselbo.runtime.progress import Meter
from miselbo.training.parallel import collectives


class AtomicIO(TorchCheckpointIO):
    """Lightning's checkpoints, written beside their place and renamed, not by way of the system's temporary folder."""

    def save_checkpoint(
        self, checkpoint: dict[str, object], path: str | Path, storage_options: object = None
    ) -> None:
        """A kill, or a full disk, leaves the previous one."""
        write_tensors(Path(path), checkpoint)


class ResumePoint(pl.callbacks.Checkpoint):
    """Save the whole training state at the end of an epoch, atomically, at most once in ``interval`` seconds.

    A request to stop (:mod:`miselbo.runtime.stopping`) saves it after the current batch, with the sums behind the
    epoch's training curves, and ends the training. Several processes stop at the end of the epoch.
    """

    def __init__(self, path: Path, interval: float = 20.0, recorder: Recorder | None = None):
        self.path = path
        self.recorder = recorder or Recorder()
        self._epoch_ends = False
        self.interval = interval
        self._last = time.monotonic()
        self._sums: dict[
            str, tuple[Tensor, Tensor]
        ] = {}  # of the part of an epoch that an earlier process trained
        self._inside_epoch = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write as all files of a run folder are written."""
        trainer.strategy.checkpoint_io = AtomicIO()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the data go on where an earlier process stopped; the iterator was made before that was known."""
        loop: Any = trainer.fit_loop
        batches = loop.epoch_loop.batch_progress.current
        if batches.processed:
            sampler: Any = trainer.train_dataloader.sampler  # type: ignore[union-attr]
            sampler.set_epoch(loop.epoch_progress.current.processed)
            sampler.skip = batches.processed if batches.completed < batches.processed else 0
            iter(loop._data_fetcher)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Where a stop is asked for, save and stop; at the end of an epoch that waits for its curves."""
        loop = trainer.fit_loop.epoch_loop
        for name, (value, count) in self._sums.items():
            metric = loop._results[name]
            metric.value, metric.cumulated_batch_size = (
                metric.value + value,
                metric.cumulated_batch_size + count,
            )
        self._sums = {}
        if not stopping.requested() or trainer.world_size > 1:
            return
        if loop._should_accumulate():  # a gradient is half done
            trainer._signal_connector.received_sigterm = False  # or Lightning stops here
        elif not loop._num_ready_batches_reached():
            self._inside_epoch = True
            self._save(trainer)
            stopping.check()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write, then rename: a kill leaves the previous resume point."""
        due = bool(time.monotonic() - self._last >= self.interval) or stopping.requested()
        if trainer.strategy.broadcast(due):
            self._epoch_ends = True
            self._save(trainer)
            self._epoch_ends = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The end of the last epoch is saved."""
        stopping.check()

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)
        self._last = time.monotonic()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, object]
    ) -> None:
        """Add the member's curve, and inside an epoch the sums of the part of it that is still to be logged."""
        pending = None
        if self._epoch_ends:  # Lightning logs its values after this callback
            loop = trainer.fit_loop.epoch_loop
            metrics: Any = trainer._logger_connector.metrics["log"]
            if metrics:
                step = loop._batches_that_stepped - 1
                pending = curve_rows({**metrics, "epoch": trainer.current_epoch}, step)
        checkpoint["curve"] = self.recorder.kept(pending)
        checkpoint["seed"] = getattr(pl_module, "seed", None)
        if self._inside_epoch:
            results = dict(trainer.fit_loop.epoch_loop._results)
            checkpoint["epoch_sums"] = {
                name: (metric.value, metric.cumulated_batch_size)
                for name, metric in results.items()
                if metric.update_called  # in this epoch
            }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep them until the first batch has made the curves anew."""
        self._sums = checkpoint.get("epoch_sums", {})
        self.recorder.restore(checkpoint.get("curve"))


class EnsembleMonitor(pl.Callback):
    """Scores the module's members on the validation data at every validation epoch: q_1 and the one in training.

    Logs ``val/miselbo``, ``val/average_elbo``, ``val/delta``, ``val/jsd`` and the new member's own ``val/elbo``: means
    over all validation examples, each counted once. A member's curves depend on q_1 and itself alone, so they are the
    same whether the others are trained before it, beside it, or on another machine.

    Args:
        num_samples: L of these scores; at 1 delta is the JSD exactly.
        seed: of the noise, the same at every epoch.
    """

    NAMES = tuple(quantity.name for quantity in QUANTITIES if quantity.monitored)

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
        outputs: object,
        batch: Mapping[str, Tensor],
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

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Means over all ranks' examples."""
        if trainer.sanity_checking:
            return
        sums = trainer.strategy.reduce(self._sums, reduce_op="sum")
        means = (sums[:-1] / sums[-1]).tolist()
        names = [f"val/{name}" for name in (*self.NAMES, "elbo")]
        pl_module.log_dict(dict(zip(names, means, strict=True)), rank_zero_only=True, batch_size=1)


class EpochMeter(pl.Callback):
    """A :class:`Meter` over a member's epochs, with its training ELBO."""

    def __init__(self, label: str, enabled: bool = True):
        self.label = label
        self.enabled = enabled
        self._meter: Meter | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start at rank 0."""
        shown = self.enabled and trainer.is_global_zero
        self._meter = Meter(f"train {self.label} epoch", trainer.max_epochs or 0, enabled=shown)
        self._meter.skip(trainer.current_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """One epoch more."""
        value = trainer.callback_metrics.get("train/elbo")
        note = "" if value is None else f"ELBO {float(value):.2f} nats"
        if self._meter is not None:
            self._meter.update(trainer.current_epoch + 1, note)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        if self._meter is not None:
            self._meter.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar."""
        if self._meter is not None:
            self._meter.close()
