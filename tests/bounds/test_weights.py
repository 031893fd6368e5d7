"""Mixture weights: the optimum of a concave function, and a gain that is measured on draws it was not fitted to."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal

from miselbo import bounds
from miselbo.bounds.weights import draw_by_draw, fit_weights, mixture_weights, weight_errors
from miselbo.errors import InputError


def gaussian(means, sds, count, samples, seed=0):
    """Posterior 0.7 N(-2, 1) + 0.3 N(2, 1) with log p(x) = -5 and the given normals as members."""
    zero = torch.zeros((), dtype=torch.float64)
    members = [Normal(zero + mean, sd) for mean, sd in zip(means, sds, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    z = torch.stack(
        [q.mean + q.stddev * torch.randn(count, samples, generator=generator).double() for q in members], 1
    )
    modes = [
        math.log(0.7) + Normal(zero - 2, 1.0).log_prob(z),
        math.log(0.3) + Normal(zero + 2, 1.0).log_prob(z),
    ]
    return torch.logaddexp(*modes) - 5, torch.stack([q.log_prob(z) for q in members], -1)


def objective(log_p, log_q, w):
    """By the plain formula: mean over examples and draws of sum_s w_s (log p - log sum_j w_j q_j)."""
    mixture = (log_q.exp() * torch.as_tensor(w)).sum(-1).log()
    return float(((log_p - mixture).mean((0, 2)) * torch.as_tensor(w)).sum())


@pytest.mark.parametrize(("means", "sds"), [((-2, 2), (1, 1)), ((-2, 1), (1, 2)), ((-1, 0), (1.5, 1))])
def test_two_members_against_every_weight_of_a_fine_grid(means, sds):
    log_p, log_q = gaussian(means, sds, count=50, samples=40)
    grid = torch.arange(0.0005, 1, 0.0005, dtype=torch.float64)
    values = [objective(log_p, log_q, torch.stack([w, 1 - w])) for w in grid]
    best = int(np.argmax(values))
    w = fit_weights(log_p, log_q)
    assert float(w[0]) == pytest.approx(float(grid[best]), abs=0.001)
    assert objective(log_p, log_q, w.clamp(min=1e-12)) >= values[best] - 1e-8


def test_members_without_overlap_get_the_softmax_of_their_elbos():
    """F = sum_s w_s (ELBO_s - log w_s): the entropy's optimum in closed form."""
    log_p = torch.tensor([[[1.0, 2.0], [0.0, 1.0], [-3.0, 3.0]]])
    log_q = torch.full((1, 3, 2, 3), -math.inf)
    for s in range(3):
        log_q[0, s, :, s] = 0.5 * s
    elbos = (log_p - bounds.own_density(log_q)).mean((0, 2))
    torch.testing.assert_close(fit_weights(log_p, log_q), elbos.softmax(-1).double(), atol=1e-5, rtol=0)


def test_the_two_halves_of_the_posterior_get_their_masses():
    """q_1 and q_2 are the two modes themselves: at w = (0.7, 0.3) the mixture is the posterior, the bound tight."""
    log_p, log_q = gaussian((-2, 2), (1, 1), count=300, samples=40)
    found = mixture_weights(log_p.numpy(), log_q.numpy())
    assert found is not None
    assert found["weights"] == pytest.approx([0.7, 0.3], abs=0.01)
    assert found["fitted"]["miselbo"] == pytest.approx(-5, abs=0.02)
    expected = 0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(
        0.5 / 0.3
    )  # KL(uniform || posterior masses), few overlap
    assert found["gain"] == pytest.approx(expected, abs=0.02)
    assert found["gain_low"] < found["gain"] < found["gain_high"]
    assert found["gain_low"] > 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_no_direction_of_the_simplex_is_better(seed, size):
    """First-order optimality of a concave function: the gradient is the same for all members that take part."""
    generator = np.random.default_rng(seed)
    log_p, log_q = gaussian(generator.uniform(-3, 3, size), generator.uniform(0.8, 2, size), 100, 20, seed)
    w = fit_weights(log_p, log_q)
    assert float(w.sum()) == pytest.approx(1) and (w >= 0).all()
    best = objective(log_p, log_q, w)
    for other in generator.dirichlet(np.ones(size), 30):
        assert objective(log_p, log_q, 0.99 * w + 0.01 * torch.from_numpy(other)) <= best + 1e-4
        assert objective(log_p, log_q, torch.from_numpy(other)) <= best + 1e-4


def test_a_bad_member_gets_no_weight():
    log_p, log_q = gaussian((-2, 2, 9), (1, 1, 0.5), count=100, samples=32)
    found = mixture_weights(log_p.numpy(), log_q.numpy())
    assert found is not None
    assert found["weights"][2] == pytest.approx(0, abs=1e-3)
    assert found["gain_low"] > 1
    assert found["at_full_length"]["L"] == 16


def test_fitting_and_measuring_on_the_same_draws_is_optimistic():
    """Six members, all the same q: no weights are better than any others, so every true gain is exactly 0.

    Few draws: the fit picks the member whose draws came out well. On the same draws that looks like a gain in every
    run, on the other half it is nothing.
    """
    optimistic, held_out = [], []
    for seed in range(60):
        log_p, log_q = gaussian([0.5] * 6, [2.0] * 6, count=4, samples=8, seed=seed)
        found = mixture_weights(log_p.numpy(), log_q.numpy())
        assert found is not None
        optimistic.append(found["optimistic_gain"])
        held_out.append(found["gain"])
    error = np.std(held_out, ddof=1) / math.sqrt(len(held_out))
    assert min(optimistic) > 0
    assert np.mean(optimistic) > 10 * error
    assert abs(np.mean(held_out)) < 3 * error


def test_what_is_reported_is_what_bounds_say():
    log_p, log_q = gaussian((-2, 1, 2), (1, 1, 2), count=20, samples=9)
    found = mixture_weights(log_p.numpy(), log_q.numpy())
    assert found is not None
    odd_p, odd_q = log_p[:, :, 1::2], log_q[:, :, 1::2]
    for label, w in (("uniform", None), ("fitted", found["weights"])):
        single = [bounds.miselbo(odd_p[:, :, k, None], odd_q[:, :, k, None], w) for k in range(4)]
        values = torch.stack(single).mean(0)
        assert found[label]["miselbo"] == pytest.approx(float(values.mean()), rel=1e-12)
        assert found[label]["miselbo_se"] == pytest.approx(float(values.std()) / math.sqrt(20), rel=1e-9)
        for name in ("miselbo", "joint_bound"):
            expected = float(getattr(bounds, name)(odd_p, odd_q, w).mean())
            assert found["at_full_length"][label][name] == pytest.approx(expected, rel=1e-12)
    assert found["gain"] == pytest.approx(found["fitted"]["miselbo"] - found["uniform"]["miselbo"])
    assert (found["fitted_on"], found["measured_on"]) == (
        "even samples of the first 9",
        "odd samples of the first 9",
    )
    assert sum(found["weights"]) == pytest.approx(1)


def test_the_fit_does_not_see_the_odd_samples():
    log_p, log_q = gaussian((-2, 1), (1, 2), count=10, samples=8)
    one = mixture_weights(log_p.numpy(), log_q.numpy())
    log_p[:, :, 1::2] -= 3.0 * torch.arange(2)[:, None]
    other = mixture_weights(log_p.numpy(), log_q.numpy())
    assert one is not None and other is not None
    assert one["weights"] == other["weights"]
    assert one["optimistic_gain"] == other["optimistic_gain"]
    assert one["gain"] != other["gain"]


def test_log_densities_of_any_size():
    log_p, log_q = gaussian((-2, 1), (1, 2), count=10, samples=8)
    torch.testing.assert_close(
        fit_weights(log_p - 1e5, log_q - 3e5), fit_weights(log_p, log_q), atol=1e-4, rtol=0
    )


def test_examples_with_broken_scores_are_left_out_and_counted():
    log_p, log_q = gaussian((-2, 1), (1, 2), count=10, samples=8)
    clean = mixture_weights(log_p[4:].numpy(), log_q[4:].numpy())
    log_p[0, 0, 0], log_p[1, 1, 1] = math.nan, -math.inf
    log_q[2, 0, 0, 1], log_q[3, 1, 1, 1] = math.nan, -math.inf
    found = mixture_weights(log_p.numpy(), log_q.numpy())
    assert found is not None and clean is not None
    assert (found["left_out"], found["num_data"]) == (4, 6)
    assert {**found, "left_out": 0} == clean
    assert mixture_weights(log_p[:4].numpy(), log_q[:4].numpy()) is None


def test_nothing_to_weight_or_nothing_to_measure_on():
    log_p, log_q = gaussian((0, 1), (1, 1), count=3, samples=4)
    assert mixture_weights(log_p[:, :1].numpy(), log_q[:, :1, :, :1].numpy()) is None
    assert mixture_weights(log_p[:1].numpy(), log_q[:1].numpy()) is None
    assert mixture_weights(log_p[:, :, :1].numpy(), log_q[:, :, :1].numpy()) is None
    with pytest.raises(InputError, match=r"\[N, S, K\]"):
        mixture_weights(log_p[0].numpy(), log_q[0].numpy())


def test_each_draw_alone():
    log_p, log_q = gaussian((0, 1), (1, 1), count=3, samples=4)
    w = torch.tensor([0.3, 0.7])
    by_draw = draw_by_draw(log_p, log_q, w)
    assert by_draw["miselbo"].shape == (3,)
    assert float(by_draw["miselbo"].mean()) == pytest.approx(objective(log_p, log_q, w.double()), abs=1e-6)
    assert (by_draw["joint_bound"] >= by_draw["miselbo"]).all()


@pytest.mark.parametrize(("means", "sds"), [((-2, 2), (1, 1)), ((-3, -1, 2), (1, 1, 1))])
def test_errors_of_the_weights_are_their_spread_over_data_sets(means, sds):
    """200 data sets of 40 examples each, fitted one by one."""
    log_p, log_q = gaussian(means, sds, count=8000, samples=4)
    fits, errors = [], []
    for p, q in zip(log_p.split(40), log_q.split(40), strict=True):
        fits.append(fit_weights(p, q))
        errors.append(weight_errors(p, q, fits[-1]))
    spread, printed = torch.stack(fits).std(0), torch.stack(errors).square().mean(0).sqrt()
    torch.testing.assert_close(printed, spread, rtol=0.2, atol=0)


def test_equal_weights_are_said_to_be_as_good_where_they_are():
    """Members whose best weights are equal; and members of which the second draws nothing good."""
    log_p, log_q = gaussian((-2.5, -1.5), (1, 1), count=60, samples=8)
    same = mixture_weights(log_p.numpy(), log_q.numpy())
    assert same["equal_as_good"] and "Equal weights are as good" in same["sentence"]
    log_p, log_q = gaussian((-2, 9), (1, 1), count=60, samples=8)
    other = mixture_weights(log_p.numpy(), log_q.numpy())
    assert not other["equal_as_good"] and "better than equal ones" in other["sentence"]
    assert other["gain_low"] > 0 and other["weights_se"] == [None, None]
