"""torch's distributions as variational families: parameters by name, noise by (seed, example, member, sample)."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal
from torch.distributions.constraints import Constraint

from miselbo import noise
from miselbo.errors import InputError

BLOCK = 256  # samples that a family without a transform of normal noise draws at once
ALTERNATIVES = (("scale_tril", "covariance_matrix", "precision_matrix"), ("logits", "probs"))


@dataclass(frozen=True)
class Keys:
    """Names of the draws: samples [L] of examples [B] of a member, under a seed."""

    seed: int
    index: Tensor
    member: int
    samples: Tensor


def family_class(name: str) -> type[Distribution]:
    """A family of ``torch.distributions`` that can be trained.

    Raises:
        InputError: no such family, or one without reparameterised samples.

    Example:
        >>> family_class("Laplace").__name__
        'Laplace'
    """
    found = getattr(torch.distributions, str(name), None)
    if not isinstance(found, type) or not issubclass(found, Distribution):
        raise InputError(f"model.approximation.family={name!r}: no such class in torch.distributions")
    if not found.has_rsample:
        raise InputError(
            f"model.approximation.family={name}: its samples are not reparameterised (has_rsample is False), so it "
            "cannot be trained by gradients of samples; use a continuous family such as Normal, Laplace or StudentT. "
            "(Scoring takes any: Ensemble(target, [distribution, ...]).)"
        )
    return found


def parameter_constraints(family: type[Distribution], given: Mapping[str, object]) -> dict[str, Constraint]:
    """The constraint of each parameter, one name of those that say the same: the one that is given.

    Example:
        >>> sorted(parameter_constraints(MultivariateNormal, {}))
        ['loc', 'scale_tril']
    """
    found: dict[str, Constraint] = dict(family.arg_constraints)  # type: ignore[call-overload]
    for names in ALTERNATIVES:
        present = [name for name in names if name in found]
        keep = next((name for name in present if name in given), present[0] if present else None)
        found = {name: value for name, value in found.items() if name not in present or name == keep}
    unknown = sorted(set(given) - set(found))
    if unknown:
        raise InputError(
            f"{family.__name__} has no parameter {', '.join(unknown)}; it has {', '.join(sorted(found))}"
        )
    return found


def log_density(distribution: Distribution, z: Tensor) -> Tensor:
    """log q(z), batch axes of the distribution counted as independent dimensions; -inf outside its support.

    Args:
        distribution: with batch and event shape that together are the shape of one z.
        z: [..., *shape].

    Returns:
        [...].

    Example:
        >>> log_density(Normal(torch.zeros(2), 1.0), torch.zeros(3, 2)).shape
        torch.Size([3])
        >>> log_density(torch.distributions.Exponential(1.0), torch.tensor([-1.0, 0.0])).tolist()
        [-inf, 0.0]
    """
    try:
        inside = distribution.support.check(z)  # type: ignore[union-attr]
    except NotImplementedError:  # a support that the distribution cannot tell
        inside = torch.ones(
            z.shape[: z.ndim - len(distribution.event_shape)], dtype=torch.bool, device=z.device
        )
    if not bool(inside.all()):  # any point of the support stands in where the density is zero
        with torch.random.fork_rng(devices=[]):
            point = distribution.sample()
        z = z.where(inside[(..., *[None] * len(distribution.event_shape))], point)
    values = unchecked(distribution).log_prob(z).where(inside, -math.inf)
    batch = len(distribution.batch_shape)
    return values.flatten(values.ndim - batch).sum(-1) if batch else values


def unchecked(distribution: Distribution) -> Distribution:
    """The distribution without the checks of values: other members' samples may be outside its support."""
    made = copy.copy(distribution)
    made._validate_args = False
    base = getattr(made, "base_dist", None)
    if base is not None:
        made.base_dist = unchecked(base)  # type: ignore[attr-defined]
    return made


def draw(distribution: Distribution, keys: Keys) -> Tensor:
    """Samples [L, B, *shape], a function of the keys alone, however many are drawn at once.

    Normal families transform counter-based normal noise. Every other one draws blocks of 256 samples of an example with
    torch's generator, seeded by (seed, example, member, block).
    """
    base = distribution
    while isinstance(base, Independent):
        base = base.base_dist
    shape = torch.Size((*distribution.batch_shape, *distribution.event_shape))
    if isinstance(base, Normal | MultivariateNormal) and (type(base) is Normal or not base.batch_shape):
        size = max(1, shape.numel())
        flat = noise.normal(keys.seed, keys.index, size, member=keys.member, sample=keys.samples)
        eps = flat.to(base.loc).view(*flat.shape[:2], *shape)
        return location_scale(base, eps)
    return _blocks(distribution, keys)


def location_scale(base: Normal | MultivariateNormal, eps: Tensor) -> Tensor:
    """Samples of a Normal or MultivariateNormal from standard normal noise of their shape."""
    if isinstance(base, Normal):
        return base.loc + base.scale * eps
    return base.loc + (base.scale_tril @ eps[..., None])[..., 0]


@torch.no_grad()
def _blocks(distribution: Distribution, keys: Keys) -> Tensor:
    blocks = keys.samples // BLOCK
    wanted = blocks.unique()
    shape = (len(wanted), len(keys.index))
    counter = [wanted[:, None], keys.index[None], torch.full((), keys.member), torch.full((), 1)]
    words = noise.philox([word.to(torch.int64).expand(shape).cpu() for word in counter], keys.seed)
    seeds = ((words[0] << 31) | (words[1] >> 1)).tolist()
    made = []
    with torch.random.fork_rng():
        for row in seeds:
            examples = []
            for seed in row:
                torch.manual_seed(seed)
                examples.append(distribution.sample(torch.Size([BLOCK])))
            made.append(torch.stack(examples, 1))
    drawn = torch.stack(made)  # [blocks, BLOCK, B, *shape]
    return drawn[torch.searchsorted(wanted, blocks), keys.samples % BLOCK]
