"""What training or scoring would only find out later is built or counted first, while the run folder is untouched."""

import logging
import math
import warnings
from collections.abc import Mapping

from miselbo.data.interface import Data
from miselbo.errors import InputError
from miselbo.runs.building import build


def check_trainer(arguments: Mapping[str, object]) -> None:
    """Build Lightning's trainer once, to see that it can be.

    Args:
        arguments: of the trainer, as in ``cfg.trainer``; processes and their plugins are not its concern.

    Raises:
        InputError: Lightning refuses the arguments.
    """
    own = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = {"devices": 1, "num_nodes": 1, "strategy": "auto", "plugins": None, "sync_batchnorm": False}
        try:
            build({**arguments, **alone, **own, "max_time": None, "callbacks": None})
        except InputError as error:
            whole = " ".join(str(error).split())
            text = (whole.partition("': ")[2] or whole)[:400]
            raise InputError(f"trainer: Lightning takes no such arguments: {text}") from None


def check_batches(trainer: Mapping[str, object], data: Data, processes: int = 1) -> None:
    """Refuse limits that leave no batch to train or to validate on.

    Args:
        trainer: arguments of the trainer.
        data: set up; without ``train_dataloader`` nothing is checked.
        processes: that share the batches.

    Raises:
        InputError: naming the key and the number of batches there are.
    """
    for key, name, least in (("limit_train_batches", "train", 1), ("limit_val_batches", "val", 0)):
        loader, limit = getattr(data, f"{name}_dataloader", None), trainer.get(key)
        if loader is None or not isinstance(limit, int | float):
            continue
        there = math.ceil(len(loader()) / processes)
        used = min(limit, there) if isinstance(limit, int) else int(limit * there)
        if used < least or (limit > 0 and used < 1):
            word = "training" if name == "train" else "validation"
            raise InputError(
                f"trainer.{key}={limit} leaves none of the {there} {word} batches there are: use a share of at least "
                f"{math.ceil(1e4 / there) / 1e4:g}, or a whole number of batches"
            )
