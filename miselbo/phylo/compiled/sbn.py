"""Compiled parts of the subsplit Bayesian network: sampling, finding a tree's parameters, log q(tau) with its gradient.

A clade is numbered 2 r for the side without taxon 0 of the r-th split in ascending order, 2 r + 1 for the other side. A
tripartition is an inner node of an unrooted tree: three clades (s0 with taxon 0, s1 < s2), and direction d of it is
its view from s_d: the clade Z that is not s_d, split into the two others. Parameters are addressed by position in
one vector of log-probabilities; ABSENT stands for probability 0 and CERTAIN for 1.
"""

import numpy as np

from miselbo.runtime.compiled import compiled

ABSENT, CERTAIN = -1, -2


@compiled(nogil=True)
def find(table_keys, table_values, key):
    """Value of a key in an open-addressing table, ABSENT when it is not there."""
    mask = table_keys.shape[0] - 1
    slot = mixed(key) & mask
    while table_keys[slot] != -1:
        if table_keys[slot] == key:
            return table_values[slot]
        slot = (slot + 1) & mask
    return ABSENT


@compiled(nogil=True)
def mixed(key):
    """A hash of a key of 63 bits."""
    return ((key ^ (key >> 31)) * 0x9E3779B97F4A7C1 >> 17) & 0x3FFFFFFFFFF


@compiled()
def fill(keys, values, table_keys, table_values):
    """Put all keys into an empty table."""
    mask = table_keys.shape[0] - 1
    for i in range(keys.shape[0]):
        slot = mixed(keys[i]) & mask
        while table_keys[slot] != -1:
            slot = (slot + 1) & mask
        table_keys[slot] = keys[i]
        table_values[slot] = values[i]


@compiled(nogil=True)
def sample(uniforms, log_prob, num_splits, roots, starts, params, views, below, found):
    """Draw trees: a root split, then children down both sides; the root is forgotten.

    Args:
        uniforms: [K, n - 1] in (0, 1).
        log_prob: of all parameters, root splits first.
        num_splits: number of root splits.
        roots: [R, 2] the parent subsplits of each root split, -1 for a leaf.
        starts: [parents + 1] where each parent's children start.
        params: [pairs] parameter of each child.
        views: [pairs] 3 t + d of each child.
        below: [pairs, 2] parent subsplits below each child, -1 for a leaf.
        found: [K, n - 2], filled with the tripartitions, in the order of drawing.
    """
    stack = np.empty(uniforms.shape[1] + 2, dtype=np.int64)
    for k in range(uniforms.shape[0]):
        u, root = uniforms[k, 0], 0
        while root < num_splits - 1:
            u -= np.exp(log_prob[root])
            if u < 0.0:
                break
            root += 1
        while log_prob[root] == -np.inf:  # round-off at the end
            root -= 1
        height = 0
        for side in range(2):
            if roots[root, side] >= 0:
                stack[height] = roots[root, side]
                height += 1
        count = 0
        while height:
            height -= 1
            parent = stack[height]
            child, last = starts[parent], starts[parent + 1] - 1
            u = uniforms[k, count + 1]
            while child < last:
                u -= np.exp(log_prob[params[child]])
                if u < 0.0:
                    break
                child += 1
            while params[child] != CERTAIN and log_prob[params[child]] == -np.inf and child > starts[parent]:
                child -= 1
            found[k, count] = views[child] // 3
            count += 1
            for side in range(2):
                if below[child, side] >= 0:
                    stack[height] = below[child, side]
                    height += 1


@compiled(nogil=True)
def index(tripartitions, sides, num_splits, leaf, keys, values, nodes, splits, psps, pairs, scratch):
    """Nodes, edges and parameters of trees given by the numbers of their tripartitions.

    Args:
        tripartitions: [K, n - 2], sorted here by the split towards taxon 0.
        sides: [T, 3] clades of every tripartition.
        num_splits: R.
        leaf: [R] taxon of a pendant split, -1 otherwise.
        keys, values: table from (sister, 3 t + d) as sister * 3 T + 3 t + d to the parameter.
        nodes: [K, n - 2, 3] filled, see :mod:`miselbo.phylo.tree`.
        splits: [K, 2n - 3] filled: split of every edge.
        psps: [K, 2n - 3, 2] filled: 3 t + d of the primary subsplit pair of the side away from taxon 0 and of the side
            with it, -1 for a leaf.
        pairs: [K, n - 2, 3, 3] filled: parameter of direction d of each node with the root at the edge, and with the
            root beyond the edge where the sister is the first or the second other clade of the neighbour.
        scratch: [R].
    """
    num_trees, num_inner = tripartitions.shape
    num_taxa, total = num_inner + 2, 3 * sides.shape[0]
    owner = np.empty((2 * num_inner + 1, 2), dtype=np.int64)  # node below and above each edge, -1 for a leaf
    for k in range(num_trees):
        for i in range(1, num_inner):  # insertion sort by s0, ascending
            t, j = tripartitions[k, i], i - 1
            while j >= 0 and sides[tripartitions[k, j], 0] > sides[t, 0]:
                tripartitions[k, j + 1] = tripartitions[k, j]
                j -= 1
            tripartitions[k, j + 1] = t
        for j in range(num_inner):
            split = sides[tripartitions[k, j], 0] >> 1
            edge = leaf[split] if j == num_inner - 1 else num_taxa + j
            scratch[split] = edge
            splits[k, edge] = split
        owner[:] = -1
        for j in range(num_inner):
            t = tripartitions[k, j]
            for d in range(3):
                split = sides[t, d] >> 1
                edge = leaf[split] if leaf[split] >= 0 else scratch[split]
                nodes[k, j, d] = edge
                splits[k, edge] = split
                owner[edge, 0 if d == 0 else 1] = 3 * j + d
        for edge in range(2 * num_inner + 1):
            for side in range(2):
                at = owner[edge, side]
                psps[k, edge, side] = -1 if at < 0 else 3 * tripartitions[k, at // 3] + at % 3
        for j in range(num_inner):
            t = tripartitions[k, j]
            for d in range(3):
                view = 3 * t + d
                pairs[k, j, d, 0] = find(keys, values, sides[t, d] * total + view)
                pairs[k, j, d, 1] = pairs[k, j, d, 2] = ABSENT
                at = owner[nodes[k, j, d], 1 if d == 0 else 0]
                if at < 0:
                    continue
                place = 1
                for other in range(3):
                    if other != at % 3:
                        sister = sides[tripartitions[k, at // 3], other]
                        pairs[k, j, d, place] = find(keys, values, sister * total + view)
                        place += 1


@compiled(nogil=True)
def value(log_prob, param):
    """Log-probability of a parameter."""
    if param == CERTAIN:
        return 0.0
    return -np.inf if param == ABSENT else log_prob[param]


@compiled(nogil=True)
def tree_log_q(log_prob, nodes, splits, pairs, log_q, rootings):
    """log q(tau): the log of the sum over all edges as root, in one pass up and one down.

    Fills log_q [K] and the log-probability with the root at each edge, rootings [K, 2n - 3].
    """
    num_trees, num_inner, _ = nodes.shape
    num_edges = 2 * num_inner + 1
    inside = np.empty((num_inner, 3))  # of what is below a node seen in a direction, its own pair left out
    owner = np.empty((num_edges, 2), dtype=np.int64)
    for k in range(num_trees):
        owner[:] = -1
        for j in range(num_inner):
            for d in range(3):
                owner[nodes[k, j, d], 0 if d == 0 else 1] = 3 * j + d
        for turn in range(2 * num_inner):
            j = turn if turn < num_inner else 2 * num_inner - 1 - turn
            for d in range(3):
                if (d == 0) != (turn < num_inner):
                    continue
                total = 0.0
                for side in range(3):
                    if side == d:
                        continue
                    at = owner[nodes[k, j, side], 1 if side == 0 else 0]
                    if at >= 0:  # seen from there, this node's other clade is the sister
                        sister = 3 - d - side
                        place = 1 + sister - (sister > side)
                        total += value(log_prob, pairs[k, at // 3, at % 3, place]) + inside[at // 3, at % 3]
                inside[j, d] = total
        largest = -np.inf
        for edge in range(num_edges):
            total = log_prob[splits[k, edge]]
            for side in range(2):
                at = owner[edge, side]
                if at >= 0:
                    total += value(log_prob, pairs[k, at // 3, at % 3, 0]) + inside[at // 3, at % 3]
            rootings[k, edge] = total
            largest = max(largest, total)
        if largest == -np.inf:
            log_q[k] = -np.inf
            continue
        total = 0.0
        for edge in range(num_edges):
            total += np.exp(rootings[k, edge] - largest)
        log_q[k] = largest + np.log(total)


@compiled(nogil=True)
def tree_log_q_gradient(nodes, splits, pairs, log_q, rootings, weights, gradient):
    """Add sum_k weights_k d log q(tau_k) / d log_prob to ``gradient``.

    The derivative in a pair's log-probability is the posterior probability that the root lies where the pair is used:
    at its edge, or beyond it on the far side of the neighbour.
    """
    num_trees, num_inner, _ = nodes.shape
    num_edges = 2 * num_inner + 1
    mass = np.empty(
        (num_edges, 2)
    )  # of the root on the side without, with taxon 0, the edge itself counted in both
    own = np.empty(num_edges)
    owner = np.empty((num_edges, 2), dtype=np.int64)
    for k in range(num_trees):
        weight = weights[k]
        if weight == 0.0 or log_q[k] == -np.inf:
            continue
        owner[:] = -1
        for edge in range(num_edges):
            own[edge] = np.exp(rootings[k, edge] - log_q[k])
            mass[edge, 0] = own[edge]
            gradient[splits[k, edge]] += weight * own[edge]
        for j in range(num_inner):
            up, left, right = nodes[k, j, 0], nodes[k, j, 1], nodes[k, j, 2]
            mass[up, 0] += mass[left, 0] + mass[right, 0]
            for d in range(3):
                owner[nodes[k, j, d], 0 if d == 0 else 1] = 3 * j + d
        for edge in range(num_edges):
            mass[edge, 1] = 1.0 - mass[edge, 0] + own[edge]
        for j in range(num_inner):
            for d in range(3):
                edge = nodes[k, j, d]
                if pairs[k, j, d, 0] >= 0:
                    gradient[pairs[k, j, d, 0]] += weight * own[edge]
                at = owner[edge, 1 if d == 0 else 0]
                if at < 0:
                    continue
                place = 1
                for sister in range(3):
                    if sister == at % 3:
                        continue
                    if pairs[k, j, d, place] >= 0:
                        beyond = 3 - sister - at % 3  # the root's side
                        away = nodes[k, at // 3, beyond]
                        gradient[pairs[k, j, d, place]] += weight * mass[away, 1 if beyond == 0 else 0]
                    place += 1
