r"""Multilevel: the expectation of every bound at L draws from few examples with many draws and many with few.

With f_n any bound from n draws per member, levels n_0 < n_1 < ... < n_K = L, each a multiple of the one before,

    Y_0 = f_{n_0},    Y_k = f_{n_k} - mean over the n_k / n_{k-1} blocks of its draws of f_{n_{k-1}},
    E f_{n_j} = sum_{k <= j} E Y_k    for every j,

so level k needs only as many examples as its correction Y_k varies (Giles, "Multilevel Monte Carlo path simulation",
Operations Research 56, 2008; nested expectations with antithetic halves: Goda and Ishikawa, arXiv 1908.08273).
Quantities that are plain means of draws (ELBO, JSD) have no corrections. How many examples and how large the error is:
:mod:`miselbo.bounds.levels`.

Axes in shape comments: B examples, n draws, S members, N = S nested ensembles of the first S' members.
"""

import math
from itertools import accumulate

import torch
from torch import Tensor

from miselbo.bounds.equations import check_scores, log_ratio_to_pair, own_density
from miselbo.bounds.subsets import MOST_MEMBERS, RunningSubsets
from miselbo.errors import InputError

FACTORS = (2, 3, 5, 7)  # between neighbouring levels


def chain(num_samples: int) -> tuple[int, ...]:
    """Draws of every level, the last one L: from 1 by the factors 2, 3, 5, 7 of L, small ones first.

    Raises:
        InputError: L has a larger prime factor.

    Example:
        >>> chain(16), chain(100), chain(1)
        ((1, 2, 4, 8, 16), (1, 2, 4, 20, 100), (1,))
    """
    levels, rest = [1], num_samples
    for factor in FACTORS:
        while rest % factor == 0 and rest > 1:
            rest //= factor
            levels.append(levels[-1] * factor)
    if rest != 1:
        near = 2 ** max(0, round(math.log2(num_samples)))
        raise InputError(
            f"multilevel needs a number of samples whose prime factors are 2, 3, 5 and 7, got {num_samples} (factor "
            f"{rest}): take {near}"
        )
    return tuple(levels)


@torch.no_grad()
def values(log_p: Tensor, log_q: Tensor, subsets: bool = True) -> dict[str, Tensor]:
    """Every bound of n draws.

    Args:
        log_p: [B, S, n].
        log_q: [B, S, n, S].
        subsets: those of every subset too, from 2 to 8 members.

    Returns:
        As from :meth:`miselbo.bounds.running.RunningBounds.result` at L' = n, [B, S'] or of the members [B, S]:
        ``miselbo``, ``joint_bound``, ``average_iwelbo``, ``average_elbo``, ``delta``, ``jsd``, ``slack``,
        ``member_iwelbo``, ``member_elbo``, ``responsibility`` [B, S', S], ``pairwise_jsd`` [B, S, S];
        ``joint_gain`` = joint_bound - miselbo; and ``subset_*`` of :class:`miselbo.bounds.subsets.RunningSubsets`.

    Raises:
        InputError: dtype or shape.

    Example:
        >>> from miselbo import bounds
        >>> log_p, log_q = torch.randn(4, 3, 8), torch.randn(4, 3, 8, 3)
        >>> torch.allclose(values(log_p, log_q)["miselbo"][:, 2], bounds.miselbo(log_p, log_q))
        True
    """
    log_p, log_q = check_scores(log_p, log_q)
    size, n = log_p.shape[1:]
    order = torch.arange(size, device=log_p.device)
    inside = order <= order[:, None]  # [N, s]
    count = inside.sum(1).to(log_p)
    own = own_density(log_q)
    log_density = log_q.movedim(-1, 1)  # [B, j, s, n]
    mixture = torch.stack(list(accumulate(log_density.unbind(1), torch.logaddexp)), 1)
    mixture = mixture - count.log()[:, None, None]  # [B, N, s, n]
    log_w = log_p[:, None] - mixture

    def average(each: Tensor) -> Tensor:
        return each.where(inside, 0.0).sum(-1) / count

    strata = log_w.logsumexp(-1) - math.log(n)
    iwelbo = (log_p - own).logsumexp(-1) - math.log(n)
    elbo = (log_p - own).mean(-1)
    joint = strata.masked_fill(~inside, -math.inf).logsumexp(-1) - count.log()
    shares = (log_w - mixture)[:, :, None] + log_density[:, None]  # W q_j / q_mix, [B, N, j, s, n]
    shares = shares.masked_fill(~inside[:, None, :, None], -math.inf).flatten(-2).logsumexp(-1)
    shares = shares.masked_fill(~inside, -math.inf)
    log_r = (shares - shares.logsumexp(-1, keepdim=True)).masked_fill(~inside, -math.inf)
    half = 0.5 * log_ratio_to_pair(log_q).mean(-2)
    found = {
        "miselbo": average(strata),
        "joint_bound": joint,
        "average_iwelbo": average(iwelbo[:, None]),
        "average_elbo": average(elbo[:, None]),
        "jsd": average((own[:, None] - mixture).mean(-1)),
        "slack": average(-count.log()[:, None] - log_r),
        "member_iwelbo": iwelbo,
        "member_elbo": elbo,
        "responsibility": log_r.exp(),
        "pairwise_jsd": half + half.mT,
    }
    found["delta"] = found["miselbo"] - found["average_iwelbo"]
    found["joint_gain"] = joint - found["miselbo"]
    if subsets and 2 <= size <= MOST_MEMBERS:
        running = RunningSubsets(size, n)
        running.update(log_p, log_q)
        found |= running.result()
    return found


def corrections(log_p: Tensor, log_q: Tensor, blocks: int, subsets: bool = True) -> dict[str, Tensor]:
    """f_n and Y_k of every quantity.

    Args:
        log_p: [B, S, n].
        log_q: [B, S, n, S].
        blocks: n_k / n_{k-1}, into which the draws are cut in order; 0 at level 0.
        subsets: as in :func:`values`.

    Returns:
        Each quantity of :func:`values` as [2, B, ...]: f_n and Y (at level 0 both are f_n).

    Raises:
        InputError: dtype or shape, or blocks that do not divide n.

    Example:
        >>> log_p, log_q = torch.randn(4, 2, 8), torch.randn(4, 2, 8, 2)
        >>> fine, correction = corrections(log_p, log_q, 2)["miselbo"]
        >>> halves = [values(log_p[..., i : i + 4], log_q[..., i : i + 4, :])["miselbo"] for i in (0, 4)]
        >>> torch.allclose(correction, fine - sum(halves) / 2)
        True
    """
    fine = values(log_p, log_q, subsets)
    if blocks == 0:
        return {name: torch.stack([value, value]) for name, value in fine.items()}
    batch, _, n = log_p.shape
    if n % blocks:
        raise InputError(f"{n} draws cannot be cut into {blocks} blocks of one size")
    p = log_p.unflatten(2, (blocks, -1)).transpose(1, 2).flatten(0, 1)
    q = log_q.unflatten(2, (blocks, -1)).transpose(1, 2).flatten(0, 1)
    coarse = {
        name: value.unflatten(0, (batch, blocks)).mean(1) for name, value in values(p, q, subsets).items()
    }
    return {name: torch.stack([value, value - coarse[name]]) for name, value in fine.items()}
