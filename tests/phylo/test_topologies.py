import stat
import sys

import numpy as np
import pytest
import torch
from Bio.Phylo.TreeConstruction import DistanceMatrix, DistanceTreeConstructor
from small_phylo import data

from miselbo.errors import InputError
from miselbo.phylo import Alignment, topologies
from miselbo.phylo.compiled.joining import shares
from miselbo.phylo.simulation import NAMES, SEED, SITES, TREE, simulate
from miselbo.phylo.text.newick import parse_newick, taxon_numbers
from miselbo.phylo.topologies import (
    SupportOptions,
    find_support,
    most_frequent,
    neighbour_joining,
    nj_bootstrap,
)
from miselbo.phylo.tree import lengths_of, newick, random_topology
from miselbo.runs import config
from miselbo.runs.building import build

PROGRAM = """#!{python}
# stands for IQ-TREE: writes two topologies, the first 99 times as often
import sys
arguments = dict(zip(sys.argv[1::1], sys.argv[2::1]))
assert arguments["-m"] == "JC" and "--boot-trees" in sys.argv and "--keep-ident" in sys.argv and arguments["-T"] == "1"
names = [line[1:].strip() for line in open(arguments["-s"]) if line.startswith(">")]
a, b, c, d, *rest = names
if {fail}:
    print("ERROR: it is broken")
    sys.exit(2)
tail = "".join("," + name + ":1)" for name in rest)
head = "(" * len(rest)
with open(arguments["--prefix"] + ".ufboot", "w") as file:
    file.write((head + f"({{a}}:1,({{b}}:1,({{c}}:1,{{d}}:2):0.5):1)" + tail + ";\\n") * 990)
    file.write((head + f"({{a}}:1,({{c}}:1,({{b}}:1,{{d}}:2):0.5):1)" + tail + ";\\n") * 10)
"""


def program(folder, monkeypatch, name="iqtree2", fail=False):
    path = folder / name
    path.write_text(PROGRAM.format(python=sys.executable, fail=fail))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))  # an installed IQ-TREE is not seen


def small():
    return data().spec.alignment


def test_the_most_frequent_trees():
    trees = [(3,), (5,), (6,)]
    assert most_frequent(trees, np.array([[50.0, 0], [45, 1], [5, 0]]), 0.95) == [(3,), (5,)]
    assert most_frequent(trees, np.array([[50.0], [44], [6]]), 0.95) == [(3,), (5,)]
    assert most_frequent(trees, np.array([[50.0], [46], [4]]), 0.95) == [(3,)]
    assert most_frequent(trees, np.array([[99.0], [1], [0]]), 0.95) == [(3,)]
    assert most_frequent(trees, np.array([[99.0], [1], [0]]), 1) == [(3,), (5,)]
    with pytest.raises(InputError, match="no weight"):
        most_frequent(trees, np.zeros((3, 1)), 0.95)


@pytest.mark.parametrize("name", ["iqtree2", "iqtree"])
def test_iqtree_is_found_on_the_path(tmp_path, monkeypatch, name):
    program(tmp_path, monkeypatch, name)
    alignment = small()
    support, about = find_support(alignment, SupportOptions(replicates=2, trees=1000), tmp_path)
    assert about == {"method": "iqtree", "num_topologies": 1}
    assert support.num_splits == 2 * alignment.num_taxa - 3


def test_iqtree_that_fails_or_is_absent(tmp_path, monkeypatch):
    program(tmp_path, monkeypatch, fail=True)
    with pytest.raises(InputError, match="iqtree2 failed with status 2: ERROR: it is broken"):
        find_support(small(), SupportOptions(method="iqtree"), tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(
        InputError, match="neither iqtree2 nor iqtree is on the PATH. Install the package iqtree"
    ):
        find_support(small(), SupportOptions(method="iqtree"), tmp_path)


def test_neighbour_joining_finds_the_tree_of_long_sequences():
    topology = random_topology(9, np.random.default_rng(0))
    names = tuple(f"t{i}" for i in range(9))
    alignment = simulate(newick(topology, names, [0.1] * 15), names, 4000, 0)
    assert set(nj_bootstrap(alignment, 5, 1)) == {topology}
    assert nj_bootstrap(alignment, 5, 1) == nj_bootstrap(alignment, 5, 1)


def test_shares_of_differing_sites():
    generator = np.random.default_rng(0)
    codes = generator.integers(1, 16, size=(9, 130)).astype(np.uint8)
    codes[3] = 15  # no site known
    weights = generator.integers(0, 4, 130).astype(float)
    found = np.empty((9, 9))
    shares(codes, weights, found)
    known = (codes != 15).astype(float)
    differ = (codes[:, None] & codes[None] == 0) @ weights
    both = (known * weights) @ known.T
    np.testing.assert_allclose(
        found, np.where(both > 0, differ / np.maximum(both, 1), 0) * (1 - np.eye(9)), atol=1e-12
    )


def test_neighbour_joining_is_that_of_biopython():
    generator = np.random.default_rng(2)
    for num_taxa in (4, 5, 13, 70):
        points = generator.random((num_taxa, 6))
        distance = np.linalg.norm(points[:, None] - points, axis=-1)
        rows = [[float(distance[i, j]) for j in range(i + 1)] for i in range(num_taxa)]
        tree = DistanceTreeConstructor().nj(DistanceMatrix([str(i) for i in range(num_taxa)], rows))
        full, masks = (1 << num_taxa) - 1, set()
        for clade in tree.get_nonterminals():
            mask = sum(1 << int(tip.name) for tip in clade.get_terminals())
            masks.add(full ^ mask if mask & 1 else mask)
        expected = tuple(sorted(mask for mask in masks if mask and mask & (mask - 1) and mask != full - 1))
        assert neighbour_joining(distance) == expected and len(expected) == num_taxa - 3


def test_neighbour_joining_with_identical_and_missing_sequences():
    alignment = Alignment.from_sequences({"a": "ACGT", "b": "ACGT", "c": "ACGA", "d": "GCGA", "e": "----"})
    assert len(set(nj_bootstrap(alignment, 40, 1))) > 5


def test_a_support_is_cached_by_content(tmp_path, monkeypatch):
    options = SupportOptions(method="nj", replicates=1, nj_trees=10)
    first, about = find_support(small(), options, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(topologies, "nj_bootstrap", lambda *_: pytest.fail("not from the cache"))
    again, same = find_support(small(), options, tmp_path)
    assert (again.pairs, again.root_splits, same) == (first.pairs, first.root_splits, about)
    monkeypatch.undo()
    find_support(small(), SupportOptions(method="nj", replicates=1, nj_trees=11), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    for file in tmp_path.iterdir():
        file.write_bytes(b"damaged")
    assert find_support(small(), options, tmp_path)[0].pairs == first.pairs


def test_a_tree_file_of_other_content_is_another_support(tmp_path):
    names = small().names
    one, other = (newick(random_topology(8, np.random.default_rng(seed)), names) for seed in (0, 1))
    file = tmp_path / "trees.nwk"
    for text, count in ((one, 1), (one + other, 2)):
        file.write_text(text)
        _, about = find_support(small(), SupportOptions(file=str(file), keep=1), tmp_path / "cache")
        assert about == {"method": "file", "num_topologies": count}


def test_all_topologies_of_few_taxa(tmp_path):
    alignment = Alignment.from_sequences(dict.fromkeys("abcde", "ACGT"))
    support, about = find_support(alignment, SupportOptions(), tmp_path)
    assert about["num_topologies"] == 15 and support.num_splits == 15
    with pytest.raises(InputError, match="up to 7 taxa, the alignment has 8"):
        find_support(small(), SupportOptions(method="all"), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "guess"}, "method must be one of auto, file"),
        ({"method": "file"}, "needs dataset.support.file"),
        ({"file": "/nowhere/x.trees"}, "file=/nowhere/x.trees does not exist"),
        ({"replicates": 0}, "replicates must be a whole number of at least 1"),
        ({"trees": 10}, "trees must be a whole number of at least 1000"),
        ({"keep": 1.5}, "keep must be a share"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        SupportOptions(**options)


def composed(*overrides):
    return config.compose_config(["model=vbpi", "run_dir=any", *overrides])


def test_benchmark_sets_need_their_folder(tmp_path):
    with pytest.raises(
        InputError, match="needs dataset.root=<a folder with DS3.fasta>.*numbering of the VBPI"
    ):
        build(composed("dataset=ds3").dataset)
    with pytest.raises(InputError, match="holds no DS3.fasta"):
        build(composed("dataset=ds3", f"dataset.root={tmp_path}").dataset)
    with pytest.raises(InputError, match="needs dataset.path"):
        build(composed("dataset=alignment").dataset)
    with pytest.raises(InputError, match="dataset.path=/nowhere does not exist"):
        build(composed("dataset=alignment", "dataset.path=/nowhere").dataset)
    with pytest.raises(InputError, match="dataset.replicates must be"):
        build(composed("dataset.replicates=0").dataset)


def test_the_benchmark_sets_bootstrap_file_is_found(phylo_root, tmp_path, monkeypatch):
    monkeypatch.setattr(topologies.pooch, "os_cache", lambda _: tmp_path)
    made = build(composed("dataset=ds1", f"dataset.root={phylo_root}").dataset)
    made.setup()
    assert made.about["method"] == "file" and 4200 < made.about["num_topologies"] < 4400
    protocol = made.protocol()
    assert "9 columns hold no base" in protocol["alignment"] and "(file)" in protocol["support"]


def test_any_alignment(tmp_path, monkeypatch):
    monkeypatch.setattr(topologies.pooch, "os_cache", lambda _: tmp_path)
    alignment = small()
    letters = np.array(list("?ACMGRSVTWYHKDBN"))
    rows = (f">{n}\n{''.join(letters[c])}\n" for n, c in zip(alignment.names, alignment.codes, strict=True))
    (tmp_path / "a.fasta").write_text("".join(rows))
    options = ("dataset.support.method=nj", "dataset.support.replicates=1", "dataset.support.nj_trees=5")
    made = build(composed("dataset=alignment", f"dataset.path={tmp_path}/a.fasta", *options).dataset)
    made.setup()
    assert np.array_equal(made.spec.alignment.codes, alignment.codes)


def test_the_embedded_alignment_is_what_its_recipe_gives():
    alignment = simulate(TREE, NAMES, SITES, SEED)
    assert alignment.describe().startswith("8 taxa, 400 sites, 168 patterns (69 up to")
    topology, _ = lengths_of(parse_newick(TREE, taxon_numbers(NAMES)), 8)
    assert data().spec.support.num_taxa == len(topology) + 3
    assert torch.get_num_threads() == 1


def test_simulated_columns_have_their_probabilities():
    """Site patterns of four taxa against the likelihood, by a chi-square statistic."""
    from collections import Counter

    from miselbo.phylo import log_likelihood

    tree, names, sites = "(a:0.3,b:0.2,(c:0.4,d:0.1):0.3);", tuple("abcd"), 20000
    columns = Counter(map(bytes, simulate(tree, names, sites, 3).codes.T))
    statistic = 0.0
    for code in np.stack(np.meshgrid(*[[1, 2, 4, 8]] * 4), -1).reshape(-1, 4).astype(np.uint8):
        expected = sites * np.exp(log_likelihood(Alignment(names, code[:, None]), tree))
        statistic += (columns[bytes(code)] - expected) ** 2 / expected
    assert statistic < 330  # 255 degrees of freedom: one in a thousand
