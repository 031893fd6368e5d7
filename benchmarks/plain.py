"""The network computed in the order in which the published one is written, for the slow side of a comparison.

This project's modules compute the same values with fewer operations (swish in one kernel, doubling behind pointwise
steps, 1x1 convolutions before interpolation); measuring against those would flatter nobody's code. Facts: a swish is
t * sigmoid(t); an up-cell doubles first; an up-skip interpolates first; batch norm runs as such.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miselbo.models.nvae.cells import BottleneckOperation, DoublingSkip, HalvingSkip, SimpleOperation, double
from miselbo.models.nvae.convs import EPSILON, WeightNormConv2d


def swish(x: Tensor) -> Tensor:
    """t sigmoid(t)."""
    return x * torch.sigmoid(x)


def bottleneck(op: BottleneckOperation, x: Tensor) -> Tensor:
    """[doubling] -> BN -> 1x1 -> BN, swish -> k x k -> BN, swish -> 1x1 -> BN."""
    x = op.norm_in(double(x) if op.up else x)
    x = swish(op.norm_wide(op.widen(x)))
    x = swish(op.norm_spatial(op.spatial(x)))
    return op.norm_out(op.narrow(x))


def simple(op: SimpleOperation, x: Tensor) -> Tensor:
    """BN, swish -> [doubling] -> 3 x 3."""
    x = swish(op.norm(x)) if op.norm is not None and op.activation is F.silu else op.activation(x)
    return op.conv(double(x) if op.up else x)


def doubling(skip: DoublingSkip, x: Tensor) -> Tensor:
    """Bilinear doubling, then 1x1."""
    return skip.conv(F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True))


def halving(skip: HalvingSkip, x: Tensor) -> Tensor:
    """Swish, then four 1x1 convolutions of stride 2 on shifted copies."""
    x = swish(x)
    shifted = (x, x[:, :, 1:, 1:], x[:, :, :, 1:], x[:, :, 1:, :])
    parts = zip(skip.convs, shifted, strict=True)
    return torch.cat([F.conv2d(part, conv.kernel(), conv.bias, stride=2) for conv, part in parts], 1)


def effective_kernel(conv: WeightNormConv2d) -> Tensor:
    """exp(g) v / (|v| + 1e-5), step by step; once per pass of the network, which keeps it for the regulariser."""
    if conv.shared is not None:
        return conv.shared
    v = conv.direction()
    norm = v.pow(2).sum((1, 2, 3), keepdim=True).sqrt()
    return conv.log_gain.exp() * v / (norm + EPSILON)


def convolution(conv: WeightNormConv2d, x: Tensor) -> Tensor:
    """The library's convolution with the effective kernel."""
    return F.conv2d(x, conv.kernel(), conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


FORWARDS = {
    WeightNormConv2d: convolution,
    BottleneckOperation: bottleneck,
    SimpleOperation: simple,
    DoublingSkip: doubling,
    HalvingSkip: halving,
}


def as_published(module: nn.Module) -> nn.Module:
    """Replace the forward pass of every such part of ``module`` (in place), in NCHW memory order."""
    for part in module.modules():
        if isinstance(part, WeightNormConv2d):
            part.kernel = partial(effective_kernel, part)  # type: ignore[method-assign]
        if type(part) in FORWARDS:
            part.forward = partial(FORWARDS[type(part)], part)  # type: ignore[method-assign,operator]
    return module.to(memory_format=torch.contiguous_format)
