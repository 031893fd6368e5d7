"""Weight-normalised convolutions, plain and auto-regressive."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from miselbo.models.nvae.cpu import winograd
from miselbo.protocols import Saved

EPSILON = 1e-5  # beside the norm


class _Normalise(torch.autograd.Function):
    """exp(g) v / (|v| + epsilon) per output channel, with a gradient in few passes over v.

    With s = exp(g) / (|v| + epsilon) and G the gradient of the kernel: dg = s <G, v> and
    dv = s (G - v <G, v> / (|v| (|v| + epsilon))).
    """

    @staticmethod
    def forward(ctx: Saved, v: Tensor, log_gain: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(v, dim=(1, 2, 3), keepdim=True)
        scale = log_gain.exp() / (norm + EPSILON)
        ctx.save_for_backward(v, norm, scale)
        return v * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Saved, gradient: Tensor) -> tuple[Tensor, Tensor]:
        v, norm, scale = ctx.saved_tensors
        of_gain = scale * (gradient * v).sum((1, 2, 3), keepdim=True)
        along = torch.where(norm > 0, of_gain / (norm * (norm + EPSILON)), 0)
        return (gradient * scale).addcmul_(v, along, value=-1), of_gain


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
    shared: Tensor | None = None  # the effective kernel inside :func:`shared_kernels`

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
        norm = torch.linalg.vector_norm(self.direction().detach(), dim=(1, 2, 3), keepdim=True)
        self.log_gain = nn.Parameter(torch.log(norm + 1e-2))

    def direction(self) -> Tensor:
        """The kernel v before normalisation, masked where there is a mask."""
        return self.weight if self.mask is None else self.weight * self.mask

    def kernel(self) -> Tensor:
        """The effective kernel, with gradient."""
        if self.shared is not None:
            return self.shared
        kernel: Tensor = _Normalise.apply(self.direction(), self.log_gain)
        return kernel

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the effective kernel."""
        kernel = self.kernel()
        if self.stride == self.dilation == (1, 1) and winograd.applies(x, kernel):
            return winograd.winograd_conv(x, kernel, self.bias)
        return F.conv2d(x, kernel, self.bias, self.stride, self.padding, self.dilation, self.groups)


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


@contextlib.contextmanager
def shared_kernels(*modules: nn.Module) -> Iterator[None]:
    """Inside the block every weight-normalised kernel of ``modules`` is computed once, whoever asks for it.

    Example:
        >>> conv = WeightNormConv2d(2, 3, 1)
        >>> with shared_kernels(conv):
        ...     conv.kernel() is conv.kernel()
        True
    """
    convs = [conv for module in modules for conv in module.modules() if isinstance(conv, WeightNormConv2d)]
    for conv in convs:
        conv.shared = conv.kernel()
    try:
        yield
    finally:
        for conv in convs:
            conv.shared = None


def batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Every batch normalisation in ``module`` (also after conversion to the synchronised kind)."""
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
