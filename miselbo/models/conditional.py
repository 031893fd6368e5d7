"""A callable log_joint(x, z) as a target, a callable x -> ``torch.distributions.Distribution`` as a member.

A member's distribution has batch shape [B], one element per example, and event shape [D...]. Its samples z [L, B, D...]
are functions of (seed, example, member, sample), whatever batch the example stands in.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from miselbo import noise
from miselbo.errors import InputError
from miselbo.models.classical import DensityTarget, DistributionMember, PointDraw
from miselbo.models.families import Keys, draw, unchecked


@dataclass(frozen=True)
class Conditioned:
    """A member's distribution at a batch: what depends on x alone."""

    x: Tensor
    distribution: Distribution


class JointTarget(nn.Module):
    """p(x, z) given by a callable (x [B, ...], z [L, B, D...]) -> log p(x, z) [L, B]."""

    def __init__(self, log_joint: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.log_joint = log_joint
        self.latent_shapes: list[tuple[int, ...]] = [()]

    def noise(self, x: Tensor, samples: Tensor, seed: int, index: Tensor, member: int) -> Keys:
        """Names of the draws; each member makes of them what it needs."""
        return Keys(seed, index, member, samples)

    def draw(self, x: Tensor, member: "ConditionalMember", context: Conditioned, eps: Keys) -> PointDraw:
        """Samples of a member."""
        return self.at(x, [member.sample(context, eps)])

    def at(self, x: Tensor, z: list[Tensor]) -> PointDraw:
        """Given samples."""
        log_p = self.log_joint(x, z[0])
        expected = z[0].shape[:2]
        if not isinstance(log_p, Tensor) or log_p.shape != expected:
            got = list(log_p.shape) if isinstance(log_p, Tensor) else type(log_p).__name__
            raise InputError(
                f"log_joint gave {got} for x {list(x.shape)} and z {list(z[0].shape)}; expected log p(x, z) of shape "
                f"[L, B] = {list(expected)}: one number per sample and example (sum over the axes of one x and one z)"
            )
        return PointDraw(z[0], log_p)


class ConditionalMember(nn.Module):
    """q(z | x) given by a callable x -> distribution of batch shape [B]."""

    def __init__(self, make: Callable[[Tensor], Distribution]):
        super().__init__()
        self.make = make

    def encode(self, x: Tensor) -> Conditioned:
        """The distribution at a batch, checked."""
        made = self.make(x)
        if not isinstance(made, Distribution):
            raise InputError(
                f"a member gave {type(made).__name__} for x; expected a torch.distributions.Distribution"
            )
        if tuple(made.batch_shape) != (len(x),):
            raise InputError(
                f"a member's distribution has batch shape {list(made.batch_shape)} for {len(x)} examples; expected "
                f"[B] = [{len(x)}]: put the latent axes into the event, as Independent(Normal(mean, scale), 1) does"
            )
        return Conditioned(x, made)

    def sample(self, context: Conditioned, keys: Keys) -> Tensor:
        """Samples [L, B, D...]."""
        made = context.distribution
        base = made
        while isinstance(base, Independent):
            base = base.base_dist
        if type(base) is Normal:
            event = made.event_shape
            flat = noise.normal(
                keys.seed, keys.index, max(1, event.numel()), member=keys.member, sample=keys.samples
            )
            return base.loc + base.scale * flat.to(base.loc).view(*flat.shape[:2], *event)
        # any other one: example by example from a generator of its own (the callable may look at x alone)
        parts = []
        for b in range(len(context.x)):
            alone = self.make(context.x[b : b + 1])
            drawn = draw(alone, Keys(keys.seed, keys.index[b : b + 1], keys.member, keys.samples))
            parts.append(drawn.view(len(keys.samples), 1, *made.event_shape))
        return torch.cat(parts, 1)

    def log_prob(self, context: Conditioned, drawn: PointDraw) -> Tensor:
        """log q(z | x), [L, B]; -inf outside its support."""
        try:
            inside = context.distribution.support.check(drawn.z)  # type: ignore[union-attr]
        except NotImplementedError:
            return unchecked(context.distribution).log_prob(drawn.z)
        values = unchecked(context.distribution).log_prob(drawn.z)
        return values.where(inside, -torch.inf)


def adopt(target: object, members: Sequence[object], conditional: bool) -> tuple[object, list[object]]:
    """Whatever :func:`miselbo.evaluate` is given, as a target and members.

    Args:
        target: a ``Target``, or a callable: log_joint(x, z), or z -> log p(z) for a density.
        members: ``Approximation``s, distributions, or callables x -> distribution (x is None for a density).
        conditional: whether there is an x.

    Raises:
        InputError: something that is none of these.
    """
    if hasattr(target, "draw") and all(hasattr(member, "encode") for member in members):
        return target, list(members)
    if not callable(target):
        raise InputError(
            f"a target is a Target or a callable log_joint(x, z) -> [L, B], got {type(target).__name__}"
        )
    if conditional:
        return JointTarget(target), [_conditional(member) for member in members]
    made = [_unconditional(member) for member in members]
    shapes = sorted({(*m.batch_shape, *m.event_shape) for m in made})
    if len(shapes) != 1:
        raise InputError(f"the members' samples must have one shape, got {shapes}")
    single = DensityTarget(_of_z_alone(target), shapes[0])
    return single, [DistributionMember(m) for m in made]


def _conditional(member: object) -> ConditionalMember:
    if not callable(member) or isinstance(member, Distribution):
        raise InputError(
            f"a member is an Approximation or a callable x -> torch.distributions.Distribution, got "
            f"{type(member).__name__}; with x=None distributions themselves are members"
        )
    return ConditionalMember(member)


def _unconditional(member: object) -> Distribution:
    made = member(None) if callable(member) and not isinstance(member, Distribution) else member
    if not isinstance(made, Distribution):
        raise InputError(
            f"with x=None a member is a distribution or a callable that gives one, got {type(made).__name__}"
        )
    return made


def _of_z_alone(target: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    """log_joint(None, z) as a function of z; a function of z stays as it is."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        required = [
            p
            for p in inspect.signature(target).parameters.values()
            if p.kind in kinds and p.default is inspect.Parameter.empty
        ]
    except (TypeError, ValueError):
        return target
    return (lambda z: target(None, z)) if len(required) == 2 else target
