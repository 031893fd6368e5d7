"""Compiled pruning with given transition matrices: value, and gradient with respect to every matrix.

As in :mod:`miselbo.phylo.compiled.reversible`, with x_e the product below edge e, m_e = P_e x_e its message and u_e
everything else at its other end. A site's likelihood is u_e . m_e for every edge e (summed over categories), so

    d log L / d P_e[i, j] = sum_p count_p u_e[i] x_e[j] / (u_e . m_e),

and the vector at the root, frequency times weight of the category, is to taxon 0's edge what u is to another one.
Whatever the matrices were made from, its gradient is theirs by the chain rule.
"""

import numpy as np

from miselbo.phylo.compiled.jc import BLOCK, LOG_HUGE
from miselbo.phylo.compiled.reversible import divide, inner, multiply, rescale, send, send_back, spread
from miselbo.runtime.compiled import compiled


@compiled(nogil=True, error_model="numpy")
def matrix_trees(nodes, change, roots, tips, counts, want_gradient, log_lik, to_change, to_roots):
    """Log-likelihood of each tree, and its gradients.

    Args:
        nodes: [K, n - 2, 3] int32, see :mod:`miselbo.phylo.tree`.
        change: [K, 2n - 3, C, 4, 4] transition matrix of every edge in every category.
        roots: [K, C, 4] weight of the category times frequency of the state, at taxon 0.
        tips: [n, P', 4, BLOCK] uint8, 1 for every state of the taxon's set.
        counts: [P', BLOCK] float64.
        want_gradient: whether to fill the gradients.
        log_lik: [K], filled.
        to_change: shape of ``change``, filled.
        to_roots: shape of ``roots``, filled.
    """
    num_trees, num_inner, _ = nodes.shape
    num_taxa, num_edges, categories = num_inner + 2, 2 * num_inner + 1, change.shape[2]
    below = np.empty((num_edges, categories, 4, BLOCK))
    message = np.empty((num_edges, categories, 4, BLOCK))
    outside = np.empty((num_edges, categories, 4, BLOCK))
    product, tip = np.empty((categories, 4, BLOCK)), np.empty((categories, 4, BLOCK))
    exponent, sums, share = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
    for k in range(num_trees):
        total = 0.0
        if want_gradient:
            to_change[k] = 0.0
            to_roots[k] = 0.0
        for b in range(counts.shape[0]):
            exponent[:] = 0.0
            for e in range(1, num_taxa):
                spread(tips[e, b], below[e])
                send(below[e], change[k, e], message[e])
            for j in range(num_inner):
                up, left, right = nodes[k, j, 0], nodes[k, j, 1], nodes[k, j, 2]
                multiply(message[left], message[right], below[up], sums)
                rescale(below[up], sums, exponent)
                send(below[up], change[k, up], message[up])
            spread(tips[0, b], tip)
            for c in range(categories):
                for i in range(4):
                    for p in range(BLOCK):
                        outside[0, c, i, p] = tip[c, i, p] * roots[k, c, i]
            inner(message[0], outside[0], sums)
            for p in range(BLOCK):
                if counts[b, p] > 0.0:
                    total += counts[b, p] * (np.log(sums[p]) - exponent[p] * LOG_HUGE)
            if not want_gradient:
                continue
            divide(counts[b], sums, share)
            gather(message[0], tip, share, to_roots[k])
            outer(outside[0], below[0], share, to_change[k, 0])
            send_back(outside[0].copy(), change[k, 0], outside[0])
            for j in range(num_inner - 1, -1, -1):
                up, left, right = nodes[k, j, 0], nodes[k, j, 1], nodes[k, j, 2]
                for side in range(2):
                    edge, other = (left, right) if side == 0 else (right, left)
                    multiply(outside[up], message[other], product, sums)
                    rescale(product, sums, exponent)
                    inner(message[edge], product, sums)
                    divide(counts[b], sums, share)
                    outer(product, below[edge], share, to_change[k, edge])
                    if edge >= num_taxa:
                        send_back(product, change[k, edge], outside[edge])
        log_lik[k] = total


@compiled(nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})
def outer(u, x, share, out):
    """Add sum_p share_p u[i] x[j] in every category."""
    for c in range(len(out)):
        for i in range(4):
            a0, a1, a2, a3 = 0.0, 0.0, 0.0, 0.0
            for p in range(BLOCK):
                w = share[p] * u[c, i, p]
                a0 += w * x[c, 0, p]
                a1 += w * x[c, 1, p]
                a2 += w * x[c, 2, p]
                a3 += w * x[c, 3, p]
            out[c, i, 0] += a0
            out[c, i, 1] += a1
            out[c, i, 2] += a2
            out[c, i, 3] += a3


@compiled(nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})
def gather(m, x, share, out):
    """Add sum_p share_p m[i] x[i] in every category."""
    for c in range(len(out)):
        for i in range(4):
            total = 0.0
            for p in range(BLOCK):
                total += share[p] * m[c, i, p] * x[c, i, p]
            out[c, i] += total
