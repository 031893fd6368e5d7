"""The published recipe against the definition of it, spelled out tree by tree, and what it does to one model."""

import copy
import functools
import math

import pytest
import torch
from phylo_models import KINDS, empty, ensemble
from small_phylo import data, fitted

from miselbo import bounds
from miselbo.ensemble import Ensemble
from miselbo.phylo.branches import SHIFT
from miselbo.phylo.published import score_both_ways
from miselbo.phylo.vbpi import Posterior


@pytest.mark.parametrize("kind", KINDS)
def test_correct_scores_are_those_of_the_evaluation(kind):
    three = ensemble(kind)
    index = torch.tensor([4, 1])
    log_p, log_q, recipe = score_both_ways(three, 6, 3, index)
    expected = three.score(empty(2), 6, seed=3, index=index)
    for found, value in zip((log_p, log_q), expected, strict=True):
        torch.testing.assert_close(found, value, atol=1e-9, rtol=0)
    for own, value in zip(bounds.own_density(recipe), bounds.own_density(log_q), strict=True):
        assert torch.equal(own, value)


@pytest.mark.parametrize("kind", KINDS)
def test_recipe_tree_by_tree(kind):
    """One draw at a time, by torch's normal density and the change of volume by automatic differentiation."""
    two = ensemble(kind, size=2)
    _, _, recipe = score_both_ways(two, 4, 7, torch.tensor([2]))
    drawn = []
    for s, member in enumerate(two.members):
        eps = two.target.noise(empty(1), torch.arange(4), 7, torch.tensor([2]), s)
        drawn.append((two.target.draw(empty(1), member, None, eps), eps[1][:, 0]))
    for s, j in ((0, 1), (1, 0)):
        drawer, other = two.members[s].branches, two.members[j].branches
        for i in range(4):
            tree, own = drawn[s][0].trees[i : i + 1], drawn[j][0].trees[i : i + 1]
            mean, log_sd = drawer.table(drawer.rows(tree))[0].unbind(-1)
            base = (mean + log_sd.exp() * drawn[s][1][i]).detach()
            there, log_sd = other.table(other.rows(own))[0].unbind(-1)
            density = torch.distributions.Normal(there, log_sd.exp()).log_prob(base).sum()
            push = functools.partial(other.flow.forward, rows=other.rows(own))
            jacobian = torch.autograd.functional.jacobian(lambda z, push=push: push(z[None])[0][0], base)
            expected = two.members[j].sbn.log_prob(tree) + density - torch.linalg.slogdet(jacobian).logabsdet
            assert recipe[0, s, i, j].item() == pytest.approx(expected.item(), abs=1e-9)
            x, _ = drawer.flow.forward(base[None], drawer.rows(tree))
            torch.testing.assert_close(x + SHIFT, drawn[s][0].x[i : i + 1])  # base makes the draw


@pytest.mark.parametrize("size", [2, 5])
def test_copies_of_one_model_gain_by_the_recipe_alone(size):
    (member,) = fitted(data(), 2, 1, steps_per_epoch=200).members
    copies = Ensemble(Posterior(data().spec), [copy.deepcopy(member) for _ in range(size)])
    log_p, log_q, recipe = score_both_ways(copies, 200, 0, torch.arange(5))
    average = bounds.average_iwelbo(log_p, log_q)
    torch.testing.assert_close(bounds.miselbo(log_p, log_q), average, atol=1e-9, rtol=0)
    gain = bounds.miselbo(log_p, recipe) - average
    assert gain.mean() > 0.02 and (gain < math.log(size) + 1e-9).all()


def test_one_member_has_no_cross_score():
    one = Ensemble(ensemble().target, [ensemble().members[0]])
    _, log_q, recipe = score_both_ways(one, 3, 0, torch.arange(2))
    assert torch.equal(log_q, recipe)
