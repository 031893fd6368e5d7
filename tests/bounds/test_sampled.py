"""Estimators of MISELBO: their gradients against autograd of the explicit formula, and what they estimate."""

import itertools
import math

import pytest
import torch
from torch.distributions import Normal

from miselbo import bounds
from miselbo.bounds.sampled import ESTIMATORS, all_to_all, chosen, some_to_all, some_to_some
from miselbo.errors import InputError


def scores(mean, log_sd, eps, rows, columns):
    """log p [S] and log q [S, J] at reparameterised samples, 1-D: a made-up target."""
    z = mean[rows] + log_sd[rows].exp() * eps[rows]
    log_p = -0.3 * z**4 + z
    return log_p, Normal(mean[columns], log_sd[columns].exp()).log_prob(z[:, None])


def explicit(mean, log_sd, eps, rows, columns):
    """The same bound written out, one term at a time."""
    total = 0.0
    for s in rows.tolist():
        z = mean[s] + log_sd[s].exp() * eps[s]
        density = 0.0
        for j in columns.tolist():
            u = (z - mean[j]) / log_sd[j].exp()
            density = density + torch.exp(-0.5 * u * u) / (log_sd[j].exp() * math.sqrt(2 * math.pi))
        total = total + (-0.3 * z**4 + z) - torch.log(density / len(columns))
    return total / len(rows)


@pytest.fixture
def components():
    generator = torch.Generator().manual_seed(3)
    mean, log_sd, eps = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    return mean.requires_grad_(), (0.3 * log_sd).requires_grad_(), eps


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_gradients_are_those_of_the_formula(components, name):
    rows, columns = chosen(name, 5, 3, seed=1, step=2)
    value = ESTIMATORS[name](*scores(*components, rows, columns))
    formula = explicit(*components, rows, columns)
    assert value.item() == pytest.approx(formula.item(), rel=1e-12)
    for one, other in zip(
        torch.autograd.grad(value, components[:2]), torch.autograd.grad(formula, components[:2]), strict=True
    ):
        assert torch.allclose(one, other, rtol=1e-10) and bool(other.abs().sum() > 0)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_gradcheck(components, name):
    rows, columns = chosen(name, 5, 2, seed=0, step=0)
    bound = lambda mean, log_sd: ESTIMATORS[name](*scores(mean, log_sd, components[2], rows, columns))  # noqa: E731
    assert torch.autograd.gradcheck(bound, components[:2])


def test_all_to_all_is_miselbo(components):
    every = torch.arange(5)
    log_p, log_q = scores(*components, every, every)
    assert float(all_to_all(log_p, log_q)) == pytest.approx(
        float(bounds.miselbo(log_p[:, None], log_q[:, None])), rel=1e-12
    )


def test_some_to_all_is_unbiased_over_the_choice(components):
    every = torch.arange(5)
    subsets = [torch.tensor(s) for s in itertools.combinations(range(5), 2)]
    mean = sum(some_to_all(*scores(*components, rows, every)) for rows in subsets) / len(subsets)
    assert float(mean) == pytest.approx(float(all_to_all(*scores(*components, every, every))), rel=1e-12)


def test_some_to_some_is_lower_and_alone_it_is_the_elbo(components):
    mean, log_sd, _ = components
    eps = torch.randn(4000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    every = torch.arange(5)
    z = mean + log_sd.exp() * eps
    log_p, log_q = -0.3 * z**4 + z, Normal(mean, log_sd.exp()).log_prob(z[..., None])
    whole = float(all_to_all(log_p, log_q).mean())
    lower = []
    for size in (1, 2, 3, 4):
        subsets = [list(s) for s in itertools.combinations(range(5), size)]
        values = [some_to_some(log_p[:, s], log_q[:, s][:, :, s]).mean() for s in subsets]
        lower.append(float(sum(values) / len(values)))
    assert lower == sorted(lower) and lower[-1] < whole
    own = log_q.diagonal(dim1=-2, dim2=-1)
    assert lower[0] == pytest.approx(float((log_p - own).mean()), rel=1e-10)
    assert len(every) == 5


def test_choice_is_without_replacement_and_fair():
    counts = torch.zeros(5)
    for step in range(500):
        rows, columns = chosen("some_to_some", 5, 2, seed=0, step=step)
        assert len(set(rows.tolist())) == 2 and torch.equal(rows, columns)
        counts[rows] += 1
    assert bool(((counts / 500 - 0.4).abs() < 0.1).all())
    assert torch.equal(chosen("some_to_some", 5, 2, 0, 7)[0], chosen("some_to_some", 5, 2, 0, 7)[0])


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_shapes_that_cannot_be(name):
    with pytest.raises(InputError, match="log_p must be"):
        ESTIMATORS[name](torch.zeros(3), torch.zeros(3, 2))
    with pytest.raises(InputError, match="log_p must be"):
        ESTIMATORS[name](torch.zeros(2), torch.zeros(3, 3))
