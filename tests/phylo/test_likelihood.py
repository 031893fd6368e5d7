import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from phylo_models import batch, random_alignment
from reference_phylo import pruning

from miselbo.errors import InputError
from miselbo.phylo import Alignment, log_likelihood
from miselbo.phylo.likelihood import JukesCantor
from miselbo.phylo.tree import all_topologies, newick, random_topology


@pytest.mark.parametrize("name", ["DS1", "DS5"])
def test_golden_values_of_iqtree(phylo_root, phylo_golden, name):
    alignment = Alignment.from_file(phylo_root / f"{name}.fasta")
    golden = json.loads((phylo_golden / f"loglik_{name}.json").read_text())
    for case in golden["trees"]:
        value = log_likelihood(alignment, case["newick"])
        assert value == pytest.approx(case["loglik_iqtree"], abs=1e-6, rel=0)
        assert value == pytest.approx(case["loglik"], abs=1e-8, rel=0)


@settings(deadline=None, max_examples=25)
@given(st.integers(4, 12), st.integers(1, 150), st.integers(0, 2**32 - 1))
def test_value_and_gradient_are_those_of_plain_pruning(num_taxa, sites, seed):
    generator = np.random.default_rng(seed)
    alignment = random_alignment(num_taxa, sites, generator)
    topologies = [random_topology(num_taxa, generator) for _ in range(3)]
    lengths = torch.from_numpy(generator.exponential(0.3, size=(3, 2 * num_taxa - 3))).requires_grad_()
    expected = torch.stack([pruning(alignment, t, b) for t, b in zip(topologies, lengths, strict=True)])
    (slopes,) = torch.autograd.grad(expected.sum(), lengths)
    values = JukesCantor(alignment)(batch(topologies, num_taxa), lengths)
    (found,) = torch.autograd.grad(values.sum(), lengths)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(found, slopes, rtol=1e-9, atol=1e-8)


def test_gradcheck():
    generator = np.random.default_rng(0)
    alignment = random_alignment(6, 40, generator)
    shape = batch([random_topology(6, generator) for _ in range(2)], 6)
    lengths = torch.from_numpy(generator.exponential(0.2, size=(2, 9))).requires_grad_()
    model = JukesCantor(alignment)
    assert torch.autograd.gradcheck(lambda b: model(shape, b), lengths)


def test_two_state_truth():
    """Four taxa joined by edges of length 0 but one: the likelihood of a pair at distance t."""
    alignment = Alignment.from_sequences({"a": "AA", "b": "AA", "c": "AT", "d": "AT"})
    t = 0.3
    same, other = 0.25 + 0.75 * math.exp(-4 * t / 3), 0.25 - 0.25 * math.exp(-4 * t / 3)
    value = log_likelihood(alignment, f"(a:0,b:0,(c:0,d:0):{t});")
    assert value == pytest.approx(math.log(same / 4) + math.log(other / 4), abs=1e-12)


def test_the_probabilities_of_all_columns_sum_to_one():
    letters = np.array(np.meshgrid(*[list("ACGT")] * 4)).reshape(4, -1)
    tree = "(a:0.1,b:0.4,(c:0.2,d:0.9):0.3);"
    total = 0.0
    for column in letters.T:
        alignment = Alignment.from_sequences(dict(zip("abcd", column, strict=True)))
        total += math.exp(log_likelihood(alignment, tree))
    assert total == pytest.approx(1, abs=1e-12)


def test_root_and_order_do_not_matter():
    alignment = random_alignment(5, 30, np.random.default_rng(1), "ACGT")
    one = log_likelihood(alignment, "(t0:.1,t1:.2,((t2:.3,t3:.4):.5,t4:.6):.7);")
    other = log_likelihood(alignment, "((t2:.3,t3:.4):.2,(t4:.6,(t1:.2,t0:.1):.7):.3);")
    assert one == pytest.approx(other, abs=1e-11)


def test_a_star_is_the_limit_of_short_edges():
    alignment = random_alignment(6, 20, np.random.default_rng(2), "ACGT")
    star = log_likelihood(alignment, "(t0:.1,t1:.2,t2:.3,t3:.4,t4:.5,t5:.6);")
    short = [
        newick(t, alignment.names, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6] + [1e-14] * 3)
        for t in list(all_topologies(6))[:5]
    ]
    assert [log_likelihood(alignment, text) for text in short] == pytest.approx([star] * 5, abs=1e-9)


def test_no_underflow_with_many_taxa_and_extreme_lengths():
    num_taxa = 1500
    generator = np.random.default_rng(3)
    alignment = random_alignment(num_taxa, 5, generator, "ACGT")
    topology = random_topology(num_taxa, generator)
    lengths = torch.full((1, 2 * num_taxa - 3), 1e-6, dtype=torch.float64).requires_grad_()
    value = JukesCantor(alignment)(batch([topology], num_taxa), lengths)
    (slope,) = torch.autograd.grad(value.sum(), lengths)
    assert -1e6 < value.item() < -5 * num_taxa and slope.isfinite().all()
    step = 1e-10
    moved = lengths.detach() + step * (torch.arange(lengths.shape[1]) == 7)
    change = JukesCantor(alignment)(batch([topology], num_taxa), moved) - value.detach()
    assert float(change / step) == pytest.approx(float(slope[0, 7]), rel=1e-2)


def test_impossible_data_have_minus_infinity():
    alignment = Alignment.from_sequences({"a": "A", "b": "T", "c": "A", "d": "A"})
    assert log_likelihood(alignment, "(a:0,b:0,(c:0,d:0):0);") == -math.inf


def test_more_threads_same_values():
    alignment = random_alignment(8, 60, np.random.default_rng(4))
    generator = np.random.default_rng(5)
    shape = batch([random_topology(8, generator) for _ in range(7)], 8)
    lengths = torch.from_numpy(generator.exponential(size=(7, 13)))
    one = JukesCantor(alignment)(shape, lengths)
    torch.set_num_threads(3)
    try:
        assert torch.equal(JukesCantor(alignment)(shape, lengths), one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(t0:1,t1:1,(t2:1,x:1):1);", "x not in the alignment; t3 not in the tree"),
        ("(t0:1,t1:1,(t2:1,t3:1));", "edges without a length"),
        ("(t0,t1,(t2,t3));", "edges without a length"),
    ],
)
def test_bad_trees(text, message):
    with pytest.raises(InputError, match=message):
        log_likelihood(random_alignment(4, 5, np.random.default_rng(0)), text)
