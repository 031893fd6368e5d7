"""The files are read back by Biopython, DendroPy and this project, without edits."""

import dataclasses
import io
import math
import re

import dendropy
import numpy as np
import pandas as pd
import pytest
import runs
from Bio import Phylo
from small_phylo import data, fitted

from miselbo.errors import InputError
from miselbo.phylo.output.draws import draw_trees
from miselbo.phylo.output.files import save_sample, save_trees
from miselbo.phylo.output.splits import summarise_splits
from miselbo.phylo.text.newick import parse_newick, taxon_numbers
from miselbo.phylo.text.tree_files import read_tree_files

NAMES = ("a b", "b'c", "c-d", "d", "e")  # as a user may have them


@pytest.fixture(scope="module")
def ensemble():
    return fitted(data(five=True), epochs=1, size=2, steps_per_epoch=200)


@pytest.fixture(scope="module")
def draws(ensemble):
    return dataclasses.replace(draw_trees(ensemble, 0), names=NAMES)


@pytest.fixture(scope="module")
def folder(ensemble, draws, tmp_path_factory):
    found = tmp_path_factory.mktemp("results")
    save_trees(ensemble, draws, 0, 0, found)
    return found


def by_dendropy(path):
    return dendropy.TreeList.get(path=path, schema="nexus", preserve_underscores=True)


def test_the_sample_is_read_with_its_lengths(folder, draws):
    taxa = taxon_numbers(NAMES)
    mine = read_tree_files([folder / "trees.trees"], NAMES)
    theirs, biopython = (
        by_dendropy(folder / "trees.trees"),
        list(Phylo.parse(folder / "trees.trees", "nexus")),
    )
    assert len(theirs) == len(biopython) == mine.num_trees == len(draws) == 2000
    table = pd.read_csv(folder / "parameters.p", sep="\t", skiprows=1)
    assert list(table) == ["Gen", "LnL", "LnPr", "TL"] and table["Gen"].tolist() == list(range(2000))
    for place in (0, 7, 1999):
        tree = theirs[place]
        assert not tree.is_rooted and {leaf.taxon.label for leaf in tree.leaf_node_iter()} == set(NAMES)
        assert tree.length() == pytest.approx(table["TL"][place], rel=1e-6)
        assert biopython[place].total_branch_length() == pytest.approx(table["TL"][place], rel=1e-6)
        again = parse_newick(tree.as_string(schema="newick", suppress_rooting=True), taxa)
        rows = [
            row
            for row in range(len(draws))
            if math.isclose(draws.lengths[row].sum(), table["TL"][place], rel_tol=1e-7)
        ]
        assert any(again == pytest.approx(draws.tree(row), rel=1e-6) for row in rows)


def test_log_prior_and_likelihood_are_densities_of_the_lengths(ensemble, draws):
    row, target = 5, ensemble.target
    expected = sum(math.log(10) - 10 * length for length in draws.lengths[row]) + target.log_p_topology
    assert draws.log_prior[row] == pytest.approx(expected)
    jacobian = np.log(draws.lengths[row]).sum()
    x = target.spec.support.trees([draws.topology(row)])
    import torch

    joint = target.log_joint(x, torch.from_numpy(draws.lengths[row : row + 1]).log()).item()
    assert draws.log_likelihood[row] + draws.log_prior[row] + jacobian == pytest.approx(joint)


def test_consensus_has_supports_and_intervals(folder, draws):
    summaries = summarise_splits(draws, draws.weights)
    (tree,) = by_dendropy(folder / "consensus.tre")
    full = 31
    for node in tree.postorder_node_iter():
        if node.parent_node is None:
            continue
        mask = sum(1 << NAMES.index(leaf.taxon.label) for leaf in node.leaf_iter())
        found = summaries[full ^ mask if mask & 1 else mask]
        marks = {one.name: one.value for one in node.annotations} | {
            one.name: one.value for one in node.edge.annotations
        }
        assert float(marks["prob"]) == pytest.approx(found.probability, rel=1e-5)
        assert node.edge.length == pytest.approx(found.mean, rel=1e-6)
        assert [float(x) for x in marks["length_95%HPD"]] == pytest.approx([found.low, found.high], rel=1e-5)
        assert found.probability > 0.5 and found.low <= found.median <= found.high
    assert len(Phylo.read(folder / "consensus.tre", "nexus").get_terminals()) == 5


def test_map_tree_and_credible_set(folder, draws, ensemble):
    (tree,) = by_dendropy(folder / "map.tre")
    assert len(tree.internal_edges()) == 3  # two of them inner, one the seed node's
    sets = read_tree_files([folder / "credible_set.trprobs"], NAMES)
    total = sets.weights.sum()
    assert 0.95 <= total <= 1 and total - sets.weights.min() < 0.95
    assert list(sets.weights[:, 0]) == sorted(sets.weights[:, 0], reverse=True)
    taxa = taxon_numbers(NAMES)
    found = parse_newick(tree.as_string(schema="newick", suppress_rooting=True), taxa)
    best = max(
        ensemble.target.spec.support.topologies(
            ensemble.target.spec.support.trees([draws.topology(row) for row in range(200)])
        ),
        key=lambda one: sum(
            float(member.sbn.topology_log_prob([one]).detach().exp()) for member in ensemble.members
        ),
    )
    assert set(best) <= set(found)


def test_an_outgroup_is_the_root(ensemble, draws, tmp_path):
    save_trees(ensemble, draws, 0b10000, 0, tmp_path)
    for name in ("trees.trees", "consensus.tre", "map.tre"):
        tree = by_dendropy(tmp_path / name)[0]
        sides = [{leaf.taxon.label for leaf in child.leaf_iter()} for child in tree.seed_node.child_nodes()]
        assert tree.is_rooted and {"e"} in sides and len(sides) == 2
    rooted = read_tree_files([tmp_path / "trees.trees"], NAMES)
    assert rooted.num_unresolved == 0


def test_few_effective_draws_get_equal_weights(draws):
    log_weight = np.where(np.arange(len(draws)) == 3, 0.0, -50.0)
    few = dataclasses.replace(draws, log_weight=log_weight)
    assert few.ess == pytest.approx(1) and np.ptp(few.weights) == 0 and "only 1 of them" in few.remark


def test_a_weighted_sample(draws, tmp_path, capsys):
    made = save_sample(draws, 10, True, 0, 0, tmp_path)
    found = read_tree_files([made["path"]], NAMES)
    assert found.weights.sum() == pytest.approx(1, abs=1e-3) and made["num"] == len(draws)
    assert "2000 trees" in capsys.readouterr().out
    assert list(pd.read_csv(made["path"].replace(".trees", ".p"), sep="\t", skiprows=1))[-1] == "weight"
    made = save_sample(draws, 10, False, 0, 0, tmp_path)
    assert read_tree_files([made["path"]], NAMES).num_trees == 10


def test_a_run_writes_them_and_samples_again(tmp_path):
    common = ["model=vbpi", "trainer.enable_progress_bar=false", "model.objective.steps_per_epoch=20", "report=false",
              "evaluation.num_samples=5", "trainer.max_epochs=1", "dataset.support.replicates=1", "ensemble.size=1",
              "dataset.support.nj_trees=5", "dataset.replicates=2", "dataset.outgroup=[maple,larch]"]  # fmt: skip
    from miselbo.pipeline import run
    from miselbo.runs.config import compose_config

    run(compose_config([*common, f"run_dir={tmp_path / 'run'}"]))
    names = {path.name for path in (tmp_path / "run" / "results").iterdir()}
    assert {"trees.trees", "parameters.p", "consensus.tre", "map.tre", "credible_set.trprobs"} <= names
    made = runs.from_folder("sample", tmp_path / "run", "sampling.num=7")
    text = (tmp_path / "run" / "samples" / "seed0-num7.trees").read_text()
    assert made["num"] == 7 and len(re.findall(r"gen\.\d+ = \[&R\]", text)) == 7
    assert len(list(Phylo.parse(io.StringIO(text), "nexus"))) == 7
    with pytest.raises(InputError, match="dataset.outgroup: x not in the alignment, whose taxa are ash"):
        run(compose_config([*common, "dataset.outgroup=x", f"run_dir={tmp_path / 'other'}"]))
