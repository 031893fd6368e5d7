r"""Delete-one jackknife variances of log-means from a stream of draws, memory constant in their number.

For L draws of one member with normalised weights v_l, leaving draw l out changes the log-mean by

    f_l = log(L / (L - 1)) + log(1 - v_l),     se^2 = sum_l (f_l - mean f)^2.

The textbook's factor (L - 1) / L is left out: a log-mean of few draws is skewed, and the 5% that this makes at
L = 10 are what its intervals lack (benchmarks/coverage.py; at L = 100 it is 0.5%). A delta-method error of a
log-mean cannot exceed 1 however bad the weights are; this one can.

Up to ``BUFFER`` draws are all kept. Beyond that the ``KEPT`` largest of every row are, and of the others the power
sums of log(1 - v) = -v - v^2/2 - ...: a draw let go has v <= 2 / (KEPT + 1) then, and v only falls as more draws
come.
"""

import math

import torch
from torch import Tensor

from miselbo.bounds.sums import raise_peak, unit_of

BUFFER, KEPT, ORDER = 256, 64, 8


Moments = tuple[Tensor, Tensor]  # variance and bias


class Jackknife:
    """Draws of rows [B, R] with two weights each: ``first`` (p / q_mix) and ``second`` (p / q_s).

    Args:
        zeros: [B, R].
        member: [R], whose draws a row has; rows of one member share their second weights.
    """

    def __init__(self, zeros: Tensor, member: Tensor):
        self.member = member
        self.pieces: list[tuple[Tensor, Tensor]] = []
        self.width = 0
        # sum over the draws let go of first^i second^j, in units of the largest of each; none before the first are
        self.powers: Tensor | None = None
        self.first_peak = torch.full_like(zeros, -math.inf)
        self.second_peak = self.first_peak.clone()
        self.order = torch.arange(ORDER + 1, device=zeros.device, dtype=zeros.dtype)

    def add(self, first: Tensor, second: Tensor) -> None:
        """Absorb log-weights ``first`` [B, R, l] and ``second`` [B, s, l] of the same draws."""
        self.pieces.append((first, second if self.powers is None else second[:, self.member]))
        self.width += first.shape[-1]
        if self.width > BUFFER:
            self._let_go()

    def moments(self, n: int, log_rest: Tensor) -> tuple[Moments, Moments, Moments, Moments]:
        """Variances and biases after n draws: [B, R] each, NaN where unknown.

        Args:
            n: draws of each row so far.
            log_rest: [B, R] log of the sum of the other strata's means, of those that are summed with that of a row.

        Returns:
            Those of log mean first, log mean second, the difference of both, and the row's (stratum's) part in those
            of log(sum of the strata's means).
        """
        first, second = self._kept()
        if n < 2:
            unknown = first.new_full(first.shape[:-1], math.nan)
            return (unknown, unknown), (unknown, unknown), (unknown, unknown), (unknown, unknown)
        of_first, of_second = _Row(first, self._log_sum_let_go(0)), _Row(second, self._log_sum_let_go(1))
        change_of_total, log_total = of_first.beside(log_rest + math.log(n - 1))
        own_share = (of_first.log_total - log_total).exp()  # n m_s / (n m_s + (n - 1) rest)
        alone = math.log(n / (n - 1))
        # log of n / (n - 1) m_s + rest over m_s + rest
        together = -torch.log1p(-own_share / n)
        none = torch.zeros_like(of_first.log_total)
        a = b = t = None
        if self.powers is not None:
            a = self._series(self.first_peak - of_first.log_total)
            b = self._series(self.second_peak - of_second.log_total)
            t = self._series(self.first_peak - log_total)
        change_of_second = of_second.change if self.powers is not None else of_second.change[:, self.member]
        difference = of_first.change - change_of_second
        return (
            self._moments(n, of_first.change, a, None, none + alone),
            self._moments(n, change_of_second, None, b, none + alone),
            self._moments(n, difference, a, None if b is None else -b, none),
            self._moments(n, change_of_total, t, None, together),
        )

    def _moments(
        self, n: int, change: Tensor, a: Tensor | None, b: Tensor | None, constant: Tensor
    ) -> Moments:
        """From log(1 - v) of the kept draws and the series a (in first) + b (in second) of the others."""
        if self.powers is None or (a is None and b is None):
            variance, mean = torch.var_mean(change, -1, correction=0)
            squares = n * variance
        else:
            total, square = self._sums_let_go(a, b)
            mean = (change.sum(-1) + total) / n
            others = n - change.shape[-1]
            squares = (change - mean[..., None]).square().sum(-1)
            squares = squares + (square - 2 * mean * total + others * mean.square()).clamp(min=0)
        broken = ~squares.isfinite()
        bias = (n - 1) * (mean + constant)
        return squares.masked_fill(broken, math.nan), bias.masked_fill(broken, math.nan)

    def _sums_let_go(self, a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sum, and sum of squares, of the series over the draws let go."""
        assert self.powers is not None
        of_first, of_second = self.powers[..., :, 0], self.powers[..., 0, :]
        none = torch.zeros_like(of_first)
        a, b = none if a is None else a, none if b is None else b
        total = _dot(a, of_first) + _dot(b, of_second)
        square = _dot(_product(a, a), of_first) + _dot(_product(b, b), of_second)
        low = self.order[:, None] + self.order <= ORDER
        cross = (a[..., :, None] * b[..., None, :]).where(low, 0.0)
        return total, square + 2 * _dot(cross.flatten(-2), self.powers.flatten(-2))

    def _series(self, log_unit: Tensor) -> Tensor:
        """Coefficients of log(1 - v) in powers of v's share of the unit: [B, R, ORDER + 1]."""
        powers = log_unit.exp()[..., None] ** self.order
        return torch.cat([torch.zeros_like(powers[..., :1]), -powers[..., 1:] / self.order[1:]], -1)

    def _kept(self) -> tuple[Tensor, Tensor]:
        if len(self.pieces) > 1:
            firsts, seconds = zip(*self.pieces, strict=True)
            self.pieces = [(torch.cat(firsts, -1), torch.cat(seconds, -1))]
        return self.pieces[0]

    def _log_sum_let_go(self, which: int) -> Tensor | None:
        if self.powers is None:
            return None
        if which == 0:
            return self.powers[..., 1, 0].log() + unit_of(self.first_peak)
        return self.powers[..., 0, 1].log() + unit_of(self.second_peak)

    def _let_go(self) -> None:
        """Keep the draws that are the largest by either weight's share, move the others to the power sums."""
        first, second = self._kept()
        if self.powers is None:
            self.powers = first.new_zeros(*first.shape[:-1], ORDER + 1, ORDER + 1)
            second = second[:, self.member]
        log_first = _log_add(first.logsumexp(-1), self._log_sum_let_go(0))
        log_second = _log_add(second.logsumexp(-1), self._log_sum_let_go(1))
        share = torch.fmax(first - unit_of(log_first)[..., None], second - unit_of(log_second)[..., None])
        order = share.argsort(-1, descending=True)
        first, second = first.gather(-1, order), second.gather(-1, order)
        self.pieces, self.width = [(first[..., :KEPT].clone(), second[..., :KEPT].clone())], KEPT
        first, second = first[..., KEPT:], second[..., KEPT:]
        self.first_peak, first_scale = raise_peak(self.first_peak, first.amax(-1))
        self.second_peak, second_scale = raise_peak(self.second_peak, second.amax(-1))
        rows, columns = first_scale[..., None] ** self.order, second_scale[..., None] ** self.order
        left = (first - unit_of(self.first_peak)[..., None]).exp()[..., None, :] ** self.order[:, None]
        right = (second - unit_of(self.second_peak)[..., None]).exp()[..., None, :] ** self.order[:, None]
        self.powers = self.powers * rows[..., :, None] * columns[..., None, :] + left @ right.mT


class _Row:
    """log(1 - w / total) of the kept draws, total = sum of all w of the row (and others): [B, R, kept]."""

    def __init__(self, log_w: Tensor, log_other: Tensor | None):
        self.log_other = log_other
        peak, largest = log_w.max(-1, keepdim=True)
        self.log_without = log_w.scatter(-1, largest, -math.inf).logsumexp(-1)
        self.log_sum = torch.logaddexp(self.log_without, peak.squeeze(-1))
        self.log_total = _log_add(self.log_sum, log_other)
        self.share = (log_w - self.log_total[..., None]).exp()
        self.change = self._change(self.share, self.log_total, log_other)

    def beside(self, log_rest: Tensor) -> tuple[Tensor, Tensor]:
        """``change`` with more in the total, exp(log_rest) [B, R], and the log of that total."""
        log_total = torch.logaddexp(self.log_total, log_rest)
        share = self.share * (self.log_total - log_total).exp()[..., None]
        return self._change(share, log_total, _log_add(log_rest, self.log_other)), log_total

    def _change(self, share: Tensor, log_total: Tensor, log_other: Tensor | None) -> Tensor:
        # the one share above 1/2 keeps its digits as the share of all the others
        dominant = (_log_add(self.log_without, log_other) - log_total)[..., None]
        return torch.log1p(-share).where(share <= 0.5, dominant)


def _log_add(x: Tensor, y: Tensor | None) -> Tensor:
    return x if y is None else torch.logaddexp(x, y)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Sum of products over the last axis; terms with nothing let go (0 there) or no coefficient are 0."""
    return (x * y).where((x != 0) & (y != 0), 0.0).sum(-1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Product of two power series, cut at ORDER."""
    product = torch.zeros_like(a)
    for i in range(ORDER + 1):
        product[..., i:] += a[..., i, None] * b[..., : ORDER + 1 - i]
    return product


def joint_jackknife(log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Joint bound of draws that are all there, its delete-one variance and its debiased value, [...] each.

    Members are strata: with m_s the mean of member s's weights and T their sum, leaving out draw l of member s gives
    log(T + (m_s - w_sl) / (L - 1)) - log S. The debiased value estimates log p(x) and is no bound.

    Args:
        log_w: [..., S, L] log of p / q_mix, L of at least 2.

    Example:
        >>> value, variance, debiased = joint_jackknife(torch.zeros(2, 4))
        >>> abs(float(value)) < 1e-12, abs(float(variance)) < 1e-12, abs(float(debiased)) < 1e-12
        (True, True, True)
    """
    log_w = log_w.double()
    size, n = log_w.shape[-2:]
    row = _Row(log_w, None)
    log_mean = row.log_sum - math.log(n)
    itself = torch.eye(size, dtype=torch.bool, device=log_w.device)
    each = log_mean[..., None, :].expand(*log_mean.shape, size)
    others = each.masked_fill(itself, -math.inf).logsumexp(-1)  # of the other strata, [..., S]
    change, log_total = row.beside(others + math.log(n - 1))
    loo = log_total[..., None] + change - math.log(n - 1) - math.log(size)
    value = log_mean.logsumexp(-1) - math.log(size)
    variance = (loo - loo.mean(-1, keepdim=True)).square().sum(-1).sum(-1)
    debiased = value + (n - 1) * (value[..., None] - loo.mean(-1)).sum(-1)
    return value, variance.masked_fill(~variance.isfinite(), math.nan), debiased
