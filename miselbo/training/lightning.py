"""One call of Lightning's trainer, as members and joint training make it."""

import contextlib
import logging
import multiprocessing
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from pytorch_lightning.utilities.exceptions import SIGTERMException

from miselbo import processes, stopping
from miselbo.building import build
from miselbo.errors import Stopped


def run_trainer(
    cfg: DictConfig,
    data: Any,
    folder: Path,
    module: pl.LightningModule,
    callbacks: Sequence[pl.Callback],
    loggers: Sequence[Logger],
    resume: Path,
    max_epochs: int,
    **arguments: Any,
) -> None:
    """Train ``module`` with the trainer of ``cfg.trainer``, from the resume point if there is one.

    Args:
        cfg: the whole configuration.
        data: images.
        folder: run folder.
        module: what is trained.
        callbacks: of the trainer; progress is one of them.
        loggers: of the trainer.
        resume: path of the resume point.
        max_epochs: of this training.
        **arguments: of the trainer, over those of ``cfg.trainer``.

    Raises:
        KeyboardInterrupt: stopped by Ctrl-C.
        Stopped: a stop was asked for, see :mod:`miselbo.stopping`; the resume point is written.
    """
    with quiet():
        trainer: pl.Trainer = build(
            cfg.trainer,
            max_time=None,  # of the whole command, not of each member
            max_epochs=max_epochs,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
            logger=list(loggers),
            default_root_dir=folder,
            **arguments,
        )
        forks = isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)  # then this process waits
        try:
            with contextlib.nullcontext() if forks else stopping.holding():
                trainer.fit(
                    module, datamodule=data, ckpt_path=resume if resume.exists() else None, weights_only=True
                )
        except SIGTERMException:
            stopping.check()
            raise Stopped("SIGTERM") from None  # to another process of this training
        except Stopped:
            if forks:
                processes.end(multiprocessing.active_children(), 20.0)
            raise
        except SystemExit:
            if trainer.interrupted:  # Lightning turns Ctrl-C into an exit of its own
                raise KeyboardInterrupt from None
            raise


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's advice on worker processes, hardware and tips; its errors stay."""
    for name in ("utilities.rank_zero", "accelerators.cuda", "trainer.connectors.signal_connector"):
        logging.getLogger(f"pytorch_lightning.{name}").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        yield
