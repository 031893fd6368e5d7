"""Compiled pruning under a reversible model with rate categories: value and analytic gradient for a batch of trees.

The tree is rooted at taxon 0. Going down, the message of an edge is m_e = P(r t_e) x, x the product below it; going
back up, u_e is the product of everything else at its other end, pi included and sent along edges by P's transpose. So

    L = 1/C sum_c u_e . m_e for every edge e,        d L / d t_e = 1/C sum_c r_c u_e' Q m_e.

Vectors are flat over category, state and the patterns of a block; scaling is that of :mod:`miselbo.phylo.compiled.jc`,
with one exponent for all categories of a pattern.
"""

import numpy as np

from miselbo.phylo.compiled.jc import BLOCK, HUGE, LOG_HUGE, TINY
from miselbo.runtime.compiled import compiled


@compiled(nogil=True, error_model="numpy")
def reversible_trees(
    nodes,
    lengths,
    tips,
    counts,
    frequencies,
    rate_matrix,
    roots,
    values,
    inverse,
    rates,
    want_gradient,
    log_lik,
    gradient,
):
    """Log-likelihood of each tree, and its gradient in the branch lengths.

    Args:
        nodes: [K, n - 2, 3] int32, see :mod:`miselbo.phylo.tree`.
        lengths: [K, 2n - 3] float64, expected substitutions per site.
        tips: [n, P', 4, BLOCK] uint8, 1 for every state of the taxon's set.
        counts: [P', BLOCK] float64.
        frequencies: pi [4].
        rate_matrix: Q [4, 4] = roots diag(values) inverse, one substitution per unit of time on average.
        roots: [4, 4] eigenvectors of Q in columns.
        values: [4] eigenvalues of Q.
        inverse: [4, 4] of ``roots``.
        rates: [C] of the categories, which weigh the same.
        want_gradient: whether to fill ``gradient``.
        log_lik: [K], filled.
        gradient: [K, 2n - 3], filled.
    """
    num_trees, num_inner, _ = nodes.shape
    num_taxa, num_edges, categories = num_inner + 2, 2 * num_inner + 1, len(rates)
    change = np.empty((num_edges, categories, 4, 4))
    message = np.empty((num_edges, categories, 4, BLOCK))
    outside = np.empty((num_edges, categories, 4, BLOCK))
    product = np.empty((categories, 4, BLOCK))
    exponent, sums, share = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
    for k in range(num_trees):
        for e in range(num_edges):
            for c in range(categories):
                transition(roots, values, inverse, rates[c] * lengths[k, e], change[e, c])
            gradient[k, e] = 0.0
        total = 0.0
        for b in range(counts.shape[0]):
            exponent[:] = 0.0
            for e in range(1, num_taxa):
                spread(tips[e, b], product)
                send(product, change[e], message[e])
            for j in range(num_inner):
                up, left, right = nodes[k, j, 0], nodes[k, j, 1], nodes[k, j, 2]
                multiply(message[left], message[right], product, sums)
                rescale(product, sums, exponent)
                send(product, change[up], message[up])
            spread(tips[0, b], outside[0])
            for i in range(4):
                outside[0][:, i] *= frequencies[i]
            multiply(message[0], outside[0], product, sums)
            for p in range(BLOCK):
                if counts[b, p] > 0.0:
                    total += counts[b, p] * (np.log(sums[p] / categories) - exponent[p] * LOG_HUGE)
            if not want_gradient:
                continue
            divide(counts[b], sums, share)
            gradient[k, 0] += slope(message[0], outside[0], rate_matrix, rates, share)
            send_back(outside[0].copy(), change[0], outside[0])
            for j in range(num_inner - 1, -1, -1):
                up, left, right = nodes[k, j, 0], nodes[k, j, 1], nodes[k, j, 2]
                for side in range(2):
                    edge, other = (left, right) if side == 0 else (right, left)
                    multiply(outside[up], message[other], product, sums)
                    rescale(product, sums, exponent)
                    inner(message[edge], product, sums)
                    divide(counts[b], sums, share)
                    gradient[k, edge] += slope(message[edge], product, rate_matrix, rates, share)
                    if edge >= num_taxa:
                        send_back(product, change[edge], outside[edge])
        log_lik[k] = total


@compiled(nogil=True, error_model="numpy")
def transition(roots, values, inverse, time, out):
    """P(t) = I + roots diag(e^{values t} - 1) inverse, which keeps the small entries of short edges exact."""
    for i in range(4):
        for j in range(4):
            total = 1.0 if i == j else 0.0
            for a in range(4):
                total += roots[i, a] * np.expm1(values[a] * time) * inverse[a, j]
            out[i, j] = max(total, 0.0)


@compiled(nogil=True, error_model="numpy")
def spread(tip, out):
    """A taxon's vector in every category."""
    for c in range(len(out)):
        for i in range(4):
            for p in range(BLOCK):
                out[c, i, p] = float(tip[i, p])


@compiled(nogil=True, error_model="numpy", fastmath={"contract"})
def send(x, change, out):
    """P x in every category."""
    for c in range(len(out)):
        for i in range(4):
            a0, a1, a2, a3 = change[c, i, 0], change[c, i, 1], change[c, i, 2], change[c, i, 3]
            for p in range(BLOCK):
                out[c, i, p] = a0 * x[c, 0, p] + a1 * x[c, 1, p] + a2 * x[c, 2, p] + a3 * x[c, 3, p]


@compiled(nogil=True, error_model="numpy", fastmath={"contract"})
def send_back(x, change, out):
    """P' x in every category."""
    for c in range(len(out)):
        for i in range(4):
            a0, a1, a2, a3 = change[c, 0, i], change[c, 1, i], change[c, 2, i], change[c, 3, i]
            for p in range(BLOCK):
                out[c, i, p] = a0 * x[c, 0, p] + a1 * x[c, 1, p] + a2 * x[c, 2, p] + a3 * x[c, 3, p]


@compiled(nogil=True, error_model="numpy")
def multiply(one, other, out, sums):
    """Product of two vectors, and its sums over categories and states."""
    sums[:] = 0.0
    for c in range(len(out)):
        for i in range(4):
            for p in range(BLOCK):
                out[c, i, p] = one[c, i, p] * other[c, i, p]
                sums[p] += out[c, i, p]


@compiled(nogil=True, error_model="numpy")
def inner(one, other, sums):
    """Sums over categories and states of a product."""
    sums[:] = 0.0
    for c in range(len(one)):
        for i in range(4):
            for p in range(BLOCK):
                sums[p] += one[c, i, p] * other[c, i, p]


@compiled(nogil=True, error_model="numpy")
def divide(weights, sums, out):
    """Counts over likelihoods; 0 for the columns that fill a block up."""
    for p in range(BLOCK):
        out[p] = weights[p] / sums[p] if weights[p] > 0.0 else 0.0


@compiled(nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})
def slope(m, u, rate_matrix, rates, share):
    """Gradient of an edge: sum_p share_p sum_c r_c u' Q m."""
    total = 0.0
    for c in range(len(rates)):
        for i in range(4):
            q0, q1, q2, q3 = rate_matrix[i, 0], rate_matrix[i, 1], rate_matrix[i, 2], rate_matrix[i, 3]
            part = 0.0
            for p in range(BLOCK):
                moved = q0 * m[c, 0, p] + q1 * m[c, 1, p] + q2 * m[c, 2, p] + q3 * m[c, 3, p]
                part += share[p] * u[c, i, p] * moved
            total += rates[c] * part
    return total


@compiled(nogil=True, error_model="numpy")
def rescale(x, sums, exponent):
    """Multiply the patterns that became small, and count."""
    for p in range(BLOCK):
        while 0.0 < sums[p] < TINY:
            for c in range(len(x)):
                for i in range(4):
                    x[c, i, p] *= HUGE
            sums[p] *= HUGE
            exponent[p] += 1.0
