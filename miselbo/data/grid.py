"""Images in a grid, as one picture file."""

import math
from pathlib import Path

import numpy as np
from torch import Tensor

from miselbo.runtime.files import atomic


def grid(images: Tensor, columns: int | None = None, gap: int = 1) -> np.ndarray:
    """Images [N, C, H, W] in [0, 1], C = 1 or 3, as one picture of bytes: rows of ``columns`` (default: square).

    Example:
        >>> import torch
        >>> grid(torch.rand(5, 1, 8, 8)).shape, grid(torch.rand(2, 3, 8, 8)).shape
        ((17, 26), (8, 17, 3))
    """
    pixels = images.detach().clamp(0, 1).mul(255).round().byte().cpu().numpy().transpose(0, 2, 3, 1)
    num, height, width, channels = pixels.shape
    across = columns or math.ceil(math.sqrt(num))
    down = math.ceil(num / across)
    canvas = np.full((down * (height + gap) - gap, across * (width + gap) - gap, channels), 255, np.uint8)
    for position, image in enumerate(pixels):
        top, left = position // across * (height + gap), position % across * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas if channels == 3 else canvas[..., 0]


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> None:
    """The :func:`grid` of some images as a PNG.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from PIL import Image
        >>> path = Path(tempfile.mkdtemp()) / "grid.png"
        >>> save_grid(torch.rand(5, 1, 8, 8), path)
        >>> Image.open(path).size
        (26, 17)
    """
    from PIL import Image  # only where used

    with atomic(path) as temporary:
        Image.fromarray(grid(images, columns)).save(temporary, format="PNG")
