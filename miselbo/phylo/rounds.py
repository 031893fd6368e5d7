"""When the training of a member is enough: a criterion on fresh draws, with a longest time.

The second stage (full temperature, falling rates) has rounds. At the end of one, 10,000 fresh draws give the
importance-weighted estimate of log p(Y) and its effective sample size (ESS). Training ends when the ESS is a large
enough share of the draws, when the last round raised neither of the two, or with the last epoch.
"""

import math
from collections.abc import Sequence

from torch import Tensor

DRAWS = 10_000  # of a check
RISE = 1.2  # a round that multiplies the ESS by this was worth its time

Check = tuple[float, float]  # estimate of log p(Y), nats; ESS as a share of the draws


def check(log_weight: Tensor) -> Check:
    """Estimate and share from log p / q [N] of fresh draws.

    Example:
        >>> import torch
        >>> [round(value, 6) for value in check(torch.tensor([-3.0, -3.0, -torch.inf, -torch.inf]))]
        [-3.693147, 0.5]
    """
    count = len(log_weight)
    largest = log_weight.logsumexp(0)
    share = (log_weight - largest).exp()
    return float(largest) - math.log(count), float(1 / (share * share).sum() / count)


def goes_on(checks: Sequence[Check], rounds: int, enough_ess: float, least_gain: float) -> bool:
    """Whether another round follows those that gave ``checks``.

    Args:
        checks: one per finished round.
        rounds: the most.
        enough_ess: share of the draws at which training is enough.
        least_gain: nats of the estimate that make another round worth while.

    Example:
        >>> goes_on([(-7.0, 0.01)], 3, 0.06, 0.1), goes_on([(-7.0, 0.07)], 3, 0.06, 0.1)
        (True, False)
        >>> goes_on([(-7.0, 0.01), (-6.95, 0.011)], 3, 0.06, 0.1)  # nothing gained
        False
    """
    if len(checks) >= rounds or checks[-1][1] >= enough_ess:
        return False
    if len(checks) == 1:
        return True
    (before, share_before), (now, share) = checks[-2:]
    return not (now - before <= least_gain and share <= RISE * share_before)
