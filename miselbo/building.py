"""From configuration to modules: the only place where a model's configuration is read."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from miselbo.data import ImageSpec
from miselbo.errors import InputError
from miselbo.noise import derive


def build_ensemble(cfg: DictConfig, image: ImageSpec, size: int) -> tuple[Any, list[Any]]:
    """The target and ``size`` members with fresh parameters, each from its own seed.

    Seeds are a function of (cfg.seed, member) alone: a larger ensemble extends a smaller one.

    Raises:
        InputError: the model does not fit the data or its settings are impossible.
    """
    with seeded(derive(cfg.seed, 0)):
        target = build(cfg.model.target, image=image)
    members = []
    for s in range(1, size + 1):
        with seeded(derive(cfg.seed, s)):
            members.append(build(cfg.model.approximation, decoder=target))
    return target.to(memory_format=torch.channels_last), [
        m.to(memory_format=torch.channels_last) for m in members
    ]


def build(node: DictConfig, **arguments: Any) -> Any:
    """Hydra's instantiate, with an InputError raised inside passed on as it is."""
    try:
        return instantiate(node, **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise InputError(f"cannot build {node.get('_target_')}: {error}") from error


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's CPU generator seeded inside the block, restored after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        yield
