"""How far two distributions over topologies are from each other, by topology and by split.

A distribution is a mapping from topologies to probabilities, or from splits (their sides without taxon 0) to theirs.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from miselbo.phylo.text.newick import Topology

SEEN = (
    0.1  # a split counts in the ASDSF when it is that frequent in one of the distributions (MrBayes' default)
)


def kl_inside(probability: np.ndarray, log_q: np.ndarray) -> tuple[float, float]:
    """KL(p given the support of q || q), nats, and the mass of p outside that support.

    Args:
        probability: [T] of topologies, which add up to 1.
        log_q: [T] of the same topologies; -inf outside the support.

    Example:
        >>> kl, outside = kl_inside(np.array([0.5, 0.25, 0.25]), np.log([0.5, 0.5, 1e-300]) + [0, 0, -np.inf])
        >>> round(kl, 4), outside  # (2/3) log (2/3)/(1/2) + (1/3) log (1/3)/(1/2)
        (0.0566, 0.25)
    """
    inside = np.isfinite(log_q)
    mass = probability[inside].sum()
    given, log_q = probability[inside] / mass, log_q[inside]
    some = given > 0
    return float((given[some] * (np.log(given[some]) - log_q[some])).sum()), float(1 - mass)


def total_variation(one: Mapping[Topology, float], other: Mapping[Topology, float]) -> float:
    """Half the sum of |p - q| over topologies; what either leaves of 1 counts as elsewhere, where the other is 0.

    Example:
        >>> total_variation({(12,): 0.5, (10,): 0.5}, {(12,): 0.75})
        0.5
    """
    shared = sum(abs(value - other.get(topology, 0.0)) for topology, value in one.items())
    rest = sum(value for topology, value in other.items() if topology not in one)
    left = sum(max(1 - math.fsum(part.values()), 0.0) for part in (one, other))
    return float(shared + rest + left) / 2


def asdsf(frequencies: Sequence[Mapping[int, float]]) -> float:
    """Average standard deviation of split frequencies over R distributions (n - 1 below; MrBayes' diagnostic).

    Over the splits that at least one of them has with probability :data:`SEEN`; 0 when there is no such split.

    Example:
        >>> round(asdsf([{12: 1.0}, {12: 0.5, 10: 0.5}, {12: 1.0, 6: 0.05}]), 4)
        0.2887
    """
    splits = {split for part in frequencies for split, value in part.items() if value >= SEEN}
    table = np.array([[part.get(split, 0.0) for part in frequencies] for split in sorted(splits)])
    return float(table.std(1, ddof=1).mean()) if splits else 0.0


def largest_split_difference(frequencies: Sequence[Mapping[int, float]]) -> float:
    """Largest difference of a split's probability between any two of the distributions.

    Example:
        >>> largest_split_difference([{12: 1.0}, {12: 0.75, 10: 0.25}])
        0.25
    """
    splits = {split for part in frequencies for split in part}
    table = np.array([[part.get(split, 0.0) for part in frequencies] for split in sorted(splits)])
    return float(np.ptp(table, axis=1).max()) if splits else 0.0
