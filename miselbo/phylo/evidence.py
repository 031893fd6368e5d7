"""log Z = log p(Y) between two sides that hold without an assumption on tails, from q's draws and a posterior's.

With the weights W = p / q_mix at a point (tau, x), whoever drew it:

    from q_mix:          E[W]   = Z,   so by Markov   log Z >= mean_r log J_r - log(1/d) / R,   J_r the mean of W
    from the posterior:  E[1/W] = 1/Z, so by Markov   log Z <= log(1/d) / C - mean_c log I_c,   I_c the mean of 1/W

each with probability 1 - d over R independent replicates, C independent chains. The upper side assumes that a chain is
in its stationary state, no more: its draws may depend on each other. Trees that q cannot draw have W = inf there, as it
should be. Between the two stands the bridge estimate of Meng and Wong (1996): it has an error, but no certificate.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from miselbo.errors import InputError
from miselbo.phylo.text.newick import Topology
from miselbo.protocols import EnsembleForm

ITERATIONS = 1000
Chain = tuple[
    Sequence[Topology], Tensor
]  # topologies, and log branch lengths [M, 2n - 3] in the order of edge_splits


def log_mean(values: np.ndarray) -> np.ndarray:
    """Log-mean-exp over the last axis."""
    return np.asarray(np.logaddexp.reduce(values, axis=-1) - math.log(values.shape[-1]))


def lower(log_weight: np.ndarray, risk: float) -> float:
    """The lower side.

    Args:
        log_weight: [R, L] of q's draws, nats.
        risk: d.

    Example:
        >>> round(lower(np.full((10, 5), -7.0), 0.05), 4)  # - log(20) / 10
        -7.2996
    """
    return float(log_mean(log_weight).mean() + math.log(risk) / len(log_weight))


def upper(log_weights: Sequence[np.ndarray], risk: float) -> float:
    """The upper side, from [M] of every chain's draws.

    Example:
        >>> round(upper([np.full(5, -7.0)] * 10, 0.05), 4)
        -6.7004
    """
    means = [float(log_mean(-chain)) for chain in log_weights]
    return -sum(means) / len(means) - math.log(risk) / len(means)


def bridge(from_q: np.ndarray, from_posterior: np.ndarray) -> float:
    """Estimate of log Z with the optimal bridge between q and the posterior, from log weights of either's draws.

    The root r = Z of mean_q [W / (s W + (1 - s) r)] = r mean_posterior [1 / (s W + (1 - s) r)], with s the posterior's
    share of all draws, by iteration.

    Example:
        >>> round(bridge(np.full(3, -7.0), np.full(4, -7.0)), 6)
        -7.0
    """
    share = len(from_posterior) / (len(from_posterior) + len(from_q))
    a, b, value = math.log(share), math.log1p(-share), float(log_mean(from_q))
    for _ in range(ITERATIONS):
        above = log_mean(from_q - np.logaddexp(a + from_q, b + value))
        below = log_mean(-np.logaddexp(a + from_posterior, b + value))
        step, value = abs(float(above - below) - value), float(above - below)
        if step < 1e-12 * max(1.0, abs(value)):
            break
    return value


def bridge_error(from_q: np.ndarray, chains: Sequence[np.ndarray]) -> float:
    """Standard error of :func:`bridge`, leaving out one replicate, then one chain; NaN with fewer than two of them."""
    if len(from_q) < 2 or len(chains) < 2:
        return math.nan
    every = np.concatenate(list(chains))
    rows = range(len(from_q))
    without_q = [bridge(from_q[[r for r in rows if r != left]].ravel(), every) for left in rows]
    without_chain = [
        bridge(from_q.ravel(), np.concatenate([chain for c, chain in enumerate(chains) if c != left]))
        for left in range(len(chains))
    ]
    return math.sqrt(sum((len(part) - 1) * float(np.var(part)) for part in (without_q, without_chain)))


@torch.no_grad()
def two_sided(
    ensemble: EnsembleForm,
    chains: Sequence[Chain],
    seed: int,
    risk: float = 0.05,
    replicates: int = 10,
    samples: int = 1000,
) -> dict[str, float]:
    """Both sides and the bridge estimate of log Z, nats.

    Args:
        ensemble: of :class:`miselbo.phylo.vbpi.Vbpi`.
        chains: independent samples of the posterior of the very same model and prior.
        seed: of q's draws.
        risk: probability that log Z is not between the two sides, half of it for either.
        replicates: R of q's draws.
        samples: L of every member in a replicate.

    Returns:
        ``lower``, ``upper``, ``bridge``, ``bridge_se``, ``q_outside``: share of the chains' draws that q cannot draw.

    Raises:
        InputError: no chain, or lengths of another shape than the topologies.
    """
    if not chains:
        raise InputError(
            "the upper side of log Z needs draws of at least one chain of the posterior, got none"
        )
    target, size = ensemble.target, len(ensemble.members)
    log_p, log_q = [], []
    index = torch.arange(replicates)
    for s, member in enumerate(ensemble.members):
        found = target.draw(
            torch.zeros(replicates, 0),
            member,
            None,
            target.noise(index, torch.arange(samples), seed, index, s),
        )
        log_p.append(found.log_p)
        log_q.append(torch.stack([other.log_prob(None, found) for other in ensemble.members]).logsumexp(0))
    from_q = (torch.cat(log_p) - torch.cat(log_q) + math.log(size)).T.numpy()
    weights = [chain_weights(ensemble, *chain) for chain in chains]
    every = np.concatenate(weights)
    return {
        "lower": lower(from_q, risk / 2),
        "upper": upper(weights, risk / 2),
        "bridge": bridge(from_q.ravel(), every),
        "bridge_se": bridge_error(from_q, weights),
        "q_outside": float(np.isinf(every).mean()),
    }


def chain_weights(ensemble: EnsembleForm, topologies: Sequence[Topology], x: Tensor) -> np.ndarray:
    """log p / q_mix [M] of a posterior's trees and log lengths [M, 2n - 3]; inf where no member has the topology."""
    target, support = ensemble.target, ensemble.target.spec.support
    if x.shape != (len(topologies), 2 * target.num_taxa - 3):
        raise InputError(
            f"a chain of {len(topologies)} trees of {target.num_taxa} taxa needs log branch lengths of shape "
            f"{(len(topologies), 2 * target.num_taxa - 3)}, got {tuple(x.shape)}"
        )
    known = {topology: support.holds(topology) for topology in set(topologies)}
    inside = [row for row, topology in enumerate(topologies) if known[topology]]
    weight = np.full(len(topologies), np.inf)
    if inside:
        trees, lengths = support.trees([topologies[row] for row in inside]), x[inside].double()
        log_q = torch.stack(
            [m.sbn.log_prob(trees) + m.branches.log_prob(trees, lengths) for m in ensemble.members]
        )
        log_mixture = log_q.logsumexp(0) - math.log(len(ensemble.members))
        weight[inside] = (target.log_joint(trees, lengths) - log_mixture).numpy()
    return weight
