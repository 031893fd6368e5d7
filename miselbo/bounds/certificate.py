r"""What can be said with probability 1 - d about the mean of log p(x_i), whatever the tails of the weights are.

Let J_i >= 0 be an unbiased estimate of p(x_i) from draws of its own (the exponential of a joint bound or of an IWELBO).
Then E prod_i J_i / p(x_i) = 1, and by Markov's inequality, with probability at least 1 - d over the draws,

    (1/N) sum_i log p(x_i)  >=  (1/N) sum_i log J_i  -  log(1/d) / N.

Nothing is assumed about variances: where the weights are hopeless, J is far too small nearly always, and the statement
holds all the more. It is about these N examples, and only from below. The best of M such statements holds with the same
probability when each is made with d / M.
"""

import math

from torch import Tensor

from miselbo.bounds.diagnostics import per_example
from miselbo.errors import InputError


def lower_limit(log_estimates: Tensor, confidence: float = 0.95, statements: int = 1) -> Tensor:
    """Lower limit of the mean of log p(x_i), nats.

    Args:
        log_estimates: [N, ...], log J_i of N data points with draws of their own each; several replicates of one data
            point count as data points.
        confidence: 1 - d, above 0 and below 1.
        statements: M, how many limits are chosen from, these ones included.

    Returns:
        [...]; -inf or NaN where an estimate is.

    Raises:
        InputError: not floating point, N = 0, or ``confidence`` or ``statements`` out of range.

    Example:
        >>> import torch
        >>> lower_limit(torch.tensor([-80.0, -90.0]))               # -85 - log(20) / 2
        tensor(-86.4979, dtype=torch.float64)
    """
    log_estimates = per_example(log_estimates, "log_estimates")
    check_confidence(confidence)
    if not isinstance(statements, int) or statements < 1:
        raise InputError(f"statements must be a whole number of at least 1, got {statements!r}")
    return log_estimates.mean(0) - margin(len(log_estimates), confidence, statements)


def margin(num_data: int, confidence: float, statements: int = 1) -> float:
    """log(M / d) / N: what the limit lies below the mean estimate.

    Example:
        >>> round(margin(10_000, 0.95), 5)
        0.0003
    """
    return math.log(statements / (1 - confidence)) / num_data


def check_confidence(confidence: float, name: str = "confidence") -> None:
    """Refuse what is no probability.

    Raises:
        InputError: not a number above 0 and below 1.
    """
    if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 < confidence < 1:
        raise InputError(f"{name} must be a number above 0 and below 1, such as 0.95; got {confidence!r}")
