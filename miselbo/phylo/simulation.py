"""Alignments simulated under JC69: the embedded one is made here, from its recipe."""

import numpy as np
import torch

from miselbo import noise
from miselbo.phylo.alignment import Alignment
from miselbo.phylo.text.newick import parse_newick, taxon_numbers
from miselbo.phylo.tree import edge_splits, lengths_of, nodes

# eight taxa; three short inner edges leave the posterior several topologies
TREE = (
    "((ash:0.09,birch:0.12):0.015,(cedar:0.10,(elm:0.07,fir:0.11):0.012):0.05,"
    "((holly:0.13,larch:0.08):0.01,maple:0.10):0.04);"
)
NAMES = ("ash", "birch", "cedar", "elm", "fir", "holly", "larch", "maple")
SITES, SEED = 400, 8


def simulate(newick: str, names: tuple[str, ...], sites: int, seed: int) -> Alignment:
    """Sequences evolved along a tree under JC69, a function of the arguments alone.

    Taxon 0's bases are uniform; along an edge of length t a base stays with probability e^{-4t/3} and is uniform over
    the four otherwise.

    Args:
        newick: binary, with branch lengths.
        names: of the taxa.
        sites: number of columns.
        seed: of :func:`miselbo.noise.uniform`.

    Example:
        >>> simulate(TREE, NAMES, 5, 0).num_sites
        5
    """
    num_taxa = len(names)
    topology, lengths = lengths_of(parse_newick(newick, taxon_numbers(names)), num_taxa)
    draws = noise.uniform(seed, torch.arange(len(edge_splits(topology, num_taxa)) + 1), 2 * sites).numpy()

    def evolve(base: np.ndarray, edge: int) -> np.ndarray:
        change, new = draws[edge, :sites], draws[edge, sites:]
        return np.where(change < np.exp(-4 / 3 * lengths[edge]), base, (4 * new).astype(int))

    root = (4 * draws[-1, :sites]).astype(int)
    above = {0: evolve(root, 0)}  # states at the lower end of each edge
    for up, left, right in nodes(topology, num_taxa)[::-1].tolist():
        for edge in (left, right):
            above[edge] = evolve(above[up], edge)
    states = [root, *(above[taxon] for taxon in range(1, num_taxa))]
    letters = np.array(list("ACGT"))
    rows = {name: "".join(letters[state]) for name, state in zip(names, states, strict=True)}
    return Alignment.from_sequences(rows, f"{sites} sites simulated under JC69 with seed {seed}")
