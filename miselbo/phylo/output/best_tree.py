"""The most probable topology of a mixture of subsplit Bayesian networks."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from miselbo.phylo.sbn import Sbn
from miselbo.phylo.text.newick import Topology


@torch.no_grad()
def best_topology(sbns: Sequence[Sbn], drawn: Iterable[Topology] = ()) -> tuple[Topology, float]:
    """The topology of the highest probability q_mix(tau), and log q_mix of it, nats.

    The candidates are every member's most probable rooted tree, found exactly by dynamic programming, and the drawn
    ones; each is scored exactly, over all its rootings and all members.

    Args:
        sbns: of the members.
        drawn: other candidates.

    Example:
        >>> from miselbo.phylo.support import Support
        >>> best_topology([Sbn(Support.from_topologies([(0b1100,)], "abcd"))])
        ((12,), 0.0)
    """
    candidates = list(dict.fromkeys([*(best_rooted(sbn) for sbn in sbns), *drawn]))
    log_q = torch.stack([sbn.topology_log_prob(candidates) for sbn in sbns]).logsumexp(0) - math.log(
        len(sbns)
    )
    best = int(log_q.argmax())
    return candidates[best], float(log_q[best])


def best_rooted(sbn: Sbn) -> Topology:
    """The topology of the most probable rooted tree of one network.

    The best way below a parent subsplit (W | Z) is the best of its children c: log P(c | W, Z) plus the best below
    (Z - c | c) and below (c | Z - c); a clade of one taxon adds nothing. Parents with smaller Z come first.
    """
    support = sbn.support
    probability = sbn.log_probabilities().detach().numpy()
    full = (1 << support.num_taxa) - 1
    best: dict[tuple[int, int], tuple[float, int]] = {}

    def below(sister: int, clade: int) -> float:
        return best[sister, clade][0] if clade & (clade - 1) else 0.0

    for sister, clade, child in sorted(support.pairs, key=lambda pair: pair[1].bit_count()):
        param = support.pair_params[sister, clade, child]
        own = 0.0 if param < 0 else float(probability[param])
        value = own + below(clade ^ child, child) + below(child, clade ^ child)
        if value > best.get((sister, clade), (-np.inf, 0))[0]:
            best[sister, clade] = (value, child)
    values = [
        float(probability[place]) + below(full ^ split, split) + below(split, full ^ split)
        for place, split in enumerate(support.root_splits)
    ]
    root = list(support.root_splits)[int(np.argmax(values))]
    found, waiting = {root}, [(full ^ root, root), (root, full ^ root)]
    while waiting:
        sister, clade = waiting.pop()
        if clade & (clade - 1) == 0:
            continue
        child = best[sister, clade][1]
        for one, other in ((child, clade ^ child), (clade ^ child, child)):
            found.add(full ^ one if one & 1 else one)
            waiting.append((other, one))
    return tuple(sorted(split for split in found if split & (split - 1) and split != full - 1))
