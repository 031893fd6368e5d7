r"""What scores must satisfy whatever the target is, and the left tail of log-weights, which k-hat does not see.

Normalised densities q_1..q_S that drew their own samples obey, with q_mix = 1/S sum_j q_j,

    1/S sum_s E_{q_s}[q_j / q_mix] = 1    for every j (a weight within [0, S], so its variance exists),
    E_{q_s}[q_j / q_s] <= 1               for every s and j (below 1 where q_j has mass that q_s has not).

The second needs no variance: a product over independent examples of non-negative means with expectation at most 1
exceeds 1/d with probability at most d (Markov). Both are blind to a swap of members that are alike.
"""

import math

import torch
from torch import Tensor

from miselbo import bounds
from miselbo.bounds.sums import PlainSums, Tail, WeightSums
from miselbo.errors import InputError

WORST_SHARE = 0.01  # of a member's draws of an example, at least one


class RunningChecks:
    """Checks of one batch of examples, updated sample by sample.

    Args:
        num_members: S.
        num_samples: L.

    Raises:
        InputError: S or L below 1.

    Example:
        >>> draws = torch.distributions.Normal(0.0, 1.0).sample((100, 1, 50))       # of q_1 = N(0, 1)
        >>> log_q = torch.distributions.Normal(0.0, 1.0).log_prob(draws)[..., None]
        >>> checks = RunningChecks(1, 50)
        >>> checks.update(log_q[..., 0], log_q)
        >>> checks.result()["density_ratio"].unique()
        tensor([1.], dtype=torch.float64)
    """

    def __init__(self, num_members: int, num_samples: int):
        for name, value in (("num_members", num_members), ("num_samples", num_samples)):
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number of at least 1, got {value!r}")
        self.num_members, self.total, self.num_samples = num_members, num_samples, 0
        self.worst = Tail(math.ceil(WORST_SHARE * num_samples))
        self._sums: tuple[PlainSums, PlainSums, WeightSums] | None = None

    @torch.no_grad()
    def update(self, log_p: Tensor, log_q: Tensor) -> None:
        """Absorb log_p [B, S, l] and log_q [B, S, l, S].

        Raises:
            InputError: dtype or shape.
        """
        log_p, log_q = bounds.check_scores(log_p, log_q)
        if log_p.ndim != 3 or log_p.shape[1] != self.num_members:
            raise InputError(f"log_p must be [B, S, l] with S = {self.num_members}, got {list(log_p.shape)}")
        batch, size, samples = log_p.shape
        if self._sums is None:
            pairs = log_p.new_zeros(batch, size, size)
            self._sums = (PlainSums(pairs[:, 0]), PlainSums(pairs), WeightSums(pairs))
        log_w, ratio, pair = self._sums
        own = bounds.own_density(log_q)
        weights = log_p - own
        self.worst.add(-weights)
        log_w.add(weights)
        ratio.add((log_q.softmax(-1) * size).movedim(-1, 2))  # [B, s, j, l]
        pair.add((log_q - own[..., None]).movedim(-1, 2))
        self.num_samples += samples

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """All values, float64, examples first.

        Returns:
            - ``left_squares``, ``left_worst`` [B, S]: of the worst 1% of log p / q_s (at least one draw), the part
              in the sum of squares about the mean of all, and the mean;
            - ``density_ratio``, ``density_ratio_var`` [B, S]: 1/S sum_s 1/L sum_l q_j / q_mix at the samples of s,
              and its Monte Carlo variance (NaN for L = 1);
            - ``log_pair_ratio`` [B, S, S]: log 1/L sum_l q_j / q_s at the samples of s.

        Raises:
            InputError: fewer samples than L were given.
        """
        if self._sums is None or self.num_samples < self.total:
            raise InputError(
                f"L = {self.total} but only {self.num_samples} samples were given: update with all"
            )
        n, (log_w, ratio, pair) = self.num_samples, self._sums
        worst = -self.worst.largest()
        deviation = worst - log_w.mean(n)[..., None]
        return {
            "left_squares": deviation.square().sum(-1),
            "left_worst": worst.mean(-1),
            "density_ratio": ratio.mean(n).mean(1),
            "density_ratio_var": ratio.variance_of_mean(n).sum(1) / self.num_members**2,
            "log_pair_ratio": pair.log_sum() - math.log(n),
        }
