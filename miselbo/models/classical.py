"""Classical targets: any callable z -> log p(z) as a target, any torch distribution as a member."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from miselbo import noise
from miselbo.data.densities import exact_draws
from miselbo.data.density import DensitySpec
from miselbo.errors import InputError
from miselbo.models.families import Keys, draw, log_density

PROBES, SPREAD = 16, 3.0  # points at which a density is recognised: normal with this standard deviation


EXACT = int.from_bytes(b"exact")  # the stream of exact draws, apart from that of the members


@dataclass(frozen=True)
class PointDraw:
    """Samples [L, B, *shape] with log p(z) [L, B]."""

    z: Tensor
    log_p: Tensor


class Sampler(Protocol):
    """A member that draws its own samples, which need no x."""

    def sample(self, keys: Keys, dtype: torch.dtype) -> Tensor:
        """[L, B, *shape]."""


class DensityTarget(nn.Module):
    """p(z) given by its unnormalised log-density.

    Args:
        spec: a density with its dimension, or a callable z [..., *shape] -> log p(z) [...].
        shape: of one z, for a plain callable.

    Raises:
        InputError: the density gives another shape, NaN or +inf.

    Example:
        >>> target = DensityTarget(lambda z: -0.5 * z.square().sum(-1), shape=(2,))
        >>> target.log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(self, spec: DensitySpec | Callable[[Tensor], Tensor], shape: Sequence[int] | None = None):
        super().__init__()
        known = isinstance(spec, DensitySpec)
        if not known and not callable(spec):
            raise InputError(
                f"model=gaussian approximates a density, and these data are none ({type(spec).__name__}): use "
                "dataset=u2 or another density (docs/classical.md), or a model of such data"
            )
        self.log_density: Callable[[Tensor], Tensor] = (
            spec.log_density if isinstance(spec, DensitySpec) else spec
        )
        self.latent_shapes = [(spec.dim,) if isinstance(spec, DensitySpec) else tuple(shape or ())]
        for part in (self.log_density,):
            if isinstance(part, nn.Module):
                part.requires_grad_(False)
        if known:  # its values at fixed points, so that checkpoints of another density are told apart
            dim = self.latent_shapes[0][0]
            points = SPREAD * noise.normal(0, torch.arange(PROBES), dim)
            values = self.log_prob(points.unflatten(0, (-1, 2))).detach().flatten().to(torch.float64)
            self.register_buffer("probe", values)
            self.register_load_state_dict_pre_hook(_same_density)

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z): z [..., *shape] to [...], checked."""
        values = self.log_density(z)
        lead = z.shape[: z.ndim - len(self.latent_shapes[0])]
        if not isinstance(values, Tensor) or values.shape != lead:
            got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(
                f"the target gave {got} for z of shape {list(z.shape)}; expected log p(z) of shape {list(lead)}: one "
                "number per point (sum over the last axis of z?)"
            )
        bad = values.isnan() | (values == torch.inf)
        if bool(bad.any()):
            where = bad.nonzero()[0].tolist()
            point = z[tuple(where)].detach().flatten()[:4].tolist()
            raise InputError(
                f"the target gave {float(values[tuple(where)])} at z = {point} ({int(bad.sum())} of {bad.numel()} "
                "points): log p(z) must be a number or -inf; check its domain"
            )
        return values

    def noise(self, x: Tensor, samples: Tensor, seed: int, index: Tensor, member: int) -> Keys:
        """Names of the draws; each family makes of them what it needs."""
        return Keys(seed, index, member, samples)

    def draw(self, x: Tensor, member: Sampler, context: object, eps: Keys) -> PointDraw:
        """Samples of a member."""
        z = member.sample(eps, x.dtype)
        return PointDraw(z, self.log_prob(z))

    def simulate(self, index: Tensor, seed: int) -> tuple[Tensor, list[Tensor]]:
        """z ~ p(z) / Z, [B, *shape], with x [B, 0].

        Raises:
            InputError: no exact draws of this density are known.
        """
        z = exact_draws(self.log_density, index, noise.derive(seed, EXACT))
        return torch.zeros(len(index), 0, device=index.device), [z.unflatten(-1, self.latent_shapes[0])]

    def at(self, x: Tensor, z: list[Tensor]) -> PointDraw:
        """Given samples."""
        return PointDraw(z[0], self.log_prob(z[0]))


def _same_density(module: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    found = state.get(f"{prefix}probe")
    if found is not None and not torch.allclose(
        found, module.get_buffer("probe").to(found), rtol=1e-4, atol=1e-4, equal_nan=True
    ):
        raise InputError(
            "the target in this run folder is another density: its values at fixed points differ "
            "(was the function changed?); use another run_dir"
        )


class DistributionMember(nn.Module):
    """A torch distribution as a member; its batch and event axes together are the shape of one z."""

    def __init__(self, distribution: Distribution):
        super().__init__()
        self.distribution = distribution
        self.shape = (*distribution.batch_shape, *distribution.event_shape)

    def encode(self, x: Tensor) -> None:
        """Nothing depends on x."""

    def sample(self, keys: Keys, dtype: torch.dtype) -> Tensor:
        """Samples [L, B, *shape], in the distribution's own dtype."""
        return draw(self.distribution, keys)

    def log_prob(self, context: None, drawn: PointDraw) -> Tensor:
        """log q(z), [L, B]."""
        return log_density(self.distribution, drawn.z)


def adopt(target: object, members: Sequence[object]) -> tuple[object, list[object]]:
    """A callable and distributions as target and members; what is one already stays as it is.

    Raises:
        InputError: distributions of different shapes, or a target that is neither callable nor a target.
    """
    made: list[object] = [DistributionMember(m) if isinstance(m, Distribution) else m for m in members]
    if hasattr(target, "draw"):
        return target, made
    if not callable(target) or inspect.isclass(target):
        raise InputError(f"a target is a callable z -> log p(z) or has draw() and at(); got {target!r}")
    shapes = sorted({tuple(m.shape) for m in made if hasattr(m, "shape")})
    if len(shapes) != 1:
        raise InputError(
            f"the members' samples must have one shape, got {shapes}; give every distribution the same batch_shape + "
            "event_shape"
        )
    return DensityTarget(target, shapes[0]), made
