"""Is an importance-sampling estimate to be trusted, and how large is its error?

Two errors are kept apart: over data points (:func:`standard_error`) and over Monte Carlo draws with the data
held fixed (:func:`monte_carlo_error`). Log-weights need not be normalised; all results are float64.
"""

import math

import numpy as np
import torch
from scipy.special import ndtri, stdtrit
from torch import Tensor

from miselbo.errors import InputError

MIN_TAIL = 5
PRIOR_SHAPE, PRIOR_COUNT = 0.5, 10  # the k-hat prior: worth 10 tail draws at k = 0.5
EPSILON = torch.finfo(torch.float64).eps


def effective_sample_size(log_w: Tensor) -> Tensor:
    """Kish's effective sample size (sum w)^2 / sum w^2, in [1, L].

    Args:
        log_w: [..., L] log-weights.

    Returns:
        [...]; NaN where all weights are zero.

    Raises:
        InputError: not floating point, or L = 0.

    Example:
        >>> effective_sample_size(torch.tensor([[0.0, 0.0], [0.0, -math.inf]]))
        tensor([2., 1.], dtype=torch.float64)
    """
    log_w = _log_weights(log_w)
    return 1 / log_w.softmax(-1).square().sum(-1)


def largest_weight(log_w: Tensor) -> Tensor:
    """The largest normalised weight, max w / sum w, in [1/L, 1].

    Args:
        log_w: [..., L] log-weights.

    Returns:
        [...]; NaN where all weights are zero.

    Raises:
        InputError: not floating point, or L = 0.

    Example:
        >>> largest_weight(torch.tensor([3.0, 1.0]).log())
        tensor(0.7500, dtype=torch.float64)
    """
    log_w = _log_weights(log_w)
    return log_w.softmax(-1).amax(-1)


def standard_error(values: Tensor) -> Tensor:
    """Standard error of the mean over data points: standard deviation (N - 1 in the denominator) / sqrt(N).

    Args:
        values: [N, ...], one row per data point.

    Returns:
        [...]; NaN for N = 1.

    Raises:
        InputError: not floating point, or N = 0.

    Example:
        >>> standard_error(torch.tensor([1.0, 3.0]))
        tensor(1., dtype=torch.float64)
    """
    values = per_example(values, "values")
    if len(values) == 1:
        return torch.full_like(values[0], math.nan)
    return values.std(0) / math.sqrt(len(values))


def monte_carlo_error(variances: Tensor) -> Tensor:
    """Monte Carlo error of a mean over data points whose estimates are independent: sqrt(sum_n var_n) / N.

    Args:
        variances: [N, ...], the Monte Carlo variance of each data point's estimate.

    Returns:
        [...].

    Raises:
        InputError: not floating point, or N = 0.

    Example:
        >>> monte_carlo_error(torch.tensor([9.0, 16.0]))
        tensor(2.5000, dtype=torch.float64)
    """
    variances = per_example(variances, "variances")
    return variances.sum(0).sqrt() / len(variances)


def few_examples(variances: Tensor) -> float:
    """What a Monte Carlo error is multiplied by so that 1.96 of it are a 95% interval although variances are estimates.

    A variance that is itself from few draws with heavy weights is too small as often as it is too large, and where too
    small the interval misses. That is Student's t, with Satterthwaite's degrees of freedom of the sum of N variances,
    2 (sum v)^2 / (N s_v^2), s_v their spread, not below N - 1: at N = 20 at most 1.07, nothing where examples are many.

    Args:
        variances: [N].

    Example:
        >>> even, one = torch.ones(20).double(), torch.eye(20)[0].double()
        >>> few_examples(even), round(few_examples(one), 3), round(few_examples(torch.eye(300)[0]), 3)
        (1.0, 1.068, 1.004)
    """
    num = len(variances)
    spread = num * float(variances.double().var()) if num > 1 else 0.0
    if not spread > 0:
        return 1.0
    freedom = max(2 * float(variances.double().sum()) ** 2 / spread, num - 1)
    return float(stdtrit(freedom, 0.975) / ndtri(0.975))


def pareto_k(log_w: Tensor) -> Tensor:
    """Pareto k-hat: the shape of a generalised Pareto distribution fitted to the largest weights.

    Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling", JMLR 25(72), 2024; the fit
    is Zhang and Stephens' (Technometrics 51, 2009) with the former's prior. About 1/k moments of the weights
    exist: below 0.5 the variance is finite, above 0.7 the estimate is not to be trusted.

    Args:
        log_w: [..., L] log-weights.

    Returns:
        [...]. NaN where k-hat is undefined: L < 25 (fewer than 5 tail draws), NaN or +inf among the weights,
        all weights zero, or a quarter of the tail no larger than the threshold (as with many zero weights).
        -inf where the whole tail is one value: weights with no tail at all.

    Raises:
        InputError: not floating point, or L = 0.

    Example:
        >>> u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
        >>> pareto_k(-0.7 * u.log())                            # weights u^-0.7: a Pareto tail with k = 0.7
        tensor(0.69..., dtype=torch.float64)
    """
    log_w = _log_weights(log_w)
    num_samples = log_w.shape[-1]
    return pareto_k_from_tail(log_w.topk(min(tail_length(num_samples) + 1, num_samples)).values, num_samples)


def k_threshold(num_draws: int) -> float:
    """k-hat above which a mean of that many weights is not to be trusted: 1 - 1 / log10 L, within 0.5 and 0.7.

    Vehtari et al. (2024), section 3.2.4: fewer draws bear less. Not below 0.5, which is where the prior of k-hat
    puts the tails of a few draws whatever they are; that is also what 100 draws bear.

    Example:
        >>> k_threshold(10), k_threshold(100), round(k_threshold(1000), 3), k_threshold(5000)
        (0.5, 0.5, 0.667, 0.7)
    """
    return min(max(1 - 1 / math.log10(max(num_draws, 2)), 0.5), 0.7)


def error_trusted(k: Tensor, variances: Tensor, num_draws: int) -> bool:
    """False where a Monte Carlo error is unknown, or known to be too small by the tails of the weights behind it.

    Tails are heavy when the mean of k-hat over the data points, each with its share of the Monte Carlo variance as
    weight, lies above :func:`k_threshold` by more than three standard errors of its own. A k-hat of M tail draws has
    standard error (1 + k) / sqrt(M), of which the prior leaves M / (M + 10). A k-hat that is not known (few draws)
    counts neither way.

    Args:
        k: any shape, k-hat of each data point (and member).
        variances: the same shape, its Monte Carlo variance.
        num_draws: behind each k-hat.

    Example:
        >>> one = torch.ones(20, dtype=torch.float64)
        >>> error_trusted(0.4 * one, one, 100), error_trusted(1.5 * one, one, 100)
        (True, False)
        >>> error_trusted(math.nan * one, one, 10), error_trusted(0.4 * one, math.nan * one, 100)
        (True, False)
    """
    total = variances.sum()
    if not total.isfinite():
        return False
    known = k.isfinite() | (k == math.inf)
    share, k = (variances / total)[known], k[known]
    if total == 0 or share.sum() < 0.5:
        return True
    share = share / share.sum()
    size = tail_length(num_draws)
    errors = (1 + k.clamp(min=0)) / math.sqrt(size) * size / (size + PRIOR_COUNT)
    excess = (share * k).sum() - k_threshold(num_draws)
    return not bool(excess > 3 * (share * errors).square().sum().sqrt())


def tail_length(num_samples: int) -> int:
    """Number of tail draws M = floor(min(L / 5, 3 sqrt(L))), arviz-stats' rule (others round up).

    Example:
        >>> tail_length(100), tail_length(1000)
        (20, 94)
    """
    return min(num_samples // 5, math.isqrt(9 * num_samples))


def pareto_k_from_tail(log_tail: Tensor, num_samples: int) -> Tensor:
    """:func:`pareto_k` from the largest log-weights alone.

    Args:
        log_tail: [..., K], in any order, holding at least the M + 1 largest of ``num_samples`` log-weights,
            M = tail_length(num_samples); the (M + 1)-th is the threshold.
        num_samples: how many log-weights there were in all.

    Returns:
        [...], as :func:`pareto_k`.

    Raises:
        InputError: not floating point, or fewer than M + 1 values.

    Example:
        >>> log_w = torch.linspace(0, 3, 400).square()
        >>> bool(pareto_k_from_tail(log_w[-61:], 400) == pareto_k(log_w))
        True
    """
    log_tail = _log_weights(log_tail)
    size = tail_length(num_samples)
    if size < MIN_TAIL:
        return torch.full_like(log_tail[..., 0], math.nan)
    if log_tail.shape[-1] < size + 1:
        raise InputError(
            f"log_tail must hold the {size + 1} largest of num_samples = {num_samples} log-weights, "
            f"got {log_tail.shape[-1]}"
        )
    log_tail = log_tail.sort(-1, descending=True).values[..., : size + 1]
    largest, smallest, threshold = log_tail[..., :1], log_tail[..., size - 1 : size], log_tail[..., size:]
    # log of the excesses over the threshold, relative to the largest weight; ascending
    draws = log_tail[..., :size].flip(-1)
    log_excess = draws - largest + (-torch.expm1(threshold - draws)).log()
    log_excess = log_excess.masked_fill(draws <= threshold, -math.inf)
    k = _fitted_shape(log_excess - log_excess[..., -1:])
    k = (size * k + PRIOR_COUNT * PRIOR_SHAPE) / (size + PRIOR_COUNT)
    k = k.masked_fill(((smallest == largest) & largest.isfinite()).squeeze(-1), -math.inf)
    return k.masked_fill(~largest.isfinite().squeeze(-1), math.nan)


def _fitted_shape(log_y: Tensor) -> Tensor:
    """Zhang and Stephens' shape of a generalised Pareto sample: log_y [..., M] ascending, the largest is 0.

    They average b = -k / sigma over a grid b_j = 1 / y_M - c_j / y_q, y_q the lower quartile, weighted by
    profile likelihood. Here b = 1 - exp(e), so that

        log(1 - b y) = log((1 - y) + exp(e) y)

    holds for excesses of any range, also where y_q underflows.
    """
    size = log_y.shape[-1]
    num_grid = 30 + math.isqrt(size)
    grid = torch.arange(1, num_grid + 1, dtype=log_y.dtype, device=log_y.device)
    quartile = log_y[..., int(size / 4 + 0.5) - 1, None]
    e = (((num_grid / (grid - 0.5)).sqrt() - 1) / 3).log() - quartile  # [..., grid]
    shape = _mean_log1p(e, log_y)
    log_size_of_b = e.clamp(min=0) + (-torch.expm1(-e.abs())).log()
    log_likelihood = size * (log_size_of_b - shape.abs().log() - shape - 1)
    weight = log_likelihood.masked_fill(log_likelihood.isnan(), -math.inf).softmax(-1)  # NaN only at b = 0
    weight = weight.masked_fill(weight < 10 * EPSILON, 0.0)
    mean_e = (weight.log() - weight.sum(-1, keepdim=True).log() + e).logsumexp(-1, keepdim=True)
    return _mean_log1p(mean_e, log_y).squeeze(-1)


def _mean_log1p(e: Tensor, log_y: Tensor) -> Tensor:
    """Mean over y of log(1 - (1 - exp(e)) y): e [..., G], log_y [..., M] -> [..., G]."""
    log_rest = (-torch.expm1(log_y)).log().unsqueeze(-2)
    return torch.logaddexp(log_rest, e.unsqueeze(-1) + log_y.unsqueeze(-2)).mean(-1)


def _log_weights(log_w: Tensor) -> Tensor:
    log_w = torch.as_tensor(log_w)
    if not log_w.is_floating_point():
        raise InputError(f"log-weights must be floating point, got dtype {log_w.dtype}: use .double()")
    if log_w.ndim < 1 or log_w.shape[-1] == 0:
        raise InputError(f"log-weights must be [..., L] with L >= 1, got shape {list(log_w.shape)}")
    return log_w.double()


def per_example(values: Tensor, name: str) -> Tensor:
    """Values [N, ...] in float64.

    Raises:
        InputError: not floating point, or N = 0.
    """
    values = torch.as_tensor(values)
    if not values.is_floating_point():
        raise InputError(f"{name} must be floating point, got dtype {values.dtype}: use .double()")
    if values.ndim < 1 or len(values) == 0:
        raise InputError(f"{name} must be [N, ...] with N >= 1 data points, got shape {list(values.shape)}")
    return values.double()


def half_width(num: int) -> float:
    """Half the width of a 95% interval in standard errors: Student's t, num - 1 degrees of freedom; NaN for one value.

    Example:
        >>> round(half_width(5), 2), round(half_width(10_000), 2)
        (2.78, 1.96)
    """
    return float(stdtrit(num - 1, 0.975)) if num > 1 else math.nan


def paired(name: str, differences: np.ndarray) -> dict[str, float]:
    """``name``, ``name_se`` and the 95% interval ``name_low`` .. ``name_high`` of a mean of differences [N].

    The differences are of two values of the same example, so the spread that both share does not count. The interval
    is Student's, N - 1 degrees of freedom.

    Example:
        >>> {key: round(value, 2) for key, value in paired("gain", np.array([1.0, 3.0])).items()}
        {'gain': 2.0, 'gain_se': 1.0, 'gain_low': -10.71, 'gain_high': 14.71}
    """
    mean = float(differences.mean())
    error = float(standard_error(torch.from_numpy(differences)))
    width = half_width(len(differences)) * error
    return {name: mean, f"{name}_se": error, f"{name}_low": mean - width, f"{name}_high": mean + width}
