"""Any callable as a target, any distribution as a member: scores by hand, and callables that are none."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as td

from miselbo import bounds
from miselbo.data.density import DensitySpec
from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.models.classical import DensityTarget
from miselbo.protocols import fingerprint


def gauss(z):
    return -0.5 * z.square().sum(-1)


def test_scores_are_the_densities_at_the_samples():
    members = [td.Normal(torch.tensor([m, 0.0]), 1.0) for m in (-1.0, 1.0)]
    ensemble = Ensemble(gauss, members)
    log_p, log_q = ensemble.score(torch.zeros(3, 0), 5, seed=2)
    assert log_p.shape == (3, 2, 5) and log_q.shape == (3, 2, 5, 2)
    z = torch.randn(2, 5, 3, 2)
    log_p, log_q = ensemble.log_prob(torch.zeros(3, 0), [z])
    assert torch.allclose(log_p, gauss(z).permute(2, 0, 1))
    for j, member in enumerate(members):
        assert torch.allclose(log_q[..., j], member.log_prob(z).sum(-1).permute(2, 0, 1))


def test_none_is_one_replicate_and_passes_do_not_matter():
    ensemble = Ensemble(gauss, [td.Laplace(torch.zeros(2), 1.0), td.StudentT(torch.tensor([3.0, 3.0]))])
    whole = ensemble.score(None, 700, seed=1)
    cut = ensemble.score(torch.zeros(2, 0), 700, seed=1, samples_per_pass=33)
    assert torch.equal(whole[0], cut[0][:1]) and torch.equal(whole[1], cut[1][:1])


@settings(max_examples=20, deadline=None)
@given(st.floats(-3, 3), st.floats(0.3, 3), st.integers(0, 100))
def test_the_exact_posterior_scores_log_z(mean, sd, seed):
    target = td.Normal(mean, sd)
    log_p, log_q = Ensemble(lambda z: target.log_prob(z) + 1.5, [target]).score(None, 4, seed)
    assert torch.allclose(bounds.iwelbo(log_p, log_q).float(), torch.tensor(1.5), atol=1e-5)


def test_bounds_stay_below_log_z_and_approach_it():
    from miselbo.data.densities import LinearGaussian

    model = LinearGaussian()
    mean, sd = model.posterior.mean, model.posterior.stddev
    members = [td.Normal(mean + shift, 1.3 * sd) for shift in (-0.2, 0.2)]
    log_p, log_q = Ensemble(model, members).score(torch.zeros(400, 0), 200)
    values = [
        float(bounds.joint_bound(log_p[..., :n], log_q[..., :n, :]).mean()) - model.log_normaliser
        for n in (1, 10, 200)
    ]
    assert values == sorted(values) and values[0] < -0.02 and -0.01 < values[-1] < 0.003


def test_discrete_members():
    log_probabilities = torch.tensor([0.5, 0.3, 0.2]).log()
    members = [td.Categorical(torch.tensor(p)) for p in ([0.6, 0.2, 0.2], [0.1, 0.1, 0.8])]
    log_p, log_q = Ensemble(lambda z: log_probabilities[z], members).score(torch.zeros(500, 0), 8)
    weights = log_p - torch.logsumexp(log_q, -1) + math.log(2)
    assert float(weights.exp().mean()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("target", "match"),
    [
        (lambda z: z, "one number per point"),
        (lambda z: 3.0, "float"),
        (lambda z: gauss(z) * math.nan, "nan"),
        (lambda z: gauss(z) + math.inf, "inf"),
        (None, "callable"),
        (td.Normal, "callable"),
    ],
)
def test_targets_that_are_none(target, match):
    with pytest.raises(InputError, match=match):
        Ensemble(target, [td.Normal(torch.zeros(2), 1.0)]).score(None, 3)


def test_minus_infinity_is_a_value():
    inside = lambda z: torch.where(z > 0, -z, -math.inf)  # noqa: E731
    log_p, _ = Ensemble(inside, [td.Normal(0.0, 1.0)]).score(None, 100)
    assert bool(log_p.isinf().any()) and not bool(log_p.isnan().any())


def test_members_of_different_shapes():
    with pytest.raises(InputError, match="one shape"):
        Ensemble(gauss, [td.Normal(0.0, 1.0), td.Normal(torch.zeros(2), 1.0)])


def test_checkpoints_of_another_density_are_refused():
    one, other = (DensityTarget(DensitySpec(lambda z, c=c: c * gauss(z), 2)) for c in (1.0, 1.1))
    assert fingerprint(one) != fingerprint(other)
    one.load_state_dict(DensityTarget(DensitySpec(gauss, 2)).state_dict())
    with pytest.raises(InputError, match="another density"):
        one.load_state_dict(other.state_dict())
