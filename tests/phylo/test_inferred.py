"""The likelihood of inferred models against naive pruning by matrix exponentials, gradients by differences, priors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from phylo_models import batch, random_alignment
from scipy import integrate, stats
from scipy.linalg import expm

from miselbo.errors import InputError
from miselbo.phylo.inferred import Inferred
from miselbo.phylo.likelihood import Parametric, Reversible
from miselbo.phylo.substitution import Substitution
from miselbo.phylo.transitions import reversible, transitions
from miselbo.phylo.tree import nodes, random_topology

KINDS = [
    {"model": "jc69"},
    {"model": "k80", "gamma": True},
    {"model": "hky", "invariable": True, "frequencies": (0.3, 0.2, 0.4, 0.1)},
    {"model": "hky", "gamma": True, "num_categories": 3},
    {"model": "gtr", "gamma": True, "invariable": True},
]


def naive(alignment, topology, lengths, q, pi, speeds, weights):
    """log p, category by category, column by column, without a compiled line."""
    n, total = alignment.num_taxa, np.zeros(alignment.num_sites)
    for speed, weight in zip(speeds, weights, strict=True):
        p = [expm(q * speed * length) for length in lengths]
        below = {e: (alignment.codes[e] >> np.arange(4)[:, None] & 1).astype(float) for e in range(n)}
        for up, left, right in nodes(topology, n):
            below[up if up else -1] = (p[left] @ below[left]) * (p[right] @ below[right])
        total += weight * (pi @ (below[0] * (p[0] @ below[-1])))
    return np.log(total).sum()


def by_hand(kind, natural):
    """Q, pi, category rates and weights from the natural parameters, written out again."""
    values = list(natural)
    rates = [1.0] * 6
    if kind["model"] in ("k80", "hky"):
        kappa = values.pop(0)
        rates = [1, kappa, 1, 1, kappa, 1]
    elif kind["model"] == "gtr":
        rates, values = values[:6], values[6:]
    pi = kind.get("frequencies")
    if kind["model"] in ("hky", "gtr") and pi is None:
        pi, values = values[:4], values[4:]
    pi = np.array(pi or [0.25] * 4)
    q = np.zeros((4, 4))
    for (i, j), rate in zip(((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)), rates, strict=True):
        q[i, j], q[j, i] = rate * pi[j], rate * pi[i]
    q -= np.diag(q.sum(1))
    q /= -(pi @ np.diag(q))
    speeds = np.ones(1)
    if kind.get("gamma"):
        alpha, count = values.pop(0), kind.get("num_categories", 4)
        density = stats.gamma(alpha, scale=1 / alpha)
        cuts = density.ppf(np.linspace(0, 1, count + 1))
        above = stats.gamma(alpha + 1, scale=1 / alpha).cdf(cuts)
        speeds = np.diff(above) * count
    weights = np.full(len(speeds), 1 / len(speeds))
    if kind.get("invariable"):
        share = values.pop(0)
        speeds, weights = np.append(0, speeds / (1 - share)), np.append(share, weights * (1 - share))
    assert not values
    return q, pi, speeds, weights


@settings(deadline=None, max_examples=15)
@given(st.integers(4, 8), st.integers(1, 80), st.sampled_from(KINDS), st.integers(0, 2**32 - 1))
def test_value_is_that_of_naive_pruning(num_taxa, sites, kind, seed):
    generator = np.random.default_rng(seed)
    alignment = random_alignment(num_taxa, sites, generator)
    model, topology = Inferred(**kind), random_topology(num_taxa, generator)
    lengths = generator.exponential(0.3, 2 * num_taxa - 3)
    theta = torch.from_numpy(generator.normal(size=(1, model.size)))
    found = Parametric(alignment).of(
        batch([topology], num_taxa), torch.from_numpy(lengths)[None], model.values(theta)
    )
    expected = naive(alignment, topology, lengths, *by_hand(kind, model.natural(theta)[0].tolist()))
    assert found.item() == pytest.approx(expected, abs=1e-8, rel=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_lengths_and_parameters(kind):
    generator = np.random.default_rng(0)
    alignment = random_alignment(5, 70, generator)
    shape = batch([random_topology(5, generator) for _ in range(2)], 5)
    lengths = torch.from_numpy(generator.exponential(0.2, size=(2, 7))).requires_grad_()
    model, likelihood = Inferred(**kind), Parametric(alignment)
    theta = torch.from_numpy(generator.normal(size=(2, model.size))).requires_grad_()
    inputs = (lengths, theta) if model.size else (lengths,)
    assert torch.autograd.gradcheck(
        lambda b, *rest: likelihood.of(shape, b, model.values(rest[0] if rest else theta)), inputs
    )
    if model.size:
        assert torch.autograd.gradcheck(model.log_prior, theta)


def test_a_given_model_is_a_special_case():
    generator = np.random.default_rng(1)
    alignment = random_alignment(10, 300, generator)
    shape = batch([random_topology(10, generator) for _ in range(3)], 10)
    lengths = torch.from_numpy(generator.exponential(0.2, size=(3, 17))).requires_grad_()
    pi = (0.35, 0.15, 0.2, 0.3)
    given_model = Substitution("hky", kappa=2.5, frequencies=pi, gamma_shape=0.6)
    expected = Reversible(alignment, given_model)(shape, lengths)
    (slopes,) = torch.autograd.grad(expected.sum(), lengths)
    theta = torch.tensor([[2.5, 0.6]], dtype=torch.float64).log().expand(3, 2)
    values = Inferred("hky", frequencies=pi, gamma=True).values(theta)
    found = Parametric(alignment).of(shape, lengths, values)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), lengths)[0], slopes, rtol=1e-9, atol=1e-8)


def test_transitions_of_equal_eigenvalues_and_extreme_times():
    q = reversible(torch.ones(1, 6).double(), torch.full((1, 4), 0.25).double())  # three equal eigenvalues
    pi, times = torch.full((1, 4), 0.25).double(), torch.tensor([[0.0, 1e-12, 0.3, 500.0]]).double()
    p = transitions(q, pi, times)[0]
    torch.testing.assert_close(p[0], torch.eye(4).double(), rtol=0, atol=0)
    assert p[1, 0, 1].item() == pytest.approx(1e-12 / 3, rel=1e-6)
    torch.testing.assert_close(p[3], torch.full((4, 4), 0.25).double(), rtol=0, atol=1e-12)
    times = torch.tensor([[0.1, 0.7]]).double().requires_grad_()
    rates = torch.ones(1, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda r, t: transitions(reversible(r, pi), pi, t), (rates, times))


def test_priors_are_densities():
    for model, change in (
        (Inferred("k80"), np.exp),
        (Inferred("jc69", gamma=True), np.exp),
        (Inferred("jc69", invariable=True), None),
    ):
        total, _ = integrate.quad(
            lambda x, model=model: math.exp(model.log_prior(torch.tensor([[x]]).double())), -40, 40
        )
        assert total == pytest.approx(1, abs=1e-6), change
    # the simplex, by importance sampling from a wide normal density
    generator = torch.Generator().manual_seed(0)
    z = 2.5 * torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    log_q = torch.distributions.Normal(0.0, 2.5).log_prob(z).sum(-1)
    hky = Inferred("hky", frequencies=None)
    theta = torch.cat((torch.zeros(len(z), 1).double(), z), -1)
    log_p = hky.log_prior(theta) - Inferred("k80").log_prior(theta[:, :1])
    weights = (log_p - log_q).exp()
    assert weights.mean().item() == pytest.approx(1, abs=0.02)
    shares = hky.natural(theta)[:, 1:]
    variance = (weights[:, None] * (shares - 0.25) ** 2).mean(0)
    assert variance.tolist() == pytest.approx([0.25 * 0.75 / 5] * 4, rel=0.05)  # of Dirichlet(1, 1, 1, 1)


def test_names_and_mistakes():
    model = Inferred("gtr", gamma=True, invariable=True)
    assert model.labels[:2] == ("r(A<->C)", "r(A<->G)") and model.labels[-2:] == ("alpha", "pinvar")
    assert (model.size, len(model.labels)) == (10, 12) and model.describe().startswith(
        "GTR+G4+I (rates ~ Dirichlet"
    )
    with pytest.raises(InputError, match="must be one of jc69, k80, hky, gtr, got 'tn93'"):
        Inferred("tn93")
