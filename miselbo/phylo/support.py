"""The support of a subsplit Bayesian network (SBN): which root splits and which parent-child subsplit pairs exist.

Names (Zhang and Matsen 2018). A root split is a bipartition, kept as its side without taxon 0. A parent subsplit is a
pair (W | Z): Z is the clade about to be split, W its sister. A child of it is a split of Z, kept as the part of Z that
does not hold Z's smallest taxon. The support of a set of unrooted trees holds the pairs of all their rootings, so it is
determined by the trees' inner nodes (tripartitions) and by which of them are neighbours.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from miselbo.errors import InputError
from miselbo.phylo import tree
from miselbo.phylo.text.newick import Topology

Pair = tuple[int, int, int]  # sister W, clade Z, child key


@dataclass(frozen=True)
class Trees:
    """K topologies inside a support, ready for every density.

    Attributes:
        nodes: [K, n - 2, 3] int32 edge numbers, see :mod:`miselbo.phylo.tree`.
        splits: [K, 2n - 3] split of every edge, by position in the support.
        psps: [K, 2n - 3, 2] primary subsplit pair of either side of every edge, -1 for a leaf.
        pairs: [K, n - 2, 3, 3] parameters of the pairs of all rootings, see :func:`miselbo.phylo.compiled.sbn.index`.
    """

    nodes: Tensor
    splits: Tensor
    psps: Tensor
    pairs: Tensor

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, rows: slice | Tensor) -> "Trees":
        return Trees(self.nodes[rows], self.splits[rows], self.psps[rows], self.pairs[rows])


@dataclass(frozen=True, eq=False)
class Support:
    """Root splits and pairs.

    Args:
        names: of the taxa.
        root_splits: masks of the sides without taxon 0.
        pairs: (W, Z, child) masks.
        origins: the topologies it was made from, where they are known; they decide no density.

    Raises:
        InputError: a pair whose clades are no root splits, or a clade that can be drawn but not split further.

    Example:
        >>> support = Support.from_topologies([(0b1100,), (0b1010,)], "abcd")
        >>> support.num_splits, support.num_params, support.num_rows
        (6, 14, 18)
    """

    names: Sequence[str]
    root_splits: Iterable[int]
    pairs: Iterable[Pair]
    origins: Sequence[Topology] = ()

    @classmethod
    def from_topologies(cls, topologies: Iterable[Topology], names: Sequence[str]) -> "Support":
        """All root splits and pairs of all rootings of the given trees."""
        num_taxa = len(names)
        full = (1 << num_taxa) - 1
        splits: set[int] = set()
        corners: set[tuple[int, int, int]] = set()
        neighbours: set[tuple[tuple[int, int, int], tuple[int, int, int]]] = set()
        origins = list(dict.fromkeys(map(tuple, topologies)))
        for topology in origins:
            masks = tree.edge_splits(topology, num_taxa)
            splits.update(masks)
            below: dict[int, tuple[int, int, int]] = {}
            for up, left, right in tree.nodes(topology, num_taxa).tolist():
                corner = (full ^ masks[up], masks[left], masks[right])
                corners.add(corner)
                below[up] = corner
                for edge in (left, right):
                    if edge in below:
                        neighbours.add((corner, below[edge]))
        if not splits:
            raise InputError("no topology for the support: the tree file or the bootstrap gave none")
        pairs: set[Pair] = set()
        for corner in corners:
            for d in range(3):
                pairs.add((corner[d], full ^ corner[d], child_key(corner, d)))
        for above, under in neighbours:
            at = above.index(full ^ under[0])
            for sister in above[:at] + above[at + 1 :]:
                pairs.add((sister, full ^ under[0], child_key(under, 0)))
            for sister in under[1:]:
                pairs.add((sister, full ^ above[at], child_key(above, at)))
        return cls(names, splits, pairs, origins)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root_splits", sorted(self.root_splits))
        object.__setattr__(self, "pairs", sorted(self.pairs, key=lambda pair: (pair[1], pair[0], pair[2])))
        self.tables  # noqa: B018  raises for a support that is not whole

    @property
    def num_taxa(self) -> int:
        """Number of taxa, n."""
        return len(self.names)

    @property
    def num_splits(self) -> int:
        """Number of root splits, R."""
        return len(self.rank)

    @property
    def num_params(self) -> int:
        """Length of the vector of logits: root splits, then the children of parents with two or more."""
        return int(self.tables["segments"][-1])

    @property
    def num_rows(self) -> int:
        """Rows of an embedding table: one per split, then one per primary subsplit pair (3 per tripartition)."""
        return self.num_splits + 3 * len(self.corners)

    @cached_property
    def rank(self) -> dict[int, int]:
        """Position of each root split."""
        return {split: position for position, split in enumerate(self.root_splits)}

    @cached_property
    def corners(self) -> dict[tuple[int, int, int], int]:
        """Number of each tripartition, by its clades (the one with taxon 0, then the smaller of the others)."""
        full = (1 << self.num_taxa) - 1
        found = {corner_of(full ^ clade, child, clade ^ child) for _, clade, child in self.pairs}
        return {corner: number for number, corner in enumerate(sorted(found))}

    def clade(self, mask: int) -> int:
        """Number of a clade: twice its split's position, plus one for the side with taxon 0.

        Raises:
            InputError: the support does not hold it.
        """
        full = (1 << self.num_taxa) - 1
        position = self.rank.get(full ^ mask if mask & 1 else mask)
        if position is None:
            raise InputError(f"the support does not hold the clade {self.name(mask)}")
        return 2 * position + (mask & 1)

    def name(self, mask: int) -> str:
        """A clade as text, by its smaller side."""
        other = ((1 << self.num_taxa) - 1) ^ mask
        if mask.bit_count() > other.bit_count():
            return f"{{all but {', '.join(self.names[taxon] for taxon in tree.bits(other))}}}"
        return f"{{{', '.join(self.names[taxon] for taxon in tree.bits(mask))}}}"

    @cached_property
    def pair_params(self) -> dict[Pair, int]:
        """Parameter of each pair, -2 (certain) for the only child of its parent."""
        parents: dict[tuple[int, int], list[Pair]] = {}
        for pair in self.pairs:
            parents.setdefault(pair[:2], []).append(pair)
        params, free = {}, self.num_splits
        for children in parents.values():
            for pair in children:
                params[pair] = -2 if len(children) == 1 else free
                free += len(children) > 1
        return params

    @cached_property
    def tables(self) -> dict[str, np.ndarray]:
        """What the compiled functions of :mod:`miselbo.phylo.compiled.sbn` need."""
        full = (1 << self.num_taxa) - 1
        parents: dict[tuple[int, int], int] = {}
        starts, segments = [], [0, self.num_splits]
        for number, (sister, clade, _) in enumerate(self.pairs):
            if (sister, clade) not in parents:
                parents[sister, clade] = len(parents)
                starts.append(number)
        starts.append(len(self.pair_params))

        def parent(sister: int, clade: int) -> int:
            if clade & (clade - 1) == 0:
                return -1
            if (sister, clade) not in parents:
                raise InputError(
                    f"the support holds the clade {self.name(clade)} beside {self.name(sister)} but no way to "
                    "split it: build it from whole trees"
                )
            return parents[sister, clade]

        views, keys, below = [], [], []
        total = 3 * len(self.corners)
        for sister, clade, child in self.pairs:
            rest = clade ^ child
            corner = corner_of(full ^ clade, child, rest)
            view = 3 * self.corners[corner] + corner.index(full ^ clade)
            views.append(view)
            keys.append(self.clade(sister) * total + view)
            below.append((parent(child, rest), parent(rest, child)))
        for first, last in zip(starts[:-1], starts[1:], strict=True):
            if last - first > 1:
                segments.append(segments[-1] + last - first)
        params = np.array([self.pair_params[pair] for pair in self.pairs], dtype=np.int64)
        leaf = np.full(self.num_splits, -1, dtype=np.int64)
        for taxon in range(self.num_taxa):
            leaf[self.clade(1 << taxon) >> 1] = taxon
        table_keys, table_values = hash_table(np.array(keys, dtype=np.int64), params)
        sides = [[self.clade(side) for side in corner] for corner in self.corners]
        roots = [(parent(split, full ^ split), parent(full ^ split, split)) for split in self.root_splits]
        return {
            "roots": np.array(roots, dtype=np.int64),
            "starts": np.array(starts, dtype=np.int64),
            "params": params,
            "views": np.array(views, dtype=np.int64),
            "below": np.array(below, dtype=np.int64),
            "segments": np.array(segments, dtype=np.int64),
            "sides": np.array(sides, dtype=np.int64),
            "leaf": leaf,
            "keys": table_keys,
            "values": table_values,
        }

    def corners_of(self, topology: Topology) -> np.ndarray:
        """Tripartitions [n - 2] of a topology.

        Raises:
            InputError: the support lacks one of its clades or of their splits.
        """
        full = (1 << self.num_taxa) - 1
        masks = tree.edge_splits(topology, self.num_taxa)
        found = []
        for up, left, right in tree.nodes(topology, self.num_taxa).tolist():
            corner = (full ^ masks[up], masks[left], masks[right])
            if corner not in self.corners:
                for mask in corner[::-1]:
                    self.clade(mask)
                one, other = self.name(corner[1]), self.name(corner[2])
                raise InputError(f"the support does not hold the split of a clade into {one} and {other}")
            found.append(self.corners[corner])
        return np.array(found, dtype=np.int64)

    def holds(self, topology: Topology) -> bool:
        """Whether every clade of the topology, and the way it is split, is in the support."""
        try:
            self.corners_of(topology)
        except InputError:
            return False
        return True

    def trees(self, topologies: Iterable[Topology]) -> Trees:
        """Indexed trees.

        Raises:
            InputError: the support lacks a clade of one of them.
        """
        return self.index(np.stack([self.corners_of(topology) for topology in topologies]))

    def index(self, tripartitions: np.ndarray) -> Trees:
        """Trees given by their tripartitions [K, n - 2]."""
        from miselbo.phylo.compiled.sbn import index

        tables, count = self.tables, len(tripartitions)
        num_inner = self.num_taxa - 2
        num_edges = 2 * num_inner + 1
        nodes = np.empty((count, num_inner, 3), dtype=np.int32)
        splits = np.empty((count, num_edges), dtype=np.int64)
        psps = np.empty((count, num_edges, 2), dtype=np.int64)
        pairs = np.empty((count, num_inner, 3, 3), dtype=np.int64)
        index(
            tripartitions.copy(), tables["sides"], self.num_splits, tables["leaf"], tables["keys"],
            tables["values"], nodes, splits, psps, pairs, np.empty(self.num_splits, dtype=np.int64),
        )  # fmt: skip
        return Trees(*(torch.from_numpy(array) for array in (nodes, splits, psps, pairs)))

    def topologies(self, trees: Trees) -> list[Topology]:
        """The topologies of indexed trees, as splits."""
        masks = list(self.root_splits)
        return [tuple(masks[split] for split in row) for row in trees.splits[:, self.num_taxa :].tolist()]


def child_key(corner: Sequence[int], direction: int) -> int:
    """Key of the split of the clade opposite to one side: the part without the clade's smallest taxon."""
    one, other = (corner[i] for i in range(3) if i != direction)
    return other if (one & -one) < (other & -other) else one


def corner_of(one: int, other: int, third: int) -> tuple[int, int, int]:
    """A tripartition in its order: the clade with taxon 0, then the smaller of the others."""
    first, second, last = sorted((one, other, third), key=lambda mask: (not mask & 1, mask))
    return first, second, last


def hash_table(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An open-addressing table at most half full."""
    from miselbo.phylo.compiled.sbn import fill

    size = 1 << (2 * len(keys)).bit_length()
    table_keys, table_values = np.full(size, -1, dtype=np.int64), np.zeros(size, dtype=np.int64)
    fill(keys, values, table_keys, table_values)
    return table_keys, table_values
