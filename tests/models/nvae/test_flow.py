"""Auto-regressive flows: triangular, volume preserving, inverted exactly; and the likelihoods' own truths."""

import math

import pytest
import torch
from torch.distributions import Normal

from miselbo.data.spec import ImageSpec
from miselbo.errors import InputError
from miselbo.models.nvae.distributions import clamped_normal, image_log_prob, image_mean, quantise
from miselbo.models.nvae.flow import Chain, FlowPair, ShiftFlow


def strong(flow):
    """Shifts of order one: the inverse must work, not just be close to the identity."""
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if "shift.log_gain" in name:
                parameter.add_(math.log(60.0))
    return flow.double()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def jacobian(function, shape):
    z = torch.randn(1, *shape, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(lambda t: function(t).flatten(), z)
    return matrix.flatten(1)


@pytest.mark.parametrize("mirror", [False, True])
def test_shift_is_strictly_autoregressive(mirror):
    """Entry k of mu sees entries before k only, pixels in raster order (reversed: mirror), then channels."""
    flow = strong(ShiftFlow(3, mirror))
    order = torch.arange(48).view(3, 4, 4)
    order = (order.flip(1, 2) if mirror else order).permute(1, 2, 0).flatten()
    matrix = jacobian(flow.mu, (3, 4, 4))[order][:, order]
    assert matrix.abs().max() > 0.1
    assert matrix.triu().abs().max() == 0


def test_volume_is_preserved():
    flow = Chain([strong(FlowPair(2)), strong(FlowPair(2))])
    assert torch.linalg.slogdet(jacobian(flow, (2, 4, 4))).logabsdet.abs() < 1e-12


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_inverse(dtype, tolerance):
    flows = [strong(FlowPair(2)).to(dtype) for _ in range(2)]
    chain = Chain(flows)
    z = torch.randn(5, 2, 6, 6, dtype=dtype)
    with torch.no_grad():
        assert (chain(z) - z).abs().max() > 0.1
        assert (chain.inverse(chain(z)) - z).abs().max() < tolerance
        assert (chain(chain.inverse(z)) - z).abs().max() < tolerance


def test_inverse_ends_when_values_are_not_finite():
    flow = ShiftFlow(1, False)
    assert flow.inverse(torch.full((1, 1, 8, 8), math.nan)).isnan().any()


@pytest.mark.parametrize("channels", [1, 3])
def test_mixture_probabilities_sum_to_one(channels):
    """5 bits: the levels of one colour, the others fixed, have total probability 1."""
    image = ImageSpec(channels, 1, 1, "logistic_mixture", 5)
    logits = torch.randn(1, 40 if channels == 3 else 12, 1, 1, dtype=torch.float64)
    levels = torch.arange(32, dtype=torch.float64)
    grid = torch.cartesian_prod(*[levels] * channels).view(-1, channels, 1, 1) / 31
    log_prob = image_log_prob(logits.expand(len(grid), -1, 1, 1), grid, image)
    assert float(log_prob.logsumexp(0)) == pytest.approx(0, abs=1e-3)
    mean = (log_prob.exp()[:, None] * grid.flatten(1)).sum(0)
    assert ((image_mean(logits, image).flatten() - mean).abs() < 0.5).all()


def test_bernoulli_and_normal_images():
    x = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    logits = torch.tensor([[0.3, 0.3], [-2.0, 1.0]]).view(2, 2, 1, 1, 1)  # [L, B, C, H, W]
    image = ImageSpec(1, 1, 1, "bernoulli")
    p = torch.tensor([0.3, 0.3, -2.0, 1.0]).sigmoid().view(2, 2)
    expected = torch.stack([(1 - p[:, 0]).log(), p[:, 1].log()], 1).double()
    torch.testing.assert_close(image_log_prob(logits, x, image), expected, rtol=1e-6, atol=1e-6)
    raw = torch.tensor([0.5, -1.0]).view(1, 2, 1, 1).expand(2, -1, -1, -1)
    normal = Normal(5 * math.tanh(0.1), math.exp(-5 * math.tanh(0.2)) + 0.01)
    truth = normal.log_prob(torch.tensor([-1.0, 1.0]))
    got = image_log_prob(raw, x, ImageSpec(1, 1, 1, "normal"))
    torch.testing.assert_close(got, truth.double(), rtol=1e-5, atol=1e-5)


def test_clamps_bound_the_parameters():
    p = clamped_normal(torch.tensor([[1e6, -1e6], [-1e6, 1e6]]))
    assert p.loc.abs().max() <= 5 and p.scale.min() >= 0.01 and p.scale.max() <= math.exp(5) + 0.02


@pytest.mark.parametrize("bits", [0, 9])
def test_quantise_refuses(bits):
    with pytest.raises(InputError, match=f"bits is {bits}"):
        quantise(torch.zeros(1), bits)
