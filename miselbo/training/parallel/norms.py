"""Batch normalisation over the examples of all processes, on a CPU too (torch's own is for GPUs alone)."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from miselbo.protocols import Saved
from miselbo.training.parallel import collectives


class _Whiten(torch.autograd.Function):
    """(x - mean) / sd, mean and sd being those of x over all processes.

    With h the result, G its gradient and m(.) means over the examples and pixels of all processes: the gradient of x
    is (G - m(G) - h m(G h)) / sd.
    """

    @staticmethod
    def forward(ctx: Saved, x: Tensor, mean: Tensor, inverse: Tensor, count: Tensor) -> Tensor:
        result = (x - mean) * inverse
        ctx.save_for_backward(result, inverse, count)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Saved, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        result, inverse, count = ctx.saved_tensors
        axes = _axes(result)
        local = [gradient.sum(axes, keepdim=True), (gradient * result).sum(axes, keepdim=True)]
        first, second = (collectives.summed(torch.stack(local)) / count.to(gradient.dtype)).unbind()
        return (gradient - first - result * second) * inverse, None, None, None


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation of any number of axes, with the statistics of all processes' examples in training.

    Example:
        >>> norm, x = SyncBatchNorm(2), torch.randn(5, 2, 3, 3)
        >>> torch.allclose(norm(x), nn.BatchNorm2d(2)(x), atol=1e-6)
        True
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Whatever the number of axes."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] -> the same."""
        if not self.training and self.track_running_stats:
            return super().forward(x)
        wide = x if x.dtype == torch.float64 else x.float()
        mean, variance, count = whole_statistics(wide)
        self._remember(mean, variance * count / (count - 1))
        shape = (1, -1, *[1] * (x.ndim - 2))
        inverse = (variance + self.eps).rsqrt()
        whitened: Tensor = _Whiten.apply(wide, mean.view(shape).to(wide), inverse.view(shape).to(wide), count)
        if self.affine:
            whitened = whitened * self.weight.view(shape) + self.bias.view(shape)
        return whitened.to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, unbiased: Tensor) -> None:
        if not self.track_running_stats:
            return
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), factor)
        self.running_var.lerp_(unbiased.to(self.running_var), factor)


@torch.no_grad()
def whole_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and (biased) variance per channel over all processes, and the number of values they are over, float64.

    From each process's own mean and variance, so nothing cancels: var = sum_r n_r (var_r + (mean_r - mean)^2) / n.
    """
    variance, mean = torch.var_mean(x.detach(), _axes(x), correction=0)
    own = x.new_full((1,), x.numel() // x.shape[1], dtype=torch.float64)
    counts, rest = collectives.gathered(torch.cat([own, mean, variance])).split([1, 2 * x.shape[1]], 1)
    means, variances = rest.chunk(2, 1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    return mean, (counts * (variances + (means - mean) ** 2)).sum(0) / count, count


@contextlib.contextmanager
def synchronised(module: nn.Module, gpu: bool) -> Iterator[None]:
    """Inside the block every batch norm of ``module`` normalises over all processes.

    The modules stay the same objects with the same names and tensors: only their class is another one meanwhile,
    torch's own on GPUs.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    classes = [norm.__class__ for norm in norms]
    for norm in norms:
        norm.__class__ = nn.SyncBatchNorm if gpu else SyncBatchNorm
        norm.process_group = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for norm, kind in zip(norms, classes, strict=True):
            norm.__class__ = kind
            del norm.process_group


def _axes(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]
