import pytest
import torch
from torch.nn import functional as F

from miselbo.models.nvae.convs import WeightNormConv2d
from miselbo.models.nvae.cpu.winograd import applies, winograd_conv


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("channels", "out", "rows", "columns"), [(3, 5, 4, 4), (32, 40, 8, 12), (70, 33, 16, 4)]
)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_those_of_a_convolution(threads, channels, out, rows, columns, format):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, channels, rows, columns, generator=generator).contiguous(memory_format=format)
    kernel = torch.randn(out, channels, 3, 3, generator=generator).contiguous(memory_format=format)
    bias = torch.randn(out, generator=generator)
    tensors = [t.requires_grad_() for t in (x, kernel, bias)]
    y = winograd_conv(*tensors)
    weight = torch.randn(y.shape, generator=generator)
    got = torch.autograd.grad((y * weight).sum(), tensors)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected = F.conv2d(*exact, padding=1)
    wanted = torch.autograd.grad((expected * weight).sum(), exact)
    for ours, true in [(y, expected), *zip(got, wanted, strict=True)]:
        assert float(((ours.double() - true).norm() / true.norm()).detach()) < 1e-5


def test_without_a_bias_and_with_one_gradient_alone():
    x, kernel = torch.randn(2, 4, 4, 4), torch.randn(6, 4, 3, 3, requires_grad=True)
    y = winograd_conv(x, kernel, None)
    torch.testing.assert_close(y, F.conv2d(x, kernel, padding=1), rtol=1e-4, atol=1e-4)
    (ours,) = torch.autograd.grad(y.sum(), kernel)
    (true,) = torch.autograd.grad(F.conv2d(x, kernel, padding=1).sum(), kernel)
    torch.testing.assert_close(ours, true, rtol=1e-4, atol=1e-4)


def test_where_it_is_used():
    kernel, x = torch.zeros(128, 128, 3, 3, requires_grad=True), torch.zeros(1, 128, 4, 4)
    assert applies(x, kernel)
    assert not applies(x, kernel.detach())  # frozen: no kernel gradient to save
    assert not applies(x.double(), kernel.double())
    assert not applies(x[..., :3], kernel)
    assert not applies(x.to("meta"), kernel)
    assert not applies(x[:, :64], kernel[:, :64])
    with torch.no_grad():
        assert not applies(x, kernel)
    with torch.autocast("cpu", torch.bfloat16):
        assert not applies(x, kernel)


def test_a_module_takes_it_only_for_stride_and_dilation_1(monkeypatch):
    called = []
    monkeypatch.setattr("miselbo.models.nvae.cpu.winograd.winograd_conv", lambda *a: called.append(a) or a[0])
    x = torch.zeros(1, 128, 8, 8)
    for settings, uses in (({}, 1), ({"stride": 2}, 0), ({"dilation": 2}, 0)):
        called.clear()
        WeightNormConv2d(128, 128, 3, **settings)(x)
        assert len(called) == uses
