import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from miselbo.models.nvae.cells import BottleneckOperation, batch_norm, double
from miselbo.models.nvae.cpu.norm_swish import norm_swish, normalise, statistics


def norm_of(channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    norm = batch_norm(channels)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        tensor.data = torch.randn(channels, generator=generator)
    return norm


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 4, 4), (2, 32, 8, 8), (5, 1, 3, 5), (4, 130, 2, 2)])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_one_step_equals_two(shape, training, threads, format):
    ours = norm_of(shape[1]).train(training)
    exact = copy.deepcopy(ours).double()
    x = (3 * torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 100).contiguous(
        memory_format=format
    )
    if not training:
        x = x - 100
    z = x.double().requires_grad_()
    x.requires_grad_()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y, expected = norm_swish(ours, x), F.silu(exact(z))
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        got = torch.autograd.grad((y * weight).sum(), [x, ours.weight, ours.bias])
    finally:
        torch.set_num_threads(before)
    wanted = torch.autograd.grad((expected * weight).sum(), [z, exact.weight, exact.bias])
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)  # float32 has 1e-5 left of 100
    for mine, true in zip(got, wanted, strict=True):
        assert float((mine.double() - true).norm() / true.norm()) < 1e-4
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer.double(), exact.get_buffer(name).double(), rtol=1e-5, atol=1e-5)


def test_swish_of_large_numbers():
    norm = batch_norm(1).eval()
    x = torch.tensor([-200.0, -87.5, -20.0, 0.0, 1e-8, 20.0, 88.0, 1e10]).view(-1, 1, 1, 1)
    y = norm_swish(norm, x.requires_grad_())
    torch.testing.assert_close(y, F.silu(norm(x)), rtol=1e-6, atol=1e-30)
    nan = norm_swish(norm, torch.tensor([[[[float("nan")]]]], requires_grad=True))
    assert bool(nan.isnan())


def test_statistics_of_a_channel_far_from_zero():
    x = (
        torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        + torch.tensor([0.0, 1e3, -1e4])[:, None, None]
    )
    mean, variance = statistics(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)))
    torch.testing.assert_close(
        variance.double(), x.double().var((0, 2, 3), unbiased=False), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("function", [normalise, lambda n, x, k: norm_swish(n, x, k)])
@pytest.mark.parametrize("momentum", [0.05, None])
def test_running_statistics_count_repeated_pixels(function, momentum):
    one, other = norm_of(4), norm_of(4)
    one.momentum = other.momentum = momentum
    for seed in range(3):
        x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(seed))
        function(one, x.requires_grad_(), 4)
        other(double(x))
    for name, buffer in one.named_buffers():
        torch.testing.assert_close(buffer, other.get_buffer(name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_doubling_late_changes_nothing_in_training(dtype):
    operation = BottleneckOperation(8, 4, -1, 3, 5, 0).to(dtype)
    x = torch.randn(3, 8, 4, 4, dtype=dtype, requires_grad=True)
    parts = copy.deepcopy(operation)
    y = operation(x)
    z = F.silu(parts.norm_wide(parts.widen(parts.norm_in(double(x)))))
    z = parts.norm_out(parts.narrow(F.silu(parts.norm_spatial(parts.spatial(z)))))
    torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-5)
    ours, true = torch.autograd.grad(y.square().sum(), x), torch.autograd.grad(z.square().sum(), x)
    torch.testing.assert_close(ours, true, rtol=1e-3, atol=1e-3)
    for name, buffer in operation.named_buffers():
        torch.testing.assert_close(buffer, parts.get_buffer(name), rtol=1e-4, atol=1e-6)


def test_another_kind_of_norm_runs_as_it_is():
    norm, x = nn.InstanceNorm2d(2, affine=True), torch.randn(2, 2, 4, 4)
    torch.testing.assert_close(norm_swish(norm, x), F.silu(norm(x)))
