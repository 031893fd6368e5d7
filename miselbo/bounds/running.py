r"""Every bound of every nested ensemble S' = 1..S at every L' of a grid, from one pass over the samples.

The first S' members form an ensemble of their own with weights 1/S'. Scores arrive in pieces of any number of
samples. Kept are sums over l in units of a running maximum (so log-weights of any size are safe), the largest
log-weights for k-hat, and the values of finished grid points. Memory does not grow with L, apart from that
tail of 3 sqrt(S L) values. At L results agree with :mod:`miselbo.bounds` on the first S' members.

Below L every bound, member and JSD is a mean over floor(L / L') disjoint blocks of L' draws
(:mod:`miselbo.bounds.blocks`): the expectation of the first block with less variance. What tells of the weights
(slack, ess, max_weight, k-hat, broken draws) is that of the first L' draws.

Monte Carlo variances: members draw independently. Those of log-means (MISELBO, joint bound, IWELBO, Delta) are
by the delete-one jackknife (:mod:`miselbo.bounds.jackknife`), which knows no ceiling where a few weights hold
the sum, or the spread over ten blocks or more; those of plain means are the sample variance over the draws; slack's
is by the delta method.

Axes in shape comments: B examples, N = S nested ensembles, s the member that drew, j the member that scores.
"""

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from miselbo import bounds
from miselbo.bounds import diagnostics, values
from miselbo.bounds.blocks import Blocks
from miselbo.bounds.nested import Nested
from miselbo.bounds.quantities import QUANTITIES
from miselbo.bounds.sums import PlainSums, ShareSums, Tail, WeightSums
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
        self._state: Sums | None = None
        used = [self.grid[-1] // point * point for point in points]
        self._stops = sorted({*points, *used})
        self._used = used
        self._diagnosed: dict[int, dict[str, Tensor]] = {}
        self._averaged: dict[int, dict[str, Tensor]] = {}

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
            self._state = Sums(log_p, self.grid)
        start = 0
        while start < samples:  # cut at the grid points, and at the ends of their last blocks
            goal = next(stop for stop in self._stops if stop > self.num_samples)
            stop = min(samples, start + goal - self.num_samples)
            self._state.add(log_p[:, :, start:stop], log_q[:, :, start:stop])
            self.num_samples += stop - start
            start = stop
            if self.num_samples in self.grid:
                self._diagnosed[self.num_samples] = self._state.diagnostics(self.num_samples)
            if self.num_samples in self._used:
                self._averaged[self.num_samples] = self._state.means(self.num_samples)

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """All values, float64, examples first.

        Returns:
            A dictionary. For every nested ensemble and grid point, [B, S', L']:

            - ``miselbo``, ``joint_bound``, ``average_iwelbo``, ``average_elbo``, ``delta``, ``jsd``,
              ``slack``, and the Monte Carlo variance of each as ``<name>_var`` (NaN where unknown: from one draw,
              with broken scores, where one weight is the whole sum);
            - ``ess``, ``max_weight`` and ``pareto_k`` of the joint bound's weights p / q_mix over all S' L'
              draws (k-hat is NaN below 25 draws);
            - ``non_finite``, how many of these draws are broken: NaN or +inf in log_p or in any of the S'
              log_q, or -inf in the log_q of their own member. They are counted, never dropped;

            for every member alone, [B, S, L']: ``member_iwelbo``, ``member_elbo``, ``member_iwelbo_var``,
            ``member_elbo_var``, ``member_ess``, ``member_max_weight``, ``member_pareto_k`` of its weights p / q_s;

            at L: ``responsibility`` [B, S', S] (0 for members outside the ensemble), ``pairwise_jsd`` [B, S, S],
            and the jackknife's estimate of the bias against L = infinity, ``<name>_bias`` [B, S'] of ``miselbo``,
            ``joint_bound``, ``average_iwelbo`` and ``delta``, and ``member_iwelbo_bias`` [B, S].

        Raises:
            InputError: fewer samples than the grid's end were given.
        """
        if self._state is None or self.num_samples < self.grid[-1]:
            raise InputError(
                f"the grid ends at L = {self.grid[-1]} but only {self.num_samples} samples were given: "
                f"call update until all are in"
            )
        points = [
            {**blocks.values(), **self._averaged[used], **self._diagnosed[point]}
            for point, used, blocks in zip(self.grid, self._used, self._state.blocks, strict=True)
        ]
        stacked = {name: torch.stack([point[name] for point in points], -1) for name in points[0]}
        return {**stacked, **self._state.final_values(self.num_samples)}


class Sums:
    """The sums over samples, [B, ...] each, of which :mod:`miselbo.bounds.values` makes quantities."""

    def __init__(self, like: Tensor, grid: Sequence[int]):
        self.batch, members = like.shape[:2]
        num_samples = grid[-1]
        self.nested = Nested(members, like)
        self.size, self.inside = self.nested.size, self.nested.inside
        self.blocks = [Blocks(self.nested, length, num_samples) for length in grid]

        def zeros(*shape: int) -> Tensor:
            return like.new_zeros(self.batch, *shape)

        self.own = WeightSums(zeros(members))  # p / q_s
        self.mixture = WeightSums(zeros(members, members))  # p / q_mix, [B, N, s]
        self.elbo = PlainSums(zeros(members))  # log p - log q_s
        self.divergence = PlainSums(zeros(members, members))  # log q_s - log q_mix, [B, N, s]
        self.shares = ShareSums(zeros(members, members), zeros(members, members, members))
        self.pairs = zeros(members, members)  # log q_s - log (q_s + q_j) / 2
        self.non_finite = zeros(members)  # [B, N]
        self.tail = Tail(1 + diagnostics.tail_length(members * num_samples))
        self.own_tail = Tail(1 + diagnostics.tail_length(num_samples))

    def add(self, log_p: Tensor, log_q: Tensor) -> None:
        """Absorb log_p [B, S, l] and log_q [B, S, l, S]."""
        own_q = bounds.own_density(log_q)
        log_density = log_q.movedim(-1, 1).contiguous()  # [B, j, s, l]
        # mixture of the first S' members, at the samples of every member: [B, N, s, l]
        log_mixture = torch.stack(list(accumulate(log_density.unbind(1), torch.logaddexp)), 1)
        log_mixture -= self.size.log()[:, None, None]
        log_w = log_p[:, None] - log_mixture

        own = log_p - own_q
        self.own.add(own)
        self.mixture.add(log_w)
        rows = log_w[:, self.nested.ensemble, self.nested.member]
        for blocks in self.blocks:
            blocks.add(rows, own)
        self.elbo.add(own)
        self.divergence.add(own_q[:, None] - log_mixture)
        self.pairs += bounds.log_ratio_to_pair(log_q).sum(2)

        outside = ~self.inside[:, :, None]  # [N, s, 1]
        bad = log_p.isnan() | (log_p == math.inf) | ~own_q.isfinite()
        bad_in_mixture = bad[:, None] | log_mixture.isnan() | (log_mixture == math.inf)  # [B, N, s, l]
        self.non_finite += bad_in_mixture.masked_fill(outside, False).sum((2, 3))
        # log of W q_j / q_mix, [B, N, j, s, l]; a NaN in log_q is in log_mixture of every N it belongs to
        log_w_over_mixture = (log_w - log_mixture).masked_fill(outside, -math.inf)
        log_density = log_density.nan_to_num(nan=-math.inf, posinf=-math.inf)
        self.shares.add(log_w_over_mixture[:, :, None] + log_density[:, None])
        self.tail.add(log_w.masked_fill(outside, -math.inf).flatten(2))
        self.own_tail.add(own)

    def quantities(self, n: int, limit: bool) -> dict[str, Tensor]:
        """Those of :data:`QUANTITIES` that are functions of the sums, with their variances, [B, N].

        Args:
            n: draws so far.
            limit: those whose expectation does not change with L (which may be means over blocks), or the others.
        """
        found: dict[str, Tensor] = {}
        for quantity in QUANTITIES:
            if quantity.of and (quantity.limit == "itself") == limit:
                value, variance = getattr(values, quantity.of)(self, n)
                found |= {quantity.name: value, f"{quantity.name}_var": variance}
        return found

    def means(self, n: int) -> dict[str, Tensor]:
        """Plain means over n samples, and their variances: [B, N] or [B, s]."""
        return {
            **self.quantities(n, limit=True),
            "member_elbo": self.elbo.mean(n),
            "member_elbo_var": self.elbo.variance_of_mean(n),
        }

    def diagnostics(self, n: int) -> dict[str, Tensor]:
        """What tells of the weights of the n samples so far: [B, N] or [B, s]."""
        own, mixture = self.own, self.mixture
        strata = (mixture.log_sum() - math.log(n)).masked_fill(~self.inside, -math.inf)
        log_total = strata.logsumexp(-1, keepdim=True)
        # weights of stratum s relative to the total of all strata
        log_unit = mixture.peak.masked_fill(~self.inside, -math.inf) - log_total - math.log(n)
        unit = log_unit.exp()
        second = (unit.square() * mixture.second).where(self.inside, 0.0)
        return {
            **self.quantities(n, limit=False),
            "ess": 1 / second.sum(-1),
            "max_weight": unit.where(self.inside, 0.0).amax(-1),
            "pareto_k": self._pareto_k(n),
            "non_finite": self.non_finite.clone(),
            "member_ess": own.first.square() / own.second,
            "member_max_weight": (own.peak - own.log_sum()).exp(),
            "member_pareto_k": diagnostics.pareto_k_from_tail(self.own_tail.largest(), n),
        }

    def final_values(self, n: int) -> dict[str, Tensor]:
        """Everything reported at the end of the grid alone."""
        half = 0.5 * self.pairs / n
        return {
            "responsibility": self.responsibilities(n)[0].exp(),
            "pairwise_jsd": half + half.mT,
            **{f"{name}_bias": value for name, value in self.blocks[-1].biases.items()},
        }

    def _pareto_k(self, n: int) -> Tensor:
        """k-hat of the weights of every nested ensemble, each from its own share of the tail: [B, N]."""
        tail = self.tail.largest()
        k = [diagnostics.pareto_k_from_tail(tail[:, s], (s + 1) * n) for s in range(len(self.size))]
        return torch.stack(k, -1)

    def responsibilities(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """log r [B, N, j], slack [B, N], and the sum of squares of the draws' influence on slack.

        slack = log A - mean_j log A_j + constant; y_j = W q_j / q_mix, A_j = sum_{s,l} y_j, A = sum_j A_j.
        So the influence of a draw is sum_j y_j (1/A - 1/(S' A_j)).
        """
        peak, first, second = self.shares.peak, self.shares.first, self.shares.second
        log_sums = (first.sum(-1).log() + peak).masked_fill(~self.inside, -math.inf)
        log_total = log_sums.logsumexp(-1, keepdim=True)
        log_r = (log_sums - log_total).masked_fill(~self.inside, -math.inf)
        slack = self.nested.average(-self.size.log()[:, None] - log_r)
        relative = (peak - log_total).exp() - (peak - log_sums).exp() / self.size[:, None]
        both_inside = self.inside[:, :, None] & self.inside[:, None, :]  # [N, i or s, j]
        squares = (relative[..., None] * second * relative[:, :, None]).where(both_inside, 0.0).sum((-1, -2))
        sums = (relative[..., None] * first).where(both_inside, 0.0).sum(2)  # of each stratum s
        return log_r, slack, (squares - sums.square().sum(-1) / n).clamp(min=0)
