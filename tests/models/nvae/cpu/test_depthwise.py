import pytest
import torch
from torch.nn import functional as F

from miselbo.models.nvae.cpu.depthwise import depthwise_conv, kernel_gradient

SIZES = [(4, 4, 5), (2, 2, 5), (1, 1, 5), (3, 5, 5), (8, 8, 5), (6, 7, 5), (3, 5, 3), (4, 4, 11)]


@pytest.mark.parametrize(("rows", "columns", "size"), SIZES)
@pytest.mark.parametrize("channels", [1, 32, 70])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_the_librarys(rows, columns, size, channels, format):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, channels, rows, columns, generator=generator).contiguous(memory_format=format)
    kernel = torch.randn(channels, 1, size, size, generator=generator)
    y = depthwise_conv(x.requires_grad_(), kernel.requires_grad_(), 1)
    weight = torch.randn(y.shape, generator=generator)
    got = torch.autograd.grad((y * weight).sum(), [x, kernel])
    exact = [t.detach().double().requires_grad_() for t in (x, kernel)]
    expected = F.conv2d(*exact, padding=(size - 1) // 2, groups=channels)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad((expected * weight).sum(), exact)
    torch.testing.assert_close([t.double() for t in got], list(wanted), rtol=1e-5, atol=2e-5)


def test_several_threads_share_the_images():
    x, gradient = torch.randn(2, 7, 40, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    x = x.double()
    kernel = torch.zeros(40, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(x, kernel, padding=2, groups=40)
    (exact,) = torch.autograd.grad((y * gradient).sum(), kernel)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3, 16):
            torch.set_num_threads(count)
            got = kernel_gradient(x.float(), gradient).double()
            assert float((got - exact).norm() / exact.norm()) < 1e-6
    finally:
        torch.set_num_threads(threads)
