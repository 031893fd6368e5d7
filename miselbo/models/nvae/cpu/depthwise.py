"""Depthwise convolution with a kernel gradient that is fast on a CPU."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from miselbo.models.nvae.cpu.threads import share
from miselbo.protocols import Saved

LAST = torch.channels_last


def depthwise_conv(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """Depthwise k x k convolution, padded to keep the size: x [N, C, H, W], kernel [C, 1, k, k].

    The library's kernel gradient takes several times as long as the rest of the convolution on a CPU; for k = 5 and
    stride 1 in float32 it is a compiled loop of ours, :func:`miselbo.models.nvae.cpu.kernels.depthwise_gradient`.

    Example:
        >>> x, kernel = torch.randn(2, 3, 4, 4), torch.randn(3, 1, 5, 5)
        >>> torch.allclose(depthwise_conv(x, kernel, 1), F.conv2d(x, kernel, padding=2, groups=3), atol=1e-5)
        True
    """
    known = stride == 1 and kernel.shape[-2:] == (5, 5) and x.device.type == "cpu"
    trained = kernel.requires_grad and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    if known and trained and x.dtype == kernel.dtype == torch.float32:
        return _Depthwise.apply(x, kernel)
    return F.conv2d(x, kernel, None, stride, (kernel.shape[-1] - 1) // 2, groups=len(kernel))


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Saved, x: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernel)
        return F.conv2d(x, kernel, padding=2, groups=len(kernel))

    @staticmethod
    @once_differentiable
    def backward(ctx: Saved, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, kernel = ctx.saved_tensors
        of_input = of_kernel = None
        if ctx.needs_input_grad[0]:
            of_input = F.conv2d(gradient, kernel.flip(2, 3), padding=2, groups=len(kernel))
        if ctx.needs_input_grad[1]:
            of_kernel = kernel_gradient(x, gradient)
        return of_input, of_kernel


def kernel_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """Gradient [C, 1, 5, 5] of the kernel from input and output gradient [N, C, H, W], float32 on a CPU."""
    from miselbo.models.nvae.cpu.kernels import depthwise_gradient  # compiles, where nothing is stored yet

    arrays = [t.contiguous(memory_format=LAST).permute(0, 2, 3, 1).detach().numpy() for t in (x, gradient)]
    sums = torch.zeros(torch.get_num_threads(), 25, x.shape[1])
    out = sums.numpy()
    share(len(x), lambda part, first, last: depthwise_gradient(*arrays, first, last, out[part]))
    return sums.sum(0).t().reshape(-1, 1, 5, 5)
