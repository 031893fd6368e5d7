"""Files of many trees, in Newick, NEXUS or tables, read to topologies with weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from miselbo.errors import InputError
from miselbo.phylo.text.newick import COMMENT, LENGTH, Topology, Tree, inner_splits, parse_newick, without
from miselbo.phylo.text.reading import read_text
from miselbo.phylo.text.tree_texts import tree_texts
from miselbo.phylo.tree import resolve

UNRESOLVED = ("skip", "random", "refuse")


@dataclass(frozen=True)
class TreeSample:
    """The topologies of tree files.

    Attributes:
        topologies: T distinct ones, in order of appearance.
        weights: [T, R]; a tree without a weight counts 1, trees that occur again are added up.
        num_trees: trees read, without burn-in and skipped ones.
        num_unresolved: trees that were not fully resolved, skipped or resolved at random.
    """

    topologies: list[Topology]
    weights: np.ndarray
    num_trees: int
    num_unresolved: int


def check_binary(tree: Mapping[int, float], num_taxa: int, source: str) -> None:
    """InputError unless the tree is fully resolved."""
    if not is_binary(tree, num_taxa):
        raise InputError(
            f"{source} is not fully resolved: {len(tree)} edges, a binary unrooted tree of {num_taxa} taxa has "
            f"{2 * num_taxa - 3}"
        )


def is_binary(tree: Mapping[int, float], num_taxa: int) -> bool:
    """Whether the tree is fully resolved."""
    return len(tree) == 2 * num_taxa - 3


def read_topologies(path: str | Path, names: Sequence[str]) -> tuple[list[Topology], np.ndarray]:
    """Topologies of a tree file with their weights [T, R], trees that are not fully resolved being skipped.

    Raises:
        InputError: as :func:`read_tree_files`.
    """
    found = read_tree_files([path], names)
    return found.topologies, found.weights


def read_tree_files(
    paths: Sequence[str | Path], names: Sequence[str], burn_in: float = 0.0, unresolved: str = "skip"
) -> TreeSample:
    """Topologies of tree files with their weights.

    Reads Newick (one tree per ``;``), NEXUS with or without a translate block (MrBayes ``.t``, BEAST ``.trees``, and
    ``.trprobs`` whose weights are taken), tables whose first column is a Newick topology with its weight or its counts
    in several replicates after it, and tables of samples with a column of trees (RevBayes). The taxa of a table of
    topologies may be numbers from 0 on; a line ``# taxa: name name ...`` gives their order, else it is the alignment's.
    PhyloBayes' ``.treelist`` is Newick. Names that IQ-TREE changed are matched where that is one to one.

    Args:
        paths: files, gzipped or not.
        names: of the taxa, in the alignment's order.
        burn_in: left out at the start of every file: a share below 1, or a number of trees.
        unresolved: what becomes of a tree that is not fully resolved: ``skip`` counts it, ``random`` joins branches of
            its nodes at random, ``refuse`` is an error.

    Raises:
        InputError: no (resolved) tree in a file, names that differ from the alignment's, or a burn-in of files whose
            trees have weights.
    """
    generator = np.random.default_rng(len(names))
    found: dict[Topology, np.ndarray] = {}
    known: dict[str, Tree] = {}
    columns: int | None = None
    num_trees = num_unresolved = 0
    for path in map(Path, paths):
        trees = list(tree_texts(read_text(path), names, str(path)))
        if not trees:
            raise InputError(
                f"{path} holds no tree: expected Newick, NEXUS or a table of topologies and weights or of samples"
            )
        first = number_burnt(burn_in, len(trees))
        if first and any(weights != [1.0] for _, weights, _ in trees):
            raise InputError(f"{path} holds trees with weights, of which no burn-in can be left out")
        for position, (text, weights, taxa) in enumerate(trees[first:], start=first + 1):
            source = f"tree {position} of {path}"
            shape = without(LENGTH, without(COMMENT, text))  # samples repeat their topologies many times
            if (tree := known.get(shape)) is None:
                tree = known[shape] = parse_newick(shape, taxa, source)
            if not is_binary(tree, len(names)):
                num_unresolved += 1
                if unresolved == "refuse" or (unresolved == "skip" and num_unresolved == len(trees) - first):
                    check_binary(tree, len(names), source)
                if unresolved == "skip":
                    continue
                tree = resolve(tree, len(names), generator)
            if columns not in (None, len(weights)):
                raise InputError(f"{path} has {len(weights)} weights for a tree, {columns} for those before")
            columns = len(weights)
            topology = inner_splits(tree, len(names))
            found[topology] = found.get(topology, 0.0) + np.array(weights)
            num_trees += 1
        known.clear()
    if not found:
        raise InputError(f"{', '.join(map(str, paths))}: no tree is fully resolved")
    return TreeSample(list(found), np.stack(list(found.values())), num_trees, num_unresolved)


def number_burnt(burn_in: float, count: int) -> int:
    """How many of ``count`` trees are left out.

    Raises:
        InputError: none would be left.

    Example:
        >>> number_burnt(0.25, 10), number_burnt(3, 10)
        (2, 3)
    """
    first = int(burn_in * count) if burn_in < 1 else int(burn_in)
    if first >= count:
        raise InputError(f"a burn-in of {burn_in} leaves none of {count} trees")
    return first
