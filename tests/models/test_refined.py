"""Test-time refinement: better members of an exact model, bounds that stay bounds, whatever the batch."""

import math

import pytest
import runs
import torch
from phylo_models import ensemble as trees
from torch.distributions import Exponential, Independent, Normal

from miselbo import Ensemble, InputError, bounds, evaluate
from miselbo.models.conditional import adopt
from miselbo.models.refined import refine

X = torch.linspace(-2, 2, 12)
EXACT = Normal(0.0, math.sqrt(2)).log_prob(X).double()


def log_joint(x, z):
    return Normal(0.0, 1.0).log_prob(z[..., 0]) + Normal(z[..., 0], 1.0).log_prob(x)


def member(shift, scale):
    return lambda x: Independent(Normal(x[:, None] / 2 + shift, scale), 1)


POOR = [member(-0.8, 0.2), member(0.9, 0.25)]


def test_poor_members_become_good_ones_and_the_bound_stays_a_bound():
    plain, fine = (evaluate(log_joint, POOR, X, 200, refine_steps=steps, batch_size=5) for steps in (0, 60))
    before, after = plain.examples["pareto_k"], fine.examples["pareto_k"]
    assert before.mean() > 0.8 and (after < 0.3).all()
    exact, rough, row = float(EXACT.mean()), plain.summary["headline"], fine.summary["headline"]
    assert rough["average_iwelbo"] < exact - 0.5  # poor
    for name in ("joint_bound", "average_iwelbo"):
        assert abs(row[name] - exact) < 3 * row[f"{name}_se_mc"] < 0.05
    one = evaluate(log_joint, POOR, X, 1, refine_steps=60, grid=[1]).summary["headline"]
    assert one["average_elbo"] < EXACT.mean()


def test_nothing_depends_on_the_batch_and_the_seed_decides():
    target, members = adopt(log_joint, POOR, True)

    def scores(x, seed=0):
        return Ensemble(target, refine(target, members, 10, seed)).score(x, 50, index=torch.arange(len(x)))

    whole, part = bounds.miselbo(*scores(X)), bounds.miselbo(*scores(X[:3]))
    torch.testing.assert_close(part, whole[:3], atol=1e-5, rtol=1e-5)
    assert not torch.equal(bounds.miselbo(*scores(X, seed=1)), whole)


def test_a_run_folder_is_scored_with_refined_members(tmp_path):
    folder = tmp_path / "run"
    keys = ["evaluation.num_samples=16", "evaluation.grid=[16]", "evaluation.refine_steps=10", "report=false"]
    summary = runs.fit(folder, "ensemble.size=2", *keys)
    assert summary["protocol"]["refine_passes"] == 10 * 8 * 2 * 12
    assert "took 10 steps for each x" in " ".join(summary["protocol"]["notes"])
    cut = runs.from_folder("evaluate", folder, *keys, "evaluation.batch_size=12", "evaluation.workers=2")
    assert cut["headline"]["miselbo"] == pytest.approx(summary["headline"]["miselbo"], abs=1e-3)
    rough = runs.from_folder("evaluate", folder, *keys, "evaluation.refine_steps=0")
    assert rough["headline"]["average_elbo"] != summary["headline"]["average_elbo"]
    assert abs(rough["headline"]["joint_bound"] - summary["headline"]["joint_bound"]) < 0.3  # of one log p(x)


def test_what_cannot_be_refined_is_refused():
    with pytest.raises(InputError, match="refine_steps must be a whole number of at least 0, got -1"):
        evaluate(log_joint, POOR, X, 4, refine_steps=-1)
    with pytest.raises(InputError, match="use method=full or annealed"):
        evaluate(log_joint, POOR, X, 4, refine_steps=2, method="multilevel")
    with pytest.raises(InputError, match="a member gives Independent for x"):
        evaluate(
            log_joint, [lambda x: Independent(Exponential(torch.ones(len(x), 1)), 1)], X, 4, refine_steps=2
        )
    ensemble = trees("identity", 2)
    with pytest.raises(InputError, match="is no such member: use refine_steps=0"):
        refine(ensemble.target, ensemble.members, 2, 0)
