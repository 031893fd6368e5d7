r"""Random numbers as a pure function of (seed, example, member, sample): results do not depend on how work was cut.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), a
counter-based generator: no state, so any batch size, pass size, order, subset of the data or number of processes
gives the same numbers, and more samples extend fewer ones. Works on the device of ``index``.
"""

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: list[Tensor], seed: int) -> list[Tensor]:
    """Four 32-bit words per counter, as int64 tensors in [0, 2^32).

    Args:
        counter: four broadcastable int64 tensors with values in [0, 2^32).
        seed: key, 64 bits.

    Example (first known-answer vector of Random123):
        >>> zero = [torch.zeros(1, dtype=torch.int64)] * 4
        >>> [f"{int(word):08x}" for word in philox(zero, 0)]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # wraps modulo 2^64: the bits are right
        high0, high1 = (p0 >> 32) & _MASK, (p1 >> 32) & _MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & _MASK, high0 ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


def _words(seed: int, index: Tensor, size: int, member: int, sample: Tensor | int) -> list[Tensor]:
    device = index.device
    blocks = torch.arange((size + 3) // 4, device=device)
    sample = torch.as_tensor(sample, dtype=torch.int64, device=device)
    index = index.to(torch.int64)
    shape = (*sample.shape, *index.shape, len(blocks))
    return philox(
        [
            blocks.expand(shape),
            sample.reshape(*sample.shape, *[1] * index.ndim, 1),
            index[..., None],
            torch.full((1,), member, dtype=torch.int64, device=device),
        ],
        seed,
    )


def uniform(seed: int, index: Tensor, size: int, *, member: int = 0, sample: Tensor | int = 0) -> Tensor:
    """Uniform numbers in (0, 1), float32, a function of the arguments alone.

    Args:
        seed: key of the stream (64 bits).
        index: [B] example numbers, each in [0, 2^32).
        size: numbers per (example, sample).
        member: number of the member, or of any other stream under the same seed.
        sample: one sample number, or [L] of them.

    Returns:
        [B, size], or [L, B, size] when ``sample`` is a tensor.

    Example:
        >>> whole = uniform(0, torch.arange(5), 3)
        >>> torch.equal(whole[2:4], uniform(0, torch.tensor([2, 3]), 3))
        True
    """
    words = torch.stack(_words(seed, index, size, member, sample), -1).flatten(-2)[..., :size]
    return ((words >> 9).to(torch.float32) + 0.5) * 2.0**-23  # 23 bits: the sum is exact, never 0 or 1


def normal(seed: int, index: Tensor, size: int, *, member: int = 0, sample: Tensor | int = 0) -> Tensor:
    """Standard normal numbers, float32, by Box and Muller's transform; arguments and shapes as in :func:`uniform`.

    Example:
        >>> z = normal(1, torch.arange(200), 50, sample=torch.arange(4))
        >>> z.shape, bool(z.mean().abs() < 0.02), bool((z.std() - 1).abs() < 0.02)
        (torch.Size([4, 200, 50]), True, True)
    """
    w0, w1, w2, w3 = (word.to(torch.float32) for word in _words(seed, index, size, member, sample))
    scale = 2.0**-32
    radius0 = torch.sqrt(-2 * torch.log((w0 + 0.5) * scale))
    radius1 = torch.sqrt(-2 * torch.log((w2 + 0.5) * scale))
    angle0, angle1 = w1 * (2 * math.pi * scale), w3 * (2 * math.pi * scale)
    draws = [radius0 * angle0.cos(), radius0 * angle0.sin(), radius1 * angle1.cos(), radius1 * angle1.sin()]
    return torch.stack(draws, -1).flatten(-2)[..., :size]


def derive(seed: int, *path: int) -> int:
    """A seed for a sub-stream: 63 bits, a function of ``seed`` and the path of whole numbers alone.

    Example:
        >>> derive(0, 1) != derive(0, 2) and derive(0, 1) == derive(0, 1)
        True
    """
    for step in path:
        counter = [
            torch.tensor([value & _MASK], dtype=torch.int64) for value in (step, step >> 32, 0, 0x6D697365)
        ]
        w0, w1, _, _ = philox(counter, seed)
        seed = (int(w0) << 31) | (int(w1) >> 1)
    return seed
