"""From configuration to modules: the only place where a model's configuration is read."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from miselbo.errors import InputError
from miselbo.noise import derive
from miselbo.runs.plain import plain


def build_model(model: Mapping[str, Any], seed: int, spec: object, size: int) -> tuple[Any, list[Any]]:
    """The target and ``size`` members with fresh parameters, each from its own seed.

    Seeds are a function of (seed, member) alone: a larger ensemble extends a smaller one.

    Args:
        model: its nodes: ``target`` is called with ``spec``, ``approximation`` with the target; ``members``, where
            there is such a list, gives each member arguments of its own.
        seed: of the run.
        spec: what a model must know of the data: ``data.spec``.
        size: S.

    Raises:
        InputError: the model does not fit the data or its settings are impossible.
    """
    with seeded(derive(seed, 0)):
        target = build(model["target"], spec)
    members = []
    for s, own in enumerate(own_arguments(model, size), start=1):
        with seeded(derive(seed, s)):
            members.append(build(own or model["approximation"], target))
    return target.to(memory_format=torch.channels_last), [
        m.to(memory_format=torch.channels_last) for m in members
    ]


def own_arguments(model: Mapping[str, Any], size: int) -> list[object]:
    """``model.approximation`` with what each member has of its own in ``model.members``; None for a member without.

    Raises:
        InputError: the list is shorter than the ensemble.
    """
    given = model.get("members")
    if given is None:
        return [None] * size
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) < size:
        found = len(given) if isinstance(given, Sequence) and not isinstance(given, str) else repr(given)
        raise InputError(
            f"model.members must list the arguments of every member: ensemble.size={size}, got {found}"
        )
    common = OmegaConf.create(plain(model["approximation"]))
    return [own and OmegaConf.merge(common, own) for own in given[:size]]


def build(node: Any, *positional: object, **arguments: object) -> Any:
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
