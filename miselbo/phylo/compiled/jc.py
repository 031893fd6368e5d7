"""Compiled pruning under JC69: log-likelihood and its analytic gradient for a batch of trees.

Along an edge of length t a vector of partial likelihoods becomes m = a x + (1 - a) mean(x), a = exp(-4t/3). The way
down stores the message m_e of every edge; the way back up carries u_e, the product of everything else at its other end
(on taxon 0's side), and

    d log L / d t_e = -4/3 sum_p count_p [1 - mean(m_e) sum(u_e) / (u_e . m_e)].

Patterns go through in blocks of constant size, which stay in a core's cache and let the compiler use vector
instructions; a vector of a block is flat, state after state. A pattern whose partials fall below 2^-332 is multiplied
by 2^332 and the exponents are counted, so that nothing underflows.
"""

import numpy as np

from miselbo.runtime.compiled import compiled

BLOCK = 64
TWO, THREE = 2 * BLOCK, 3 * BLOCK
TINY = 2.0**-332
HUGE = 2.0**332
LOG_HUGE = 332 * np.log(2.0)
FAST = {"reassoc", "contract", "nsz", "nnan", "arcp"}
SAFE = {"reassoc", "contract", "nsz", "arcp"}  # 0 / 0 may occur where a site is impossible


def blocks(tips, counts):
    """Tip vectors [n, 4, P] and counts [P] in blocks [n, P', 4 BLOCK] and [P', BLOCK], filled up with missing data."""
    fill = -len(counts) % BLOCK
    tips = np.pad(tips, ((0, 0), (0, 0), (0, fill)), constant_values=1)
    counts = np.pad(counts.astype(np.float64), (0, fill))
    num_taxa = len(tips)
    tips = tips.reshape(num_taxa, 4, -1, BLOCK).transpose(0, 2, 1, 3).reshape(num_taxa, -1, 4 * BLOCK)
    return np.ascontiguousarray(tips), counts.reshape(-1, BLOCK)


@compiled(nogil=True, error_model="numpy")
def jc_trees(nodes, lengths, tips, counts, want_gradient, log_lik, gradient):
    """Log-likelihood of each tree, and its gradient in the branch lengths.

    Args:
        nodes: [K, n - 2, 3] int32, see :mod:`miselbo.phylo.tree`.
        lengths: [K, 2n - 3] float64, expected substitutions per site.
        tips: [n, P', 4 BLOCK] uint8, 1 for every state of the taxon's set, see :func:`blocks`.
        counts: [P', BLOCK] float64.
        want_gradient: whether to fill ``gradient``.
        log_lik: [K], filled.
        gradient: [K, 2n - 3], filled.
    """
    num_trees, num_inner, _ = nodes.shape
    num_taxa, num_edges = num_inner + 2, 2 * num_inner + 1
    message = np.empty((num_edges, 4 * BLOCK))
    outside = np.empty((num_edges, 4 * BLOCK))
    exponent, sums = np.empty(BLOCK), np.empty(BLOCK)
    keep, spread = np.empty(num_edges), np.empty(num_edges)
    for k in range(num_trees):
        for e in range(num_edges):
            keep[e] = np.exp(-4.0 / 3.0 * lengths[k, e])
            spread[e] = -0.25 * np.expm1(-4.0 / 3.0 * lengths[k, e])
            gradient[k, e] = 0.0
        total = 0.0
        for b in range(counts.shape[0]):
            weights = counts[b]
            exponent[:] = 0.0
            for e in range(1, num_taxa):
                tip_message(tips[e, b], keep[e], spread[e], message[e])
            for j in range(num_inner):
                up, left, right = nodes[k, j, 0], nodes[k, j, 1], nodes[k, j, 2]
                join(message[left], message[right], keep[up], spread[up], message[up], sums)
                if least(sums) < TINY:
                    rescale(message[up], sums, exponent)
            root = outside[0]
            for i in range(4 * BLOCK):
                root[i] = tips[0, b, i]
            dot(message[0], root, sums)
            for p in range(BLOCK):
                if weights[p] > 0.0:
                    total += weights[p] * (np.log(0.25 * sums[p]) - exponent[p] * LOG_HUGE)
            if not want_gradient:
                continue
            gradient[k, 0] += root_gradient(message[0], root, weights, keep[0], spread[0])
            for j in range(num_inner - 1, -1, -1):
                up, left, right = nodes[k, j, 0], nodes[k, j, 1], nodes[k, j, 2]
                for side in range(2):
                    edge, other = (left, right) if side == 0 else (right, left)
                    if edge < num_taxa:
                        gradient[k, edge] += leaf_gradient(
                            outside[up], message[other], message[edge], weights
                        )
                        continue
                    gradient[k, edge] += inner_gradient(
                        outside[up], message[other], message[edge], weights, keep[edge], spread[edge],
                        outside[edge], sums,
                    )  # fmt: skip
                    if least(sums) < TINY:
                        rescale(outside[edge], sums, exponent)
        log_lik[k] = total


@compiled(nogil=True, error_model="numpy")
def tip_message(tip, keep, spread, out):
    """The message of a leaf."""
    for p in range(BLOCK):
        x0, x1, x2, x3 = float(tip[p]), float(tip[BLOCK + p]), float(tip[TWO + p]), float(tip[THREE + p])
        s = spread * (x0 + x1 + x2 + x3)
        out[p] = keep * x0 + s
        out[BLOCK + p] = keep * x1 + s
        out[TWO + p] = keep * x2 + s
        out[THREE + p] = keep * x3 + s


@compiled(nogil=True, error_model="numpy", fastmath=FAST)
def join(one, other, keep, spread, out, sums):
    """Product of two messages, sent along the edge above, and its sums over states."""
    for p in range(BLOCK):
        x0, x1 = one[p] * other[p], one[BLOCK + p] * other[BLOCK + p]
        x2, x3 = one[TWO + p] * other[TWO + p], one[THREE + p] * other[THREE + p]
        total = x0 + x1 + x2 + x3
        s = spread * total
        out[p] = keep * x0 + s
        out[BLOCK + p] = keep * x1 + s
        out[TWO + p] = keep * x2 + s
        out[THREE + p] = keep * x3 + s
        sums[p] = total


@compiled(nogil=True, error_model="numpy", fastmath=FAST)
def dot(one, other, sums):
    """Inner products over states."""
    for p in range(BLOCK):
        sums[p] = (
            one[p] * other[p]
            + one[BLOCK + p] * other[BLOCK + p]
            + one[TWO + p] * other[TWO + p]
            + one[THREE + p] * other[THREE + p]
        )


@compiled(nogil=True, error_model="numpy", fastmath=SAFE)
def root_gradient(m, x, weights, keep, spread):
    """Gradient of taxon 0's edge, x being that taxon's vector, which is then sent along the edge, in place."""
    gradient = 0.0
    for p in range(BLOCK):
        m0, m1, m2, m3 = m[p], m[BLOCK + p], m[TWO + p], m[THREE + p]
        u0, u1, u2, u3 = x[p], x[BLOCK + p], x[TWO + p], x[THREE + p]
        total = u0 + u1 + u2 + u3
        product = m0 * u0 + m1 * u1 + m2 * u2 + m3 * u3
        gradient += weights[p] * (1.0 - 0.25 * (m0 + m1 + m2 + m3) * total / product)
        s = spread * total
        x[p] = keep * u0 + s
        x[BLOCK + p] = keep * u1 + s
        x[TWO + p] = keep * u2 + s
        x[THREE + p] = keep * u3 + s
    return -4.0 / 3.0 * gradient


@compiled(nogil=True, error_model="numpy", fastmath=SAFE)
def inner_gradient(above, other, m, weights, keep, spread, out, sums):
    """Gradient of an inner edge with u = above * other; u is sent along it into ``out``, ``sums`` are u's."""
    gradient = 0.0
    for p in range(BLOCK):
        m0, m1, m2, m3 = m[p], m[BLOCK + p], m[TWO + p], m[THREE + p]
        u0, u1 = above[p] * other[p], above[BLOCK + p] * other[BLOCK + p]
        u2, u3 = above[TWO + p] * other[TWO + p], above[THREE + p] * other[THREE + p]
        total = u0 + u1 + u2 + u3
        product = m0 * u0 + m1 * u1 + m2 * u2 + m3 * u3
        gradient += weights[p] * (1.0 - 0.25 * (m0 + m1 + m2 + m3) * total / product)
        s = spread * total
        out[p] = keep * u0 + s
        out[BLOCK + p] = keep * u1 + s
        out[TWO + p] = keep * u2 + s
        out[THREE + p] = keep * u3 + s
        sums[p] = total
    return -4.0 / 3.0 * gradient


@compiled(nogil=True, error_model="numpy", fastmath=SAFE)
def leaf_gradient(above, other, m, weights):
    """Gradient of a leaf's edge with u = above * other."""
    gradient = 0.0
    for p in range(BLOCK):
        m0, m1, m2, m3 = m[p], m[BLOCK + p], m[TWO + p], m[THREE + p]
        u0, u1 = above[p] * other[p], above[BLOCK + p] * other[BLOCK + p]
        u2, u3 = above[TWO + p] * other[TWO + p], above[THREE + p] * other[THREE + p]
        product = m0 * u0 + m1 * u1 + m2 * u2 + m3 * u3
        gradient += weights[p] * (1.0 - 0.25 * (m0 + m1 + m2 + m3) * (u0 + u1 + u2 + u3) / product)
    return -4.0 / 3.0 * gradient


@compiled(nogil=True, error_model="numpy", fastmath=FAST)
def least(sums):
    """The smallest element."""
    low = np.inf
    for p in range(BLOCK):
        low = min(low, sums[p])
    return low


@compiled(nogil=True, error_model="numpy")
def rescale(x, sums, exponent):
    """Multiply the patterns that became small, and count."""
    for p in range(BLOCK):
        if sums[p] < TINY:
            for i in range(p, 4 * BLOCK, BLOCK):
                x[i] *= HUGE
            exponent[p] += 1.0
