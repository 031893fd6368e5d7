import math

import pytest
import torch
from small_phylo import data, fitted, posterior_samples

from miselbo.phylo import refit as module
from miselbo.phylo.member import Training
from miselbo.phylo.objective import Objective
from miselbo.phylo.refit import candidates, refit
from miselbo.phylo.support import Support
from miselbo.phylo.tree import all_topologies
from miselbo.phylo.vbpi import Posterior, Vbpi

EVERY = list(all_topologies(5))


@pytest.fixture(scope="module")
def made():
    """An ensemble of one whose topologies are spoilt, and the posterior's probabilities by a count of exact draws."""
    ensemble = fitted(data(five=True), epochs=1, size=1, steps_per_epoch=300)
    _, topologies, _ = posterior_samples(ensemble, 4000, 40_000, 0)
    exact = torch.tensor([topologies.count(one) / 40_000 for one in EVERY], dtype=torch.float64)
    with torch.no_grad():
        ensemble.members[0].sbn.logits.normal_(generator=torch.Generator().manual_seed(0)).mul_(3)
    return ensemble, exact


def kl(exact, member):
    log_q = member.sbn.topology_log_prob(EVERY).detach()
    return float((exact * (exact.clamp_min(1e-12).log() - log_q)).sum())


def test_every_topology_of_five_taxa_gets_its_probability(made):
    ensemble, exact = made
    member = ensemble.members[0]
    before = kl(exact, member)
    found = refit(ensemble.target, member, 20_000, 0)
    assert found.kept and found.unseen == 0 and found.elbo[1] > found.elbo[0]
    assert kl(exact, member) < 0.003 < 0.3 < before
    again = member.sbn.logits.detach().clone()
    assert refit(ensemble.target, member, 20_000, 0).kept
    assert kl(exact, member) < 0.003 and not torch.equal(again, member.sbn.logits)


def test_a_worse_fit_is_undone(made, monkeypatch):
    ensemble, _ = made
    member = ensemble.members[0]
    before = member.sbn.logits.detach().clone()
    wrong = torch.zeros(len(EVERY), dtype=torch.float64)
    wrong[int(member.sbn.topology_log_prob(EVERY).argmin())] = 1.0
    order = candidates(member.sbn.sample(torch.full((1, 4), 0.5, dtype=torch.float64)), member, 5)[0]
    places = [EVERY.index(topology) for topology in member.sbn.support.topologies(order)]
    monkeypatch.setattr(module, "posterior", lambda *_: wrong[places])
    found = refit(ensemble.target, member, 100, 0)
    assert not found.kept and found.elbo[1] < found.elbo[0] - 1
    assert torch.equal(member.sbn.logits, before)


def test_a_posterior_that_is_not_seen_whole_is_left_alone(made):
    """Without the support's trees, few draws of a flat q see little of it."""
    support = made[0].target.spec.support
    bare = Support(support.names, support.root_splits, support.pairs)
    member = made[0].members[0]
    uniforms = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = member.sbn.sample(uniforms)
    distinct = set(support.topologies(drawn))
    member.sbn.support, kept = bare, member.sbn.support
    try:
        trees, unseen = candidates(drawn, member, 5)
    finally:
        member.sbn.support = kept
    assert set(support.topologies(trees)) == distinct
    counts = [support.topologies(drawn).count(one) for one in distinct]
    assert unseen == pytest.approx(counts.count(1) / 3)


def test_training_ends_with_it():
    target = Posterior(data(five=True).spec)
    members = []
    for draws in (0, 2000):
        torch.manual_seed(0)
        member = Vbpi(target, start=0.05)
        training = Training(target, member, Objective(steps_per_epoch=20, refit=draws), 2, 0)
        values = [training.epoch() for _ in range(2)]
        members.append(member)
    assert training.refit is not None and math.isfinite(values[-1]["val/elbo"])
    assert training.refit.kept != torch.equal(members[0].sbn.logits, members[1].sbn.logits)
    assert torch.equal(members[0].branches.table.weight, members[1].branches.table.weight)
