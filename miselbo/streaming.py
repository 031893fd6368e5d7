r"""Every bound of every nested ensemble S' = 1..S at every L' of a grid, from one pass over the samples.

The first S' members form an ensemble of their own with weights 1/S'. Scores arrive in pieces of any number of
samples. Kept are sums over l in units of a running maximum (so log-weights of any size are safe), the largest
log-weights for k-hat, and the values of finished grid points. Memory does not grow with L, apart from that
tail of 3 sqrt(S L) values. Results agree with :mod:`miselbo.bounds` on the first S' members and L' samples.

Monte Carlo variances are by the delta method; members draw independently. For L' draws of one member

    var(log 1/L' sum_l w_l) ~= (mean(w^2) / mean(w)^2 - 1) / (L' - 1),

the sample variance of w_l / mean(w) divided by L'. For functions of several means the linear influence of a
draw stands in place of w_l / mean(w).

Axes in shape comments: B examples, N = S nested ensembles, s the member that drew, j the member that scores.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from miselbo import bounds, diagnostics
from miselbo.errors import InputError


class RunningBounds:
    """Bounds of one batch of examples, updated sample by sample.

    Args:
        num_members: S.
        grid: the sample counts L' to report, increasing; the last one is L.

    Raises:
        InputError: S below 1, or a grid that is empty, not increasing or not of positive whole numbers.

    Example:
        >>> log_p, log_q = torch.randn(4, 3, 10), torch.randn(4, 3, 10, 3)
        >>> running = RunningBounds(num_members=3, grid=[1, 10])
        >>> for start in (0, 5):
        ...     running.update(log_p[:, :, start : start + 5], log_q[:, :, start : start + 5])
        >>> values = running.result()
        >>> values["miselbo"].shape                                     # [B, S', L']
        torch.Size([4, 3, 2])
        >>> torch.allclose(values["miselbo"][:, 2, 1], bounds.miselbo(log_p, log_q))
        True
    """

    def __init__(self, num_members: int, grid: Sequence[int]):
        if not isinstance(num_members, int) or num_members < 1:
            raise InputError(f"num_members must be a whole number of at least 1, got {num_members!r}")
        points = list(grid)
        whole = all(isinstance(point, int) and not isinstance(point, bool) and point >= 1 for point in points)
        if not points or not whole or points != sorted(set(points)):
            raise InputError(f"grid must list increasing whole numbers of at least 1, got {points}")
        self.num_members = num_members
        self.grid = points
        self.num_samples = 0
        self._state: _State | None = None
        self._finished: list[dict[str, Tensor]] = []

    @torch.no_grad()
    def update(self, log_p: Tensor, log_q: Tensor) -> None:
        """Absorb the next samples of the batch, any number of them.

        Args:
            log_p: [B, S, l].
            log_q: [B, S, l, S].

        Raises:
            InputError: dtype or shape, another B than before, or more samples than the grid's end. Nothing is
                absorbed then.
        """
        log_p, log_q = bounds.check_scores(log_p, log_q)
        if log_p.ndim != 3 or log_p.shape[1] != self.num_members:
            raise InputError(f"log_p must be [B, S, l] with S = {self.num_members}, got {list(log_p.shape)}")
        batch, _, samples = log_p.shape
        if self._state is not None and self._state.batch != batch:
            raise InputError(
                f"one RunningBounds takes one batch: began with B = {self._state.batch} examples, got {batch}"
            )
        if self.num_samples + samples > self.grid[-1]:
            raise InputError(
                f"the grid ends at L = {self.grid[-1]}: after {self.num_samples} samples got {samples} more"
            )
        if self._state is None:
            self._state = _State(log_p, 1 + diagnostics.tail_length(self.num_members * self.grid[-1]))
        start = 0
        while start < samples:  # cut at the grid points
            goal = self.grid[len(self._finished)]
            stop = min(samples, start + goal - self.num_samples)
            self._state.add(log_p[:, :, start:stop], log_q[:, :, start:stop])
            self.num_samples += stop - start
            start = stop
            if self.num_samples == goal:
                self._finished.append(self._state.values(goal))

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """All values, float64, examples first.

        Returns:
            A dictionary. For every nested ensemble and grid point, [B, S', L']:

            - ``miselbo``, ``joint_bound``, ``average_iwelbo``, ``average_elbo``, ``delta``, ``jsd``,
              ``slack``, and the Monte Carlo variance of each as ``<name>_var`` (NaN at L' = 1, where one
              draw cannot tell it);
            - ``ess`` and ``max_weight`` of the joint bound's weights p / q_mix over all S' L' draws;

            for every member alone, [B, S, L']: ``member_iwelbo``, ``member_elbo``, ``member_iwelbo_var``,
            ``member_elbo_var``, ``member_ess``, ``member_max_weight``;

            at L: ``pareto_k`` [B, S'] of the joint bound's weights, ``responsibility`` [B, S', S] (0 for
            members outside the ensemble), ``pairwise_jsd`` [B, S, S], and ``non_finite`` [B], the number of
            draws (s, l) whose log_p or own log_q is NaN or +inf, or own log_q -inf: counted, never dropped.

        Raises:
            InputError: fewer samples than the grid's end were given.
        """
        if self._state is None or self.num_samples < self.grid[-1]:
            raise InputError(
                f"the grid ends at L = {self.grid[-1]} but only {self.num_samples} samples were given: "
                f"call update until all are in"
            )
        stacked = {
            name: torch.stack([point[name] for point in self._finished], -1) for name in self._finished[0]
        }
        return {**stacked, **self._state.final_values(self.num_samples)}


class _State:
    """The sums over samples, [B, ...] each."""

    def __init__(self, like: Tensor, tail_size: int):
        self.batch, members = like.shape[:2]
        self.size = torch.arange(1, members + 1, device=like.device, dtype=like.dtype)  # S' of [N]
        order = torch.arange(members, device=like.device)
        self.inside = order <= order[:, None]  # [N, s]: member s belongs to nested ensemble N

        def zeros(*shape: int) -> Tensor:
            return like.new_zeros(self.batch, *shape)

        self.own = _WeightSums(zeros(members))  # p / q_s
        self.mixture = _WeightSums(zeros(members, members))  # p / q_mix, [B, N, s]
        self.cross = zeros(members, members)  # sum_l of their product, [B, N, s]
        self.elbo = _PlainSums(zeros(members))  # log p - log q_s
        self.divergence = _PlainSums(zeros(members, members))  # log q_s - log q_mix, [B, N, s]
        self.shares = _ShareSums(zeros(members, members), zeros(members, members, members))
        self.pairs = zeros(members, members)  # log q_s - log (q_s + q_j) / 2
        self.non_finite = zeros()
        self.tail = _Tail(tail_size)

    def add(self, log_p: Tensor, log_q: Tensor) -> None:
        """Absorb log_p [B, S, l] and log_q [B, S, l, S]."""
        own_q = bounds.own_density(log_q)
        # mixture of the first S' members, at the samples of every member: [B, N, s, l]
        log_mixture = log_q.logcumsumexp(-1).sub(self.size.log()).movedim(-1, 1).contiguous()
        log_w = log_p[:, None] - log_mixture

        own_w, own_scale = self.own.add(log_p - own_q)
        mixture_w, mixture_scale = self.mixture.add(log_w)
        self.cross = self.cross * (own_scale[:, None] * mixture_scale) + (own_w[:, None] * mixture_w).sum(-1)
        self.elbo.add(log_p - own_q)
        self.divergence.add(own_q[:, None] - log_mixture)
        self.pairs += bounds.log_ratio_to_pair(log_q).sum(2)
        bad = log_p.isnan() | (log_p == math.inf) | ~own_q.isfinite()
        self.non_finite += bad.sum((1, 2))

        outside = ~self.inside[:, :, None]  # [N, s, 1]
        # log of W q_j / q_mix, [B, N, j, s, l]; a NaN in log_q is in log_mixture of every N it belongs to
        log_w_over_mixture = (log_w - log_mixture).masked_fill(outside, -math.inf)
        log_density = log_q.permute(0, 3, 1, 2).contiguous().nan_to_num(nan=-math.inf, posinf=-math.inf)
        self.shares.add(log_w_over_mixture[:, :, None] + log_density[:, None])
        self.tail.add(log_w.masked_fill(outside, -math.inf).flatten(2))

    def values(self, n: int) -> dict[str, Tensor]:
        """Everything reported at a grid point of n samples: [B, N] or [B, s]."""
        own, mixture = self.own, self.mixture
        own_var = _sample_factor(n) * own.spread(n)
        mixture_var = _sample_factor(n) * mixture.spread(n)
        # influence of a draw on log mean(w_mixture) - log mean(w_own): the difference of two terms of mean 1
        products = n * self.cross / (mixture.first * own.first[:, None])
        difference = mixture.relative_square(n) + own.relative_square(n)[:, None] - 2 * products
        delta_var = _sample_factor(n) * difference.clamp(min=0)

        strata = (mixture.log_sum() - math.log(n)).masked_fill(~self.inside, -math.inf)
        log_total = strata.logsumexp(-1, keepdim=True)
        miselbo = self._average(mixture.log_sum() - math.log(n))
        average_iwelbo = self._average(own.log_sum()[:, None] - math.log(n))
        # weights of stratum s relative to the total of all strata
        log_unit = mixture.peak.masked_fill(~self.inside, -math.inf) - log_total - math.log(n)
        unit = log_unit.exp()
        first = (unit * mixture.first).where(self.inside, 0.0)
        second = (unit.square() * mixture.second).where(self.inside, 0.0)
        _, slack, slack_influence = self._responsibilities(n)
        return {
            "miselbo": miselbo,
            "miselbo_var": self._average(mixture_var) / self.size,
            "joint_bound": log_total.squeeze(-1) - self.size.log(),
            "joint_bound_var": _sample_factor(n) * n * (second - first.square() / n).clamp(min=0).sum(-1),
            "average_iwelbo": average_iwelbo,
            "average_iwelbo_var": self._average(own_var[:, None]) / self.size,
            "average_elbo": self._average(self.elbo.mean(n)[:, None]),
            "average_elbo_var": self._average(self.elbo.variance_of_mean(n)[:, None]) / self.size,
            "delta": miselbo - average_iwelbo,
            "delta_var": self._average(delta_var) / self.size,
            "jsd": self._average(self.divergence.mean(n)),
            "jsd_var": self._average(self.divergence.variance_of_mean(n)) / self.size,
            "slack": slack,
            "slack_var": _sample_factor(n) * n * slack_influence,
            "ess": 1 / second.sum(-1),
            "max_weight": unit.where(self.inside, 0.0).amax(-1),
            "member_iwelbo": own.log_sum() - math.log(n),
            "member_iwelbo_var": own_var,
            "member_elbo": self.elbo.mean(n),
            "member_elbo_var": self.elbo.variance_of_mean(n),
            "member_ess": own.first.square() / own.second,
            "member_max_weight": (own.peak - own.log_sum()).exp(),
        }

    def final_values(self, n: int) -> dict[str, Tensor]:
        """Everything reported at the end of the grid alone."""
        members = len(self.size)
        tail = self.tail.largest()
        half = 0.5 * self.pairs / n
        return {
            "responsibility": self._responsibilities(n)[0].exp(),
            "pairwise_jsd": half + half.mT,
            "pareto_k": torch.stack(
                [diagnostics.pareto_k_from_tail(tail[:, s], (s + 1) * n) for s in range(members)], -1
            ),
            "non_finite": self.non_finite,
        }

    def _average(self, values: Tensor) -> Tensor:
        """Mean over the members of each nested ensemble: [B, N or 1, s] -> [B, N]."""
        return values.where(self.inside, 0.0).sum(-1) / self.size

    def _responsibilities(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """log r [B, N, j], slack [B, N], and the sum of squares of the draws' influence on slack.

        slack = log A - mean_j log A_j + constant; y_j = W q_j / q_mix, A_j = sum_{s,l} y_j, A = sum_j A_j.
        So the influence of a draw is sum_j y_j (1/A - 1/(S' A_j)).
        """
        peak, first, second = self.shares.peak, self.shares.first, self.shares.second
        log_sums = (first.sum(-1).log() + peak).masked_fill(~self.inside, -math.inf)
        log_total = log_sums.logsumexp(-1, keepdim=True)
        log_r = (log_sums - log_total).masked_fill(~self.inside, -math.inf)
        slack = self._average(-self.size.log()[:, None] - log_r)
        relative = (peak - log_total).exp() - (peak - log_sums).exp() / self.size[:, None]
        both_inside = self.inside[:, :, None] & self.inside[:, None, :]  # [N, i or s, j]
        squares = (relative[..., None] * second * relative[:, :, None]).where(both_inside, 0.0).sum((-1, -2))
        sums = (relative[..., None] * first).where(both_inside, 0.0).sum(2)  # of each stratum s
        return log_r, slack, (squares - sums.square().sum(-1) / n).clamp(min=0)


def _sample_factor(n: int) -> float:
    """Mean square about the mean -> variance of a mean of n draws; NaN for n = 1."""
    return 1 / (n - 1) if n > 1 else math.nan


class _WeightSums:
    """sum_l w and sum_l w^2 in units of the largest w so far (its square), from log-weights."""

    def __init__(self, zeros: Tensor):
        self.peak = torch.full_like(zeros, -math.inf)
        self.first = zeros
        self.second = zeros.clone()

    def add(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        """Absorb log_w [..., l]; returns w in the new unit, and the old unit in terms of the new one."""
        self.peak, scale = _raise_peak(self.peak, log_w.amax(-1))
        w = (log_w - _unit(self.peak)[..., None]).exp()
        self.first = self.first * scale + w.sum(-1)
        self.second = self.second * scale.square() + w.square().sum(-1)
        return w, scale

    def log_sum(self) -> Tensor:
        """log sum_l w."""
        return self.first.log() + _unit(self.peak)

    def relative_square(self, n: int) -> Tensor:
        """mean(w^2) / mean(w)^2."""
        return n * self.second / self.first.square()

    def spread(self, n: int) -> Tensor:
        """mean(w^2) / mean(w)^2 - 1, the squared coefficient of variation."""
        return (self.relative_square(n) - 1).clamp(min=0)


class _ShareSums:
    """sum_l y_j [B, N, j, s], sum_{s,l} y_i y_j [B, N, i, j] of y_j = W q_j / q_mix, the largest as unit."""

    def __init__(self, zeros: Tensor, zeros_by_member: Tensor):
        self.peak = torch.full_like(zeros, -math.inf)
        self.first = zeros_by_member
        self.second = zeros_by_member.clone()

    def add(self, log_y: Tensor) -> None:
        """Absorb log_y [B, N, j, s, l], which is overwritten."""
        self.peak, scale = _raise_peak(self.peak, log_y.flatten(-2).amax(-1))
        y = log_y.sub_(_unit(self.peak)[..., None, None]).exp_()
        self.first = self.first * scale[..., None] + y.sum(-1)
        y = y.flatten(-2)
        self.second = self.second * (scale[..., None] * scale[..., None, :]) + y @ y.mT


class _PlainSums:
    """sum_l v and the sum of squares about the first draw, which keeps digits when v is far from 0."""

    def __init__(self, zeros: Tensor):
        self.first = zeros
        self.second = zeros.clone()
        self.origin: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """Absorb values [..., l]."""
        if self.origin is None:
            self.origin = _unit(values[..., 0])
        shifted = values - self.origin[..., None]
        self.first = self.first + shifted.sum(-1)
        self.second = self.second + shifted.square().sum(-1)

    def mean(self, n: int) -> Tensor:
        """1/n sum_l v."""
        return self.first / n + (0.0 if self.origin is None else self.origin)

    def variance_of_mean(self, n: int) -> Tensor:
        """Sample variance over l, divided by n."""
        return _sample_factor(n) * (self.second / n - (self.first / n).square()).clamp(min=0)


class _Tail:
    """The ``size`` largest log-weights per row."""

    def __init__(self, size: int):
        self.size = size
        self.pieces: list[Tensor] = []
        self.width = 0

    def add(self, log_w: Tensor) -> None:
        """Absorb log_w [..., l]; pieces are collected, and cut to size now and then."""
        self.pieces.append(log_w)
        self.width += log_w.shape[-1]
        if self.width > 4 * self.size:
            self.pieces = [self.largest()]
            self.width = self.pieces[0].shape[-1]

    def largest(self) -> Tensor:
        """The largest log-weights so far, [..., size] or fewer, in no order."""
        log_w = torch.cat(self.pieces, -1)
        return log_w.topk(min(self.size, log_w.shape[-1]), sorted=False).values


def _raise_peak(peak: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """The larger of both, and the old unit in terms of the new one (0 while nothing was summed)."""
    raised = torch.maximum(peak, seen)
    return raised, (peak - _unit(raised)).exp()


def _unit(peak: Tensor) -> Tensor:
    """The log of the unit that goes with a running maximum: the maximum, or 0 where it is not finite."""
    return peak.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
