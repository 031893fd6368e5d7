import io
import math

import numpy as np
import pandas as pd
import pytest
from Bio import Phylo
from Bio.Phylo.Consensus import majority_consensus
from small_phylo import data, fitted, mixture

from miselbo.phylo.output.draws import draw_trees
from miselbo.phylo.summaries import consensus, consensus_newick, kl_to, save, split_probabilities, summarise
from miselbo.phylo.text.newick import parse_newick
from miselbo.phylo.tree import all_topologies, newick, random_topology
from miselbo.report import trees


def test_consensus_is_biopythons():
    generator = np.random.default_rng(0)
    base = random_topology(9, generator)
    names = [f"t{i}" for i in range(9)]
    every = [base] * 6 + [random_topology(9, generator) for _ in range(5)]
    weights = {topology: float(every.count(topology)) for topology in every}
    found = consensus(split_probabilities(weights))
    read = [Phylo.read(io.StringIO(newick(topology, names)), "newick") for topology in every]
    for tree in read:
        tree.root_with_outgroup("t0")
    theirs = majority_consensus(read, 0.5)
    full = (1 << 9) - 1
    masks = {
        sum(1 << names.index(tip.name) for tip in node.get_terminals()) for node in theirs.get_nonterminals()
    }
    masks = {mask ^ full if mask & 1 else mask for mask in masks if mask != full}
    assert {split for split in masks if split.bit_count() > 1 and split != full - 1} == set(found)
    text = consensus_newick(found, names)
    again = parse_newick(text, {name: i for i, name in enumerate(names)})
    assert set(found) <= set(again)


@pytest.fixture(scope="module")
def ensemble():
    return fitted(data(five=True), epochs=1, size=2, steps_per_epoch=150)


def test_frequencies_are_those_of_the_mixture(ensemble):
    exact = split_probabilities(mixture(ensemble))
    found = summarise(ensemble, draw_trees(ensemble, 0))
    assert max(abs(row["q"] - exact.get(row["split"], 0.0)) for row in found["splits"]) < 0.05
    assert sum(row["q"] for row in found["splits"]) == pytest.approx(2)  # two inner edges
    assert sum(row["weighted"] for row in found["splits"]) == pytest.approx(2)
    assert 1 < found["ess"] <= found["draws"] == 2000 and math.isfinite(found["log_marginal"])


def test_kl(ensemble):
    exact = mixture(ensemble)
    assert kl_to(exact, ensemble)["kl"] == pytest.approx(0, abs=1e-12)
    (best, *_) = sorted(exact, key=exact.get, reverse=True)
    found = kl_to({best: 1.0}, ensemble)
    assert found["kl"] == pytest.approx(-math.log(exact[best])) and found["mass_outside"] == 0


def test_files_and_figure(ensemble, tmp_path):
    (tmp_path / "p.nwk").write_text(newick(next(iter(all_topologies(5))), "abcde"))
    save(ensemble, draw_trees(ensemble, 0), str(tmp_path / "p.nwk"), tmp_path)
    columns = {
        "split",
        "q",
        "weighted",
        "posterior",
        "q_se",
        "weighted_se",
        "length_mean",
        "length_low",
        "length_high",
    }
    assert columns == set(pd.read_csv(tmp_path / "splits.csv").columns)
    assert all(
        name.count(",") == 1 for name in pd.read_csv(tmp_path / "splits.csv")["split"]
    )  # smaller sides
    from miselbo.report.trees import load

    found = load(tmp_path)
    assert "KL" in trees.text(found)[1] and trees.split_table(found).columns[-1] == "posterior"
    figure = trees.consensus_figure(found, "footer")
    drawn = {text.get_text() for text in figure.axes[0].texts}
    assert set("abcde") <= drawn
