"""Plain, readable versions of what miselbo.phylo compiles: pruning by recursion, q(tau) by enumerating all rootings."""

import numpy as np
import torch

from miselbo.phylo.tree import edge_splits, nodes


def transition(length):
    """JC69: P(t) = e^{-4t/3} I + (1 - e^{-4t/3}) 1/4."""
    keep = torch.exp(-4 / 3 * length)
    return keep * torch.eye(4, dtype=torch.float64) + (1 - keep) / 4


def pruning(alignment, topology, lengths):
    """log p(Y | tau, b), one pattern table, no merging, no scaling; lengths is a tensor in edge order."""
    patterns = alignment.patterns
    below = {e: torch.from_numpy(patterns.tips[e]).double() for e in range(alignment.num_taxa)}
    for up, left, right in nodes(topology, alignment.num_taxa):
        partial = (transition(lengths[left]) @ below[left]) * (transition(lengths[right]) @ below[right])
        if up:
            below[up] = partial
        else:
            site = ((transition(lengths[0]) @ partial) * below[0]).mean(0)
    return (torch.from_numpy(patterns.counts) * site.log()).sum()


def neighbours(topology, num_taxa):
    """Clades at every inner node of the unrooted tree: a list of three masks, directed away from the node."""
    splits = edge_splits(topology, num_taxa)
    full = (1 << num_taxa) - 1
    return [(full ^ splits[up], splits[left], splits[right]) for up, left, right in nodes(topology, num_taxa)]


def rootings(topology, num_taxa):
    """For every edge taken as root: its split (the side without taxon 0) and its pairs (sister, clade, child)."""
    full = (1 << num_taxa) - 1
    children = {}
    for node in neighbours(topology, num_taxa):
        for i in range(3):
            children[full ^ node[i]] = tuple(node[j] for j in range(3) if j != i)

    def walk(sister, clade):
        if clade & (clade - 1) == 0:
            return []
        one, other = children[clade]
        lowest = clade & -clade
        child = one if not one & lowest else other
        return [(sister, clade, child), *walk(other, one), *walk(one, other)]

    for split in edge_splits(topology, num_taxa):
        yield split, walk(split, full ^ split) + walk(full ^ split, split)


def log_q(topology, num_taxa, root_probability, pair_probability):
    """log sum over rootings of P(root split) times the probabilities of its pairs."""
    total = 0.0
    for split, pairs in rootings(topology, num_taxa):
        factor = root_probability.get(split, 0.0)
        for pair in pairs:
            factor *= pair_probability.get(pair, 0.0)
        total += factor
    return np.log(total) if total > 0 else -np.inf
