"""The members of a run on disk: ``members/target.ckpt``, ``q1.ckpt`` .. ``qS.ckpt``.

Tensors and plain JSON types only, read with ``weights_only=True``. Every member carries the fingerprint of the
target it was trained against; a member of another target is refused.
"""

import pickle
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.protocols import Stateful, fingerprint
from miselbo.runtime.files import atomic

FORMAT = "miselbo checkpoint 1"


def target_path(folder: Path) -> Path:
    """Where a run keeps its target."""
    return folder / "members" / "target.ckpt"


def member_path(folder: Path, member: int) -> Path:
    """Where a run keeps q_member, counted from 1."""
    return folder / "members" / f"q{member}.ckpt"


def resume_path(folder: Path, member: int) -> Path:
    """Where the state of a member's unfinished training is kept."""
    return folder / "members" / f"q{member}.resume.ckpt"


def save(path: Path, kind: str, module: Stateful, target: Stateful, **info: Any) -> None:
    """Write one module atomically.

    Args:
        path: file to write.
        kind: ``"target"`` or ``"member"``.
        module: whose state is stored.
        target: the target it belongs to (itself, for the target).
        **info: plain JSON types to keep beside it.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    content = {
        "format": FORMAT,
        "kind": kind,
        "state": state,
        "target_fingerprint": fingerprint(target),
        **info,
    }
    with atomic(path) as temporary:
        torch.save(content, temporary)


def read(path: Path, kind: str) -> dict[str, Any]:
    """Read a checkpoint of this project.

    Raises:
        InputError: no such file, damaged, or not a ``kind`` checkpoint of this project.
    """
    if not path.is_file():
        raise InputError(
            f"{path} does not exist: this run has no such {kind}; train it with the run's own command"
        )
    content = load_file(path)
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT or content.get("kind") != kind:
        raise InputError(
            f"{path} is not a {kind} checkpoint of this project: expected format '{FORMAT}' and kind '{kind}', "
            f"got {found!r} and {content.get('kind') if isinstance(content, dict) else None!r}"
        )
    needed = {"state": dict, "target_fingerprint": str}
    for key, kinds in needed.items():
        if not isinstance(content.get(key), kinds):
            raise InputError(f"{path} is damaged: it has no {key}, or not of the right kind")
    if not all(isinstance(tensor, torch.Tensor) for tensor in content["state"].values()):
        raise InputError(f"{path} is damaged: its state holds something else than tensors")
    return content


def load_file(path: Path) -> Any:
    """What a checkpoint file holds; InputError when it cannot be read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        zipfile.BadZipFile,
        KeyError,
        OSError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]  # no advice of torch's
        raise InputError(
            f"{path} cannot be read as a checkpoint ({reason}): damaged, or not of this project"
        ) from None


def load_state(module: Stateful, content: dict[str, Any], path: Path) -> None:
    """Load tensors into a module; InputError with the names that do not fit."""
    have = {name: tuple(tensor.shape) for name, tensor in content["state"].items()}
    want = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if have != want:
        wrong = sorted(name for name in have.keys() | want.keys() if have.get(name) != want.get(name))
        listed = ", ".join(f"{name}: file {have.get(name)}, model {want.get(name)}" for name in wrong[:4])
        raise InputError(f"{path} holds another model: {len(wrong)} tensors do not fit ({listed}, ...)")
    module.load_state_dict(content["state"])


def load_target(folder: Path, target: Stateful) -> str:
    """Fill ``target`` from the run folder; returns its fingerprint."""
    path = target_path(folder)
    content = read(path, "target")
    load_state(target, content, path)
    found = fingerprint(target)
    if found != content["target_fingerprint"]:
        raise InputError(
            f"{path} was changed after it was written: fingerprint {found[:12]}, "
            f"stamped {content['target_fingerprint'][:12]}"
        )
    return found


def load_member(folder: Path, member: int, module: Stateful, target_fingerprint: str) -> dict[str, Any]:
    """Fill ``module`` with q_member, checking that it was trained against this target; returns what is kept beside."""
    path = member_path(folder, member)
    content = read(path, "member")
    if content["target_fingerprint"] != target_fingerprint:
        raise InputError(
            f"{path} was trained against another target (fingerprint {content['target_fingerprint'][:12]}, this run's "
            f"target has {target_fingerprint[:12]}): the members of an ensemble need one common target. "
            "Remove the file to train this member again."
        )
    load_state(module, content, path)
    return {key: value for key, value in content.items() if key != "state"}


def missing_members(folder: Path, size: int) -> list[int]:
    """Numbers 1..size of the members that are still to be trained."""
    return sorted({*range(1, size + 1)} - {*finished_members(folder, size)})


def finished_members(folder: Path, size: int) -> list[int]:
    """Numbers 1..size of the members whose training is finished."""
    return [s for s in range(1, size + 1) if member_path(folder, s).exists()]


def trained_jointly(folder: Path, size: int) -> bool:
    """Whether the members 1..size have been trained together by the mixture's bound."""
    every = list(range(1, size + 1))
    return all(read(member_path(folder, s), "member").get("trained_with") == every for s in every)


def load_finished(
    folder: Path, target: Any, members: Sequence[Any], only: Collection[int] | None = None
) -> list[int]:
    """Fill ``target`` and ``members`` with what training has finished; returns the members' numbers.

    Every file is checked, resume points too, so that a wrong one shows before any training.

    Args:
        folder: run folder.
        target: to fill.
        members: q_1..q_S, to fill.
        only: numbers of the members that are looked at, where other processes may write the others' files.

    Raises:
        InputError: a file is damaged or does not belong here, or the target's own q1 is gone.
    """
    stamp = None
    others = [path for path in sorted(target_path(folder).parent.glob("q*.ckpt")) if "." not in path.stem]
    if others and trained(target) and not member_path(folder, 1).exists():
        raise InputError(
            f"{member_path(folder, 1)} is missing but {others[0].name} exists: the target is trained with q1, and "
            "training it again would leave the other members without their target. Put the file back, or use "
            "another run_dir."
        )
    finished = [s for s in finished_members(folder, len(members)) if only is None or s in only]
    for s, member in enumerate(members, start=1):
        if only is not None and s not in only:
            continue
        if s in finished:
            stamp = stamp or load_target(folder, target)
            load_member(folder, s, member, stamp)
        elif resume_path(folder, s).exists():
            content = load_file(resume_path(folder, s))
            if not isinstance(content, dict) or "counts" not in content:
                raise InputError(
                    f"{resume_path(folder, s)} is no resume point of this project: remove it to train q{s} anew"
                )
    return finished


def load_for(folder: Path, target: Any, members: Sequence[Any], member: int) -> list[int]:
    """Fill what the training of one member starts from; returns the numbers, among 1 and its own, that are finished.

    Raises:
        InputError: as :func:`load_finished`, or the target is still to be trained.
    """
    needed = {1, member} if trained(target) else {member}
    if 1 in needed - {member} and not member_path(folder, 1).exists():
        raise InputError(
            f"q{member} needs the target, which is trained with q1: {member_path(folder, 1)} does not exist yet. "
            f"Run task=fit_member member=1 run_dir={folder} first, or wait for it."
        )
    return load_finished(folder, target, members, needed)


def trained(target: Any) -> bool:
    """Whether a target has parameters, which are trained with q1."""
    return any(True for _ in target.parameters())


def load_ensemble(folder: Path, target: Any, members: list[Any]) -> Ensemble:
    """Fill freshly built modules from a run folder."""
    stamp = load_target(folder, target)
    for s, member in enumerate(members, start=1):
        load_member(folder, s, member, stamp)
    return Ensemble(target, members).eval()
