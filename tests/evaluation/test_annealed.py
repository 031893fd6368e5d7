"""Annealed importance sampling: exact log p from poor members, both sides, whatever the batch."""

import math

import pytest
import torch
from phylo_models import ensemble as trees
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from miselbo import Ensemble, InputError
from miselbo.bounds.jackknife import joint_jackknife
from miselbo.evaluation.annealed import Plan, anneal
from miselbo.models.conditional import adopt

WEIGHTS = torch.linspace(-1.5, 1.5, 12).view(3, 4)  # x = W^T z + noise, z in 3 dimensions, x in 4


def linear_gaussian(size=2, spread=0.35, shift=0.5):
    """A linear-Gaussian VAE with members that are too narrow and beside the posterior: k-hat above 0.7."""

    def log_joint(x, z):
        return Normal(0.0, 1.0).log_prob(z).sum(-1) + Normal(z @ WEIGHTS, 0.7).log_prob(x).sum(-1)

    precision = torch.eye(3) + WEIGHTS @ WEIGHTS.T / 0.49
    scale = precision.inverse().diagonal().sqrt()

    def member(sign):
        def q(x):
            mean = x @ WEIGHTS.T / 0.49 @ precision.inverse()
            return Independent(Normal(mean + sign * shift * scale, spread * scale), 1)

        return q

    signs = torch.linspace(-1, 1, size).tolist()
    return Ensemble(*adopt(log_joint, [member(sign) for sign in signs], True))


def simulate(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 3, generator=generator)
    x = z @ WEIGHTS + 0.7 * torch.randn(count, 4, generator=generator)
    covariance = WEIGHTS.T @ WEIGHTS + 0.49 * torch.eye(4)
    return x, z, torch.distributions.MultivariateNormal(torch.zeros(4), covariance).log_prob(x).double()


def test_exact_log_p_of_a_linear_gaussian_model_from_poor_members():
    ensemble, (x, z, exact) = linear_gaussian(), simulate(16)
    found = anneal(ensemble, x, Plan(temperatures=40, chains=60), truth=[z])
    log_p, log_q = ensemble.score(x, 1000)
    joint = joint_jackknife(log_p - log_q.logsumexp(-1) + math.log(2))[0]
    gap, gap_of_joint = (float((exact - values).mean()) for values in (found["annealed"], joint))
    error = float(found["annealed_var"].sum().sqrt() / len(x))
    width = float((found["annealed_upper"] - found["annealed"]).mean())
    print(f"gap {gap:.4f} +- {error:.4f}, of the joint bound {gap_of_joint:.4f}, width {width:.4f}")
    assert abs(gap) < 0.01 + 2.5 * error and error < 0.05
    assert float((found["annealed_upper"] - exact).mean()) > -0.01 - 2.5 * error and width < 0.2


def test_exact_normaliser_of_a_mixture_from_poor_members():
    def log_p(z):
        parts = Normal(torch.tensor([-1.5, 0.0, 2.0]), torch.tensor([0.6, 0.4, 0.8]))
        return 1.5 + MixtureSameFamily(Categorical(torch.ones(3)), parts).log_prob(z)

    members = [Normal(-1.0, 0.3), Normal(1.5, 0.3)]
    found = anneal(Ensemble(log_p, members), None, Plan(temperatures=100, chains=800))
    assert float(found["annealed"]) == pytest.approx(1.5, abs=0.01 + 3 * float(found["annealed_var"].sqrt()))
    assert float(found["annealed_var"].sqrt()) < 0.03


def test_one_temperature_is_the_joint_bound_and_nothing_depends_on_the_batch():
    ensemble, (x, _, _) = linear_gaussian(), simulate(6)
    whole = anneal(ensemble, x, Plan(temperatures=5, chains=4))
    part = anneal(ensemble, x[2:4], Plan(temperatures=5, chains=4), index=torch.tensor([2, 3]))
    torch.testing.assert_close(part["annealed"], whole["annealed"][2:4], atol=1e-4, rtol=1e-5)
    one = anneal(ensemble, x, Plan(temperatures=1, chains=4000))["annealed"]
    log_p, log_q = ensemble.score(x, 4000, seed=1)
    log_w = (log_p - log_q.logsumexp(-1) + math.log(2)).flatten(1).double()
    assert float((one - (log_w.logsumexp(1) - math.log(8000))).mean()) == pytest.approx(0, abs=0.1)


def test_a_target_without_a_gradient_is_refused():
    with pytest.raises(InputError, match="annealing needs a target whose z are tensors"):
        anneal(trees("identity", 2), torch.zeros(1, 0), Plan(2, 2))
    with pytest.raises(InputError, match=r"annealing needs log p\(x, z\) to be differentiable"):
        anneal(Ensemble(lambda z: -z.detach().square(), [Normal(0.0, 1.0)]), None, Plan(2, 2))
    with pytest.raises(InputError, match="annealed.chains must be a whole number of at least 2, got 0"):
        Plan(chains=0)
