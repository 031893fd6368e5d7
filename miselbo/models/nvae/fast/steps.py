"""What a trained cell computes in evaluation mode as elementary steps, and exact rules that shorten them:

1. repeating pixels commutes with everything pointwise (affine maps, activations, 1x1 convolutions): it goes
   behind;
2. an affine map per channel goes into the convolution before it, or into a 1x1 convolution after it (which
   has no padding that would see its shift);
3. a convolution of repeated pixels is, for each of the four output pixels of an input pixel, a smaller
   convolution of the input: the doubled feature is never made, and the pointwise steps after it run on each
   quarter.

Kernels are normalised once. Constants are folded in float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miselbo.models.nvae.cells import (
    BottleneckOperation,
    SimpleOperation,
)
from miselbo.models.nvae.convs import WeightNormConv2d


@dataclass
class Affine:
    """scale * x + shift per channel, both [C] in float64."""

    scale: Tensor
    shift: Tensor


@dataclass
class Convolution:
    """A convolution with zero padding; kernel and bias in float64."""

    kernel: Tensor
    bias: Tensor
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1

    @property
    def pointwise(self) -> bool:
        """1x1 without stride."""
        return self.kernel.shape[-1] == 1 and self.stride == 1


@dataclass
class Activation:
    """An elementwise function that has an in-place form."""

    function: Callable[..., Tensor]


class Doubling:
    """Each pixel repeated to 2x2."""


Step = Affine | Convolution | Activation | Doubling


def convolution(conv: nn.Conv2d) -> Convolution:
    """The step of a convolution module, its kernel normalised if it is weight-normalised."""
    kernel = (conv.kernel() if isinstance(conv, WeightNormConv2d) else conv.weight).detach().double()
    bias = kernel.new_zeros(len(kernel)) if conv.bias is None else conv.bias.detach().double()
    return Convolution(kernel, bias, conv.stride[0], int(conv.padding[0]), conv.dilation[0], conv.groups)


def affine(norm: nn.BatchNorm2d) -> Affine:
    """The step of a batch normalisation in evaluation mode.

    Example:
        >>> step = affine(nn.BatchNorm2d(1, eps=0.0))
        >>> step.scale.item(), step.shift.item()
        (1.0, 0.0)
    """
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.detach().double() * (norm.running_var.double() + norm.eps).rsqrt()
    return Affine(scale, norm.bias.detach().double() - scale * norm.running_mean.double())


def steps_of(operation: nn.Module) -> list[Step]:
    """An operation of a cell as elementary steps."""
    if isinstance(operation, SimpleOperation):
        before: list[Step] = [] if operation.norm is None else [affine(operation.norm)]
        doubling: list[Step] = [Doubling()] if operation.up else []
        return [*before, Activation(operation.activation), *doubling, convolution(operation.conv)]
    assert isinstance(operation, BottleneckOperation), type(operation)
    parts = operation
    return [
        *([Doubling()] if parts.up else []),
        affine(parts.norm_in),
        convolution(parts.widen),
        affine(parts.norm_wide),
        Activation(F.silu),
        convolution(parts.spatial),
        affine(parts.norm_spatial),
        Activation(F.silu),
        convolution(parts.narrow),
        affine(parts.norm_out),
    ]


def shorten(steps: Sequence[Step]) -> list[Step]:
    """Apply rules 1 and 2 until none applies.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> (step,) = shorten([Affine(2 * one, one), Convolution(3 * one.view(1, 1, 1, 1), one)])
        >>> step.kernel.item(), step.bias.item()
        (6.0, 4.0)
    """
    steps = list(steps)
    k = 0
    while k + 1 < len(steps):
        merged = _merge(steps[k], steps[k + 1])
        if merged is None:
            k += 1
        else:
            steps[k : k + 2] = merged
            k = max(k - 1, 0)
    return steps


def _merge(first: Step, second: Step) -> list[Step] | None:
    if isinstance(first, Doubling):
        passes = isinstance(second, Affine | Activation) or (
            isinstance(second, Convolution) and second.pointwise
        )
        return [second, first] if passes else None
    if isinstance(first, Convolution) and isinstance(second, Affine):
        kernel = first.kernel * second.scale.view(-1, 1, 1, 1)
        return [replace(first, kernel=kernel, bias=first.bias * second.scale + second.shift)]
    if (
        isinstance(first, Affine)
        and isinstance(second, Convolution)
        and second.pointwise
        and second.groups == 1
    ):
        shift = (second.kernel.flatten(1) * first.shift).sum(1)
        return [
            replace(second, kernel=second.kernel * first.scale.view(1, -1, 1, 1), bias=second.bias + shift)
        ]
    return None


def quarter(conv: Convolution, row: int, column: int) -> Convolution:
    """Rule 3: the convolution of the small feature that gives pixel (row, column) of each doubled one."""
    size, middle = conv.kernel.shape[-1], (conv.kernel.shape[-1] - 1) // 2
    reach = (middle + 1) // 2
    sums = []
    for phase in (row, column):
        taps = conv.kernel.new_zeros(size, 2 * reach + 1)
        for tap in range(size):
            taps[tap, (tap - middle + phase) // 2 + reach] = 1
        sums.append(taps)
    kernel = torch.einsum("oirc,ra,cb->oiab", conv.kernel, *sums)
    return replace(conv, kernel=kernel, padding=reach)
