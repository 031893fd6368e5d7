"""``miselbo.fit`` for tensors: examples that a program already holds, as the data module that training reads."""

import torch
from torch import Tensor

from miselbo.data.images import ImageData, Images
from miselbo.data.interface import Data
from miselbo.errors import InputError


def as_data(data: Data | Tensor, target: object, batch_size: int = 128) -> Data:
    """A data module as it is; images of a program as a data module, the last tenth of them for validation.

    Args:
        data: data module, or images [N, C, H, W] in [0, 1] (uint8: 0..255).
        target: whose likelihood decides whether the images are binarised.
        batch_size: of training.

    Raises:
        InputError: neither, or images out of range.

    Example:
        >>> made = as_data(torch.rand(20, 1, 4, 4), target=None)
        >>> len(made.split("train")), len(made.split("validation"))
        (18, 2)
    """
    if not isinstance(data, Tensor):
        if hasattr(data, "train_dataloader") or hasattr(data, "evaluation_batches"):
            return data
        raise InputError(
            f"data must be a data module or images [N, C, H, W] as a tensor, got {type(data).__name__}"
        )
    if data.ndim != 4 or len(data) < 2:
        raise InputError(f"images must be [N, C, H, W] with N of at least 2, got {list(data.shape)}")
    white = 255.0 if data.dtype == torch.uint8 else 1.0
    low, high = float(data.min()), float(data.max())
    if not (low >= 0 and high <= white):
        raise InputError(f"images must lie in [0, {white:g}], got [{low:g}, {high:g}]")
    likelihood = getattr(getattr(target, "image", None), "likelihood", "bernoulli")
    held = max(1, len(data) // 10)
    images = Images(data, data[-held:], white, "a tensor", "in order", None)
    return ImageData(
        lambda: images, name="images", num_validation=held, likelihood=likelihood, batch_size=batch_size
    )
