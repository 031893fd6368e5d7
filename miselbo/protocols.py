"""What a target and a member must offer to be scored, and what keeps a target as it is (:class:`Frozen`)."""

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from miselbo import noise


class Draw(Protocol):
    """Samples of one member with their scores under the target, sample axis before the example axis."""

    @property
    def log_p(self) -> Tensor:
        """log p(x, z), [L, B], nats."""


class Target(Protocol):
    """The common p(x, z).

    ``latent_shapes`` are the shapes of one sample's latents, in the order in which they are drawn.
    """

    latent_shapes: list[tuple[int, ...]]

    def draw(self, x: Tensor, member: Any, context: Any, eps: Any) -> Draw:
        """Samples z of ``member`` with their scores, made of :meth:`Ensemble.noise` (per latent [L, B, ...])."""

    def at(self, x: Tensor, z: list[Tensor]) -> Draw:
        """The same for given samples, per latent [L, B, ...]."""


class Approximation(Protocol):
    """One member q_s(z | x)."""

    def encode(self, x: Tensor) -> Any:
        """What depends on x alone; computed once per x."""

    def log_prob(self, context: Any, draw: Draw) -> Tensor:
        """log q_s(z | x) at the samples of a draw, whoever drew them: [L, B], nats."""


class Stateful(Protocol):
    """What is kept in a run folder: ``torch.nn.Module``'s part of it."""

    def state_dict(self) -> dict[str, Any]:
        """Its tensors by name."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take tensors of another one."""


class TrainableTarget(Target, Stateful, Protocol):
    """A target that is trained with q_1, or kept beside the members."""


class TrainableMember(Approximation, Stateful, Protocol):
    """A member that is trained."""


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
def evaluating(module: nn.Module) -> Iterator[None]:
    """Every submodule in evaluation mode inside the block (batch norm uses and keeps its statistics)."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


class Frozen(nn.Module):
    """A module that training cannot change: no gradients, evaluation mode for good, a fingerprint to prove it.

    Args:
        module: the target (or a finished member); its parameters stop requiring gradients.

    Attributes:
        module: the module itself.
        fingerprint: of its parameters and buffers when it was frozen.

    Example:
        >>> frozen = Frozen(nn.BatchNorm1d(2))
        >>> _ = frozen.train()
        >>> frozen.module.training
        False
    """

    def __init__(self, module: Any):
        super().__init__()
        self.module = module.requires_grad_(False).eval()
        self.fingerprint = fingerprint(module)

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in evaluation mode, whatever a trainer asks for."""
        return self

    def verify(self) -> None:
        """Raise RuntimeError if a parameter or buffer changed since the module was frozen."""
        if fingerprint(self.module) != self.fingerprint:
            raise RuntimeError("a frozen module changed during training: its fingerprint differs")


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
