import io
import math

import numpy as np
import pytest
from Bio import Phylo
from hypothesis import given, settings
from hypothesis import strategies as st

from miselbo.errors import InputError
from miselbo.phylo.text.newick import inner_splits, parse_newick
from miselbo.phylo.tree import newick, random_topology

ABCD = {"a": 0, "b": 1, "c": 2, "d": 3}


def by_biopython(text, taxa):
    """Splits and lengths by Biopython's reader."""
    full = (1 << len(taxa)) - 1
    tree: dict[int, float] = {}
    read = Phylo.read(io.StringIO(text), "newick")
    for clade in read.find_clades():
        mask = sum(1 << taxa[tip.name] for tip in clade.get_terminals())
        if mask != full:
            split = full ^ mask if mask & 1 else mask
            tree[split] = tree.get(split, 0.0) + clade.branch_length
    return tree


@settings(deadline=None)
@given(st.integers(4, 70), st.integers(0, 2**32 - 1))
def test_agrees_with_biopython(num_taxa, seed):
    generator = np.random.default_rng(seed)
    names = [f"t{i}" if i % 3 else f"a taxon, no. {i}" for i in range(num_taxa)]
    taxa = {name: i for i, name in enumerate(names)}
    topology = random_topology(num_taxa, generator)
    text = newick(topology, names, generator.exponential(size=2 * num_taxa - 3))
    found = parse_newick(text, taxa)
    assert found == by_biopython(text, taxa)
    assert inner_splits(found, num_taxa) == topology


@pytest.mark.parametrize(
    "text",
    [
        "(a:1,b:2,(c:3,d:4):0.5);",
        "((a:1,b:2):0.25,(c:3,d:4):0.25);",
        " ( a:1 , 'b':2.0 ,\n( \"c\":3e0,d:4)90:5e-1 )root ;",
        "[&U] (d:4,c:3,(a[&x={1,2}]:1,b:2)[0.9]:[y]0.5)",
        "(a:1,((c:3,d:4):.25):.25,b:2):7;",
    ],
)
def test_ways_to_write_one_tree(text):
    assert parse_newick(text, ABCD) == {0b10: 2, 0b100: 3, 0b1000: 4, 0b1100: 0.5, 0b1110: 1}


def test_underscores_and_quotes():
    taxa = {"a b": 0, "c_d": 1, "it's": 2, "e": 3}
    tree = parse_newick("(a_b:1,c_d:2,('it''s':3,e:4):5);", taxa)
    assert tree == {0b10: 2, 0b100: 3, 0b1000: 4, 0b1100: 5, 0b1110: 1}
    assert parse_newick("('a b':1,'c d':2,(it's:3,\"e\":4):5);", taxa) == tree
    assert math.isnan(parse_newick("('a b',c_d,('it''s',e));", taxa)[0b10])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(a,b,(c,x));", "different taxa: x not in the alignment; d not in the tree"),
        ("(a,b,c);", "lacks taxa of the alignment: d"),
        ("(a,b,(c,(d,d)));", "taxon d more than once"),
        ("(a,b,(c,d)", "no complete Newick"),
        ("", "no complete Newick"),
        ("a,b", "',' out of place"),
        ("(a,,b)", "',' out of place"),
        ("(a:x,b,(c,d));", "no number: 'x'"),
        ("(a:-1,b,(c,d));", "length -1"),
        ("(a:nan,b,(c,d));", "length nan"),
        ("(:1,b,(c,d));", "':' out of place"),
        ("(a(b,c),d);", r"'\(' out of place"),
        ("(a,b,(c,d));(a,b,(c,d));", r"goes on after its end: '\(a,b"),
    ],
)
def test_bad_newick(text, message):
    with pytest.raises(InputError, match=message):
        parse_newick(text, ABCD)
