import io

import numpy as np
from Bio import Phylo
from Bio.Phylo.Consensus import majority_consensus

from miselbo.phylo.consensus import consensus, consensus_newick
from miselbo.phylo.distances import split_probabilities
from miselbo.phylo.text.newick import parse_newick
from miselbo.phylo.tree import newick, random_topology


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
