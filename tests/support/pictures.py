"""Image files for the tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def pixels(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    """[H, W, C] random bytes, a function of the arguments."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def write(path: Path, seed: int = 0, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    """Write a picture; gives its pixels as [C, H, W]."""
    array = pixels(seed, height, width, channels)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array if channels == 3 else array[..., 0]).save(path)
    return array.transpose(2, 0, 1)


def folder(root: Path, count: int = 20, **shape: int) -> Path:
    """Pictures 00.png .. in two subfolders of no special name."""
    for number in range(count):
        write(root / f"class{number % 2}" / f"{number:02d}.png", number, **shape)
    return root
