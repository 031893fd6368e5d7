"""A linear-Gaussian VAE with exact log p(x): the truth lies between the two sides as often as is claimed."""

import math

import numpy as np
import pytest
import torch

from miselbo.bounds import joint_bound
from miselbo.bounds.sandwich import both_sides, summarise

Normal = torch.distributions.Normal
EXAMPLES, REPETITIONS, L = 10, 400, 8


def simulated(shifts, width, seed=0):
    """z ~ N(0, 1), x ~ N(z, 1); member s is N(x / 2 + shift_s, width); with exact log p(x)."""
    generator = torch.Generator().manual_seed(seed)
    count = EXAMPLES * REPETITIONS

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    star = normal(count)
    x = star + normal(count)
    means = x[:, None] / 2 + torch.tensor(shifts, dtype=torch.float64)
    z = means[..., None] + width * normal(count, len(shifts), L)

    def joint(z, x):
        return Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(x)

    log_q = Normal(means[:, None, None], width).log_prob(z[..., None])
    star_q = Normal(means, width).log_prob(star[:, None])
    choice = torch.rand(count, generator=generator, dtype=torch.float64)
    exact = Normal(0.0, math.sqrt(2)).log_prob(x)
    return joint(z, x[:, None, None]), log_q, joint(star, x), star_q, choice, exact


@pytest.mark.parametrize(
    ("shifts", "width"), [((0.0,), 0.9), ((-0.6, 0.6, 0.2), 0.5), ((0.0, 2.5), 0.4), ((3.0, -3.0), 0.3)]
)
def test_the_truth_is_within(shifts, width):
    log_p, log_q, star_p, star_q, choice, exact = simulated(shifts, width)
    found = both_sides(log_p, log_q, star_p, star_q, choice, [1, L])
    for s in range(len(shifts)):
        part = log_p[:, : s + 1], log_q[:, : s + 1, :, : s + 1]
        assert torch.allclose(found["lower"][:, s, 1], joint_bound(*part))
    lower, upper = (
        found[name][..., -1, :].reshape(EXAMPLES, REPETITIONS, 2).mean(0) for name in ("lower", "upper")
    )
    truth = exact.reshape(EXAMPLES, REPETITIONS).mean(0)[:, None]
    # each side alone may fail in 2.5 of 100
    margin = math.log(2 / 0.05) / EXAMPLES
    within = (lower - margin <= truth) & (truth <= upper + margin)
    assert (within.double().mean(0) >= 0.95).all()
    # and on average without a margin
    for values, sign in ((truth - lower, 1), (upper - truth, 1)):
        error = values.std(0) / math.sqrt(REPETITIONS)
        assert (sign * values.mean(0) > -4 * error).all()


def test_the_reciprocal_of_the_upper_side_is_unbiased():
    """E[p / Z_up] = 1 for every (S', L'); a fixed member in place of the chosen one misses it."""
    log_p, log_q, star_p, star_q, choice, exact = simulated((-0.3, 0.9), 0.9, seed=1)
    found = both_sides(log_p, log_q, star_p, star_q, choice, [1, 2, L])
    ratio = (exact[:, None, None] - found["upper"]).exp()
    error = ratio.std(0) / math.sqrt(len(ratio))
    assert ((ratio.mean(0) - 1).abs() < 4 * error).all()
    wrong = both_sides(log_p, log_q, star_p, star_q, torch.full_like(choice, 1e-9), [1])["upper"][:, 1, 0]
    ratio = (exact - wrong).exp()
    assert abs(ratio.mean() - 1) > 4 * ratio.std() / math.sqrt(len(ratio))


def test_summary_is_of_means_with_half_the_risk_on_each_side():
    lower, upper = np.array([-2.0, -4.0]), np.array([-1.0, -2.0])
    found = summarise(lower, upper, 0.95)
    assert (found["lower"], found["upper"], found["width"]) == (-3.0, -1.5, 1.5)
    assert found["width_se"] == pytest.approx(0.5) and found["num_data"] == 2
    assert found["certified_low"] == pytest.approx(-3 - math.log(40) / 2)
    assert found["certified_high"] == pytest.approx(-1.5 + math.log(40) / 2)
