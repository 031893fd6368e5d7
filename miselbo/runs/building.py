"""From configuration to modules: the only place where a model's configuration is read."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from miselbo.errors import InputError
from miselbo.noise import derive


def build_ensemble(cfg: DictConfig, spec: Any, size: int) -> tuple[Any, list[Any]]:
    """The target and ``size`` members with fresh parameters, each from its own seed.

    Seeds are a function of (cfg.seed, member) alone: a larger ensemble extends a smaller one.

    Args:
        cfg: whole configuration. ``model.target`` is called with ``spec``, ``model.approximation`` with the target;
            ``model.members``, where there is such a list, gives each member arguments of its own.
        spec: what a model must know of the data: ``data.spec``.
        size: S.

    Raises:
        InputError: the model does not fit the data or its settings are impossible.
    """
    with seeded(derive(cfg.seed, 0)):
        target = build(cfg.model.target, spec)
    members = []
    for s, own in enumerate(own_arguments(cfg, size), start=1):
        with seeded(derive(cfg.seed, s)):
            members.append(build(own or cfg.model.approximation, target))
    return target.to(memory_format=torch.channels_last), [
        m.to(memory_format=torch.channels_last) for m in members
    ]


def own_arguments(cfg: DictConfig, size: int) -> list[Any]:
    """``model.approximation`` with what each member has of its own in ``model.members``; None for a member without.

    Raises:
        InputError: the list is shorter than the ensemble.
    """
    given = cfg.model.get("members")
    if given is None:
        return [None] * size
    if not isinstance(given, ListConfig) or len(given) < size:
        found = len(given) if isinstance(given, ListConfig) else repr(given)
        raise InputError(
            f"model.members must list the arguments of every member: ensemble.size={size}, got {found}"
        )
    common = OmegaConf.create(OmegaConf.to_container(cfg.model.approximation, resolve=True))
    return [own and OmegaConf.merge(common, own) for own in given[:size]]


def build(node: Any, *positional: Any, **arguments: Any) -> Any:
    """Hydra's instantiate, with an InputError raised inside passed on as it is."""
    try:
        return instantiate(node, *positional, **arguments)
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
