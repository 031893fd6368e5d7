"""Sums and means over the examples of all processes that train together; in one process they are the plain ones."""

import torch
from torch import Tensor, distributed


def size() -> int:
    """Number of processes that train together.

    Example:
        >>> size(), rank()
        (1, 0)
    """
    return distributed.get_world_size() if _together() else 1


def rank() -> int:
    """Number of this process among them; rank 0 alone writes."""
    return distributed.get_rank() if _together() else 0


def barrier() -> None:
    """Wait for the others."""
    if size() > 1:
        total(1, torch.device("cpu"))


def total(count: int, device: torch.device) -> int | Tensor:
    """The sum of every process's ``count``; with several processes a tensor, so that a GPU need not wait for it.

    Example:
        >>> total(3, torch.device("cpu"))
        3
    """
    return count if size() == 1 else summed(torch.tensor(count, device=device))


def summed(values: Tensor) -> Tensor:
    """Sum over the processes, the same in all of them; no gradient."""
    values = values.detach().clone()
    if size() > 1:
        distributed.all_reduce(values)
    return values


def mean(values: Tensor) -> Tensor:
    """Mean over the examples of all processes, [B, ...] to [...]; no gradient.

    Example:
        >>> mean(torch.tensor([[1.0, 2.0], [3.0, 6.0]])).tolist()
        [2.0, 4.0]
    """
    values = values.detach()
    if size() == 1:
        return values.mean(0)
    sums = values.sum(0)
    whole = summed(torch.cat([sums.flatten(), sums.new_tensor([len(values)])]))
    return (whole[:-1] / whole[-1]).view_as(sums)


def share(count: int, whole: int | Tensor) -> float | Tensor:
    """What a mean over ``count`` of the ``whole`` examples is multiplied by: then the processes' mean is that of all.

    Gradients are averaged over the processes, however few examples one of them has.

    Example:
        >>> share(3, 3)
        1.0
    """
    return count * size() / whole


def gathered(values: Tensor) -> Tensor:
    """Every process's values, [...] to [R, ...]; no gradient."""
    if size() == 1:
        return values[None]
    parts = [torch.empty_like(values) for _ in range(size())]
    distributed.all_gather(parts, values.contiguous())
    return torch.stack(parts)


def same_buffers(module: torch.nn.Module) -> None:
    """Give every process the buffers of rank 0."""
    if size() > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
