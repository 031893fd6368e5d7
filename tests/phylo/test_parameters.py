import math

import numpy as np
import pandas as pd
import pytest
import torch
from small_phylo import FIVE, data

from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.phylo.branches import Branches
from miselbo.phylo.data import AlignmentData
from miselbo.phylo.member import Training
from miselbo.phylo.objective import Objective
from miselbo.phylo.output.draws import draw_trees
from miselbo.phylo.parameters import BranchesAndParameters
from miselbo.phylo.simulation import simulate
from miselbo.phylo.tree import all_topologies
from miselbo.phylo.vbpi import Posterior, Vbpi


def perturbed(size):
    support = data(five=True).spec.support
    torch.manual_seed(0)
    both = BranchesAndParameters(Branches(support), torch.randn(size, dtype=torch.float64))
    with torch.no_grad():
        for part in (both.below, both.log_diagonal):
            part.add_(torch.randn_like(part))
    return both, support.trees(list(all_topologies(5))[:6])


def test_the_parameters_are_gaussian_with_any_covariance():
    both, trees = perturbed(3)
    eps = torch.randn(6, 10, dtype=torch.float64)
    point, log_q = both.sample(trees, eps)
    normal = torch.distributions.MultivariateNormal(both.mean, scale_tril=both.factor)
    expected = both.lengths.log_prob(trees, point[:, :7]) + normal.log_prob(point[:, 7:])
    torch.testing.assert_close(log_q, expected)
    torch.testing.assert_close(both.log_prob(trees, point), expected)


def test_the_path_gradient_goes_through_the_point_alone():
    both, trees = perturbed(2)
    point, _ = both.sample(trees, torch.randn(6, 9, dtype=torch.float64))
    fixed = point.detach().requires_grad_()
    both.path_log_prob(trees, fixed).sum().backward()
    assert fixed.grad is not None and all(parameter.grad is None for parameter in both.parameters())
    both.path_log_prob(trees, point).sum().backward()  # through the draw, to the parameters
    assert all(parameter.grad is not None for parameter in (both.mean, both.below, both.log_diagonal))


@pytest.fixture(scope="module")
def tiny():
    """Few sites, so that draws from the prior say what the posterior is."""
    made = AlignmentData("tiny", lambda: simulate(FIVE, tuple("abcde"), 8, 1), {"method": "all"}, 3)
    made.setup()
    return made


@pytest.fixture(scope="module")
def fitted(tiny):
    target = Posterior(tiny.spec, inferred={"model": "k80", "gamma": True})
    members = []
    for seed in range(2):
        torch.manual_seed(seed)
        member = Vbpi(target, start=0.05)
        objective = Objective(steps_per_epoch=400, learning_rate_branch=0.02, learning_rate_tree=0.02)
        Training(target, member, objective, 1, seed).epoch()
        members.append(member)
        with torch.no_grad():  # wider than the posterior, so that the importance weights are good
            lengths = member.branches.lengths
            lengths.table.weight[: lengths.num_splits, 1] += math.log(1.4)
            member.branches.log_diagonal += math.log(1.4)
    return Ensemble(target, members).eval()


def from_the_prior(target, count, seed):
    """log p(Y | ...) and log kappa of draws from the prior."""
    generator = np.random.default_rng(seed)
    every = list(all_topologies(5))
    trees = target.spec.support.trees([every[i] for i in generator.integers(len(every), size=count)])
    log_lengths = np.log(generator.exponential(0.1, size=(count, 7)))
    share, alpha = generator.uniform(size=count), generator.exponential(size=count)
    theta = np.stack([np.log(share / (1 - share)), np.log(alpha)], 1)
    point = torch.from_numpy(np.concatenate([log_lengths, theta], 1))
    with torch.no_grad():
        return target.log_likelihood(trees, point).numpy(), theta[:, 0]


def test_the_posterior_is_that_of_draws_from_the_prior(fitted):
    log_lik, log_kappa = from_the_prior(fitted.target, 60_000, 0)
    weights = np.exp(log_lik - np.logaddexp.reduce(log_lik))
    assert 1 / (weights**2).sum() > 500  # effective draws: the comparison means something
    draws = draw_trees(fitted, 0, samples=2000)
    assert draws.ess > 60
    assert draws.log_marginal == pytest.approx(np.logaddexp.reduce(log_lik) - math.log(60_000), abs=0.35)
    mine, theirs = np.log(draws.parameters["kappa"]) @ draws.shares, log_kappa @ weights
    assert mine == pytest.approx(theirs, abs=0.35)
    assert list(draws.parameters) == ["kappa", "alpha"] and (draws.parameters["alpha"] > 0).all()


def test_every_member_scores_every_draw(fitted):
    target, (one, other) = fitted.target, fitted.members
    noise = target.noise(torch.zeros(1, 0), torch.arange(5), 0, torch.zeros(1, dtype=torch.int64), 0)
    draw = target.draw(torch.zeros(1, 0), one, None, noise)
    assert draw.x.shape == (5, 9) and other.log_prob(None, draw).isfinite().all()
    again = target.at(
        torch.zeros(1, 0), [draw.trees.splits[:, 5:].unflatten(0, (5, 1)), draw.x.unflatten(0, (5, 1))]
    )
    torch.testing.assert_close(again.log_p, draw.log_p)


def test_a_run_writes_the_parameters(tmp_path):
    from miselbo.pipeline import run
    from miselbo.runs.config import compose_config

    common = ["model=vbpi", "trainer.enable_progress_bar=false", "model.objective.steps_per_epoch=20", "report=false",
              "evaluation.num_samples=5", "trainer.max_epochs=1", "dataset.support.replicates=1", "ensemble.size=1",
              "dataset.support.nj_trees=5", "dataset.replicates=2", f"run_dir={tmp_path}"]  # fmt: skip
    model = [
        "model.target.inferred.model=gtr",
        "model.target.inferred.gamma=true",
        "model.target.inferred.invariable=true",
    ]
    summary = run(compose_config([*common, *model]))
    assert summary["protocol"]["substitution_model"].startswith(
        "GTR+G4+I (rates ~ Dirichlet(1, 1, 1, 1, 1, 1)"
    )
    table = pd.read_csv(tmp_path / "results" / "parameters.csv")
    assert list(table["parameter"])[0] == "TL" and len(table) == 13 and (table["low"] <= table["high"]).all()
    sample = pd.read_csv(tmp_path / "results" / "parameters.p", sep="\t", skiprows=1)
    assert sample[[f"pi({base})" for base in "ACGT"]].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "jc69"}, "no parameter to infer"),
        (
            {"model": "hky", "frequencies": "equal"},
            "frequencies must be null .inferred., empirical or four numbers",
        ),
        ({"model": "k80", "frequencies": [0.25] * 4}, "frequencies must be four numbers .* for hky and gtr"),
        ({"model": "k80", "gamma": 0.5}, "gamma must be true or false .its value is inferred., got 0.5"),
        ({"model": "k80", "gama": True}, "model.target.inferred: .*gama"),
    ],
)
def test_bad_settings(tiny, options, message):
    with pytest.raises(InputError, match=message):
        Posterior(tiny.spec, inferred=options)


def test_one_model_is_given_or_inferred(tiny):
    with pytest.raises(InputError, match="are both given"):
        Posterior(tiny.spec, substitution={"model": "hky", "kappa": 2.0}, inferred={"model": "hky"})
