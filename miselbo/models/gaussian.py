"""Trainable classical approximations: a diagonal Gaussian, or any other family of torch.distributions by name."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, transform_to
from torch.distributions.constraints import Constraint

from miselbo.errors import InputError
from miselbo.models.classical import PointDraw
from miselbo.models.families import Keys, draw, family_class, log_density, parameter_constraints
from miselbo.protocols import Target

Value = float | Sequence[float] | Sequence[Sequence[float]]


class Gaussian(nn.Module):
    """One member q(z) with its trained and fixed parameters.

    Trained parameters are kept without constraint (a scale as its log), under ``free``; fixed ones in buffers.
    An initial point that is not given is drawn from torch's generator: locations from N(0, ``spread``^2), scales 1; of
    a family without a location all free parameters from N(0, 1/4).

    Args:
        target: gives the shape of z.
        family: name in ``torch.distributions``; one whose samples are scalars is taken once per dimension.
        fixed: values of parameters that are not trained, such as ``{"scale": 0.8}``.
        initial: initial values of trained parameters, such as ``{"loc": [-3, 0]}``.
        spread: standard deviation of initial locations.
        seed: of the training noise; default drawn from torch's generator.

    Raises:
        InputError: an unknown family or parameter, a value out of range, a family without reparameterised samples.

    Example:
        >>> from miselbo.models.classical import DensityTarget
        >>> target = DensityTarget(lambda z: -z.square().sum(-1), shape=(2,))
        >>> q = Gaussian(target, fixed={"scale": 0.8}, initial={"loc": [-3, 0]})
        >>> q.distribution
        Normal(loc: torch.Size([2]), scale: torch.Size([2]))
    """

    def __init__(
        self,
        target: Target,
        *,
        family: str = "Normal",
        fixed: Mapping[str, Value] | None = None,
        initial: Mapping[str, Value] | None = None,
        spread: float = 2.0,
        seed: int | None = None,
    ):
        super().__init__()
        fixed, initial = dict(fixed or {}), dict(initial or {})
        both = sorted(fixed.keys() & initial.keys())
        if both:
            raise InputError(f"{', '.join(both)}: a parameter is either fixed or has an initial value")
        kind = family_class(family)
        self.family: Callable[..., Distribution] = kind
        self.constraints = parameter_constraints(kind, {**fixed, **initial})
        (dim,) = target.latent_shapes[0]
        self.shape = (dim,)
        drawn_seed = int(torch.randint(2**62, ()))
        self.seed = drawn_seed if seed is None else seed
        self.free = nn.ParameterDict()
        has_location = any(_is_real(constraint) for constraint in self.constraints.values())
        for name, constraint in sorted(self.constraints.items()):
            size = (dim,) * max(1, constraint.event_dim)
            real = _is_real(constraint)
            deviation = (spread if real else 0.0) if has_location else 0.5
            start = deviation * torch.randn(size)  # always drawn: what is fixed does not move the rest
            if name in fixed:
                self.register_buffer(f"fixed_{name}", _value(name, fixed[name], size, constraint))
                continue
            try:
                if name in initial:
                    start = transform_to(constraint).inv(_value(name, initial[name], size, constraint))
                else:
                    transform_to(constraint)(start)
            except NotImplementedError:
                raise InputError(f"{family}.{name} cannot be trained: give it a value in fixed") from None
            self.free[name] = nn.Parameter(start)
        try:
            shape = self.distribution.batch_shape + self.distribution.event_shape
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            raise InputError(f"cannot make a {family} in {dim} dimensions: {error}") from None
        if tuple(shape) != (dim,):
            raise InputError(f"a {family} here has samples of shape {list(shape)}, the target needs [{dim}]")

    @property
    def fixed_values(self) -> dict[str, Tensor]:
        """Values of the parameters that are not trained."""
        names = [name for name in self.constraints if hasattr(self, f"fixed_{name}")]
        return {name: getattr(self, f"fixed_{name}") for name in names}

    @property
    def distribution(self) -> Distribution:
        """The torch distribution of the parameters as they are."""
        trained = {name: transform_to(self.constraints[name])(value) for name, value in self.free.items()}
        return self.family(**trained, **self.fixed_values)

    def encode(self, x: Tensor) -> Distribution:
        """The distribution; nothing depends on x."""
        return self.distribution

    def sample(self, keys: Keys, dtype: torch.dtype) -> Tensor:
        """Samples [L, B, d]."""
        return draw(self.distribution, keys)

    def log_prob(self, context: Distribution, drawn: PointDraw) -> Tensor:
        """log q(z), [L, B]."""
        return log_density(context, drawn.z)


def _is_real(constraint: Constraint) -> bool:
    return str(constraint) in ("Real()", "IndependentConstraint(Real(), 1)")


def _value(name: str, value: Value, size: tuple[int, ...], constraint: Constraint) -> Tensor:
    """A value the user gave, in its parameter's shape; a number stands for all entries, or for the diagonal."""
    try:
        given = torch.as_tensor(value if isinstance(value, int | float) else list(value), dtype=torch.float32)
        if len(size) == 2 and given.ndim == 0:
            given = given * torch.eye(size[0])
        made = given * torch.ones(size)
        if made.shape != size:
            raise ValueError(f"shape {list(given.shape)}")
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{name} must be a number or of shape {list(size)}, got {value!r} ({error})"
        ) from None
    if not bool(constraint.check(made).all()) or not bool(made.isfinite().all()):
        raise InputError(f"{name}={value!r} is out of range: {constraint}")
    return made
