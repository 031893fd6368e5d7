import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from phylo_models import FLOWS, golden_model, golden_pairs

from miselbo.errors import InputError
from miselbo.phylo.branches import SHIFT, Branches, capped
from miselbo.phylo.flows import Planar, RealNvp, solve
from miselbo.phylo.support import Support
from miselbo.phylo.text.newick import inner_splits, parse_newick
from miselbo.phylo.tree import edge_splits, random_topology


@pytest.fixture(scope="module")
def trained(phylo_golden):
    """Golden arrays, the support, and where each golden embedding row is in this project's tables."""
    golden = dict(np.load(phylo_golden / "branch_DS1_small.npz"))
    names = golden["support/taxa"].tolist()
    support = Support(names, golden["support/rootsplit_mask"].tolist(), golden_pairs(golden))
    full = (1 << len(names)) - 1
    rows = []
    for kind, clade, mask in zip(
        *(golden[f"support/emb_{n}"].tolist() for n in ("kind", "clade", "mask")), strict=True
    ):
        if kind == 0:
            rows.append(support.rank[mask])
            continue
        corner = tuple(sorted((full ^ clade, mask, clade ^ mask), key=lambda side: (not side & 1, side)))
        rows.append(support.num_splits + 3 * support.corners[corner] + corner.index(full ^ clade))
    assert sorted(rows) == list(range(support.num_rows)) and len(rows) == 401
    return golden, support, torch.tensor(rows)


@pytest.mark.parametrize("tag", FLOWS)
def test_golden_densities_and_every_cross_score(trained, tag):
    golden, support, emb = trained
    num_taxa = support.num_taxa
    taxa = {str(i): i for i in range(num_taxa)}
    topologies = [inner_splits(parse_newick(str(text), taxa), num_taxa) for text in golden[f"{tag}/tree"]]
    x = np.empty_like(golden[f"{tag}/log_branch"])
    full = (1 << num_taxa) - 1
    for i, topology in enumerate(topologies):
        masks = [m if not m & 1 else full ^ m for m in golden[f"{tag}/edge_mask"][i].tolist()]
        value = dict(zip(masks, golden[f"{tag}/log_branch"][i], strict=True))
        x[i] = [value[split] for split in edge_splits(topology, num_taxa)]
    trees, x = support.trees(topologies), torch.from_numpy(x)
    for member in (0, 1):
        sbn, branches = golden_model(golden, support, emb, tag, member)
        found = branches.log_prob(trees, x).detach()
        np.testing.assert_allclose(found, golden[f"{tag}/logq_branch"][member], atol=1e-8, rtol=0)
        np.testing.assert_allclose(
            sbn.log_prob(trees).detach(), golden[f"{tag}/logq_tree"][member], atol=1e-9, rtol=0
        )


def model(tag, seed=0, scale=1.0, num_taxa=7, largest_scale=None):
    generator = np.random.default_rng(seed)
    topologies = [random_topology(num_taxa, generator) for _ in range(6)]
    support = Support.from_topologies(topologies, [f"t{i}" for i in range(num_taxa)])
    torch.manual_seed(seed)
    branches = Branches(support, FLOWS[tag], largest_scale=largest_scale)
    with torch.no_grad():
        for parameter in branches.parameters():
            rows = parameter[:-1] if parameter.ndim == 2 else parameter
            rows.add_(scale * 0.1 * torch.randn_like(rows))
    return branches, support.trees(topologies)


@settings(deadline=None, max_examples=15)
@given(st.sampled_from(list(FLOWS)), st.integers(0, 2**32 - 1), st.sampled_from([None, 0.7, 1.3]))
def test_a_sample_scores_what_it_says(tag, seed, largest):
    branches, trees = model(tag, seed, largest_scale=largest)
    eps = torch.randn(6, 11, dtype=torch.float64)
    with torch.no_grad():
        x, log_q = branches.sample(trees, eps)
        rows = branches.rows(trees)
        z, _ = branches.flow.inverse(branches.flow(eps, rows)[0], rows)
        assert torch.allclose(z, eps, atol=1e-9)
        assert torch.allclose(branches.log_prob(trees, x), log_q, atol=1e-7)


@pytest.mark.parametrize("tag", FLOWS)
def test_the_determinant_is_that_of_the_jacobian(tag):
    branches, trees = model(tag, 1)
    rows = branches.rows(trees)[:1]
    z = torch.randn(1, 11, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: branches.flow(v, rows)[0][0], z)[:, 0]
    expected = torch.linalg.slogdet(jacobian).logabsdet
    assert torch.allclose(branches.flow(z, rows)[1], expected, atol=1e-10)
    assert torch.allclose(branches.flow.inverse(branches.flow(z, rows)[0], rows)[1], expected, atol=1e-8)


@pytest.mark.parametrize("tag", FLOWS)
def test_far_out_is_minus_infinity_and_never_nan(tag):
    branches, trees = model(tag, 2, scale=24.0)
    for size in (1e2, 1e4, 1e150, 1e307, np.inf):
        value = branches.log_prob(trees, torch.full((6, 11), size, dtype=torch.float64)).detach()
        assert not value.isnan().any() and (value < 0).all()
    assert (value == -np.inf).all()


@pytest.mark.parametrize("tag", FLOWS)
def test_the_unused_row_stays_zero(tag):
    branches, trees = model(tag, 3)
    x, log_q = branches.sample(trees, torch.randn(6, 11, dtype=torch.float64))
    (x.sum() + log_q.sum()).backward()
    for parameter in branches.parameters():
        if parameter.ndim == 2:
            assert not parameter[-1].any() and not parameter.grad[-1].any()


def test_gradients_of_sampling():
    branches, trees = model("realnvp3", 4, num_taxa=5)
    eps = torch.randn(6, 7, dtype=torch.float64)
    for parameter in (branches.table.weight, branches.flow.shift[0]):
        assert torch.autograd.gradcheck(lambda _: branches.sample(trees, eps), (parameter,), atol=1e-5)


@settings(deadline=None)
@given(st.floats(-1 + 1e-9, 1e3), st.floats(-50, 50), st.floats(-5, 5))
def test_the_root_of_the_planar_inverse(c, alpha, b):
    c, alpha, b = (torch.tensor([value], dtype=torch.float64) for value in (c, alpha, b))
    y = alpha + c * (alpha + b).tanh()
    found = solve(y, c, b)
    assert torch.allclose(found + c * (found + b).tanh(), y, atol=1e-12, rtol=1e-13)


def test_start_moves_the_median():
    generator = np.random.default_rng(0)
    support = Support.from_topologies([random_topology(6, generator)], "abcdef")
    branches = Branches(support, start=0.01)
    trees = support.trees([random_topology(6, np.random.default_rng(0))])
    x, _ = branches.sample(trees, torch.zeros(1, 9, dtype=torch.float64))
    assert ((x - math.log(0.01)).abs() < 1).all()
    assert SHIFT == -2


def test_the_cap_holds_and_the_capped_density_is_normalised():
    branches, trees = model("identity", 5, scale=20.0, largest_scale=1.3)
    rows = branches.rows(trees)
    mu, log_sigma = branches.base(rows)
    free = branches.table(rows)[..., 1]
    assert (log_sigma.exp() < 1.3).all() and (free.exp() > 3).any()
    small = free < -3  # untouched
    assert small.any() and torch.allclose(log_sigma[small], free[small], atol=1e-5)
    x = torch.linspace(-40, 40, 40_001, dtype=torch.float64)
    edge = int(free[0].argmax())
    at = (mu[0] + SHIFT).repeat(len(x), 1)
    at[:, edge] = at[:, edge] + x
    log_q = branches.log_prob(trees[:1][torch.zeros(len(x), dtype=torch.int64)], at)
    others = -log_sigma[0].sum() + log_sigma[0, edge] - 10 * 0.5 * math.log(2 * math.pi)  # at their medians
    assert torch.trapezoid((log_q - others).exp(), x).item() == pytest.approx(1, abs=1e-9)
    assert torch.equal(capped(free, None), free)


@pytest.mark.parametrize("tag", ["identity", "realnvp3"])
def test_the_path_density_moves_with_the_point_alone(tag):
    branches, trees = model(tag, 6, largest_scale=1.3)
    eps = torch.randn(6, 11, dtype=torch.float64)
    x, log_q = branches.sample(trees, eps)
    point = x.detach().requires_grad_()
    value = branches.path_log_prob(trees, point)
    assert torch.allclose(value, log_q, atol=1e-7)
    value.sum().backward()
    assert all(parameter.grad is None for parameter in branches.parameters())
    (expected,) = torch.autograd.grad(branches.log_prob(trees, point).sum(), point)
    assert torch.equal(point.grad, expected)


def test_bad_sizes():
    with pytest.raises(InputError, match="largest_scale must be a positive number .*; got 0"):
        model("identity", largest_scale=0)
    with pytest.raises(InputError, match="flow.layers must be a whole number of at least 1, got 0"):
        Planar(5, 10, layers=0)
    with pytest.raises(InputError, match="flow.hidden"):
        RealNvp(5, 10, hidden=2.5)
