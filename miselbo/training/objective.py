r"""NVAE's training objective: KL warm-up, balancing over groups, learning-rate schedule. All pure functions.

The loss of one step is  mean_b[recon + sum_i c_i KL_i] + lambda * (spectral + batch-norm regulariser), see
:mod:`miselbo.training.regularisers` for the second part.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from miselbo.training.parallel import collectives


def kl_weight(
    step: int, total_steps: int, constant_portion: float, anneal_portion: float, minimum: float
) -> float:
    """Beta of the KL warm-up: max(min((step - constant*N) / (anneal*N), 1), minimum), N the total number of steps.

    Example:
        >>> kl_weight(15, 100, constant_portion=0.0, anneal_portion=0.3, minimum=1e-4)
        0.5
    """
    if anneal_portion <= 0:
        return 1.0
    return max(min((step - constant_portion * total_steps) / (anneal_portion * total_steps), 1.0), minimum)


def group_scale(shapes: Sequence[tuple[int, ...]]) -> Tensor:
    """Alpha, NVAE's relative scale of the groups' KLs ("square"), from the latents' shapes (Z, h, w), deepest first.

    4^i / (number of groups of that scale), i = 0 for the deepest scale, divided by the minimum.

    Returns:
        [G], float64.

    Example:
        >>> group_scale([(2, 4, 4)] * 5 + [(2, 8, 8)] * 10).tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    """
    heights = [shape[-2] for shape in shapes]
    scales = sorted(set(heights))
    alpha = torch.tensor([4.0 ** scales.index(h) / heights.count(h) for h in heights], dtype=torch.float64)
    return alpha / alpha.min()


def balance(kl: Tensor, alpha: Tensor, beta: float) -> Tensor:
    """Coefficients c_i of the groups' KLs during warm-up; all ones when beta = 1.

    gamma_i = (mean_b |KL_i| + 0.01) / alpha_i * total, normalised to mean 1 over groups, detached; c_i = beta gamma_i.
    The mean is over the examples of all processes.

    Args:
        kl: [B, G] nats.
        alpha: [G] from :func:`group_scale`.
        beta: KL weight in (0, 1].

    Returns:
        [G] coefficients.
    """
    if beta >= 1:
        return torch.ones_like(kl[0])
    mean = collectives.mean(kl.abs()) + 0.01
    gamma = mean / alpha.to(mean) * mean.sum()
    return beta * gamma / gamma.mean()


def regulariser_weight(beta: float, final: float, initial: float | None) -> float:
    """Lambda of the regularisers: ``final``, or on a log scale from ``initial`` to it as the KL weight beta rises.

    log lambda = beta log(final) + (1 - beta) log(initial).

    Example:
        >>> round(regulariser_weight(0.5, 1e-2, 1.0), 6)
        0.1
    """
    if initial is None or final == 0:
        return final
    return math.exp(beta * math.log(final) + (1 - beta) * math.log(initial))


def learning_rate(
    step: int, steps_per_epoch: int, epochs: int, warmup_epochs: int, peak: float, minimum: float
) -> float:
    """NVAE's schedule: linear warm-up per iteration, then one cosine step per epoch down to ``minimum``.

    The cosine continues from the last warm-up value, so the peak really reached is peak*(W-1)/W, W warm-up iterations.
    """
    warmup = warmup_epochs * steps_per_epoch
    if step < warmup:
        return peak * step / warmup
    start = peak * (warmup - 1) / warmup if warmup else peak
    done = max(step // steps_per_epoch - warmup_epochs, 0)
    length = max(epochs - warmup_epochs - 1, 1)
    return minimum + (start - minimum) * (1 + math.cos(math.pi * min(done / length, 1.0))) / 2
