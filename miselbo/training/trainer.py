"""One call of Lightning's trainer, as members and joint training make it."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from miselbo.data.interface import TrainingData
from miselbo.data.loading import Batch
from miselbo.errors import Stopped
from miselbo.runs import checkpoints
from miselbo.runs.building import build
from miselbo.runs.plan import TrainingPlan
from miselbo.runtime import stopping
from miselbo.training.parallel import collectives, ranks
from miselbo.training.parallel.norms import synchronised

RESUME = {"state_dict": dict, "optimizer_states": list, "lr_schedulers": list, "loops": dict, "counts": list,
          "epoch": int, "global_step": int}  # fmt: skip


class Loaders(pl.LightningDataModule):
    """A data module of ours as Lightning wants one.

    Args:
        data: with ``prepare_data``, ``setup``, ``train_dataloader`` and ``val_dataloader``; its ``trainer`` is
            Lightning's while a loader is made.
    """

    def __init__(self, data: TrainingData):
        super().__init__()
        self.data = data

    def prepare_data(self) -> None:
        """In one process before the others."""
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """In every process."""
        self.data.setup(stage)

    def train_dataloader(self) -> "DataLoader[Batch]":
        """The batches of an epoch."""
        self.data.trainer = self.trainer
        try:
            return self.data.train_dataloader()
        finally:
            self.data.trainer = None

    def val_dataloader(self) -> "DataLoader[Batch]":
        """The validation split."""
        return self.data.val_dataloader()


def run_trainer(
    plan: TrainingPlan,
    data: TrainingData,
    folder: Path,
    module: pl.LightningModule,
    callbacks: Sequence[pl.Callback],
    loggers: Sequence[Logger],
    resume: Path,
    max_epochs: int,
    **arguments: object,
) -> None:
    """Train ``module`` with the trainer of ``plan.trainer``, from the resume point if there is one.

    Args:
        plan: gives the trainer.
        data: images.
        folder: run folder.
        module: what is trained.
        callbacks: of the trainer; progress is one of them.
        loggers: of the trainer.
        resume: path of the resume point.
        max_epochs: of this training.
        **arguments: of the trainer, over those of ``plan.trainer``.

    Raises:
        KeyboardInterrupt: stopped by Ctrl-C.
        Stopped: a stop was asked for, see :mod:`miselbo.runtime.stopping`; the resume point is written.
    """
    arguments |= ranks.trainer_arguments(plan.trainer, getattr(module, "leaves_out_parameters", False))
    norms: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if plan.trainer.get("sync_batchnorm") and collectives.size() > 1:
        norms = synchronised(module, ranks.on_gpu(plan.trainer))
    wide = plan.trainer.get("precision") == "64-true"
    if wide:
        module.double()  # before a resume point is read
    with quiet(), norms:
        trainer: pl.Trainer = build(
            plan.trainer,
            max_time=None,  # of the whole command, not of each member
            max_epochs=max_epochs,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
            logger=list(loggers),
            default_root_dir=folder,
            sync_batchnorm=False,  # done above, on CPUs too
            **arguments,
        )
        if collectives.size() > 1:  # its handler of SIGTERM sends a message that nobody expects, and all hang
            trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        if resume.exists():
            check_resume(resume, module)
        try:
            with stopping.holding():
                trainer.fit(
                    module,
                    datamodule=Loaders(data),
                    ckpt_path=resume if resume.exists() else None,
                    weights_only=True,
                )
        except SIGTERMException:
            stopping.check()
            raise Stopped("SIGTERM") from None  # to another process of this training
        except SystemExit:
            if trainer.interrupted:  # Lightning turns Ctrl-C into an exit of its own
                raise KeyboardInterrupt from None
            raise
    if wide:
        module.float()  # as every member is kept; exact for what was frozen


def check_resume(path: Path, module: pl.LightningModule) -> None:
    """Refuse a resume point that is not one of this training, before Lightning takes it apart.

    Raises:
        InputError: naming the file and what is wrong with it.
    """
    with checkpoints.resuming(path, RESUME) as found:
        if found.get("seed", seed := getattr(module, "seed", None)) != seed:
            raise ValueError("of another member, or of a run with another seed")
        have, want = found["state_dict"], module.state_dict()
        if have.keys() != want.keys():
            raise ValueError(f"of another model: {sorted(have.keys() ^ want.keys())[:3]}")
        checkpoints.check_shapes(list(have.values()), [want[name] for name in have])
        for state in found["optimizer_states"]:
            if not isinstance(state, dict) or not {"state", "param_groups"} <= state.keys():
                raise ValueError("its optimiser is damaged")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's advice on worker processes, hardware and tips; its errors stay."""
    for name in ("utilities.rank_zero", "accelerators.cuda", "trainer.connectors.signal_connector"):
        logging.getLogger(f"pytorch_lightning.{name}").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        yield
