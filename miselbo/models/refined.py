r"""Test-time refinement: a member's q(z | x) moved towards log p(x) for every x, the target frozen.

An encoder that is amortised over all x misses single ones. A refined member keeps q's form and adds to the mean and to
the log scale of each of its normals an amount of this x alone, found by Adam steps on

    E log 1/K sum_k p(x, z_k) / q(z_k | x),    z_k ~ q reparameterised, K = SAMPLES

(the IWELBO, which does not let q become as narrow as the ELBO does: Burda, Grosse and Salakhutdinov, 2016; refinement
of amortised posteriors: Kim et al., Semi-amortized variational autoencoders, 2018). The draws of the steps are a
function of (seed, step, member), the same for all x, so nothing depends on the batch; scoring draws are others, so
every bound of refined members is a bound as before.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from miselbo.errors import InputError
from miselbo.models.conditional import ConditionalMember, Conditioned
from miselbo.models.families import Keys
from miselbo.models.hierarchical import HierarchicalEncoder, Posterior, repeat
from miselbo.noise import derive
from miselbo.protocols import latent_noise

SAMPLES = 8  # of the IWELBO of a step
RATE = 0.05  # of Adam, in standard deviations of q and in log scale
STREAM = int.from_bytes(b"refine")  # keeps these seeds apart from others derived of the same one

Shift = tuple[
    Tensor, Tensor
]  # of a normal's mean, in its standard deviations, and of its log scale: [B, ...]


def refine(target: Any, members: Sequence[Any], steps: int, seed: int) -> list[Any]:
    """The members, each of which refines itself for the x that it encodes.

    Args:
        target: the common one; stays as it is.
        members: encoders of a hierarchical decoder, or callables x -> Normal, Independent or not.
        steps: of Adam.
        seed: key of the noise.

    Raises:
        InputError: steps below 1, or a member of another kind.

    Example:
        >>> from miselbo import bounds, Ensemble
        >>> from miselbo.models.conditional import adopt
        >>> def log_joint(x, z):
        ...     return Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(x)
        >>> x = torch.linspace(-1, 1, 20)
        >>> target, members = adopt(log_joint, [lambda x: Normal(0 * x, 0.5)], True)
        >>> exact = Normal(0.0, 2**0.5).log_prob(x).mean()
        >>> def gap(members):
        ...     return float(exact - bounds.miselbo(*Ensemble(target, members).score(x, 100)).mean())
        >>> gap(members) > 0.04, abs(gap(refine(target, members, 40, 0))) < 0.01
        (True, True)
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"refine_steps must be a whole number of at least 1, got {steps!r}")
    found: list[Any] = []
    for s, member in enumerate(members):
        if isinstance(member, HierarchicalEncoder):
            found.append(RefinedEncoder(target, member, steps, derive(seed, STREAM, s)))
        elif isinstance(member, ConditionalMember):
            found.append(RefinedConditional(target, member, steps, derive(seed, STREAM, s)))
        else:
            raise InputError(
                f"refine_steps moves the mean and scale of normals given x; {type(member).__name__} is no such member: "
                "use refine_steps=0"
            )
    return found


def passes(steps: int) -> int:
    """Decoder passes of one example and member, each with its gradient."""
    return steps * SAMPLES


def _found(target: Any, x: Tensor, shapes: Sequence[Any], steps: int, draw: Any) -> list[Shift]:
    """Adam on the shifts of every x alone.

    Args:
        target: whose parameters need no gradient.
        x: [B, ...].
        shapes: of the normals' means, [B, ...] each.
        steps: of Adam.
        draw: (step, shifts) -> log p - log q of SAMPLES draws, [K, B].
    """
    shifts = [torch.zeros(2, *shape, dtype=x.dtype, device=x.device, requires_grad=True) for shape in shapes]
    adam = torch.optim.Adam(shifts, lr=RATE)
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = RATE * (1 - step / steps)
        log_w = draw(step, [(shift[0], shift[1]) for shift in shifts])
        loss = -torch.where(log_w.isfinite(), log_w, -1e4).logsumexp(0).sum()
        for shift, gradient in zip(shifts, torch.autograd.grad(loss, shifts), strict=True):
            shift.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
        adam.step()
    return [(shift[0].detach(), shift[1].detach()) for shift in shifts]


def _moved(normal: Normal, shift: Shift) -> Normal:
    mean, log_scale = shift
    scale = normal.scale * log_scale.exp()
    return Normal(normal.loc + normal.scale * mean, scale, validate_args=False)


class Refined:
    """A member that refines itself for the x that it encodes."""


class RefinedEncoder(Refined, HierarchicalEncoder):
    """A hierarchical encoder and what is added to each group's normal for this x."""

    def __init__(self, target: Any, member: HierarchicalEncoder, steps: int, seed: int):
        super().__init__()
        self.member, self.steps, self.seed = member, steps, seed
        self._target = (target,)  # no submodule: the ensemble has it

    def encode(self, x: Tensor) -> list[Any]:
        """Per group: the member's feature and the shift."""
        (target,) = self._target
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone()
            features = [feature.detach() for feature in self.member.encode(x)]
            none = torch.zeros(1, dtype=torch.int64, device=x.device)
            samples = torch.arange(SAMPLES, device=x.device)
            shapes = [(len(x), *shape) for shape in target.latent_shapes]

            def draw(step: int, shifts: list[Shift]) -> Tensor:
                key = derive(self.seed, step)
                eps = latent_noise(target.latent_shapes, key, none, 0, samples, x.dtype)
                eps = [part.expand(-1, len(x), *part.shape[2:]) for part in eps]
                context = list(zip(features, shifts, strict=True))
                drawn = target.draw(x, self, context, eps)
                return drawn.log_p - drawn.log_q

            return list(zip(features, _found(target, x, shapes, self.steps, draw), strict=True))

    def posterior_of(
        self, context: list[Any], i: int, feature: Tensor | None, prior_raw: Tensor | None, num_samples: int
    ) -> Posterior:
        """The member's posterior of L samples, moved."""
        features = [each[0] for each in context]
        q = self.member.posterior_of(features, i, feature, prior_raw, num_samples)
        mean, log_scale = (repeat(part, num_samples) for part in context[i][1])
        return Posterior(_moved(q.base, (mean, log_scale)), q.flow)


class RefinedConditional(Refined, ConditionalMember):
    """A callable x -> normal and what is added to it for this x."""

    def __init__(self, target: Any, member: ConditionalMember, steps: int, seed: int):
        super().__init__(member.make)
        self.steps, self.seed = steps, seed
        self._target = (target,)

    def encode(self, x: Tensor) -> Conditioned:
        """The moved distribution."""
        (target,) = self._target
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone()
            made = super().encode(x).distribution
            normal, inside = made, 0
            while isinstance(normal, Independent):
                normal, inside = normal.base_dist, inside + normal.reinterpreted_batch_ndims
            if type(normal) is not Normal:
                raise InputError(
                    f"refine_steps moves the mean and scale of normals, and a member gives {type(made).__name__} for "
                    "x: use refine_steps=0"
                )
            normal = Normal(normal.loc.detach(), normal.scale.detach(), validate_args=False)
            samples, none = torch.arange(SAMPLES, device=x.device), torch.zeros_like(x[:1], dtype=torch.int64)

            def of(shift: Shift) -> Distribution:
                return Independent(_moved(normal, shift), inside)

            def draw(step: int, shifts: list[Shift]) -> Tensor:
                context = Conditioned(x, of(shifts[0]))
                index = none.flatten()[:1].expand(len(x))
                keys = Keys(derive(self.seed, step), index, 0, samples)
                drawn = target.draw(x, self, context, keys)
                return drawn.log_p - self.log_prob(context, drawn)

            found = _found(target, x, [normal.loc.shape], self.steps, draw)
            return Conditioned(x, of(found[0]))
