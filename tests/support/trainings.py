"""Training of one member on a few random images, on the CPU."""

import pytorch_lightning as pl
import torch

from miselbo.data import ImageData, Images
from miselbo.training.callbacks import ResumePoint
from miselbo.training.member import MemberTraining
from miselbo.training.trainer import Loaders


def data(batch_size: int = 10) -> ImageData:
    grey = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images = Images(grey[:24], grey[24:], 1.0, "noise", "in order")
    return ImageData(lambda: images, name="noise", num_validation=4, batch_size=batch_size)


def fit(
    module: MemberTraining,
    *callbacks: pl.Callback,
    epochs: int = 2,
    resume=None,
    batch_size: int = 10,
    **arguments,
) -> pl.Trainer:
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=any(isinstance(callback, ResumePoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **arguments,
    )
    trainer.fit(module, datamodule=Loaders(data(batch_size)), ckpt_path=resume, weights_only=True)
    return trainer
