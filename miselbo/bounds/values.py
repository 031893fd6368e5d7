"""Quantities as functions (sums, n) -> value and Monte Carlo variance [B, N] of the sums over the first n draws.

:data:`miselbo.bounds.quantities.QUANTITIES` names them. B examples, N = S nested ensembles.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from miselbo.bounds.sums import sample_factor

if TYPE_CHECKING:
    from miselbo.bounds.running import Sums

Estimate = tuple[Tensor, Tensor]


def average_elbo(sums: "Sums", n: int) -> Estimate:
    """Mean over the members of the plain mean of log p - log q_s."""
    average, elbo = sums.nested.average, sums.elbo
    return average(elbo.mean(n)[:, None]), average(elbo.variance_of_mean(n)[:, None]) / sums.size


def jsd(sums: "Sums", n: int) -> Estimate:
    """Mean over the members of the plain mean of log q_s - log q_mix."""
    average, divergence = sums.nested.average, sums.divergence
    return average(divergence.mean(n)), average(divergence.variance_of_mean(n)) / sums.size


def slack(sums: "Sums", n: int) -> Estimate:
    """log A - mean_j log A_j of the members' weights in the joint sum; its variance by the delta method."""
    _, value, influence = sums.responsibilities(n)
    return value, sample_factor(n) * n * influence
