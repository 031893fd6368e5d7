r"""The bounds: pure functions of two arrays, any leading axes (data points first), nats.

    log_p[..., s, l]    = log p(x, z_{s,l}),            z_{s,l} ~ q_s(z | x)
    log_q[..., s, l, j] = log q_j(z_{s,l} | x)

Member s of S, importance sample l of L; q_mix = sum_j w_j q_j with weights w_j (default 1/S). Source of the
bound and of delta = jsd at L = 1: Kviman et al., "Multiple importance sampling ELBO and deep ensembles of
variational approximations", AISTATS 2022, arXiv 2202.10951; numbers as (4.2.8) are those of Kviman's thesis (KTH,
2026), which restates it (docs/equations.md has all of them). With one member miselbo, joint_bound and
average_iwelbo are the IWELBO; at L = 1 that is the ELBO.

Every function computes and returns float64 whatever the floating dtype of its input, works through
log-sum-exp, and is differentiable. A sample may have zero density under p (log_p = -inf) or under members
other than its own (log_q[s, l, j] = -inf, j != s). NaN propagates. A member with zero weight is left out.

All functions raise :class:`miselbo.errors.InputError` for a dtype, a shape or weights that do not fit.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from miselbo.errors import InputError

Weights = Tensor | Sequence[float] | None

WEIGHT_SUM_TOLERANCE = 1e-6


def iwelbo(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""Importance weighted ELBO of each member: log 1/L sum_l p / q_s at its own samples.

    Burda, Grosse and Salakhutdinov, arXiv 1509.00519. L = 1 is the ELBO from one sample.

    Args:
        log_p: [..., S, L].
        log_q: [..., S, L, S].

    Returns:
        [..., S].

    Raises:
        InputError: dtype or shape.

    Example:
        >>> log_p = torch.tensor([[-1.0, -3.0]])                # one member, two samples
        >>> iwelbo(log_p, torch.full((1, 2, 1), -2.0)).exp()    # (e + 1/e) / 2
        tensor([1.5431], dtype=torch.float64)
    """
    log_p, log_q = check_scores(log_p, log_q)
    return _log_mean_exp(log_p - own_density(log_q))


def elbo(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""ELBO of each member: 1/L sum_l (log p - log q_s) at its own samples.

    Args:
        log_p: [..., S, L].
        log_q: [..., S, L, S].

    Returns:
        [..., S].

    Raises:
        InputError: dtype or shape.

    Example:
        >>> elbo(torch.tensor([[-1.0, -3.0]]), torch.full((1, 2, 1), -2.0))
        tensor([0.], dtype=torch.float64)
    """
    log_p, log_q = check_scores(log_p, log_q)
    return (log_p - own_density(log_q)).mean(-1)


def average_iwelbo(log_p: Tensor, log_q: Tensor, weights: Weights = None) -> Tensor:
    r"""The paper's baseline: sum_s w_s log 1/L sum_l p / q_s, each member alone.

    Args:
        log_p: [..., S, L].
        log_q: [..., S, L, S].
        weights: [S], default 1/S.

    Returns:
        [...].

    Raises:
        InputError: dtype, shape or weights.

    Example:
        >>> average_iwelbo(torch.zeros(2, 3), torch.zeros(2, 3, 2))
        tensor(0., dtype=torch.float64)
    """
    log_p, log_q, w = _weighted_scores(log_p, log_q, weights)
    return (w * iwelbo(log_p, log_q)).sum(-1)


def average_elbo(log_p: Tensor, log_q: Tensor, weights: Weights = None) -> Tensor:
    r"""sum_s w_s 1/L sum_l (log p - log q_s), each member alone.

    Args:
        log_p: [..., S, L].
        log_q: [..., S, L, S].
        weights: [S], default 1/S.

    Returns:
        [...].

    Raises:
        InputError: dtype, shape or weights.

    Example:
        >>> average_elbo(torch.zeros(2, 3), torch.ones(2, 3, 2))
        tensor(-1., dtype=torch.float64)
    """
    log_p, log_q, w = _weighted_scores(log_p, log_q, weights)
    return (w * elbo(log_p, log_q)).sum(-1)


def miselbo(log_p: Tensor, log_q: Tensor, weights: Weights = None) -> Tensor:
    r"""The paper's bound (4.2.8): sum_s w_s log 1/L sum_l p / q_mix at the samples of each member s; L = 1 is (4.2.7).

    q_mix = sum_j w_j q_j. The log stands inside the average over members. As L grows the bound tends to
    log p(x) - :func:`slack`.

    Args:
        log_p: [..., S, L].
        log_q: [..., S, L, S].
        weights: [S], default 1/S.

    Returns:
        [...].

    Raises:
        InputError: dtype, shape or weights.

    Example:
        >>> log_q = torch.tensor([[[0.0, -math.inf]], [[-math.inf, 0.0]]])    # two members, disjoint supports
        >>> miselbo(torch.zeros(2, 1), log_q)                                 # log 2
        tensor(0.6931, dtype=torch.float64)
    """
    log_p, log_q, w = _weighted_scores(log_p, log_q, weights)
    return (w * _log_mean_exp(log_p - _log_mixture(log_q, w))).sum(-1)


def joint_bound(log_p: Tensor, log_q: Tensor, weights: Weights = None) -> Tensor:
    r"""Stratified IWELBO: log sum_s w_s 1/L sum_l p / q_mix, the log outside the average over members.

    Morningstar et al., arXiv 2003.01687. On the same samples it is at least :func:`miselbo` (Jensen), and it
    tends to log p(x) as L grows.

    Args:
        log_p: [..., S, L].
        log_q: [..., S, L, S].
        weights: [S], default 1/S.

    Returns:
        [...].

    Raises:
        InputError: dtype, shape or weights.

    Example:
        >>> log_p = torch.tensor([[0.0], [-math.inf]])                        # p is zero at the second sample
        >>> log_q = torch.tensor([[[0.0, -math.inf]], [[-math.inf, 0.0]]])
        >>> joint_bound(log_p, log_q), miselbo(log_p, log_q)
        (tensor(0., dtype=torch.float64), tensor(-inf, dtype=torch.float64))
    """
    log_p, log_q, w = _weighted_scores(log_p, log_q, weights)
    return _log_sum_exp(w.log() + _log_mean_exp(log_p - _log_mixture(log_q, w)), -1)


def jsd(log_q: Tensor, weights: Weights = None) -> Tensor:
    r"""Jensen-Shannon divergence of the members: sum_s w_s 1/L sum_l (log q_s - log q_mix).

    H[q_mix] - sum_s w_s H[q_s] (Theorem 1), the mutual information of member and sample (4.2.15); log S for disjoint
    supports (Theorem 2).
    In [0, H(w)] in expectation, so at most log S; an estimate from finite samples may leave the range and is
    not clipped.

    Args:
        log_q: [..., S, L, S].
        weights: [S], default 1/S.

    Returns:
        [...].

    Raises:
        InputError: dtype, shape or weights.

    Example:
        >>> jsd(torch.tensor([[[0.0, -math.inf]], [[-math.inf, 0.0]]]))
        tensor(0.6931, dtype=torch.float64)
    """
    log_q = check_densities(log_q)
    log_q, w = _keep_weighted(log_q, weights)
    return (w * (own_density(log_q) - _log_mixture(log_q, w)).mean(-1)).sum(-1)


def delta(log_p: Tensor, log_q: Tensor, weights: Weights = None) -> Tensor:
    r"""What scoring as one mixture adds: miselbo - average_iwelbo.

    At L = 1 it equals :func:`jsd` sample by sample (Theorem 1). For L > 1 it may be negative, and its limit is -slack.
    Where all L draws of a member have p = 0 both bounds are -inf and their difference is NaN.

    Args:
        log_p: [..., S, L].
        log_q: [..., S, L, S].
        weights: [S], default 1/S.

    Returns:
        [...].

    Raises:
        InputError: dtype, shape or weights.

    Example:
        >>> log_q = torch.tensor([[[0.0, -1.0]], [[-2.0, 0.0]]])
        >>> delta(torch.tensor([[-5.0], [3.0]]), log_q), jsd(log_q)
        (tensor(0.4731, dtype=torch.float64), tensor(0.4731, dtype=torch.float64))
    """
    return miselbo(log_p, log_q, weights) - average_iwelbo(log_p, log_q, weights)


def responsibilities(log_p: Tensor, log_q: Tensor, weights: Weights = None) -> Tensor:
    r"""Posterior responsibility of each member, r_j = E_{p(z | x)}[w_j q_j / q_mix].

    Estimated by self-normalised importance sampling from the mixture, the member summed out (Rao-Blackwell):

        r_j = sum_{s,l} W_{s,l} w_j q_j(z_{s,l}) / q_mix(z_{s,l}),
        W_{s,l} proportional to w_s p(x, z_{s,l}) / q_mix(z_{s,l}), summing to 1 over s and l.

    Sums to 1 over members; NaN where p = 0 at every sample.

    Args:
        log_p: [..., S, L].
        log_q: [..., S, L, S].
        weights: [S], default 1/S.

    Returns:
        [..., S]; 0 for a member with weight 0.

    Raises:
        InputError: dtype, shape or weights.

    Example:
        >>> log_p = torch.tensor([[0.9], [0.1]]).log()
        >>> log_q = torch.tensor([[[0.0, -math.inf]], [[-math.inf, 0.0]]])
        >>> responsibilities(log_p, log_q)
        tensor([0.9000, 0.1000], dtype=torch.float64)
    """
    log_p, log_q = check_scores(log_p, log_q)
    all_weights, kept = _check_weights(weights, log_q)
    log_p, log_q, w = _weighted_scores(log_p, log_q, weights)
    r = _log_responsibilities(log_p, log_q, w).exp()
    return r.new_zeros((*r.shape[:-1], len(all_weights))).index_copy(-1, kept, r)


def slack(log_p: Tensor, log_q: Tensor, weights: Weights = None) -> Tensor:
    r"""What :func:`miselbo` loses for good: KL(w || r) = sum_s w_s log(w_s / r_s), r = responsibilities.

    For a sample of member s, E[p / q_mix] = p(x) r_s / w_s with r the :func:`responsibilities`. So the inner
    average of miselbo tends to p(x) r_s / w_s as L grows, and

        lim_L miselbo = sum_s w_s (log p(x) + log(r_s / w_s)) = log p(x) - KL(w || r),

    which is log p(x) only if every member carries its weight's share of the posterior. joint_bound tends to
    log p(x), and so does average_iwelbo when every q_s covers the posterior; then lim_L delta = -slack.
    Where the slack is small, its estimate from few samples is biased upwards.

    Args:
        log_p: [..., S, L].
        log_q: [..., S, L, S].
        weights: [S], default 1/S.

    Returns:
        [...], at least 0 up to rounding; inf where a member with positive weight has no responsibility.

    Raises:
        InputError: dtype, shape or weights.

    Example:
        >>> log_p = torch.tensor([[0.9], [0.1]]).log()
        >>> log_q = torch.tensor([[[0.0, -math.inf]], [[-math.inf, 0.0]]])
        >>> slack(log_p, log_q)                                 # log(1/2) - (log 0.9 + log 0.1) / 2
        tensor(0.5108, dtype=torch.float64)
    """
    log_p, log_q, w = _weighted_scores(log_p, log_q, weights)
    return (w * (w.log() - _log_responsibilities(log_p, log_q, w))).sum(-1)


def pairwise_jsd(log_q: Tensor) -> Tensor:
    r"""Jensen-Shannon divergence of each pair of members, each pair as a uniform mixture of two.

    JSD(q_i, q_j) = 1/2 mean_l log(q_i / m) at the samples of i + 1/2 mean_l log(q_j / m) at the samples of j,
    m = (q_i + q_j) / 2.

    Args:
        log_q: [..., S, L, S].

    Returns:
        [..., S, S], symmetric, 0 on the diagonal.

    Raises:
        InputError: dtype or shape.

    Example:
        >>> pairwise_jsd(torch.tensor([[[0.0, -math.inf]], [[-math.inf, 0.0]]]))
        tensor([[0.0000, 0.6931],
                [0.6931, 0.0000]], dtype=torch.float64)
    """
    log_q = check_densities(log_q)
    half = 0.5 * log_ratio_to_pair(log_q).mean(-2)
    return half + half.transpose(-1, -2)


# What the functions above share ---------------------------------------------------------------------------


def own_density(log_q: Tensor) -> Tensor:
    """log q_s at the samples of member s: [..., S, L] of [..., S, L, S].

    Example:
        >>> own_density(torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]))
        tensor([[1.],
                [4.]])
    """
    return log_q.diagonal(dim1=-3, dim2=-1).transpose(-1, -2)


def log_ratio_to_pair(log_q: Tensor) -> Tensor:
    """log q_s - log (q_s + q_j) / 2 at the samples of member s: [..., S, L, S], 0 for j = s.

    Example:
        >>> log_ratio_to_pair(torch.tensor([[[0.0, -math.inf]], [[0.0, 0.0]]]))[0]
        tensor([[0.0000, 0.6931]])
    """
    difference = log_q - own_density(log_q).unsqueeze(-1)
    # log(1 + exp(d)) is d to the last digit of float64 above 40
    return math.log(2) - torch.nn.functional.softplus(difference, threshold=40)


def check_scores(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Both arrays in float64 after checking that log_p is [..., S, L] and log_q is [..., S, L, S].

    Raises:
        InputError: dtype or shape, naming the axis.

    Example:
        >>> check_scores(torch.zeros(2, 5), torch.zeros(2, 4, 2))
        Traceback (most recent call last):
        ...
        miselbo.errors.InputError: log_p and log_q differ on axis L (samples): 5 in log_p [..., S, L], ...
    """
    log_q = check_densities(log_q)
    log_p = _to_float64(log_p, "log_p", "[..., S, L]", 2)
    if log_p.ndim != log_q.ndim - 1:
        raise InputError(
            f"log_q must have one axis more than log_p: expected log_p [..., S, L] and log_q [..., S, L, S], "
            f"got shapes {list(log_p.shape)} and {list(log_q.shape)}"
        )
    names = [f"{axis} (leading)" for axis in range(log_p.ndim - 2)] + ["S (members)", "L (samples)"]
    for name, size_p, size_q in zip(names, log_p.shape, log_q.shape[:-1], strict=True):
        if size_p != size_q:
            raise InputError(
                f"log_p and log_q differ on axis {name}: {size_p} in log_p [..., S, L], {size_q} in log_q "
                f"[..., S, L, S]; got shapes {list(log_p.shape)} and {list(log_q.shape)}"
            )
    if log_p.device != log_q.device:
        raise InputError(f"log_p and log_q must be on one device, got {log_p.device} and {log_q.device}")
    return log_p, log_q


def check_densities(log_q: Tensor) -> Tensor:
    """log_q in float64 after checking that it is [..., S, L, S] with S, L >= 1.

    Raises:
        InputError: dtype or shape, naming the axis.

    Example:
        >>> check_densities(torch.zeros(2, 4, 3))
        Traceback (most recent call last):
        ...
        miselbo.errors.InputError: log_q must score ... S = 2 on the third axis from the end ... has 3...
    """
    log_q = _to_float64(log_q, "log_q", "[..., S, L, S]", 3)
    members, samples, scored = log_q.shape[-3:]
    if members != scored:
        raise InputError(
            f"log_q must score every sample under all S members, [..., S, L, S]: S = {members} on the third "
            f"axis from the end but the last axis has {scored}; got shape {list(log_q.shape)}"
        )
    if members == 0 or samples == 0:
        raise InputError(f"log_q [..., S, L, S] needs S >= 1 and L >= 1, got S = {members}, L = {samples}")
    return log_q


def _to_float64(values: Tensor, name: str, axes: str, least_ndim: int) -> Tensor:
    values = torch.as_tensor(values)
    if not values.is_floating_point():
        raise InputError(f"{name} must be floating-point log-densities, got {values.dtype}: use .double()")
    if values.ndim < least_ndim:
        raise InputError(f"{name} must be {axes}, at least {least_ndim} axes, got shape {list(values.shape)}")
    return values.double()


def _check_weights(weights: Weights, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """All weights [S] in float64 and the indices of the positive ones."""
    size = log_q.shape[-1]
    if weights is None:
        return log_q.new_full((size,), 1 / size), torch.arange(size, device=log_q.device)
    w = torch.as_tensor(weights, dtype=log_q.dtype, device=log_q.device)  # a list keeps its digits
    if w.shape != (size,):
        raise InputError(f"weights must be [S] = [{size}], one per member, got shape {list(w.shape)}")
    if (w < 0).any():
        raise InputError(f"weights must not be negative, got {w.tolist()}")
    total = w.sum().item()
    if not abs(total - 1) <= WEIGHT_SUM_TOLERANCE:
        raise InputError(f"weights must sum to 1 within {WEIGHT_SUM_TOLERANCE}, got {total}: divide by it")
    return w, w.nonzero().squeeze(-1)


def _keep_weighted(log_q: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """log_q and weights of the members with positive weight."""
    w, kept = _check_weights(weights, log_q)
    if len(kept) < len(w):
        log_q, w = log_q.index_select(-3, kept).index_select(-1, kept), w[kept]
    return log_q, w


def _weighted_scores(log_p: Tensor, log_q: Tensor, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """Checked log_p, log_q and weights of the members with positive weight."""
    log_p, log_q = check_scores(log_p, log_q)
    w, kept = _check_weights(weights, log_q)
    if len(kept) < len(w):
        log_p = log_p.index_select(-2, kept)
    return log_p, *_keep_weighted(log_q, weights)


def _log_mixture(log_q: Tensor, w: Tensor) -> Tensor:
    """log sum_j w_j q_j: [..., S, L]."""
    return _log_sum_exp(log_q + w.log(), -1)


def _log_responsibilities(log_p: Tensor, log_q: Tensor, w: Tensor) -> Tensor:
    log_mixture = _log_mixture(log_q, w)
    log_weight = w.log().unsqueeze(-1) + log_p - log_mixture
    log_share = w.log() + log_q - log_mixture.unsqueeze(-1)
    log_r = _log_sum_exp((log_weight.unsqueeze(-1) + log_share).flatten(-3, -2), -2)
    return log_r - _log_sum_exp(log_weight.flatten(-2), -1).unsqueeze(-1)


def _log_mean_exp(values: Tensor) -> Tensor:
    return _log_sum_exp(values, -1) - math.log(values.shape[-1])


def _log_sum_exp(values: Tensor, dim: int) -> Tensor:
    """torch.logsumexp whose gradient is 0, not NaN, where every value is -inf."""
    empty = (values == -math.inf).all(dim, keepdim=True)
    total = torch.logsumexp(values.masked_fill(empty, 0.0), dim)
    return total.masked_fill(empty.squeeze(dim), -math.inf)
