"""Annealed importance sampling of an ensemble's examples: :mod:`miselbo.bounds.annealed` on its target and members."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from miselbo.bounds import annealed
from miselbo.bounds.annealed import Noise, Point, Scores
from miselbo.bounds.jackknife import joint_jackknife
from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.noise import derive, uniform
from miselbo.protocols import evaluating, latent_noise

STREAM = int.from_bytes(b"anneal")  # keeps these seeds apart from others derived of the same one
SPREAD_DRAWS = 16  # per member, for the scale of every latent dimension
PILOT, RUN, BACK = range(3)


@dataclass(frozen=True)
class Plan:
    """How examples are annealed.

    Args:
        temperatures: T.
        chains: per member, 2 at least, so that their spread is known.
        leapfrog: steps of a move.
        seed: key of the noise.

    Raises:
        InputError: a number below these.
    """

    temperatures: int = 50
    chains: int = 3
    leapfrog: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("temperatures", 1), ("chains", 2), ("leapfrog", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"annealed.{name} must be a whole number of at least {least}, got {value!r}")

    def passes(self, size: int) -> int:
        """Decoder passes of one example with ``size`` members, nearly all with their gradient, the pilot's too."""
        moves = 1 + (self.temperatures - 1) * (self.leapfrog + 1)
        return size * ((self.chains + 1) * moves + SPREAD_DRAWS)


def anneal(
    ensemble: Ensemble,
    x: Tensor | None,
    plan: Plan,
    index: Tensor | None = None,
    truth: Point | None = None,
) -> dict[str, Tensor]:
    """Annealed bounds of a batch.

    Args:
        ensemble: :class:`miselbo.ensemble.Ensemble` of a target that is differentiable in z; stays as it is.
        x: [B, ...]; None for a density.
        plan: of the chains.
        index: [B] example numbers, of which the noise is a function; default 0..B-1.
        truth: per latent [B, ...], the z with which x was simulated: also gives an upper bound.

    Returns:
        [B], float64, nats: ``annealed``, a lower bound on log p(x) in expectation; ``annealed_var``, its Monte Carlo
        variance; ``annealed_ess``, effective chains; ``acceptance``; with ``truth`` ``annealed_upper``.

    Raises:
        InputError: a target that is not differentiable in z.

    Example:
        >>> from miselbo.ensemble import Ensemble
        >>> far = [torch.distributions.Normal(m, 0.5) for m in (-1.0, 1.5)]
        >>> target = torch.distributions.Normal(0.0, 1.0)
        >>> found = anneal(Ensemble(lambda z: 3 + target.log_prob(z), far), None, Plan(40, 20))
        >>> bool(abs(found["annealed"] - 3) < 0.05)
        True
    """
    ensemble = copy.deepcopy(ensemble).requires_grad_(False)
    size = len(ensemble.members)
    with evaluating(ensemble):
        batch = torch.zeros(1, 0) if x is None else x
        index = torch.arange(len(batch), device=batch.device) if index is None else index
        with torch.no_grad():
            contexts = [member.encode(batch) for member in ensemble.members]
        scores = _scores(ensemble, batch, contexts)

        def start(phase: int, chains: int) -> Point:
            """z_0 of so many chains of each member, chain c from member c mod S."""
            samples, seed = torch.arange(chains, device=batch.device), derive(plan.seed, STREAM, phase)
            each = []
            for s, (member, context) in enumerate(zip(ensemble.members, contexts, strict=True)):
                noise = ensemble.noise(batch, samples, seed, index, s)
                with torch.no_grad():
                    each.append(_latents(ensemble.target_of(s).draw(batch, member, context, noise), chains))
            return [torch.stack(parts, 1).flatten(0, 1) for parts in zip(*each, strict=True)]

        betas = annealed.schedule(plan.temperatures).to(batch.device)
        seen = start(PILOT, SPREAD_DRAWS)
        scales = [part.unflatten(0, (-1, size)).std(0).mean(0).clamp(min=1e-6) for part in seen]
        _check(scores, [part[:size] for part in seen])
        noise = _noise(plan.seed, index, PILOT, [part[:size] for part in seen])
        moves = annealed.tune(scores, [part[:size] for part in seen], noise, betas, scales, plan.leapfrog)
        z = start(RUN, plan.chains)
        log_j, accepted = annealed.forwards(scores, z, _noise(plan.seed, index, RUN, z), moves)
        value, variance, _ = joint_jackknife(log_j.unflatten(0, (-1, size)).movedim(2, 0).transpose(1, 2))
        found = {
            "annealed": value,
            "annealed_var": variance,
            "annealed_ess": 1 / log_j.softmax(0).square().sum(0),
            "acceptance": accepted.mean(0),
        }
        if truth is not None:
            last = [part.unsqueeze(0) for part in truth]
            back, end = annealed.backwards(scores, last, _noise(plan.seed, index, BACK, last), moves)
            with torch.no_grad():
                draw = ensemble.target.at(batch, end)
                density = [m.log_prob(c, draw)[0] for m, c in zip(ensemble.members, contexts, strict=True)]
            choice = uniform(derive(plan.seed, STREAM, BACK), index, 1)[:, 0].double()
            found["annealed_upper"] = annealed.upper(log_j, back[0], torch.stack(density).double(), choice)
    return found


def _scores(ensemble: Ensemble, x: Tensor, contexts: Sequence[object]) -> Scores:
    """log p and log q_mix of a point [C, B] under an ensemble."""

    def scores(z: Point) -> tuple[Tensor, Tensor]:
        draw = ensemble.target.at(x, z)
        each = [m.log_prob(c, draw) for m, c in zip(ensemble.members, contexts, strict=True)]
        return draw.log_p, torch.stack(each).logsumexp(0) - math.log(len(each))

    return scores


def _noise(seed: int, index: Tensor, phase: int, like: Point) -> Noise:
    """Momenta and uniform numbers of every move, functions of (seed, phase, move, example, chain)."""
    chains = torch.arange(len(like[0]), device=index.device)
    shapes = [tuple(part.shape[2:]) or (1,) for part in like]  # a scalar z has none

    def noise(t: int) -> tuple[Point, Tensor]:
        key = derive(seed, STREAM, phase, t)
        momentum = latent_noise(shapes, key, index, 0, chains, like[0].dtype)
        momentum = [m.view_as(part) for m, part in zip(momentum, like, strict=True)]
        return momentum, uniform(key, index, 1, sample=chains)[..., 0]

    return noise


def _latents(draw: object, samples: int) -> Point:
    """A draw's latents, [L, B, ...] each."""
    z = getattr(draw, "z", None)
    if isinstance(z, Tensor):
        return [z]
    if not isinstance(z, list):
        raise InputError(
            "annealing needs a target whose z are tensors, in which log p is differentiable; this one's are "
            f"{type(z).__name__ if z is not None else type(draw).__name__}: use evaluation.method=full"
        )
    return [part.unflatten(0, (samples, -1)) for part in z]


def _check(scores: Scores, z: Point) -> None:
    """Refuse scores without a gradient in z."""
    with torch.enable_grad():
        log_p, log_q = scores([part.detach().requires_grad_() for part in z])
    if not (log_p.requires_grad and log_q.requires_grad):
        which = "log p(x, z)" if not log_p.requires_grad else "log q(z | x)"
        raise InputError(f"annealing needs {which} to be differentiable in z: use evaluation.method=full")
