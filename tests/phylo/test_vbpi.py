import copy
import json
import math

import numpy as np
import pytest
import torch
from phylo_models import FLOWS, KINDS, empty, ensemble, golden_model, golden_pairs
from small_phylo import data, fitted

from miselbo import bounds
from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.phylo import Alignment
from miselbo.phylo.support import Support
from miselbo.phylo.text.newick import inner_splits, parse_newick
from miselbo.phylo.tree import edge_splits
from miselbo.phylo.vbpi import PhyloSpec, Posterior, Vbpi
from miselbo.protocols import fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_same_model_other_draws_is_one_model(kind):
    """The members' draws differ (the noise depends on the member), the densities do not: MISELBO = average IWELBO."""
    (first, *_) = ensemble(kind).members
    target = Posterior(data().spec)
    twice = Ensemble(target, [first, copy.deepcopy(first), copy.deepcopy(first)])
    log_p, log_q = twice.score(empty(4), 50, seed=3)
    assert not torch.equal(log_p[:, 0], log_p[:, 1])
    torch.testing.assert_close(
        bounds.miselbo(log_p, log_q), bounds.average_iwelbo(log_p, log_q), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(bounds.jsd(log_q), torch.zeros(4, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_cross_scores_are_densities_at_the_draw(kind):
    """Every member's log q at given trees and lengths is the same whoever drew them and however they are given."""
    three = ensemble(kind)
    target = three.target
    index = torch.arange(2)
    for s, member in enumerate(three.members):
        noise = target.noise(empty(2), torch.arange(5), 0, index, s)
        draw = target.draw(empty(2), member, None, noise)
        masks = target.spec.support.topologies(draw.trees)
        for j, other in enumerate(three.members):
            tree = other.sbn.topology_log_prob(masks)
            fresh = target.spec.support.trees(masks)
            expected = tree + other.branches.log_prob(fresh, draw.x)
            found = other.log_prob(None, draw)
            torch.testing.assert_close(found.flatten(), expected, atol=1e-10, rtol=0)
            log_p, log_q = three.score(empty(2), 5)
            torch.testing.assert_close(log_q[:, s, :, j].T, found, atol=1e-10, rtol=0)


def test_scoring_given_samples():
    three = ensemble()
    index, splits, lengths = torch.arange(2), [], []
    for s, member in enumerate(three.members):
        noise = three.target.noise(empty(2), torch.arange(4), 0, index, s)
        draw = three.target.draw(empty(2), member, None, noise)
        splits.append(draw.trees.splits[:, 8:].unflatten(0, (4, 2)))
        lengths.append(draw.x.unflatten(0, (4, 2)))
    given = three.log_prob(empty(2), [torch.stack(splits), torch.stack(lengths)])
    for one, other in zip(given, three.score(empty(2), 4), strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


def test_draws_do_not_depend_on_passes_and_batches():
    three = ensemble()
    whole = three.score(empty(3), 7, seed=5)
    passes = three.score(empty(3), 7, seed=5, samples_per_pass=2)
    last = three.score(empty(1), 7, seed=5, index=torch.tensor([2]))
    for one, other, third in zip(whole, passes, last, strict=True):
        assert torch.equal(one, other) and torch.equal(one[2:], third)


def test_order_of_members_and_lower_bounds_of_the_mixture():
    three = ensemble()
    log_p, log_q = three.score(empty(20), 20)
    own = torch.einsum("bsls->bsl", log_q)
    assert (log_q.logsumexp(-1) >= own - 1e-12).all()
    order = [2, 0, 1]
    changed = bounds.miselbo(log_p[:, order], log_q[:, order][..., order])
    torch.testing.assert_close(changed, bounds.miselbo(log_p, log_q), atol=1e-12, rtol=0)
    assert 0 < bounds.jsd(log_q).mean() < math.log(3)


def test_prior_is_a_density_in_the_log_length():
    target = Posterior(data().spec, branch_rate=10.0)
    grid = torch.linspace(-25, 3, 20001, dtype=torch.float64)
    one = target.log_branch_prior(grid[:, None]).exp()
    assert torch.trapezoid(one, grid).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("tag", FLOWS)
def test_golden_bounds_of_two_models(phylo_root, phylo_golden, tag):
    """IWELBO and MISELBO (S = 2, L = 10) of reference models, from this project's scores alone."""
    golden = dict(np.load(phylo_golden / "branch_DS1_small.npz"))
    expected = json.loads((phylo_golden / "branch_DS1_small.json").read_text())[tag]
    alignment = Alignment.from_file(phylo_root / "DS1.fasta")
    support = Support(alignment.names, golden["support/rootsplit_mask"].tolist(), golden_pairs(golden))
    full = (1 << 27) - 1
    rows = []
    for kind, clade, mask in zip(
        *(golden[f"support/emb_{n}"].tolist() for n in ("kind", "clade", "mask")), strict=True
    ):
        corner = tuple(sorted((full ^ clade, mask, clade ^ mask), key=lambda side: (not side & 1, side)))
        psp = kind and support.num_splits + 3 * support.corners[corner] + corner.index(full ^ clade)
        rows.append(psp or support.rank[mask])
    target = Posterior(PhyloSpec(alignment, support))
    members = []
    for number in (0, 1):
        member = Vbpi(target)
        member.sbn, member.branches = golden_model(golden, support, torch.tensor(rows), tag, number)
        members.append(member)
    taxa = {str(i): i for i in range(27)}
    topologies = [inner_splits(parse_newick(str(text), taxa), 27) for text in golden[f"{tag}/tree"]]
    x, splits = np.empty((20, 51)), np.empty((20, 24))
    for i, topology in enumerate(topologies):
        masks = [m if not m & 1 else full ^ m for m in golden[f"{tag}/edge_mask"][i].tolist()]
        value = dict(zip(masks, golden[f"{tag}/log_branch"][i], strict=True))
        x[i] = [value[split] for split in edge_splits(topology, 27)]
        splits[i] = [support.rank[split] for split in topology]
    z = [torch.from_numpy(part).reshape(2, 10, 1, -1) for part in (splits, x)]
    assert golden[f"{tag}/source_model"].tolist() == [0] * 10 + [1] * 10
    log_p, log_q = Ensemble(target, members).log_prob(empty(1), z)
    reference = sum(golden[f"{tag}/{name}"] for name in ("loglik", "logprior", "log_p_tau"))
    np.testing.assert_allclose(log_p.flatten(), reference, atol=1e-8, rtol=0)
    np.testing.assert_allclose(bounds.iwelbo(log_p, log_q)[0], expected["iwelbo_L10"], atol=1e-8, rtol=0)
    assert bounds.miselbo(log_p, log_q).item() == pytest.approx(expected["miselbo_S2_L10"], abs=1e-8, rel=0)


def test_target_has_a_fingerprint_and_refuses_another_alignment():
    target = Posterior(data().spec)
    assert fingerprint(target) == fingerprint(Posterior(data().spec))
    assert fingerprint(target) != fingerprint(Posterior(data().spec, branch_rate=9.0))
    with pytest.raises(InputError, match="its branch_rate differs"):
        Posterior(data().spec, branch_rate=9.0).load_state_dict(target.state_dict())
    assert not list(target.parameters())


def test_bad_settings():
    with pytest.raises(InputError, match="branch_rate must be a positive number, got 0"):
        Posterior(data().spec, branch_rate=0)
    with pytest.raises(InputError, match="start must be a positive branch length, got -1"):
        Vbpi(Posterior(data().spec), start=-1)
    with pytest.raises(InputError, match="bfloat16"):
        Posterior(data().spec).inference_form(None, torch.bfloat16)


@pytest.mark.slow
def test_truth_on_five_taxa():
    """log p by enumerating the 15 topologies and integrating the lengths, against the joint bound of two members."""
    expected, error = exact_log_p(data(five=True).spec)
    assert error < 0.01
    two = fitted(data(five=True), epochs=3, size=2)
    log_p, log_q = two.score(empty(4), 5000)
    found = bounds.joint_bound(log_p, log_q)
    assert found.mean().item() == pytest.approx(expected, abs=0.05)


def exact_log_p(spec, samples=60000):
    """Per topology by importance sampling from a Student t at the mode with the Hessian there: independent of VBPI."""
    from scipy.special import logsumexp
    from scipy.stats import multivariate_t

    from miselbo.phylo.tree import all_topologies

    target = Posterior(spec)
    values, errors = [], []
    for number, topology in enumerate(all_topologies(5)):
        one = spec.support.trees([topology])
        x = torch.full((1, 7), -2.5, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS([x], max_iter=300, line_search_fn="strong_wolfe")

        def closure(one=one, x=x, optimiser=optimiser):
            optimiser.zero_grad()
            loss = -(target.log_likelihood(one, x) + target.log_branch_prior(x)).sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        mode, step, hessian = x.detach()[0], 1e-4, torch.zeros(7, 7, dtype=torch.float64)
        for i in range(7):
            for sign in (1, -1):
                moved = mode.clone()
                moved[i] += sign * step
                moved.requires_grad_()
                value = (target.log_likelihood(one, moved[None]) + target.log_branch_prior(moved[None])).sum()
                hessian[i] -= sign * torch.autograd.grad(value, moved)[0] / (2 * step)
        scale = 1.3 * torch.linalg.inv((hessian + hessian.T) / 2)
        proposal = multivariate_t(mode.numpy(), scale.numpy(), df=5, seed=number)
        drawn = proposal.rvs(samples)
        trees = spec.support.index(np.tile(spec.support.corners_of(topology), (samples, 1)))
        weight = target.log_joint(trees, torch.from_numpy(drawn)).numpy() - proposal.logpdf(drawn)
        values.append(logsumexp(weight) - math.log(samples))
        share = np.exp(weight - logsumexp(weight))
        errors.append(math.sqrt((share**2).sum()))
    weights = np.exp(values - logsumexp(values))
    return logsumexp(values), math.sqrt(((weights * np.array(errors)) ** 2).sum())
