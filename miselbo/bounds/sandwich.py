r"""Lower and upper bounds of log p(x) for data that the model itself simulated, (x, z*) ~ p(x, z).

Given x, z* is an exact posterior sample. Member s is drawn with probability q_s(z*) / sum_j q_j(z*), one of its L draws
is replaced by z*, and with w = p / q_mix

    Z_up = 1/(S L) sum_{s,l} w,     E[p(x) / Z_up] = 1,     so  E[log Z_up] >= log p(x) >= E[log joint bound].

(A fixed s would be wrong: its draws alone are not those of the mixture.) By Markov, with probability at least 1 - d
over the draws of N independent examples, mean log p(x) <= mean log Z_up + log(1/d)/N, and from below likewise.
"""

import math

import numpy as np
import torch
from torch import Tensor

from miselbo import bounds
from miselbo.bounds.certificate import margin
from miselbo.bounds.diagnostics import standard_error
from miselbo.errors import InputError


def both_sides(
    log_p: Tensor, log_q: Tensor, star_p: Tensor, star_q: Tensor, choice: Tensor, grid: list[int]
) -> dict[str, Tensor]:
    """Lower and upper bounds of every nested ensemble of S' members at every L' of a grid.

    Args:
        log_p: [N, S, L] at the members' draws.
        log_q: [N, S, L, S].
        star_p: [N] log p(x, z*).
        star_q: [N, S] log q_j(z* given x).
        choice: [N] uniform numbers in (0, 1) that choose the member whose first draw z* replaces.
        grid: the L'.

    Returns:
        ``lower`` and ``upper`` [N, S', L'], float64.

    Raises:
        InputError: shapes or dtype.

    Example:
        >>> zeros = torch.zeros(1, 1, 2)                        # an exact member: both sides are log p(x)
        >>> star_p, star_q = torch.tensor([-3.0]), torch.tensor([[0.0]])
        >>> found = both_sides(zeros - 3, zeros[..., None], star_p, star_q, torch.tensor([0.5]), [2])
        >>> found["lower"].item(), found["upper"].item()
        (-3.0, -3.0)
    """
    log_p, log_q = bounds.check_scores(log_p, log_q)
    count, size, samples = log_p.shape
    if star_p.shape != (count,) or star_q.shape != (count, size) or choice.shape != (count,):
        raise InputError(
            f"expected star_p [{count}], star_q [{count}, {size}] and choice [{count}], got {list(star_p.shape)}, "
            f"{list(star_q.shape)} and {list(choice.shape)}"
        )
    star_p, star_q = star_p.double(), star_q.double()
    lower: list[Tensor] = []
    upper: list[Tensor] = []
    for members in range(1, size + 1):
        weights = log_p[:, :members] - log_q[:, :members, :, :members].logsumexp(-1) + math.log(members)
        q = star_q[:, :members]
        shares = q.softmax(-1).cumsum(-1)
        chosen = (choice.double()[:, None] * shares[:, -1:] > shares).sum(-1).clamp(max=members - 1)
        replaced = weights.clone()
        replaced[torch.arange(count), chosen, 0] = star_p - q.logsumexp(-1) + math.log(members)
        for values, sides in ((weights, lower), (replaced, upper)):
            sides.append(
                torch.stack([_log_mean(values[:, :, :stop].flatten(1)) for stop in grid], -1)
            )  # [N, L']
    return {"lower": torch.stack(lower, 1), "upper": torch.stack(upper, 1)}


def summarise(lower: np.ndarray, upper: np.ndarray, confidence: float) -> dict[str, float]:
    """Means of both sides [N] with errors over the examples, their width, and what is certain of mean log p(x).

    Returns:
        ``lower``, ``upper`` and ``width`` with ``_se``; ``certified_low`` and ``certified_high``, between which mean
        log p(x) of these examples lies with probability ``confidence`` (half of the rest on each side).
    """
    beyond = margin(len(lower), confidence, statements=2)
    found: dict[str, float] = {}
    for name, values in (("lower", lower), ("upper", upper), ("width", upper - lower)):
        found |= {name: float(values.mean()), f"{name}_se": float(standard_error(torch.from_numpy(values)))}
    return {
        **found,
        "certified_low": found["lower"] - beyond,
        "certified_high": found["upper"] + beyond,
        "num_data": len(lower),
    }


def _log_mean(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(-1) - math.log(log_w.shape[-1])
