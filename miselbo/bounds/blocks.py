r"""The bounds of L' draws from all L of them: means over floor(L / L') disjoint blocks.

Every block is a bound of L' draws, so their mean has the same expectation as the first and less variance: at L = 100
and L' = 1 by 100 or more. Its Monte Carlo variance is the spread over the blocks where there are 10 or more of them (or
where a block is too short for a jackknife), else that of the jackknife within them. Delta and all bounds come from
the same draws at every L', so their differences stay paired.
"""

import math

import torch
from torch import Tensor

from miselbo.bounds.jackknife import Jackknife
from miselbo.bounds.nested import Nested
from miselbo.bounds.sums import PlainSums

ENOUGH_BLOCKS = 10  # to take the error from their spread
SHORT = 5  # fewer draws than that have no jackknife worth the name


class Blocks:
    """Log-mean bounds of blocks of ``length`` draws, from draws in pieces of any size; draws beyond the last are left.

    Args:
        nested: the ensembles.
        length: L'.
        total: L.
    """

    def __init__(self, nested: Nested, length: int, total: int):
        self.nested, self.length, self.count = nested, length, total // length
        self.by_spread = self.count >= ENOUGH_BLOCKS or (self.count > 1 and length < SHORT)
        self.done = self.filled = 0
        self.sums: dict[str, PlainSums] = {}
        self.variances: dict[str, Tensor] = {}  # summed over the blocks, by the jackknife
        self.biases: dict[str, Tensor] = {}
        self._mixture = self._own = torch.empty(0)
        self._jackknife: Jackknife | None = None

    def add(self, mixture: Tensor, own: Tensor) -> None:
        """Absorb log p / q_mix [B, R, l] and log p / q_s [B, s, l] of the same draws."""
        start, samples, length = 0, own.shape[-1], self.length
        while start < samples and self.done < self.count:
            whole = min((samples - start) // length, self.count - self.done)
            if self.by_spread and not self.filled and whole:
                stop = start + whole * length
                self._finish(*(_log_sums(log_w[..., start:stop], length) for log_w in (mixture, own)))
            else:
                stop = min(samples, start + length - self.filled)
                self._begin_or_extend(mixture[..., start:stop], own[..., start:stop])
            start = stop

    def _begin_or_extend(self, mixture: Tensor, own: Tensor) -> None:
        """Draws of the present block, at most to its end."""
        sums = mixture.logsumexp(-1), own.logsumexp(-1)
        if not self.filled:
            self._mixture, self._own = sums
            self._jackknife = (
                None if self.by_spread else Jackknife(torch.zeros_like(sums[0]), self.nested.member)
            )
        else:
            self._mixture, self._own = (
                torch.logaddexp(self._mixture, sums[0]),
                torch.logaddexp(self._own, sums[1]),
            )
        if self._jackknife is not None:
            self._jackknife.add(mixture, own)
        self.filled += own.shape[-1]
        if self.filled == self.length:
            if self._jackknife is not None:
                self._add_jackknife(self._jackknife)
            self._finish(self._mixture[..., None], self._own[..., None])
            self.filled = 0

    def _finish(self, mixture: Tensor, own: Tensor) -> None:
        """Take in the log-sums [B, R, k] and [B, s, k] of k whole blocks."""
        log_length = math.log(self.length)
        found = self.nested.log_mean_bounds(mixture.mT - log_length, own.mT - log_length)
        for name, value in found.items():  # [B, k, N or s]
            if name not in self.sums:
                self.sums[name] = PlainSums(torch.zeros_like(value[:, 0]))
            self.sums[name].add(value.mT)
        self.done += mixture.shape[-1]

    def _add_jackknife(self, jackknife: Jackknife) -> None:
        nested, n = self.nested, self.length
        log_means = self._mixture - math.log(n)
        mixture, own, difference, total = jackknife.moments(n, nested.log_rest(log_means))
        alone = slice(-len(nested.size), None)  # the last rows: every member once
        variances = {
            "miselbo": nested.average_rows(mixture[0]) / nested.size,
            "joint_bound": nested.spread(total[0], 0.0).sum(-1),
            "average_iwelbo": nested.average_rows(own[0]) / nested.size,
            "delta": nested.average_rows(difference[0]) / nested.size,
            "member_iwelbo": own[0][:, alone],
        }
        biases = {
            "miselbo": nested.average_rows(mixture[1]),
            "joint_bound": nested.spread(total[1], 0.0).sum(-1),
            "average_iwelbo": nested.average_rows(own[1]),
            "delta": nested.average_rows(difference[1]),
            "member_iwelbo": own[1][:, alone],
        }
        for sums, found in ((self.variances, variances), (self.biases, biases)):
            for name, value in found.items():
                sums[name] = value if name not in sums else sums[name] + value

    def values(self) -> dict[str, Tensor]:
        """The four bounds [B, N] and ``member_iwelbo`` [B, s], and the variance of each as ``<name>_var``."""
        found = {}
        for name, sums in self.sums.items():
            found[name] = sums.mean(self.count)
            by_jackknife = self.variances.get(name, found[name]) / self.count**2
            found[f"{name}_var"] = sums.variance_of_mean(self.count) if self.by_spread else by_jackknife
        return found


def _log_sums(log_w: Tensor, length: int) -> Tensor:
    """log-sums over blocks: [B, R, k length] -> [B, R, k]."""
    return log_w if length == 1 else log_w.unflatten(-1, (-1, length)).logsumexp(-1)
