import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_phylo import log_q, rootings

from miselbo.errors import InputError
from miselbo.phylo import Alignment
from miselbo.phylo.sbn import Sbn
from miselbo.phylo.support import Support, child_key
from miselbo.phylo.text.newick import inner_splits, parse_newick
from miselbo.phylo.text.tree_files import read_topologies
from miselbo.phylo.tree import all_topologies, random_topology


def numbered(text, num_taxa):
    """A topology of a text with taxon numbers."""
    return inner_splits(parse_newick(text, {str(i): i for i in range(num_taxa)}), num_taxa)


def random_sbn(num_taxa, num_trees, seed):
    generator = np.random.default_rng(seed)
    support = Support.from_topologies(
        {random_topology(num_taxa, generator) for _ in range(num_trees)}, [f"t{i}" for i in range(num_taxa)]
    )
    sbn = Sbn(support)
    sbn.logits.data = 2 * torch.from_numpy(generator.standard_normal(support.num_params))
    return sbn


def probabilities(sbn):
    """By mask: of root splits, and of pairs."""
    values, support = sbn.log_probabilities().detach().exp().tolist(), sbn.support
    roots = {split: values[position] for split, position in support.rank.items()}
    pairs = {pair: 1.0 if param == -2 else values[param] for pair, param in support.pair_params.items()}
    return roots, pairs


@settings(deadline=None, max_examples=30)
@given(st.integers(4, 8), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_log_q_is_the_sum_over_all_rootings(num_taxa, num_trees, seed):
    sbn = random_sbn(num_taxa, num_trees, seed)
    generator = np.random.default_rng(seed + 1)
    trees = [random_topology(num_taxa, generator) for _ in range(5)]
    trees += sbn.support.topologies(sbn.sample(torch.from_numpy(generator.random((5, num_taxa - 1)))))
    expected = [log_q(topology, num_taxa, *probabilities(sbn)) for topology in trees]
    np.testing.assert_allclose(sbn.topology_log_prob(trees).detach(), expected, atol=1e-10)


def test_more_taxa_than_the_bits_of_a_machine_word():
    generator, sbn = np.random.default_rng(1), random_sbn(130, 3, 0)
    uniforms = torch.from_numpy(generator.random((6, 129)))
    drawn = sbn.sample(uniforms)
    trees = [random_topology(130, np.random.default_rng(0)), *sbn.support.topologies(drawn)]
    expected = [log_q(topology, 130, *probabilities(sbn)) for topology in trees]
    found = sbn.topology_log_prob(trees).detach()
    np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_allclose(sbn.log_prob(drawn).detach(), found[1:], atol=1e-12)


def test_support_of_trees_is_that_of_their_rootings():
    generator = np.random.default_rng(0)
    trees = [random_topology(9, generator) for _ in range(7)]
    support = Support.from_topologies(trees, "abcdefghi")
    expected = [(split, pairs) for topology in trees for split, pairs in rootings(topology, 9)]
    assert set(support.root_splits) == {split for split, _ in expected}
    assert set(support.pairs) == {pair for _, pairs in expected for pair in pairs}


def test_toy_of_seven_taxa_enumerated(phylo_golden):
    golden = json.loads((phylo_golden / "sbn_toy7.json").read_text())
    support = Support.from_topologies([numbered(text, 7) for text in golden["support_trees"]], "abcdefg")
    sbn = Sbn(support)
    roots = dict(golden["rootsplits"])
    pairs = {(w, z, c): logit for w, z, c, logit in golden["pairs_sister_clade_child_logit"]}
    assert set(roots) == set(support.root_splits) and set(pairs) == set(support.pairs)
    with torch.no_grad():
        for split, position in support.rank.items():
            sbn.logits[position] = roots[split]
        for pair, param in support.pair_params.items():
            if param >= 0:
                sbn.logits[param] = pairs[pair]
    expected = {numbered(text, 7): value for text, value in golden["trees_logq"]}
    every = list(all_topologies(7))
    values = dict(zip(every, sbn.topology_log_prob(every).tolist(), strict=True))
    assert sum(np.exp(list(values.values()))) == pytest.approx(1, abs=1e-12)
    assert {topology for topology, value in values.items() if value > -np.inf} == set(expected)
    for topology, value in expected.items():
        assert values[topology] == pytest.approx(value, abs=1e-9)


def test_golden_values_on_the_bootstrap_support_of_ds1(phylo_golden):
    golden = np.load(phylo_golden / "sbn_DS1.npz")
    columns = [golden[f"pair_{name}"].tolist() for name in ("sister", "clade", "child")]
    support = Support(golden["taxa"].tolist(), golden["rootsplit_mask"].tolist(), zip(*columns, strict=True))
    assert (support.num_splits, support.num_params, support.num_rows) == (373, 8821, 2986)
    logits = dict(zip(zip(*columns, strict=True), golden["pair_logit"], strict=True))
    sbn = Sbn(support)
    with torch.no_grad():
        for split, logit in zip(golden["rootsplit_mask"].tolist(), golden["rootsplit_logit"], strict=True):
            sbn.logits[support.rank[split]] = logit
        for pair, param in support.pair_params.items():
            if param >= 0:
                sbn.logits[param] = logits[pair]
    trees = [numbered(str(text), 27) for text in golden["tree"]]
    np.testing.assert_allclose(sbn.topology_log_prob(trees).detach(), golden["logq_exact"], atol=1e-9, rtol=0)
    assert (golden["logq_exact"] == -np.inf).sum() == 2


@pytest.mark.parametrize(
    ("name", "sizes"), [("DS1", (373, 11597, 8821, 2986)), ("DS4", (349, 10958, 8301, 2659))]
)
def test_support_sizes_of_bootstrap_trees(phylo_root, name, sizes):
    """With the trees the file marks as kept."""
    import gzip

    names = Alignment.from_file(phylo_root / f"{name}.fasta").names
    topologies, _ = read_topologies(phylo_root / f"{name}_ufboot_total.tsv.gz", names)
    lines = gzip.decompress((phylo_root / f"{name}_ufboot_total.tsv.gz").read_bytes()).decode().splitlines()
    kept = [line.split("\t")[2] == "1" for line in lines if not line.startswith("#")]
    support = Support.from_topologies(np.array(topologies, dtype=object)[kept].tolist(), names)
    assert (support.num_splits, len(support.pair_params), support.num_params, support.num_rows) == sizes


def test_frequencies_of_sampled_trees():
    sbn = random_sbn(6, 5, 3)
    uniforms = torch.from_numpy(np.random.default_rng(0).random((20000, 5)))
    drawn = sbn.support.topologies(sbn.sample(uniforms))
    every = list(all_topologies(6))
    probability = sbn.topology_log_prob(every).exp().detach().numpy()
    counts = np.array([drawn.count(topology) for topology in every])
    assert counts.sum() == 20000 and (counts[probability == 0] == 0).all()
    expected = 20000 * probability[probability > 0]
    statistic = ((counts[probability > 0] - expected) ** 2 / expected).sum()
    assert statistic < 3 * len(expected) + 20


def test_gradient_of_log_q():
    sbn = random_sbn(7, 6, 4)
    trees = sbn.sample(torch.from_numpy(np.random.default_rng(1).random((4, 6))))

    def scores(logits):
        from miselbo.phylo.sbn import SegmentLogSoftmax, TreeLogProb

        return TreeLogProb.apply(SegmentLogSoftmax.apply(logits, sbn.support.tables["segments"]), trees)

    assert torch.autograd.gradcheck(scores, sbn.logits)


def test_a_drawn_tree_with_one_supported_rooting():
    """Trees from the SBN that no support tree equals have rootings outside the support: probability 0, not an error."""
    sbn = random_sbn(6, 10, 5)
    drawn = sbn.support.topologies(sbn.sample(torch.from_numpy(np.random.default_rng(2).random((300, 5)))))
    roots, pairs = probabilities(sbn)
    partial = [t for t in drawn if any(p not in pairs for _, ps in rootings(t, 6) for p in ps)]
    assert partial
    assert sbn.topology_log_prob(partial).isfinite().all()


def test_extreme_logits():
    sbn = random_sbn(6, 8, 6)
    sbn.logits.data = 1e4 * torch.randn(
        len(sbn.logits), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    trees = sbn.sample(torch.from_numpy(np.random.default_rng(1).random((50, 5))))
    assert sbn.log_prob(trees).isfinite().all()
    every = sbn.topology_log_prob(all_topologies(6))
    assert every.exp().sum().item() == pytest.approx(1) and not every.isnan().any()


def test_more_than_64_taxa():
    num_taxa = 90
    sbn = random_sbn(num_taxa, 3, 7)
    uniforms = torch.from_numpy(np.random.default_rng(1).random((3, num_taxa - 1)))
    (topology, *_) = sbn.support.topologies(sbn.sample(uniforms))
    expected = log_q(topology, num_taxa, *probabilities(sbn))
    assert sbn.topology_log_prob([topology]).item() == pytest.approx(expected, abs=1e-9)


def test_child_keys():
    assert child_key((0b0001, 0b0110, 0b1000), 0) == 0b1000
    assert child_key((0b0001, 0b0110, 0b1000), 1) == 0b1000
    assert child_key((0b0001, 0b0110, 0b1000), 2) == 0b0110


def test_errors():
    support = Support.from_topologies([(0b1100, 0b11100), (0b11000, 0b11100)], "abcde")
    with pytest.raises(InputError, match=r"the support does not hold the clade \{all but b, e\}"):
        support.trees([(0b10010, 0b11010)])
    with pytest.raises(InputError, match="no topology for the support"):
        Support.from_topologies([], "abcd")
    pairs = [pair for pair in support.pairs if pair[1] != 0b11100]
    with pytest.raises(InputError, match="but no way to split it"):
        Support("abcde", support.root_splits, pairs)
    with pytest.raises(InputError, match="does not hold the clade"):
        Support("abcde", [split for split in support.root_splits if split != 0b11100], support.pairs)
