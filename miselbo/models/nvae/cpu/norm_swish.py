"""Batch norm followed by swish as one step, for training on a CPU: half the passes over memory of the library's two."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from miselbo.models.nvae.cpu.threads import share
from miselbo.protocols import Saved

LAST = torch.channels_last
ROW = 128  # numbers that one call of a compiled loop handles at least, where the channels are few


def normalise(norm: nn.BatchNorm2d, x: Tensor, repeats: int = 1) -> Tensor:
    """Batch norm of x as if each pixel were there ``repeats`` times.

    Mean and variance are the same; the unbiased variance that goes into the running one is not: n / (n - 1) counts the
    repeated pixels.

    Example:
        >>> norms, x = [nn.BatchNorm2d(2) for _ in range(2)], torch.randn(3, 2, 4, 4)
        >>> doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        >>> y, z = normalise(norms[0], x, repeats=4), norms[1](doubled)[:, :, ::2, ::2]
        >>> torch.allclose(y, z, atol=1e-5), torch.allclose(norms[0].running_var, norms[1].running_var)
        (True, True)
    """
    if repeats == 1 or not norm.training:
        return norm(x)
    assert norm.running_var is not None
    before = norm.running_var.clone()
    y = norm(x)
    n = x.numel() // x.shape[1]
    surplus = (n - 1) / n * _unbiased(n * repeats) - 1
    running = norm.running_var.data  # autograd keeps running_var and would refuse a change
    running.add_(running - (1 - _share_of_batch(norm)) * before, alpha=surplus)
    return y


def norm_swish(norm: nn.BatchNorm2d, x: Tensor, repeats: int = 1) -> Tensor:
    """swish(:func:`normalise` (x)), swish(t) = t sigmoid(t): x [N, C, H, W] to the same.

    Example:
        >>> norms, x = [nn.BatchNorm2d(2) for _ in range(2)], torch.randn(3, 2, 4, 4)
        >>> torch.allclose(norm_swish(norms[0], x), F.silu(norms[1](x)), atol=1e-5)
        True
    """
    known = type(norm) is nn.BatchNorm2d and x.device.type == "cpu" and x.dtype == norm.weight.dtype
    trained = torch.is_grad_enabled() and (x.requires_grad or norm.weight.requires_grad)
    if known and trained and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        y: Tensor = _NormSwish.apply(x, norm.weight, norm.bias, norm, repeats)
        return y
    return F.silu(normalise(norm, x, repeats))


class _Kept(Saved, Protocol):
    training: bool


class _NormSwish(torch.autograd.Function):
    """y = swish(z), z = scale x + shift; with statistics of the batch dx = scale (dz - mean(dz) - h mean(h dz))."""

    @staticmethod
    def forward(
        ctx: _Kept, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, repeats: int
    ) -> Tensor:
        from miselbo.models.nvae.cpu import kernels  # compiles, where nothing is stored yet

        x = x.contiguous(memory_format=LAST)
        if norm.training:
            mean, variance = statistics(x)
            update_running(norm, mean, variance, x.numel() // x.shape[1], repeats)
        else:
            assert norm.running_mean is not None and norm.running_var is not None
            mean, variance = norm.running_mean, norm.running_var
        inverse = (variance + norm.eps).rsqrt()
        scale = weight * inverse
        shift = bias - mean * scale
        y = torch.empty_like(x)
        source, target, merged = _rows(x), _rows(y), _merged(x)
        arrays = [_tiled(t, merged) for t in (scale, shift)]
        share(len(source), lambda part, first, last: kernels.swish(source, *arrays, target, first, last))
        ctx.save_for_backward(x, mean, inverse, scale, shift)
        ctx.training = norm.training
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: _Kept, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from miselbo.models.nvae.cpu import kernels

        x, mean, inverse, scale, shift = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=LAST)
        of_x = torch.empty_like(x)
        merged, channels, n = _merged(x), x.shape[1], x.numel() // x.shape[1]
        rows = [_rows(t) for t in (x, gradient, of_x)]
        constants = [_tiled(t, merged) for t in (scale, shift, mean)]
        sums = x.new_zeros(torch.get_num_threads(), 2, channels * merged, dtype=torch.float64)
        out = sums.numpy()
        share(
            len(rows[0]),
            lambda part, first, last: kernels.swish_gradient(*rows, *constants, out[part], first, last),
        )
        total, along = sums.sum(0).view(2, merged, channels).sum(1)  # of dz, of dz (x - mean)
        of_weight, of_bias = (along * inverse).to(x.dtype), total.to(x.dtype)
        if ctx.training:
            slope = -along * inverse.double().square() / n
            offset = -total / n - slope * mean
            lines = [_tiled((scale * t).to(x.dtype), merged) for t in (offset, slope)]
        else:
            lines = [_tiled(torch.zeros_like(scale), merged)] * 2
        share(
            len(rows[0]),
            lambda part, first, last: kernels.add_line(rows[2], rows[0], constants[0], *lines, first, last),
        )
        return of_x, of_weight, of_bias, None, None


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, [C] each, float32 from sums in float64."""
    from miselbo.models.nvae.cpu import kernels

    merged, channels, n = _merged(x), x.shape[1], x.numel() // x.shape[1]
    source = _rows(x)
    origin = x[0, :, 0, 0].detach().clone()  # differences to it cancel less than the values themselves
    start = _tiled(origin, merged)
    sums = x.new_zeros(torch.get_num_threads(), 2, channels * merged, dtype=torch.float64)
    out = sums.numpy()
    share(len(source), lambda part, first, last: kernels.moments(source, start, out[part], first, last))
    first, second = sums.sum(0).view(2, merged, channels).sum(1) / n
    return (first + origin).to(x.dtype), (second - first.square()).clamp(min=0).to(x.dtype)


@torch.no_grad()
def update_running(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, n: int, repeats: int) -> None:
    """Move the running statistics as batch norm does."""
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    newest = _share_of_batch(norm)
    norm.running_mean.lerp_(mean, newest)
    norm.running_var.lerp_(variance * _unbiased(n * repeats), newest)


def _share_of_batch(norm: nn.BatchNorm2d) -> float:
    """Weight of the newest batch in the running statistics; without a momentum they are plain means."""
    assert norm.num_batches_tracked is not None
    return 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum


def _unbiased(n: int) -> float:
    return n / max(n - 1, 1)


def _merged(x: Tensor) -> int:
    """Pixels that make up one row, so that rows are long enough for vector instructions."""
    merged = 1
    while x.shape[1] * merged < ROW and (x.numel() // x.shape[1]) % (2 * merged) == 0:
        merged *= 2
    return merged


def _tiled(values: Tensor, merged: int) -> np.ndarray:
    """Values of the channels [C] for a row of merged pixels, as an array."""
    return (values if merged == 1 else values.repeat(merged)).detach().numpy()


def _rows(x: Tensor) -> np.ndarray:
    """Array [rows, merged * C] of a channels-last tensor, a view."""
    return x.detach().permute(0, 2, 3, 1).reshape(-1, _merged(x) * x.shape[1]).numpy()
