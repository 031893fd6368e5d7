import pytest
import torch
from torch.nn import functional as F

from miselbo.models.nvae.depthwise import depthwise_conv


@pytest.mark.parametrize(
    ("rows", "columns", "size"), [(4, 4, 5), (2, 2, 5), (1, 1, 5), (3, 5, 3), (4, 4, 11), (8, 8, 5)]
)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_the_librarys(rows, columns, size, format):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 6, rows, columns, generator=generator, dtype=torch.float64).contiguous(
        memory_format=format
    )
    kernel = torch.randn(6, 1, size, size, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    kernel.requires_grad_()
    y = depthwise_conv(x, kernel, 1)
    expected = F.conv2d(x, kernel, padding=(size - 1) // 2, groups=6)
    torch.testing.assert_close(y, expected)
    weight = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    got = torch.autograd.grad((y * weight).sum(), [x, kernel])
    torch.testing.assert_close(got, torch.autograd.grad((expected * weight).sum(), [x, kernel]))
