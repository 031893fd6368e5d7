"""The residual cells NVAE is made of, and the table of architectures."""

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miselbo.errors import InputError
from miselbo.models.nvae.convs import WeightNormConv2d
from miselbo.models.nvae.depthwise import depthwise_conv
from miselbo.models.nvae.norm_swish import norm_swish, normalise

UP = -1  # stride of a cell that doubles the resolution

# name -> (normalised, activation, dilation) of a 3x3 convolution
_SIMPLE: dict[str, tuple[bool, Callable[[Tensor], Tensor], int]] = {
    "bnswish": (True, F.silu, 1),
    "bnswish5": (True, F.silu, 2),
    "bnelu": (True, F.elu, 1),
    "elu": (False, F.elu, 1),
}
_BOTTLENECK = re.compile(r"e(\d+)k(\d+)g(\d+)")  # expansion, kernel size, groups (0: depthwise)

ARCHITECTURES: dict[str, dict[str, tuple[str, ...]]] = {
    name: dict(zip(("pre", "enc", "dec", "post"), map(tuple, map(str.split, row)), strict=True))
    for name, row in {
        "res_mbconv": ("bnswish bnswish", "bnswish bnswish", "e6k5g0", "e3k5g0"),
        "res_bnswish": ("bnswish bnswish",) * 4,
        "res_bnelu": ("bnelu bnelu",) * 4,
        "res_elu": ("elu elu",) * 4,
        "mbconv_sep": ("e3k5g0", "e6k5g0", "e6k5g0", "e3k5g0"),
        "mbconv_sep11": ("e3k5g0", "e6k11g0", "e6k11g0", "e3k5g0"),
        "res53_mbconv": ("bnswish5 bnswish", "bnswish5 bnswish", "e6k5g0", "e3k5g0"),
        "res35_mbconv": ("bnswish bnswish5", "bnswish bnswish5", "e6k5g0", "e3k5g0"),
        "res55_mbconv": ("bnswish5 bnswish5", "bnswish5 bnswish5", "e6k5g0", "e3k5g0"),
        "mbconv_res": ("e3k5g0", "e6k5g0", "bnswish bnswish", "bnswish bnswish"),
        "mbconv_den": ("e3k5g8", "e6k5g0", "e6k5g0", "e3k5g8"),
    }.items()
}


def architecture(name: str) -> dict[str, tuple[str, ...]]:
    """Operations of the cells of each part of the network: pre, enc, dec, post.

    Raises:
        InputError: unknown name.

    Example:
        >>> architecture("res_mbconv")["dec"]
        ('e6k5g0',)
    """
    if name not in ARCHITECTURES:
        raise InputError(f"arch={name!r} is unknown; expected one of {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[name]


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation with NVAE's momentum 0.05."""
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.05)


def double(x: Tensor) -> Tensor:
    """Twice the resolution, each pixel repeated."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class SimpleOperation(nn.Module):
    """[BN] -> activation -> [doubling] -> weight-normalised 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, kind: str) -> None:
        super().__init__()
        normalised, self.activation, dilation = _SIMPLE[kind]
        self.up = stride == UP
        self.norm = batch_norm(in_channels) if normalised else None
        self.conv = WeightNormConv2d(in_channels, out_channels, 3, stride=max(stride, 1), dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H', W']."""
        if self.norm is not None and self.activation is F.silu:
            x = norm_swish(self.norm, x)
        else:
            x = self.activation(x if self.norm is None else self.norm(x))
        return self.conv(double(x) if self.up else x)


class BottleneckOperation(nn.Module):
    """[doubling] -> BN -> 1x1 widening -> BN, swish -> k x k in groups -> BN, swish -> 1x1 -> BN."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, expansion: int, size: int, groups: int
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        if groups and hidden % groups:
            raise InputError(
                f"an operation in {groups} groups has {hidden} channels ({expansion} x {in_channels});"
                " expected a multiple of the groups: change num_channels or arch."
            )
        self.up = stride == UP
        self.norm_in = batch_norm(in_channels)
        self.widen = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.norm_wide = batch_norm(hidden)
        self.spatial = nn.Conv2d(
            hidden,
            hidden,
            size,
            stride=max(stride, 1),
            padding=(size - 1) // 2,
            groups=groups or hidden,
            bias=False,
        )
        self.norm_spatial = batch_norm(hidden)
        self.narrow = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.norm_out = batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H', W'], the doubling behind the steps that commute with repeating pixels."""
        late = self.up and (type(self.norm_in) is nn.BatchNorm2d or not self.norm_in.training)
        repeats = 4 if late else 1
        if self.up and not late:
            x = double(x)
        x = self.widen(normalise(self.norm_in, x, repeats))
        x = norm_swish(self.norm_wide, x, repeats)
        if late:
            x = double(x)
        x = norm_swish(self.norm_spatial, self._convolve(x))
        return self.norm_out(self.narrow(x))

    def _convolve(self, x: Tensor) -> Tensor:
        conv = self.spatial
        if conv.groups == conv.in_channels:
            return depthwise_conv(x, conv.weight, conv.stride[0])
        return conv(x)


def operation(kind: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Build an operation by its short name; stride 1, 2 (halve the resolution) or -1 (double it)."""
    if kind in _SIMPLE:
        return SimpleOperation(in_channels, out_channels, stride, kind)
    match = _BOTTLENECK.fullmatch(kind)
    assert match is not None, kind
    expansion, size, groups = map(int, match.groups())
    return BottleneckOperation(in_channels, out_channels, stride, expansion, size, groups)


class HalvingSkip(nn.Module):
    """Swish, then four 1x1 convolutions, each on one of the four pixels of every 2x2 square, side by side."""

    _offsets = ((0, 0), (1, 1), (0, 1), (1, 0))

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        widths = [out_channels // 4] * 3 + [out_channels - 3 * (out_channels // 4)]
        self.convs = nn.ModuleList(WeightNormConv2d(in_channels, width, 1) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H / 2, W / 2]."""
        x = F.silu(x)
        parts = zip(self.convs, self._offsets, strict=True)
        return torch.cat([conv(x[:, :, row::2, column::2]) for conv, (row, column) in parts], 1)


class DoublingSkip(nn.Module):
    """Bilinear doubling (corners aligned) and a 1x1 convolution; they commute, the cheap order is used."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = WeightNormConv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, 2 H, 2 W]."""
        return F.interpolate(self.conv(x), scale_factor=2.0, mode="bilinear", align_corners=True)


class SqueezeExcitation(nn.Module):
    """Scale every channel by a number in (0, 1) computed from the means of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 4)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same."""
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3)))))
        return x * gate.sigmoid()[:, :, None, None]


class Cell(nn.Module):
    """skip(x) + 0.1 * SE(operations(x)); the first operation changes width and resolution.

    Args:
        in_channels: width of the input; doubled by stride 2, halved by stride -1.
        kinds: short names of the operations.
        stride: 1, 2 (halve the resolution) or -1 (double it).
        use_se: end with squeeze and excitation.

    Example:
        >>> Cell(4, ("bnswish", "bnswish"), 2, True)(torch.zeros(1, 4, 8, 8)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(self, in_channels: int, kinds: tuple[str, ...], stride: int, use_se: bool) -> None:
        super().__init__()
        out_channels = {1: in_channels, 2: 2 * in_channels, UP: in_channels // 2}[stride]
        first = operation(kinds[0], in_channels, out_channels, stride)
        others = (operation(kind, out_channels, out_channels, 1) for kind in kinds[1:])
        self.ops = nn.Sequential(first, *others)
        self.se = SqueezeExcitation(out_channels) if use_se else None
        skips: dict[int, Callable[[int, int], nn.Module]] = {2: HalvingSkip, UP: DoublingSkip}
        self.skip = skips[stride](in_channels, out_channels) if stride in skips else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H', W']."""
        y = self.ops(x)
        if self.se is not None:
            y = self.se(y)
        return torch.add(x if self.skip is None else self.skip(x), y, alpha=0.1)
