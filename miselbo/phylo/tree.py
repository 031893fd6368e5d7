"""Unrooted binary trees as arrays, seen from taxon 0.

Edges of a topology are numbered: pendant edges by taxon (0..n-1), then inner edges by ascending split. A subset is a
smaller number than its superset, so this is children before parents. Every inner node is one row (up, left, right) of
edge numbers: the edge towards taxon 0 and the two others, the one with the smaller split first; rows are ordered by the
split of ``up``, so the last one is the neighbour of taxon 0, whose ``up`` is edge 0.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from miselbo.errors import InputError
from miselbo.phylo.text.newick import Topology, inner_splits


def edge_splits(topology: Topology, num_taxa: int) -> list[int]:
    """The split of every edge, in edge order (2n - 3 of them).

    Example:
        >>> [f"{split:04b}" for split in edge_splits((0b1100,), 4)]
        ['1110', '0010', '0100', '1000', '1100']
    """
    full = (1 << num_taxa) - 1
    return [full - 1, *(1 << taxon for taxon in range(1, num_taxa)), *topology]


def nodes(topology: Topology, num_taxa: int) -> np.ndarray:
    """The inner nodes [n - 2, 3] of a topology, as edge numbers (up, left, right).

    Raises:
        InputError: the splits are not those of a binary tree.

    Example:
        >>> nodes((0b1100,), 4)
        array([[4, 2, 3],
               [0, 1, 4]], dtype=int32)
    """
    splits = edge_splits(topology, num_taxa)
    above = list(range(num_taxa))  # edge above the largest clade so far of each taxon
    rows = []
    for edge in [*range(num_taxa, len(splits)), 0]:
        split = splits[edge]
        below = sorted({above[taxon] for taxon in bits(split)}, key=splits.__getitem__)
        if len(below) != 2 or splits[below[0]] | splits[below[1]] != split:
            raise InputError(f"the splits {list(topology)} are not those of a binary tree of {num_taxa} taxa")
        rows.append((edge, *below))
        for taxon in bits(split):
            above[taxon] = edge
    return np.array(rows, dtype=np.int32)


def bits(mask: int) -> list[int]:
    """Positions of the ones.

    Example:
        >>> bits(0b1101)
        [0, 2, 3]
    """
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def resolve(
    tree: Mapping[int, float], num_taxa: int, generator: np.random.Generator | None = None
) -> dict[int, float]:
    """A binary tree with the same likelihood: nodes of higher degree get edges of length 0.

    With a generator two random branches of a node are joined at a time, else the first ones.

    Example:
        >>> sorted(resolve({0b0010: 1.0, 0b0100: 1.0, 0b1000: 1.0, 0b1110: 1.0}, 4).items())[2]
        (6, 0.0)
    """
    full = (1 << num_taxa) - 1
    whole = dict(tree)
    for taxon in range(1, num_taxa):
        whole.setdefault(1 << taxon, 0.0)
    whole.setdefault(full - 1, 0.0)
    above = [1 << taxon for taxon in range(num_taxa)]
    for split in sorted(whole):
        if not split & (split - 1):
            continue
        below = sorted({above[taxon] for taxon in bits(split)})
        while len(below) > 2:
            if generator is not None:
                generator.shuffle(below)
            joined = below.pop(0) | below.pop(0)
            whole[joined] = 0.0
            below.insert(0, joined)
        for taxon in bits(split):
            above[taxon] = split
    return whole


def lengths_of(tree: Mapping[int, float], num_taxa: int) -> tuple[Topology, np.ndarray]:
    """Topology and branch lengths [2n - 3] in edge order of a binary tree."""
    topology = inner_splits(tree, num_taxa)
    return topology, np.array([tree[split] for split in edge_splits(topology, num_taxa)])


def newick(topology: Topology, names: Sequence[str], lengths: Sequence[float] | None = None) -> str:
    """Newick text, written from taxon 0's neighbour.

    Example:
        >>> newick((0b1100,), ["a", "b", "c", "d"])
        '(a,b,(c,d));'
    """
    rows = nodes(topology, len(names))
    text = [quote(name) for name in names]
    text += [""] * len(topology)
    ends = [""] * len(text) if lengths is None else [f":{float(length)!r}" for length in lengths]
    for up, left, right in rows[:-1]:
        text[up] = f"({text[left]}{ends[left]},{text[right]}{ends[right]})"
    parts = [text[edge] + ends[edge] for edge in (0, *rows[-1, 1:])]
    return f"({','.join(parts)});"


def quote(name: str) -> str:
    """A name as Newick takes it, in quotes where it must be."""
    return "'" + name.replace("'", "''") + "'" if set(name) & set(" ()[]:;,'\"") else name


def log_number_of_topologies(num_taxa: int) -> float:
    """log (2n - 5)!!, the number of unrooted binary topologies.

    Example:
        >>> round(float(np.exp(log_number_of_topologies(5))))
        15
    """
    return float(np.log(np.arange(1, 2 * num_taxa - 4, 2)).sum())


def random_topology(num_taxa: int, generator: np.random.Generator) -> Topology:
    """Uniform over all topologies: taxa join a random edge one after another."""
    splits = {1 << 1, 1 << 2, 0b110}  # the last is the edge of taxon 0
    for taxon in range(3, num_taxa):
        new = 1 << taxon
        at = sorted(splits)[generator.integers(len(splits))]
        splits = {split | new if split & at == at and split != at else split for split in splits}
        splits |= {at | new, at, new}
    return tuple(sorted(split for split in splits if split & (split - 1) and split != (1 << num_taxa) - 2))


def all_topologies(num_taxa: int) -> Iterable[Topology]:
    """Every topology, for few taxa."""
    trees = [{0b10, 0b100, 0b110}]
    for taxon in range(3, num_taxa):
        new = 1 << taxon
        trees = [
            {split | new if split & at == at and split != at else split for split in splits}
            | {at | new, at, new}
            for splits in trees
            for at in splits
        ]
    last = (1 << num_taxa) - 2
    for splits in trees:
        yield tuple(sorted(split for split in splits if split & (split - 1) and split != last))
