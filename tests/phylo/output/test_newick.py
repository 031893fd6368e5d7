import dendropy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miselbo.errors import InputError
from miselbo.phylo.output.newick import newick_of, outgroup_mask
from miselbo.phylo.text.newick import parse_newick, taxon_numbers
from miselbo.phylo.tree import edge_splits, random_topology


@settings(deadline=None, max_examples=40)
@given(st.integers(4, 12), st.integers(0, 2**32 - 1), st.data())
def test_the_text_is_the_tree_wherever_it_is_rooted(num_taxa, seed, more):
    generator = np.random.default_rng(seed)
    names = [f"t{taxon}" for taxon in range(num_taxa)]
    topology = random_topology(num_taxa, generator)
    tree = dict(
        zip(
            edge_splits(topology, num_taxa),
            generator.exponential(size=2 * num_taxa - 3).tolist(),
            strict=True,
        )
    )
    for split in topology[: more.draw(st.integers(0, len(topology)))]:  # polytomies
        del tree[split]
    outgroup = more.draw(st.integers(0, (1 << num_taxa) - 2))
    text = newick_of(tree, names, outgroup, digits=17)
    assert parse_newick(text, taxon_numbers(names)) == pytest.approx(tree, rel=1e-12)
    if outgroup:
        read = dendropy.Tree.get(data=text, schema="newick")
        sides = [
            sum(1 << names.index(leaf.taxon.label) for leaf in child.leaf_iter())
            for child in read.seed_node.child_nodes()
        ]
        whole = outgroup in sides
        assert len(sides) == 2 and sum(sides) == (1 << num_taxa) - 1
        full = (1 << num_taxa) - 1
        assert whole or (outgroup & -outgroup) in sides
        assert whole == ((full ^ outgroup if outgroup & 1 else outgroup) in tree)


def test_outgroups_that_cannot_be():
    assert outgroup_mask("abcd", None) == 0 and outgroup_mask("abcd", "c") == 4
    with pytest.raises(InputError, match=r"dataset.outgroup: x not in the alignment, whose taxa are a, b"):
        outgroup_mask("ab", ["a", "x"])
    with pytest.raises(InputError, match="holds all taxa"):
        outgroup_mask("ab", ["a", "b"])
