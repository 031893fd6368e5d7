r"""Optimal weights of the members, fitted on one half of the draws and measured on the other.

One vector w for the data set maximises the mean over examples of the L = 1 MISELBO of the weighted mixture,

    F(w) = sum_s w_s E_{q_s}[log p - log q_w],    q_w = sum_j w_j q_j,    w on the simplex.

F is concave: sum_s w_s E_{q_s}[log p] is linear in w, and -sum_s w_s E_{q_s}[log q_w] = -E_{q_w}[log q_w] is the
entropy of q_w, concave in q_w, which is linear in w. So there is one optimum, and no start matters. Its estimate
from draws, with 1/K sum_k at z_{s,k} ~ q_s for E_{q_s}, is concave up to Monte Carlo noise, and its maximum is
too high: the weights lean to the members whose draws came out well. So the draws of the fit say nothing about the
gain (``optimistic_gain``); other draws do (``gain``).
"""

import math
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from miselbo import bounds
from miselbo.bounds.diagnostics import paired
from miselbo.errors import InputError

FLOOR = 1e-7  # least weight during the fit, so that no mixture vanishes where a member is alone
NEGLIGIBLE = 1e-4  # a fitted weight below this is reported as 0


class Comparison(TypedDict, total=False):
    """Bounds under uniform and fitted weights, and the paired gains with errors and intervals."""

    L: int
    uniform: dict[str, float]
    fitted: dict[str, float]
    gain: float
    gain_se: float
    gain_low: float
    gain_high: float
    joint_gain: float
    joint_gain_se: float
    joint_gain_low: float
    joint_gain_high: float


class Verdict(TypedDict, total=False):
    """Whether equal weights do as well, in words."""

    equal_as_good: bool
    sentence: str


class Fitted(Comparison, Verdict, total=False):
    """Fitted weights, compared at L = 1, and at full length."""

    weights: list[float]
    weights_se: list[float | None]
    fitted_on: str
    measured_on: str
    num_data: int
    left_out: int
    optimistic_gain: float
    optimistic_gain_label: str
    at_full_length: Comparison


def mixture_weights(log_p: np.ndarray, log_q: np.ndarray) -> Fitted | None:
    """Fit weights on the even samples, compare them with uniform ones on the odd samples.

    Args:
        log_p: [N, S, K], the first K samples of every example.
        log_q: [N, S, K, S].

    Returns:
        None for S = 1, K = 1 or fewer than two examples with finite scores. Otherwise ``weights`` [S], ``weights_se``
        (:func:`weight_errors`), ``equal_as_good`` (the 95% interval of ``gain`` does not lie above 0), ``sentence``
        and, from the odd samples at L = 1 (each a bound of its own, averaged),

        - ``uniform`` and ``fitted``: ``miselbo`` and ``joint_bound`` with ``_se`` over the examples;
        - ``gain`` of the fitted weights in MISELBO and ``joint_gain`` in the joint bound, each with ``_se``,
          ``_low`` and ``_high`` (95%), paired over the examples;
        - ``optimistic_gain``: the gain on the very draws of the fit, larger than it will ever be again.

        ``at_full_length`` has the first two once more with all odd samples inside one bound, L of them.
        ``left_out`` counts the examples with scores that are not finite.

    Raises:
        InputError: shapes or dtype.

    Example:
        >>> log_p = np.array([[[0.0, 0.0], [-9.0, -9.0]]] * 5)      # member 2 draws only bad samples
        >>> mixture_weights(log_p, np.zeros((5, 2, 2, 2)))["weights"]
        [1.0, 0.0]
    """
    p, q = bounds.check_scores(torch.as_tensor(log_p), torch.as_tensor(log_q))
    if p.ndim != 3:
        raise InputError(f"log_p must be [N, S, K], got shape {list(p.shape)}")
    broken = ~p.isfinite().all((1, 2)) | ~bounds.own_density(q).isfinite().all((1, 2))
    broken |= (q.isnan() | (q == math.inf)).flatten(1).any(1)
    p, q = p[~broken], q[~broken]
    count, size, samples = p.shape
    if size == 1 or samples == 1 or count < 2:
        return None
    even, odd = (p[:, :, ::2], q[:, :, ::2]), (p[:, :, 1::2], q[:, :, 1::2])
    weights = fit_weights(*even)
    uniform = torch.full((size,), 1 / size, dtype=torch.float64)
    same_draws = draw_by_draw(*even, weights)["miselbo"] - draw_by_draw(*even, uniform)["miselbo"]
    compared = _compare(draw_by_draw(*odd, uniform), draw_by_draw(*odd, weights), 1)
    return {
        "weights": weights.tolist(),
        "weights_se": [None if math.isnan(e) else e for e in weight_errors(*even, weights).tolist()],
        **_verdict(compared),
        "fitted_on": f"even samples of the first {samples}",
        "measured_on": f"odd samples of the first {samples}",
        "num_data": count,
        "left_out": int(broken.sum()),
        **compared,
        "optimistic_gain": float(same_draws.mean()),
        "optimistic_gain_label": "optimistic (same draws)",
        "at_full_length": _compare(_all_draws(*odd, uniform), _all_draws(*odd, weights), odd[0].shape[2]),
    }


def fit_weights(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""The weights that maximise the mean L = 1 MISELBO of the weighted mixture over examples and draws.

    Sequential least squares programming on the simplex, with the gradient

        dF/dw_t = mean (log p - log q_w) at the samples of t  -  sum_s w_s mean (q_t / q_w) at the samples of s.

    Args:
        log_p: [N, S, K], finite.
        log_q: [N, S, K, S], finite under a sample's own member.

    Returns:
        [S], on the simplex; a weight below 1e-4 becomes 0.

    Raises:
        InputError: shapes or dtype.

    Example:
        >>> log_q = torch.tensor([[[[0.0, -math.inf]], [[-math.inf, 0.0]]]])     # no overlap
        >>> fit_weights(torch.tensor([[[0.75], [0.25]]]).log(), log_q)           # then w = softmax of the ELBOs
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    log_p, log_q = bounds.check_scores(log_p, log_q)
    size = log_p.shape[1]
    top = log_q.amax(-1)
    linear = (log_p - top).mean((0, 2)).numpy()  # [S]
    density = (log_q - top[..., None]).exp().movedim(1, 0).reshape(size, -1, size).numpy()  # [s, draws, j]

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        mixture = density @ w  # [s, draws]
        value = linear - np.log(mixture).mean(1)
        pull = np.einsum("sdj,sd,s->j", density, 1 / mixture, w, optimize=True) / mixture.shape[1]
        return -float(w @ value), pull - value

    from scipy.optimize import minimize  # half a second to import

    found = minimize(
        loss,
        np.full(size, 1 / size),
        jac=True,
        method="SLSQP",
        bounds=[(FLOOR, 1.0)] * size,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(size)},
        options={"maxiter": 500, "ftol": 1e-12},
    )
    w = np.where(found.x < NEGLIGIBLE, 0.0, found.x)
    return torch.from_numpy(w / w.sum())


def weight_errors(log_p: Tensor, log_q: Tensor, weights: Tensor) -> Tensor:
    r"""Standard errors of fitted weights over the examples and their draws, by the delta method.

    At the optimum the gradient of F (:func:`fit_weights`) is the same for all members that have weight. One example
    has the gradient g_n, [S]; what another sample of examples would change moves w by H^-1 (g_n - mean g) / N within
    the simplex, H = -E[d^2 F], so the error is the root of the diagonal of H^-1 Cov(g_n) H^-1 / N.

    Args:
        log_p: [N, S, K], of the fit.
        log_q: [N, S, K, S].
        weights: [S], fitted to them.

    Returns:
        [S]; NaN, unknown, for a weight at 0 and where one member has it all: the delta method knows no edges.

    Example:
        >>> log_p, log_q = torch.randn(50, 2, 4), torch.randn(50, 2, 4, 2)
        >>> weight_errors(log_p, log_q, fit_weights(log_p, log_q)).shape
        torch.Size([2])
    """
    log_p, log_q = bounds.check_scores(log_p, log_q)
    used = (weights > 0).nonzero().squeeze(-1)
    errors = torch.full_like(weights, math.nan)
    if len(used) < 2 or len(log_p) < 2:
        return errors
    w = weights[used]
    log_p, log_q = log_p[:, used], log_q[:, used][..., used]
    log_mixture = (log_q + w.log()).logsumexp(-1)
    ratio = (log_q - log_mixture[..., None]).exp()  # q_t / q_w at the samples of s: [N, s, K, t]
    own = (log_p - log_mixture).mean(2)  # [N, t]
    gradient = own - (w[:, None] * ratio.mean(2)).sum(1)
    cross = ratio.mean((0, 2))  # [s, t]
    curvature = (
        cross + cross.T - torch.einsum("s,nskt,nsku->tu", w, ratio, ratio) / (len(log_p) * log_p.shape[2])
    )
    # orthonormal directions within the simplex, where the weights sum to 1
    within = torch.linalg.svd(torch.ones(1, len(used), dtype=w.dtype)).Vh[1:]
    influence = torch.linalg.pinv(within @ curvature @ within.T, hermitian=True)
    moves = (gradient - gradient.mean(0)) @ within.T @ influence @ within  # [N, t]
    errors[used] = moves.square().sum(0).sqrt() / math.sqrt(len(moves) * (len(moves) - 1))
    return errors


def _verdict(compared: Comparison) -> Verdict:
    """Whether equal weights do as well, in words."""
    low, high = compared["gain_low"], compared["gain_high"]
    interval = f"95% interval {low:+.4f} to {high:+.4f} nats of MISELBO at L = 1"
    if low > 0:
        return {
            "equal_as_good": False,
            "sentence": f"The fitted weights are better than equal ones ({interval}).",
        }
    sentence = "Equal weights are as good" if high >= 0 else "Equal weights are better than the fitted ones"
    return {"equal_as_good": True, "sentence": f"{sentence} ({interval})."}


def draw_by_draw(log_p: Tensor, log_q: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """MISELBO and joint bound at L = 1, each draw alone, averaged over the draws.

    Args:
        log_p: [N, S, K].
        log_q: [N, S, K, S].
        weights: [S].

    Returns:
        ``miselbo`` and ``joint_bound``, [N].

    Example:
        >>> draw_by_draw(torch.tensor([[[-1.0, -3.0]]]), torch.zeros(1, 1, 2, 1), torch.ones(1))["miselbo"]
        tensor([-2.], dtype=torch.float64)
    """
    p, q = log_p.movedim(2, 1)[..., None], log_q.movedim(2, 1)[:, :, :, None]  # [N, K, S, 1 (, S)]
    return {name: value.mean(1) for name, value in _all_draws(p, q, weights).items()}


def _all_draws(log_p: Tensor, log_q: Tensor, weights: Tensor) -> dict[str, Tensor]:
    return {
        "miselbo": bounds.miselbo(log_p, log_q, weights),
        "joint_bound": bounds.joint_bound(log_p, log_q, weights),
    }


def _compare(uniform: dict[str, Tensor], fitted: dict[str, Tensor], num_samples: int) -> Comparison:
    """Both with standard errors, and the paired gains of the fitted weights."""

    def means(values: dict[str, Tensor]) -> dict[str, float]:
        rows = [paired(name, value.numpy()) for name, value in values.items()]
        return {
            key: value for row in rows for key, value in row.items() if not key.endswith(("_low", "_high"))
        }

    found: Comparison = {"L": num_samples, "uniform": means(uniform), "fitted": means(fitted)}
    for gain, name in (("gain", "miselbo"), ("joint_gain", "joint_bound")):
        found.update(paired(gain, (fitted[name] - uniform[name]).numpy()))  # type: ignore[typeddict-item]
    return found
