r"""Estimators of MISELBO for training the components of one mixture jointly (L = 1).

With A components q_1..q_A, one sample z_s ~ q_s of each component that was chosen, S of A without replacement:

    all-to-all    (1/A) sum_a  log p(z_a) - log (1/A) sum_j q_j(z_a)                    A likelihoods, A x A densities
    some-to-all   (1/S) sum_s  log p(z_s) - log (1/A) sum_j q_j(z_s)                    S likelihoods, S x A densities
    some-to-some  (1/S) sum_s  log p(z_s) - log (1/S) sum_{j chosen} q_j(z_s)           S likelihoods, S x S densities

Some-to-all is unbiased for MISELBO; some-to-some is a lower bound on it in expectation, and with S = 1 it trains every
component alone (Hotti et al., ICML 2024, arXiv 2406.07083; Kviman's thesis, 4.4.28 and 4.4.29).

Letters: here, as in the papers, A is the number of components (``ensemble.size``, S everywhere else in this project)
and S how many are sampled per step (``ensemble.sampled``). The code of efficient-mixtures has it the other way round:
its ``--S`` is A and its ``--n_A`` is S.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from miselbo.errors import InputError


def all_to_all(log_p: Tensor, log_q: Tensor) -> Tensor:
    """MISELBO at one sample of every component.

    Args:
        log_p: [..., A].
        log_q: [..., A, A], ``log_q[..., a, j]`` = log q_j(z_a).

    Returns:
        [...], differentiable.

    Raises:
        InputError: other shapes.

    Example:
        >>> float(all_to_all(torch.zeros(2), torch.zeros(2, 2)))
        0.0
    """
    return _bound(log_p, log_q, square=True)


def some_to_all(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Samples of S components, all A in the denominator (4.4.28): unbiased for :func:`all_to_all`.

    Args:
        log_p: [..., S].
        log_q: [..., S, A].

    Example:
        >>> some_to_all(torch.zeros(5, 2), torch.zeros(5, 2, 7)).shape
        torch.Size([5])
    """
    return _bound(log_p, log_q, square=False)


def some_to_some(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Samples of S components, the same S in the denominator (4.4.29): a lower bound in expectation.

    Args:
        log_p: [..., S].
        log_q: [..., S, S].

    Example:
        >>> float(some_to_some(torch.zeros(1), torch.full((1, 1), -1.0)))
        1.0
    """
    return _bound(log_p, log_q, square=True)


def _bound(log_p: Tensor, log_q: Tensor, square: bool) -> Tensor:
    rows, columns = (*log_p.shape[-1:], 0)[0], (*log_q.shape[-1:], 0)[0]
    if rows < 1 or columns < rows or log_q.shape[:-1] != log_p.shape or (square and rows != columns):
        raise InputError(
            f"log_p must be [..., S] and log_q [..., S, {'S' if square else 'A >= S'}], got {list(log_p.shape)} and "
            f"{list(log_q.shape)}"
        )
    return (log_p - torch.logsumexp(log_q, -1) + math.log(columns)).mean(-1)


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "all_to_all": all_to_all,
    "some_to_all": some_to_all,
    "some_to_some": some_to_some,
}


def chosen(estimator: str, size: int, sampled: int | None, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Numbers of the components that are sampled in a step, and of those in the denominator.

    Args:
        estimator: name of one of the three.
        size: A.
        sampled: S; None for (A + 1) // 2. All-to-all takes all.
        seed: of the choice, with ``step``.
        step: of training.

    Example:
        >>> chosen("all_to_all", 3, None, 0, 0)
        (tensor([0, 1, 2]), tensor([0, 1, 2]))
        >>> rows, columns = chosen("some_to_all", 5, 2, 0, 7)
        >>> len(rows), columns.tolist()
        (2, [0, 1, 2, 3, 4])
    """
    every = torch.arange(size)
    if estimator == "all_to_all":
        return every, every
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    count = (size + 1) // 2 if sampled is None else sampled
    rows = torch.randperm(size, generator=generator)[:count].sort().values
    return rows, every if estimator == "some_to_all" else rows
