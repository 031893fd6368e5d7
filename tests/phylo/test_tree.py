import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miselbo.errors import InputError
from miselbo.phylo.text.newick import inner_splits, parse_newick
from miselbo.phylo.tree import (
    all_topologies,
    edge_splits,
    log_number_of_topologies,
    newick,
    nodes,
    random_topology,
    resolve,
)


@pytest.mark.parametrize("num_taxa", [4, 5, 6, 7])
def test_all_topologies(num_taxa):
    found = list(all_topologies(num_taxa))
    assert len(set(found)) == len(found) == round(math.exp(log_number_of_topologies(num_taxa)))


def test_random_topologies_are_uniform():
    generator = np.random.default_rng(0)
    drawn = [random_topology(5, generator) for _ in range(3000)]
    counts = np.array([drawn.count(topology) for topology in all_topologies(5)])
    assert counts.sum() == 3000 and ((counts - 200) ** 2 / 200).sum() < 36  # chi-square, 14 degrees: 0.1%


@given(st.integers(4, 80), st.integers(0, 2**32 - 1))
def test_nodes_hold_every_edge_and_children_come_first(num_taxa, seed):
    topology = random_topology(num_taxa, np.random.default_rng(seed))
    rows, splits = nodes(topology, num_taxa), edge_splits(topology, num_taxa)
    assert rows.shape == (num_taxa - 2, 3) and rows[-1, 0] == 0
    assert sorted(rows[:, 1:].ravel()) == list(range(1, 2 * num_taxa - 3))
    done = set(range(1, num_taxa))
    for up, left, right in rows:
        assert splits[up] == splits[left] | splits[right] and splits[left] < splits[right]
        assert {left, right} <= done
        done.add(up)
    names = [str(i) for i in range(num_taxa)]
    assert (
        inner_splits(parse_newick(newick(topology, names), {n: i for i, n in enumerate(names)}), num_taxa)
        == topology
    )


def test_resolving_keeps_what_is_there():
    tree = parse_newick("(a:1,b:2,c:3,(d:4,e:5,f:6):7);", {name: i for i, name in enumerate("abcdef")})
    whole = resolve(tree, 6)
    assert len(whole) == 9 and {split: whole[split] for split in tree} == tree
    assert sum(whole.values()) == sum(tree.values())
    assert nodes(inner_splits(whole, 6), 6).shape == (4, 3)


def test_splits_that_are_no_tree():
    with pytest.raises(InputError, match="not those of a binary tree"):
        nodes((0b0110, 0b1100), 5)
