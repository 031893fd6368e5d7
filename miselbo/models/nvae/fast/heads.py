r"""Posterior and prior parameters of all S members at a group, in a form for evaluation alone.

For a group i > 0, the raw posterior parameters of member j are a 3x3 convolution of its x-side feature c_j
plus a 1x1 convolution W_j f + b_j of the decoder's feature f. That is linear in f:

    head_j(c_j + W_j f + b_j) = [head_j(c_j + b_j)]  +  (head_j W_j) f,

the first part depends on x alone and is computed once per x (its zero padding sees c_j + b_j, so b_j needs no
care), the second one is ONE convolution with S x 2Z output channels for all members.

Parameters are kept as [N, P, 2, S, Z] (P = h x w pixels; location and log-scale), multiplied by 2/5: the
clamp 5 tanh(t / 5) = 10 sigmoid(2 t / 5) - 5 takes a fifth of the hyperbolic tangent's time.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from miselbo.models.nvae.convs import WeightNormConv2d
from miselbo.models.nvae.encoder import Encoder, EncoderCombiner
from miselbo.models.nvae.fast.fused_conv import FusedConv2d
from miselbo.models.nvae.fast.steps import Convolution, convolution

CLAMP = 5.0
FACTOR = 2 / CLAMP  # of raw parameters
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def scaled(step: Convolution, factor: float) -> Convolution:
    """The convolution with its output multiplied by ``factor``."""
    return Convolution(
        step.kernel * factor, step.bias * factor, step.stride, step.padding, step.dilation, step.groups
    )


def pixels(x: Tensor) -> Tensor:
    """[N, C, h, w] -> [N, h w, C], without a copy if x is in channels-last layout."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def image(z: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, h w, C] -> [N, C, h, w] in channels-last layout, without a copy if z is contiguous."""
    return z.unflatten(1, size).permute(0, 3, 1, 2)


class JointHeads(nn.Module):
    """The decoder-side part of all members' posterior heads at one group, as one convolution.

    Args:
        members: S encoders.
        i: the group, at least 1.
        dtype: of the convolution.
    """

    def __init__(self, members: Sequence[Encoder], i: int, dtype: torch.dtype) -> None:
        super().__init__()
        kernels = []
        for member in members:
            combiner = member.tower[member._combiner_index[i - 1]]
            assert isinstance(combiner, EncoderCombiner)
            inner, outer = convolution(combiner.conv), convolution(_conv(member.heads[i]))
            kernel = torch.einsum("ocab,cd->odab", outer.kernel, inner.kernel[:, :, 0, 0])
            kernels.append(kernel.unflatten(0, (2, -1)))  # [2, Z, C_d, 3, 3]
        kernel = FACTOR * torch.stack(kernels, 1)
        self.shape = tuple(kernel.shape[:3])
        kernel = kernel.flatten(0, 2)
        self.conv = FusedConv2d(Convolution(kernel, kernel.new_zeros(len(kernel)), padding=1), dtype)

    def forward(self, feature: Tensor) -> Tensor:
        """[N, C_d, h, w] -> [N, P, 2, S, Z]."""
        return pixels(self.conv(feature)).unflatten(-1, self.shape)


def context_heads(member: Encoder, dtype: torch.dtype) -> nn.ModuleList:
    """The x-side parts of a member's heads: one convolution per group."""
    steps = (scaled(convolution(_conv(head)), FACTOR) for head in member.heads)
    return nn.ModuleList(FusedConv2d(step, dtype) for step in steps)


def context_biases(member: Encoder, dtype: torch.dtype) -> list[Tensor | None]:
    """b_j of each group, [C, 1, 1]: the x-side feature and this are what the head's x-side part sees."""
    biases: list[Tensor | None] = [None]
    for index in member._combiner_index:
        combiner = member.tower[index]
        assert isinstance(combiner, EncoderCombiner)
        biases.append(convolution(combiner.conv).bias.to(dtype).view(-1, 1, 1))
    return biases


def prior_head(head: nn.Module, dtype: torch.dtype) -> FusedConv2d:
    """A group's prior parameters from the activated decoder feature, multiplied by 2/5."""
    return FusedConv2d(scaled(convolution(_conv(head)), FACTOR), dtype)


def _conv(module: nn.Module) -> WeightNormConv2d:
    assert isinstance(module, WeightNormConv2d)
    return module


def clamped(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Location and scale of raw parameters times 2/5, [..., 2, S, Z] (overwritten) -> [..., S, Z] each.

    Example:
        >>> loc, scale = clamped(torch.zeros(1, 1, 2, 1, 1))
        >>> loc.item(), round(scale.item(), 2)
        (0.0, 1.01)
    """
    loc, log_scale = raw.sigmoid_().mul_(2 * CLAMP).sub_(CLAMP).unbind(-3)
    return loc, log_scale.exp().add_(0.01)


def log_normal(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """log N(z; loc, scale) summed over pixels and channels: [..., P, S, Z], broadcast -> [..., S] in float64.

    Example:
        >>> zero = torch.zeros(1, 1, 1)
        >>> round(log_normal(zero, zero, zero + 1).item(), 4)
        -0.9189
    """
    terms = (z - loc).div_(scale).square_().mul_(0.5).add_(scale.log())
    constant = HALF_LOG_2PI * terms.shape[-3] * terms.shape[-1]
    return terms.sum((-3, -1), dtype=torch.float64).add_(constant).neg_()
