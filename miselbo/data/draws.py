"""What chance does to an image: binarisation, flips, order. Every draw is a function of its arguments alone.

No generator state is kept, so the pixels of an example do not depend on batch size, order, worker processes
or on the run having been interrupted (see :mod:`miselbo.noise`).
"""

from functools import lru_cache

import torch
from torch import Tensor

from miselbo import noise

_DATA = int.from_bytes(b"data")  # keeps these streams apart from others derived of the same seed
_PIXELS, _ORDER, _FLIPS = 0, 1, 2


@lru_cache(maxsize=256)
def _key(seed: int, stream: int) -> int:
    return noise.derive(seed, _DATA, stream)


def binarise(grey: Tensor, index: Tensor, seed: int, *, draw: int = 0) -> Tensor:
    """One Bernoulli draw per pixel: 1 where uniform(seed, example, draw) < grey level, else 0.

    Args:
        grey: [B, C, H, W] grey levels in [0, 1], the probabilities.
        index: [B] numbers of the examples.
        seed: names the stream.
        draw: number of the draw; the epoch in training, 0 in evaluation.

    Returns:
        [B, C, H, W] zeros and ones, float32.

    Example:
        >>> grey = torch.tensor([0.0, 1.0, 0.5]).expand(2, 1, 1, 3)
        >>> binarise(grey, torch.arange(2), seed=0)[:, 0, 0, :2].tolist()
        [[0.0, 1.0], [0.0, 1.0]]
    """
    uniform = noise.uniform(_key(seed, _PIXELS), index, grey[0].numel(), sample=draw)
    return (uniform.view_as(grey) < grey).to(torch.float32)


def random_flip(images: Tensor, index: Tensor, seed: int, *, draw: int = 0) -> Tensor:
    """Mirror each image left to right with probability 1/2; arguments as in :func:`binarise`.

    Example:
        >>> images = torch.arange(3.0).expand(40, 1, 1, 3)
        >>> flipped = random_flip(images, torch.arange(40), seed=0)
        >>> sorted(set(flipped[:, 0, 0, 0].tolist()))
        [0.0, 2.0]
    """
    chosen = noise.uniform(_key(seed, _FLIPS), index, 1, sample=draw) < 0.5
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(-1), images)


def permutation(size: int, seed: int, *, draw: int = 0) -> Tensor:
    """A random order of 0 .. size - 1: the order of 62-bit counter-based sort keys.

    Args:
        size: how many numbers.
        seed: names the stream.
        draw: number of the draw; the epoch in training.

    Returns:
        [size], int64.

    Example:
        >>> sorted(permutation(4, seed=0).tolist())
        [0, 1, 2, 3]
    """
    zero = torch.zeros(1, dtype=torch.int64)
    words = noise.philox([torch.arange(size), zero + draw, zero, zero], _key(seed, _ORDER))
    return torch.argsort((words[0] << 30) | (words[1] >> 2), stable=True)
