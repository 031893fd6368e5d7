"""Compiled neighbour joining (Saitou and Nei 1987): how much sequences differ, and the joins this leads to."""

import numpy as np

from miselbo.runtime.compiled import compiled

MISSING = 15


@compiled(nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
def shares(codes, weights, out):
    """Weighted share of the sites known in both sequences at which they have no state in common.

    Args:
        codes: [n, P] uint8 sets of states, 15 for missing.
        weights: [P] of the sites.
        out: [n, n], filled; 0 where no site is known in both.
    """
    num_taxa, size = codes.shape
    for i in range(num_taxa):
        out[i, i] = 0.0
        for j in range(i):
            both, differ = 0.0, 0.0
            for p in range(size):
                one, other = codes[i, p], codes[j, p]
                known = weights[p] if one != MISSING and other != MISSING else 0.0
                both += known
                differ += weights[p] if one & other == 0 else 0.0
            share = differ / both if both > 0.0 else 0.0
            out[i, j] = share
            out[j, i] = share


@compiled(nogil=True, error_model="numpy")
def joins(distance, pairs):
    """The n - 3 joins, each of two places, the first of which holds the union from then on.

    Args:
        distance: [n, n], symmetric; overwritten.
        pairs: [n - 3, 2], filled.
    """
    num_taxa = len(distance)
    active, total = np.arange(num_taxa), np.zeros(num_taxa)
    for i in range(num_taxa):
        for j in range(num_taxa):
            total[i] += distance[i, j]
    for step in range(num_taxa - 3):
        count = num_taxa - step
        best, first, second = np.inf, 0, 1
        for a in range(count):
            row, own = distance[active[a]], total[active[a]]
            for b in range(a + 1, count):
                criterion = (count - 2) * row[active[b]] - own - total[active[b]]
                if criterion < best:
                    best, first, second = criterion, a, b
        i, j = active[first], active[second]
        pairs[step, 0], pairs[step, 1] = i, j
        between = distance[i, j]
        total[i] = 0.0
        for c in range(count):
            k = active[c]
            if k not in (i, j):
                new = (distance[i, k] + distance[j, k] - between) / 2
                total[k] += new - distance[i, k] - distance[j, k]
                total[i] += new
                distance[i, k] = new
                distance[k, i] = new
        for c in range(second, count - 1):
            active[c] = active[c + 1]
