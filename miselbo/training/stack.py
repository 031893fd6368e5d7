"""S members of one family as one batch of parameters: what vectorised training works on."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, Normal, transform_to

from miselbo.models.families import location_scale
from miselbo.models.gaussian import Gaussian

Signature = tuple[object, ...]


def signature(member: Gaussian) -> Signature:
    """Members with the same signature can be stacked."""
    buffers = tuple(sorted((name, tuple(value.shape)) for name, value in member.named_buffers()))
    return member.family, tuple(sorted((n, tuple(p.shape)) for n, p in member.free.items())), buffers


class Stack:
    """Parameters of S members, [S, ...] each.

    Args:
        members: with one :func:`signature`.
        seeds: of their training noise, which is a function of (seed, step) alone: a member's draws are the same
            whichever members are trained beside it.
    """

    def __init__(self, members: Sequence[Gaussian], seeds: Sequence[int]):
        self.members, self.seeds = list(members), list(seeds)
        first = members[0]
        self.family, self.constraints, self.shape = first.family, first.constraints, first.shape
        self.free = {
            name: torch.stack([member.free[name].detach() for member in members]).requires_grad_()
            for name in first.free
        }
        self._fixed = {
            name: torch.stack([member.fixed_values[name] for member in members])
            for name in first.fixed_values
        }
        self._generators = [torch.Generator() for _ in members]

    def values(self) -> dict[str, Tensor]:
        """Constrained values of all parameters, [S, ...]."""
        trained = {name: transform_to(self.constraints[name])(value) for name, value in self.free.items()}
        return {**trained, **self._fixed}

    def rsample(self, step: int, count: int, rows: Tensor | None = None) -> Tensor:
        """Differentiable samples z [S, K, d] of the members in ``rows`` (all by default)."""
        chosen = range(len(self.members)) if rows is None else rows.tolist()
        values = self.values()
        if rows is not None:
            values = {name: value[rows] for name, value in values.items()}
        keys = [(self.seeds[s] + step * 0x9E3779B97F4A7C15) % 2**63 for s in chosen]
        if self.family in (Normal, MultivariateNormal):
            base = self.family(**_beside(values), validate_args=False)
            like = next(iter(values.values()))
            eps = [
                torch.randn(
                    count, *self.shape, generator=self._generators[s].manual_seed(key), dtype=like.dtype
                )
                for s, key in zip(chosen, keys, strict=True)
            ]
            return location_scale(base, torch.stack(eps))
        drawn = []
        with torch.random.fork_rng(devices=[]):
            for position, key in enumerate(keys):
                torch.manual_seed(key)
                own = {name: value[position] for name, value in values.items()}
                drawn.append(self.family(**own, validate_args=False).rsample(torch.Size([count])))
        return torch.stack(drawn)

    def log_prob(self, z: Tensor) -> Tensor:
        """Every member at its own samples: z [S, K, d] to [S, K]."""
        return self._density(_beside(self.values()), z)

    def log_prob_of(self, columns: Tensor, z: Tensor) -> Tensor:
        """The members in ``columns`` at anyone's samples: z [S, K, d] to [S, K, J]."""
        values = {name: value[columns] for name, value in self.values().items()}
        return self._density(values, z.unsqueeze(2))

    def _density(self, values: dict[str, Tensor], z: Tensor) -> Tensor:
        made: Distribution = self.family(**values, validate_args=False)
        log_q = made.log_prob(z)
        return log_q if made.event_shape else log_q.sum(-1)

    @torch.no_grad()
    def store(self) -> None:
        """Write the parameters back to the members."""
        for name, value in self.free.items():
            for s, member in enumerate(self.members):
                member.free[name].copy_(value[s])


def _beside(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values [S, ...] with an axis for the samples, [S, 1, ...]."""
    return {name: value.unsqueeze(1) for name, value in values.items()}
