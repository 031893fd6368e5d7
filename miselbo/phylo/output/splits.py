"""Splits and trees of a weighted sample: probabilities with their errors, lengths with intervals, credible sets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from miselbo.phylo.output.draws import Draws
from miselbo.phylo.text.newick import Topology

LEVEL = 0.95


@dataclass(frozen=True)
class SplitSummary:
    """One split of a sample.

    Attributes:
        probability: weighted share of the trees that have it.
        error: its Monte Carlo standard error.
        mean: of its length, given that a tree has it.
        median: likewise.
        low: of the shortest interval with 95% of the length's probability.
        high: of the same.
    """

    probability: float
    error: float
    mean: float
    median: float
    low: float
    high: float


def summarise_splits(draws: Draws, weights: np.ndarray) -> dict[int, SplitSummary]:
    """Every split that a draw with weight has, pendant edges included.

    Args:
        draws: trees.
        weights: [N], which sum to 1.
    """
    kept = weights > 0
    splits, lengths = draws.splits[kept].ravel(), draws.lengths[kept].ravel()
    share = np.repeat(weights[kept], draws.splits.shape[1])
    order = np.argsort(splits, kind="stable")
    starts = np.flatnonzero(np.diff(splits[order], prepend=-1))
    found = {}
    for rows in np.split(order, starts[1:]):
        probability = min(float(share[rows].sum()), 1.0)
        others = max(float((weights**2).sum() - (share[rows] ** 2).sum()), 0.0)
        variance = (1 - probability) ** 2 * (share[rows] ** 2).sum() + probability**2 * others
        mean = float(np.average(lengths[rows], weights=share[rows]))
        median, low, high = interval(lengths[rows], share[rows])
        found[draws.masks[int(splits[rows[0]])]] = SplitSummary(
            probability, float(np.sqrt(variance)), mean, median, low, high
        )
    return found


def interval(values: np.ndarray, weights: np.ndarray, level: float = LEVEL) -> tuple[float, float, float]:
    """Median, and the ends of the shortest interval that holds the share ``level`` of a weighted sample.

    Example:
        >>> interval(np.array([5.0, 1.0, 2.0, 3.0, 90.0]), np.ones(5), 0.6)
        (3.0, 1.0, 3.0)
    """
    order = np.argsort(values)
    values, below = values[order], np.cumsum(weights[order]) / weights.sum()
    median = float(values[np.searchsorted(below, 0.5 - 1e-12)])
    start = np.concatenate([[0.0], below[:-1]])
    ends = np.searchsorted(below, start + level - 1e-12)
    inside = ends < len(values)
    widths = np.where(inside, values[np.minimum(ends, len(values) - 1)] - values, np.inf)
    first = int(widths.argmin()) if inside.any() else 0
    last = int(ends[first]) if inside.any() else len(values) - 1
    return median, float(values[first]), float(values[last])


def credible_set(
    topologies: Sequence[Topology], weights: np.ndarray, level: float = LEVEL
) -> list[tuple[Topology, float]]:
    """The fewest topologies that together have at least the share ``level``, with their shares, the largest first.

    Args:
        topologies: of the draws.
        weights: [N], which sum to 1.
        level: share.

    Example:
        >>> credible_set([(3,), (5,), (3,), (6,)], np.array([0.4, 0.36, 0.2, 0.04]))
        [((3,), 0.6000000000000001), ((5,), 0.36)]
    """
    total: dict[Topology, float] = {}
    for topology, weight in zip(topologies, weights.tolist(), strict=True):
        total[topology] = total.get(topology, 0.0) + weight
    order = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    reached = np.cumsum([share for _, share in order])
    return order[: int(np.searchsorted(reached, level - 1e-12)) + 1]
