r"""3x3 convolutions by Winograd's minimal filtering, for training on a CPU: 4 multiplications in place of 9 or more.

A 4x4 tile of the output comes from a 6x6 tile d of the input by Y = A^T [(G w G^T) * (B^T d B)] A (Winograd 1980; Lavin
and Gray 2016, arXiv 1509.09308), the points being 0, 1, -1, 2, -2 and infinity. Summed over channels, the products are
36 matrix products of size [tiles, C_in] x [C_in, C_out] with a quarter of the direct convolution's multiplications. The
gradient is the adjoint of the same steps. In float32 the result is as close to the exact one as the library's to within
a factor of ten (about 3e-6 relative).
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from miselbo.models.nvae.cpu.threads import share
from miselbo.protocols import Saved

LAST = torch.channels_last
FEWEST_CHANNELS = 128  # in and out; below, moving tiles costs what the products save
G = torch.tensor(
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
     [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]], dtype=torch.float64,
)  # fmt: skip
G2 = torch.kron(G, G).float()  # [36, 9]


def applies(x: Tensor, kernel: Tensor) -> bool:
    """Whether :func:`winograd_conv` is there for this input and kernel, and faster than the library.

    Example:
        >>> applies(torch.zeros(2, 128, 8, 8), torch.zeros(128, 128, 3, 3, requires_grad=True))
        True
        >>> applies(torch.zeros(2, 128, 7, 7), torch.zeros(128, 128, 3, 3, requires_grad=True))
        False
    """
    return (
        kernel.requires_grad
        and torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == kernel.dtype == torch.float32
        and kernel.shape[2:] == (3, 3)
        and kernel.shape[1] == x.shape[1]
        and min(kernel.shape[:2]) >= FEWEST_CHANNELS
        and x.shape[2] % 4 == 0
        and x.shape[3] % 4 == 0
        and not torch.is_autocast_enabled("cpu")
    )


def winograd_conv(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """3x3 convolution with stride and padding 1, float32 on a CPU.

    Args:
        x: [N, C, H, W], H and W multiples of 4.
        kernel: [C', C, 3, 3].
        bias: [C'].

    Returns:
        [N, C', H, W], channels last.

    Example:
        >>> x, kernel, bias = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3), torch.randn(5)
        >>> expected = torch.nn.functional.conv2d(x, kernel, bias, padding=1)
        >>> torch.allclose(winograd_conv(x, kernel, bias), expected, atol=1e-4)
        True
    """
    y: Tensor = _Winograd.apply(x, kernel, bias)
    return y


class _Kept(Saved, Protocol):
    biased: bool


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Kept, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        from miselbo.models.nvae.cpu import tiles  # compiles, where nothing is stored yet

        n, _, height, width = x.shape
        filters = _filters(kernel)
        products = torch.bmm(_cut(x), filters.permute(1, 2, 0))
        y = torch.empty(n, len(kernel), height, width, dtype=x.dtype, memory_format=LAST)
        shift = x.new_zeros(len(kernel)) if bias is None else bias
        arrays = products.numpy(), shift.detach().numpy(), _pixels(y)
        share(n, lambda part, first, last: tiles.join(*arrays, first, last))
        ctx.save_for_backward(x, filters)
        ctx.biased = bias is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: _Kept, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        from miselbo.models.nvae.cpu import tiles

        x, filters = ctx.saved_tensors
        n, out = len(x), gradient.shape[1]
        of_products = x.new_empty(36, x.numel() // x.shape[1] // 16, out)
        arrays = _pixels(gradient), of_products.numpy()
        share(n, lambda part, first, last: tiles.join_adjoint(*arrays, first, last))
        of_x = of_kernel = of_bias = None
        if ctx.needs_input_grad[0]:
            of_tiles = torch.bmm(of_products, filters.permute(1, 0, 2))
            of_x = torch.empty_like(x, memory_format=LAST)
            target = _pixels(of_x)
            share(n, lambda part, first, last: tiles.cut_adjoint(of_tiles.numpy(), target, first, last))
        if ctx.needs_input_grad[1]:
            of_filters = torch.bmm(of_products.mT, _cut(x)).flatten(1)
            taps = torch.mm(G2.t(), of_filters).view(3, 3, out, -1)
            of_kernel = taps.permute(2, 3, 0, 1).contiguous(memory_format=LAST)
        if ctx.biased and ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_kernel, of_bias


def _filters(kernel: Tensor) -> Tensor:
    """G w G^T of every pair of channels: [C', 36, C] from [C', C, 3, 3]."""
    taps = kernel.detach().permute(0, 2, 3, 1).reshape(len(kernel), 9, -1)
    return torch.matmul(G2, taps)


def _cut(x: Tensor) -> Tensor:
    """B^T d B of every 6x6 tile: [36, tiles, C] from [N, C, H, W]."""
    from miselbo.models.nvae.cpu import tiles

    out = x.new_empty(36, x.numel() // x.shape[1] // 16, x.shape[1])
    arrays = _pixels(x), out.numpy()
    share(len(x), lambda part, first, last: tiles.cut(*arrays, first, last))
    return out


def _pixels(x: Tensor) -> np.ndarray:
    """[N, H, W, C] as an array; a view for what is channels last."""
    return x.detach().contiguous(memory_format=LAST).permute(0, 2, 3, 1).numpy()
