"""Weight-normalised convolutions, plain and auto-regressive."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WeightNormConv2d(nn.Conv2d):
    r"""Convolution with the kernel exp(g) v / (\|v\| + 1e-5), the norm taken per output channel.

    v is ``weight``, g is ``log_gain`` [out, 1, 1, 1], first set to log(\|v\| + 1e-2).

    With a ``mask`` (0 and 1, of the kernel's shape) v is masked first.

    Example:
        >>> conv = WeightNormConv2d(2, 3, 1)
        >>> conv.kernel().shape
        torch.Size([3, 2, 1, 1])
    """

    mask: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        mask: Tensor | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size - 1) // 2,
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
        self.register_buffer("mask", mask, persistent=False)
        self.log_gain = nn.Parameter(torch.log(self._norm(self.direction().detach()) + 1e-2))

    def direction(self) -> Tensor:
        """The kernel v before normalisation, masked where there is a mask."""
        return self.weight if self.mask is None else self.weight * self.mask

    def kernel(self) -> Tensor:
        """The effective kernel, with gradient."""
        v = self.direction()
        return v * (self.log_gain.exp() / (self._norm(v) + 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the effective kernel."""
        return F.conv2d(x, self.kernel(), self.bias, self.stride, self.padding, self.dilation, self.groups)

    @staticmethod
    def _norm(v: Tensor) -> Tensor:
        return torch.linalg.vector_norm(v, dim=(1, 2, 3), keepdim=True)


def autoregressive_mask(
    in_channels: int, out_channels: int, groups: int, kernel_size: int, *, strict: bool, mirror: bool
) -> Tensor:
    """Taps that see only earlier values in raster order, then in channel order: [out, in / groups, k, k].

    At the centre tap, channels are cut into blocks; a block sees the blocks before it, and itself unless
    ``strict``. ``mirror`` reverses the spatial order only.

    Example:
        >>> autoregressive_mask(2, 2, 1, 3, strict=True, mirror=False)[:, 0].int().tolist()
        [[[1, 1, 1], [1, 0, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 0], [0, 0, 0]]]
    """
    middle = (kernel_size - 1) // 2
    spatial = torch.arange(kernel_size**2).view(kernel_size, kernel_size) < middle * (kernel_size + 1)
    if mirror:
        spatial = spatial.flip(0, 1)
    mask = spatial.float().repeat(out_channels, in_channels // groups, 1, 1)
    if groups > 1:
        centre = torch.full((out_channels, in_channels // groups), 0.0 if strict else 1.0)
    else:
        blocks = min(in_channels, out_channels)
        sees = torch.arange(in_channels) // (in_channels // blocks)
        seen_by = torch.arange(out_channels) // (out_channels // blocks)
        centre = (sees < seen_by[:, None] + (0 if strict else 1)).float()
    mask[:, :, middle, middle] = centre
    return mask


def autoregressive_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    groups: int = 1,
    bias: bool = True,
    strict: bool = False,
    mirror: bool = False,
) -> WeightNormConv2d:
    """Weight-normalised convolution whose v is masked first; see :func:`autoregressive_mask`."""
    mask = autoregressive_mask(in_channels, out_channels, groups, kernel_size, strict=strict, mirror=mirror)
    return WeightNormConv2d(in_channels, out_channels, kernel_size, groups=groups, bias=bias, mask=mask)


def conv_kernels(module: nn.Module) -> list[Tensor]:
    """The effective kernel of every convolution in ``module``, with gradient (normalised, masked)."""
    convs = (m for m in module.modules() if isinstance(m, nn.Conv2d))
    return [conv.kernel() if isinstance(conv, WeightNormConv2d) else conv.weight for conv in convs]


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """Every batch normalisation in ``module`` (also after conversion to the synchronised kind)."""
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
