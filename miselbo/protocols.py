"""What a target and a member must offer to be scored, and what keeps a target as it is (:class:`Frozen`)."""

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from miselbo import noise
from miselbo.errors import FrozenChangedError


class Draw(Protocol):
    """Samples of one member with their scores under the target, sample axis before the example axis."""

    @property
    def log_p(self) -> Tensor:
        """log p(x, z), [L, B], nats."""


class Target(Protocol):
    """The common p(x, z).

    ``latent_shapes`` are the shapes of one sample's latents, in the order in which they are drawn.
    """

    @property
    def latent_shapes(self) -> Sequence[tuple[int, ...]]:
        """Of one sample, in the order in which they are drawn."""

    def draw(self, x: Tensor, member: Any, context: Any, eps: Any) -> Draw:
        """Samples z of ``member`` with their scores, made of :meth:`Ensemble.noise` (per latent [L, B, ...])."""

    def at(self, x: Tensor, z: list[Tensor]) -> Draw:
        """The same for given samples, per latent [L, B, ...]."""


class Approximation(Protocol):
    """One member q_s(z | x)."""

    def encode(self, x: Tensor) -> Any:
        """What depends on x alone; computed once per x."""

    def log_prob(self, context: Any, draw: Any) -> Tensor:
        """log q_s(z | x) at the samples of a draw, whoever drew them: [L, B], nats."""


class Stateful(Protocol):
    """What is kept in a run folder: ``torch.nn.Module``'s part of it."""

    def state_dict(self) -> dict[str, Tensor]:
        """Its tensors by name."""

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> object:
        """Take tensors of another one."""


class Trainable(Stateful, Protocol):
    """What training asks of a target and a member besides: ``torch.nn.Module``'s part of it."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """What an optimiser may change."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The same with names."""

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Tensors that it may not change."""

    def modules(self) -> Iterator[nn.Module]:
        """It and its parts."""

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """The same with names."""

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Whether gradients are taken."""

    def eval(self) -> Self:
        """Evaluation mode."""


class TrainableTarget(Target, Trainable, Protocol):
    """A target that is trained with q_1, or kept beside the members."""


class TrainableMember(Approximation, Trainable, Protocol):
    """A member that is trained."""


class EnsembleForm(Protocol):
    """An ensemble, plain or in its form for evaluation, as rooms see it that stand before it."""

    target: Any
    members: Sequence[Any]

    def target_of(self, member: int) -> Any:
        """The target under which a member (from 0) is scored."""

    def passes(
        self,
        x: Tensor | None,
        num_samples: int,
        samples_per_pass: int | None = None,
        seed: int = 0,
        index: Tensor | None = None,
        first: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """log_p [B, S, l] and log_q [B, S, l, S] in passes over the samples."""

    def score(
        self, x: Tensor | None, num_samples: int, seed: int = 0, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same of all samples at once."""


class Saved(Protocol):
    """What torch hands to both halves of a ``torch.autograd.Function``."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors for the second half."""


M = TypeVar("M", bound=Trainable)


def latent_noise(
    shapes: Sequence[tuple[int, ...]],
    seed: int,
    index: Tensor,
    member: int,
    samples: Tensor,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Standard normal noise for latents of the given shapes: a list of [L, B, *shape], see :mod:`miselbo.noise`."""
    sizes = [math.prod(shape) for shape in shapes]
    flat = noise.normal(seed, index, sum(sizes), member=member, sample=samples).to(dtype)
    return [part.unflatten(-1, shape) for part, shape in zip(flat.split(sizes, -1), shapes, strict=True)]


@contextlib.contextmanager
def evaluating(module: Trainable) -> Iterator[None]:
    """Every submodule in evaluation mode inside the block (batch norm uses and keeps its statistics)."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


class Frozen(nn.Module, Generic[M]):
    """A module that training cannot change: no gradients, evaluation mode for good, and a check that proves it.

    Parameters and buffers, those left out of ``state_dict`` too, must keep every bit. A plain tensor attribute may
    change as long as what the module computes does not (a cache): that is seen by a probe, a function of the module on
    fixed inputs, which :meth:`watch` gives; without one, attributes must keep every bit as well.

    Args:
        module: the target (or a finished member); its parameters stop requiring gradients.
        name: of the module in errors.

    Attributes:
        module: the module itself.

    Example:
        >>> frozen = Frozen(nn.BatchNorm1d(2))
        >>> _ = frozen.train()
        >>> frozen.module.training
        False
        >>> frozen.module.running_mean += 1
        >>> frozen.verify()
        Traceback (most recent call last):
        ...
        miselbo.errors.FrozenChangedError: a frozen module changed during training: buffer running_mean of the target...
    """

    def __init__(self, module: M, name: str = "the target"):
        super().__init__()
        self.module: M = module.requires_grad_(False).eval()
        self.name = name
        self._kept = {key: _digest(tensor) for key, tensor in tensors(module)}
        self._attributes = {key: _digest(tensor) for key, tensor in attributes(module)}
        self._probe: Callable[[], Tensor] | None = None
        self._answer: Tensor | None = None

    def train(self, mode: bool = True) -> "Frozen[M]":
        """Stay in evaluation mode, whatever a trainer asks for, also where another module holds this one's."""
        self.module.eval()
        return self

    def watch(self, probe: Callable[[], Tensor]) -> None:
        """Compare what ``probe`` gives from now on: a function of the module at fixed inputs, without noise."""
        self._probe, self._answer = probe, self._ask(probe)

    def verify(self) -> None:
        """Check that nothing changed since the module was frozen.

        Raises:
            FrozenChangedError: naming what did.
        """
        changed = _changed(self._kept, dict(tensors(self.module)))
        if not changed and self._probe is not None and self._answer is not None:
            answer = self._ask(self._probe)
            same = answer.device.type == "cpu" and answer.dtype == self._answer.dtype
            tolerance = (
                1e-6 if same else 1e-4
            )  # a GPU's sums are not the same twice, nor are float32's and float64's
            before = self._answer.to(answer)
            if torch.allclose(answer, before, rtol=tolerance, atol=tolerance, equal_nan=True):
                return
            changed = _changed(self._attributes, dict(attributes(self.module)))
            changed = changed or [
                "what it computes on fixed inputs, but no tensor of it, so something it refers to,"
            ]
        elif not changed:
            changed = _changed(self._attributes, dict(attributes(self.module)))
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise FrozenChangedError(
                f"a frozen module changed during training: {', '.join(changed[:3])}{more} of {self.name}, so the "
                "fingerprint differs and the members would not share one model. Averages (EMA, SWA), statistics and "
                "optimisers must not touch it: change such state only where module.training is true, keep averaged "
                "copies elsewhere, and give an encoder modules of its own."
            )

    def _ask(self, probe: Callable[[], Tensor]) -> Tensor:
        device = next((tensor.device.type for _, tensor in tensors(self.module)), "cpu")
        with evaluating(self.module), torch.no_grad(), torch.autocast(device, enabled=False):
            return probe().detach().clone()


def tensors(module: Trainable) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer, persistent or not, as ("buffer norm.running_mean", tensor)."""
    for name, parameter in module.named_parameters():
        yield f"parameter {name}", parameter
    for name, buffer in module.named_buffers():
        yield f"buffer {name}", buffer


def attributes(module: Trainable) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that is a plain attribute of a submodule, or in a list, tuple or dictionary that is one."""
    for place, part in module.named_modules():
        for name, value in vars(part).items():
            if name.startswith("_") and name in _OF_MODULES:
                continue
            items = (
                value.values()
                if isinstance(value, dict)
                else value
                if isinstance(value, list | tuple)
                else [value]
            )
            for position, item in enumerate(items):
                if isinstance(item, Tensor):
                    label = ".".join(filter(None, (place, name)))
                    yield f"attribute {label}{f'[{position}]' if item is not value else ''}", item


_OF_MODULES = frozenset(vars(nn.Module()))


def _digest(tensor: Tensor) -> str:
    """SHA-256 over kind, shape and values; float32 numbers and the same ones in float64 (training in it) are equal."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.double()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _changed(before: dict[str, str], now: dict[str, Tensor]) -> list[str]:
    """Names of those that are gone or not the same."""
    return [name for name, digest in before.items() if name not in now or _digest(now[name]) != digest]


def fingerprint(module: Stateful) -> str:
    """SHA-256 over name, dtype, shape and bytes of every parameter and buffer.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = fingerprint(layer)
        >>> _ = layer.weight.data.add_(1e-7)
        >>> fingerprint(layer) == before
        False
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
