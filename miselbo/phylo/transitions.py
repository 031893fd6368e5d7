"""Transition matrices P(s) = exp(Q s) of reversible rate matrices, differentiable in Q and s.

With Q = V diag(l) V^-1 the derivative of the exponential in a direction D is V (F * (V^-1 D V)) V^-1, where
F_ij = (e^{l_i s} - e^{l_j s}) / (l_i - l_j), and s e^{l_i s} where two eigenvalues are equal (Daleckii and Krein). It
holds for every direction D, and equal eigenvalues, which JC69, K80 and HKY85 have, do no harm.
"""

from typing import Protocol

import torch
from torch import Tensor

from miselbo.protocols import Saved


class _Kept(Saved, Protocol):
    shape: torch.Size


class Transitions(torch.autograd.Function):
    """exp(Q s): rate matrices Q [K, 4, 4], of frequencies pi [K, 4], and times s [K, ...] give [K, ..., 4, 4]."""

    @staticmethod
    def forward(ctx: _Kept, q: Tensor, pi: Tensor, times: Tensor) -> Tensor:
        """Matrices, entries below 0 by rounding being 0."""
        root = pi.sqrt()
        symmetric = root[:, :, None] * q / root[:, None, :]
        values, vectors = torch.linalg.eigh((symmetric + symmetric.mT) / 2)
        right, left = vectors / root[:, :, None], vectors.mT * root[:, None, :]
        flat = times.flatten(1)
        # I + V (e^{l s} - 1) V^-1 keeps the small entries of short edges exact
        change = torch.expm1(values[:, None] * flat[..., None])
        matrix = torch.einsum("kia,kta,kaj->ktij", right, change, left)
        matrix = (matrix + torch.eye(4, dtype=q.dtype)).clamp(min=0)
        ctx.save_for_backward(q, values, right, left, flat, matrix)
        ctx.shape = times.shape
        return matrix.unflatten(1, times.shape[1:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Kept, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        """Gradients in Q and s."""
        q, values, right, left, times, matrix = ctx.saved_tensors
        g = grad.flatten(1, -3)
        to_times = torch.einsum("ktij,kil,ktlj->kt", g, q, matrix)
        lower, upper = values[:, None, None, :], values[:, None, :, None]
        gap = (upper - lower) * times[..., None, None]
        near = gap.abs() < 1e-5
        ratio = torch.where(near, 1 + gap / 2 + gap * gap / 6, torch.expm1(gap) / torch.where(near, 1.0, gap))
        factor = times[..., None, None] * (lower * times[..., None, None]).exp() * ratio
        turned = torch.einsum("kia,ktij,kbj->ktab", right, g, left)
        to_q = torch.einsum("kai,kab,kjb->kij", left, (turned * factor).sum(1), right)
        return to_q, None, to_times.reshape(ctx.shape)


def transitions(q: Tensor, pi: Tensor, times: Tensor) -> Tensor:
    """P(s) = exp(Q s).

    Args:
        q: [K, 4, 4], reversible with respect to ``pi``.
        pi: [K, 4] frequencies, all positive; they are of use to the computation and get no gradient of their own.
        times: [K, ...], at least 0.

    Returns:
        [K, ..., 4, 4], float64.

    Example:
        >>> q = torch.full((1, 4, 4), 1 / 3).double() - 4 / 3 * torch.eye(4).double()
        >>> transitions(q, torch.full((1, 4), 0.25).double(), torch.tensor([[0.3]]).double())[0, 0, 0].round(decimals=4)
        tensor([0.7527, 0.0824, 0.0824, 0.0824], dtype=torch.float64)
    """
    return Transitions.apply(q, pi, times)


def reversible(rates: Tensor, pi: Tensor) -> Tensor:
    """Q [K, 4, 4] with Q_ij = r_ij pi_j, one expected substitution per unit of time.

    Args:
        rates: [K, 6] of AC AG AT CG CT GT; only their ratios matter.
        pi: [K, 4] frequencies.

    Example:
        >>> reversible(torch.ones(1, 6), torch.full((1, 4), 0.25))[0, 0].round(decimals=3)
        tensor([-1.0000,  0.3330,  0.3330,  0.3330])
    """
    first, second = torch.triu_indices(4, 4, 1)
    both = torch.zeros(*rates.shape[:-1], 4, 4, dtype=rates.dtype)
    both[..., first, second] = rates
    flow = (both + both.mT) * pi[..., None, :]
    flow = flow / (pi * flow.sum(-1)).sum(-1)[..., None, None]
    return flow - torch.diag_embed(flow.sum(-1))
