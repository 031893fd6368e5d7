r"""Annealed importance sampling from the mixture of the members: a bound that many gradient steps make tight.

Neal, "Annealed importance sampling", Statistics and Computing 11, 2001. With f_t = q_mix^(1 - b_t) p^(b_t), b_0 = 0,
b_T = 1, a chain starts at z_0 ~ q_mix and moves by z_t ~ K_t(z_{t-1}), which leaves f_t invariant (Hamiltonian Monte
Carlo with a Metropolis step); then

    log J = sum_{t=1..T} (b_t - b_{t-1}) (log p - log q_mix)(z_{t-1}),    E J = p(x).

T = 1 is the importance weight p / q_mix, so log of the mean of J over chains is a lower bound in expectation, as the
joint bound is. Chains are stratified over the members (as many from each), so J has to be averaged over all of them.

Backwards (Grosse, Ghahramani and Adams, arXiv 1511.02543): with z* ~ p(z | x), as where x was simulated with it, a
chain that starts at z_{T-1} = z* and moves by K_{T-1} .. K_1 has J with E[1/J] = 1/p(x); standing in for one of the
chains it makes the mean an upper bound in expectation (:func:`upper`).

Step sizes are tuned by a pilot with noise of its own and then stay as they are, or J would be biased.

Axes in shape comments: C chains, B examples; a point z is a list of latents [C, B, ...].
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from miselbo.errors import InputError

Point = list[Tensor]
Scores = Callable[[Point], tuple[Tensor, Tensor]]  # log p(x, z) and log q_mix(z | x), [C, B], differentiable
Noise = Callable[[int], tuple[Point, Tensor]]  # of move t: standard normal like z, and uniform [C, B]

TARGET = 0.75  # acceptance the pilot aims at
RATE = 0.6  # of its adaptation of log step sizes, per move
START = 0.3  # first step size, in units of the spread of the members' draws
LEAST, MOST = 1e-4, 3.0


def schedule(temperatures: int) -> Tensor:
    """b_0 = 0 .. b_T = 1, spaced by a sigmoid on [-4, 4], float64.

    Raises:
        InputError: T below 1.

    Example:
        >>> schedule(2)
        tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
    """
    if isinstance(temperatures, bool) or not isinstance(temperatures, int) or temperatures < 1:
        raise InputError(f"annealed.temperatures must be a whole number of at least 1, got {temperatures!r}")
    b = torch.linspace(-4, 4, temperatures + 1, dtype=torch.float64).sigmoid()
    return (b - b[0]) / (b[-1] - b[0])


@dataclass(frozen=True)
class Moves:
    """How the chains move.

    Args:
        betas: [T + 1].
        steps: [T, B] step size of move t = 1 .. T - 1 (row t).
        scales: per latent [B, ...], what the step size of a dimension is multiplied by.
        leapfrog: steps of a move.
    """

    betas: Tensor
    steps: Tensor
    scales: Point
    leapfrog: int

    @property
    def gradients(self) -> int:
        """Evaluations of the scores of one chain, all but the first and the last with their gradient."""
        return 1 + (len(self.betas) - 2) * (self.leapfrog + 1)


def tune(scores: Scores, z: Point, noise: Noise, betas: Tensor, scales: Point, leapfrog: int = 3) -> Moves:
    """Step sizes of every move and example from a pilot, whose chains are then thrown away.

    Args:
        scores: of a point.
        z: starts of the pilot.
        noise: of its moves, which no later run may use.
        betas: of :func:`schedule`.
        scales: per latent [B, ...].
        leapfrog: steps of a move.

    Raises:
        InputError: leapfrog below 1.
    """
    if isinstance(leapfrog, bool) or not isinstance(leapfrog, int) or leapfrog < 1:
        raise InputError(f"annealed.leapfrog must be a whole number of at least 1, got {leapfrog!r}")
    log_step = torch.full(z[0].shape[1:2], math.log(START), dtype=torch.float64, device=z[0].device)
    rows = [log_step]
    for t in range(1, len(betas) - 1):
        z, accepted, _ = _move(scores, z, betas[t], log_step.exp(), scales, leapfrog, noise(t))
        log_step = log_step + RATE * (accepted.mean(0) - TARGET)
        log_step = log_step.clamp(math.log(LEAST), math.log(MOST))
        rows.append(log_step)
    # the mean with its neighbours in time: the last accepted or refused chain shall not decide
    path = torch.stack(rows)
    padded = torch.cat([path[:1], path[:1], path, path[-1:], path[-1:]])
    return Moves(betas, padded.unfold(0, 5, 1).mean(-1).exp(), scales, leapfrog)


def forwards(scores: Scores, z: Point, noise: Noise, moves: Moves) -> tuple[Tensor, Tensor]:
    """log J of every chain and its mean acceptance, [C, B] each.

    Args:
        scores: of a point.
        z: z_0 ~ q_mix, as many chains from each member.
        noise: of the moves.
        moves: tuned with other noise.

    Example:
        >>> from torch.distributions import Normal
        >>> def scores(z):                                      # p(x, z) = e^2 N(z; 1, 1), q = N(0, 2)
        ...     z = z[0][..., 0].double()
        ...     return 2 + Normal(1.0, 1.0).log_prob(z), Normal(0.0, 2.0).log_prob(z)
        >>> generator = torch.Generator().manual_seed(0)
        >>> def noise(t):
        ...     return [torch.randn(200, 1, 1, generator=generator)], torch.rand(200, 1, generator=generator)
        >>> start, one = [2 * torch.randn(200, 1, 1, generator=generator)], [torch.ones(1, 1)]
        >>> moves = tune(scores, start, noise, schedule(20), one)
        >>> log_j, _ = forwards(scores, [2 * torch.randn(200, 1, 1, generator=generator)], noise, moves)
        >>> bool(abs(log_j.logsumexp(0) - math.log(200) - 2) < 0.05)
        True
    """
    betas, last = moves.betas, len(moves.betas) - 2
    log_p, log_q = _values(scores, z)
    log_j = (betas[1] - betas[0]) * (log_p - log_q)
    total = torch.zeros_like(log_j)
    for t in range(1, last + 1):
        z, accepted, (log_p, log_q) = _move(
            scores, z, betas[t], moves.steps[t], moves.scales, moves.leapfrog, noise(t)
        )
        total += accepted
        log_j = log_j + (betas[t + 1] - betas[t]) * (log_p - log_q)
    return log_j, total / max(1, last)


def backwards(scores: Scores, z: Point, noise: Noise, moves: Moves) -> tuple[Tensor, Point]:
    """log J [C, B] of chains from z* ~ p(z | x) back to z_0, and z_0."""
    betas = moves.betas
    log_p, log_q = _values(scores, z)
    log_j = (betas[-1] - betas[-2]) * (log_p - log_q)
    for t in range(len(betas) - 2, 0, -1):
        z, _, (log_p, log_q) = _move(
            scores, z, betas[t], moves.steps[t], moves.scales, moves.leapfrog, noise(t)
        )
        log_j = log_j + (betas[t] - betas[t - 1]) * (log_p - log_q)
    return log_j, z


def lower(log_j: Tensor) -> Tensor:
    """log of the mean of J over the chains, [C, B] -> [B]: a lower bound on log p(x) in expectation."""
    return log_j.double().logsumexp(0) - math.log(len(log_j))


def upper(log_j: Tensor, log_back: Tensor, log_density: Tensor, uniform: Tensor) -> Tensor:
    """The same with one chain replaced by a backward one: an upper bound on log p(x) in expectation, [B].

    The chain it stands in for is one of member s with probability q_s(z_0) / sum_j q_j(z_0), z_0 its end.

    Args:
        log_j: [C, B] of forward chains, chain c from member c mod S.
        log_back: [B] of the backward chain.
        log_density: [S, B] log q_s(z_0 | x).
        uniform: [B] in (0, 1), which chooses s.
    """
    size = len(log_density)
    share = log_density.softmax(0).cumsum(0)
    chosen = (uniform[None] > share[:-1]).sum(0)  # [B], 0 .. S - 1
    first = torch.arange(len(log_j), device=log_j.device)[:, None] == chosen
    assert len(log_j) % size == 0
    return lower(torch.where(first, log_back[None], log_j))


def _values(scores: Scores, z: Point) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        log_p, log_q = scores(z)
    return log_p.double(), log_q.double()


def _gradient(scores: Scores, z: Point, beta: Tensor) -> tuple[Point, Tensor, Tensor]:
    """Gradient of log f = (1 - b) log q_mix + b log p, and both parts [C, B]."""
    with torch.enable_grad():
        z = [part.detach().requires_grad_() for part in z]
        log_p, log_q = scores(z)
        b = beta.to(log_p)
        log_f = torch.where(log_p.isfinite() & log_q.isfinite(), (1 - b) * log_q + b * log_p, 0.0).sum()
        parts = torch.autograd.grad(log_f, z)
    return (
        [part.nan_to_num(0.0, 0.0, 0.0) for part in parts],
        log_p.detach().double(),
        log_q.detach().double(),
    )


def _move(
    scores: Scores,
    z: Point,
    beta: Tensor,
    step: Tensor,
    scales: Sequence[Tensor],
    leapfrog: int,
    noise: tuple[Point, Tensor],
) -> tuple[Point, Tensor, tuple[Tensor, Tensor]]:
    """One Hamiltonian move with a Metropolis step: points, acceptance probability [C, B], log p and log q there."""
    momentum, uniform = noise
    sizes = [
        (step.view(-1, *[1] * (part.ndim - 2)) * scale).to(part)
        for part, scale in zip(z, scales, strict=True)
    ]

    def kinetic(parts: Point) -> Tensor:
        return torch.stack(
            [0.5 * part.double().square().reshape(*part.shape[:2], -1).sum(2) for part in parts]
        ).sum(0)

    gradient, log_p, log_q = _gradient(scores, z, beta)
    before = (1 - beta) * log_q + beta * log_p - kinetic(momentum)
    new, start = list(z), (log_p, log_q)
    for _ in range(leapfrog):
        momentum = [m + 0.5 * e * g for m, e, g in zip(momentum, sizes, gradient, strict=True)]
        new = [part + e * m for part, e, m in zip(new, sizes, momentum, strict=True)]
        gradient, log_p, log_q = _gradient(scores, new, beta)
        momentum = [m + 0.5 * e * g for m, e, g in zip(momentum, sizes, gradient, strict=True)]
    after = (1 - beta) * log_q + beta * log_p - kinetic(momentum)
    accepted = (after - before).exp().clamp(max=1.0).nan_to_num(0.0)
    take = uniform.double() < accepted

    def chosen(there: Tensor, here: Tensor) -> Tensor:
        return torch.where(take.view(*take.shape, *[1] * (here.ndim - 2)), there.detach(), here)

    moved = [chosen(there, here) for there, here in zip(new, z, strict=True)]
    return moved, accepted, (chosen(log_p, start[0]), chosen(log_q, start[1]))
