"""The members of a run on disk: ``members/target.ckpt``, ``q1.ckpt`` .. ``qS.ckpt``.

Tensors and plain JSON types only, read with ``weights_only=True``. Every member carries the fingerprint of the
target it was trained against; a member of another target is refused.
"""

import pickle
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.protocols import Stateful, Trainable, TrainableMember, TrainableTarget, fingerprint
from miselbo.runtime import faults
from miselbo.runtime.files import write_tensors

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


def save(path: Path, kind: str, module: Stateful, target: Stateful, **info: object) -> None:
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
        "fingerprint": fingerprint(module),
        "target_fingerprint": fingerprint(target),
        **info,
    }
    write_tensors(path, content)


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


def load_file(path: Path, in_memory: bool = True) -> Any:
    """What a checkpoint file holds, its tensors mapped from the file if not ``in_memory``; InputError if unreadable."""
    try:
        path.open("rb").close()  # torch's own words hide why a file cannot be opened
        return torch.load(path, map_location="cpu", weights_only=True, mmap=not in_memory)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        zipfile.BadZipFile,
        KeyError,
        OSError,
    ) as error:
        if isinstance(error, OSError) and faults.explain(error) is not None:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]  # no advice of torch's
        raise InputError(
            f"{path} cannot be read as a checkpoint ({reason}): damaged, or not of this project"
        ) from None


@contextmanager
def resuming(path: Path, kinds: Mapping[str, type]) -> Iterator[dict[str, Any]]:
    """The content of a resume point; what goes wrong while it is taken up is said of the file.

    Args:
        path: of the file.
        kinds: type of every entry that it must have.

    Raises:
        InputError: it cannot be read, lacks an entry, or what was done with it failed.
    """
    content = load_file(path)
    try:
        if not isinstance(content, dict):
            raise TypeError(f"it holds {type(content).__name__}")
        for name, kind in kinds.items():
            if not isinstance(content.get(name), kind):
                raise TypeError(f"it has no {name}, or not of the right kind")
        yield content
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} is no resume point of this training ({reason}): remove it, and the same command trains anew"
        ) from None


def check_shapes(found: Sequence[object], wanted: Sequence[torch.Tensor]) -> None:
    """ValueError where a resume point holds other tensors than the model has."""
    forms = [[_form(value) for value in values] for values in (found, wanted)]
    if forms[0] != forms[1]:
        raise ValueError(f"of another model: {len(found)} tensors do not fit the model's {len(wanted)}")


def load_state(module: Stateful, content: dict[str, Any], path: Path) -> None:
    """Load tensors into a module; InputError with the names that do not fit."""
    have, want = _forms(content["state"]), _forms(module.state_dict())
    if have != want:
        wrong = sorted(name for name in have.keys() | want.keys() if have.get(name) != want.get(name))
        listed = ", ".join(f"{name}: file {have.get(name)}, model {want.get(name)}" for name in wrong[:4])
        raise InputError(f"{path} holds another model: {len(wrong)} tensors do not fit ({listed}, ...)")
    module.load_state_dict(content["state"])


def _forms(state: Mapping[str, object]) -> dict[str, str]:
    """Shape, and type of number where it is not float32, of each tensor."""
    return {name: _form(value) for name, value in state.items()}


def _form(value: object) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)}{'' if value.dtype == torch.float32 else f' {value.dtype}'}"


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
    """Fill ``module`` with q_member, checking that it is this member, unchanged, trained against this target.

    Returns:
        What is kept beside its tensors.

    Raises:
        InputError: it is not, or cannot be read.
    """
    path = member_path(folder, member)
    content = read(path, "member")
    if content["target_fingerprint"] != target_fingerprint:
        raise InputError(
            f"{path} was trained against another target (fingerprint {content['target_fingerprint'][:12]}, this run's "
            f"target has {target_fingerprint[:12]}): the members of an ensemble need one common target. "
            "Remove the file to train this member again."
        )
    number = content.get("member", member)  # none in the files of early versions
    if number != member:
        raise InputError(
            f"{path} holds q{number}, not q{member}: a copy under another name would count one member twice. Put "
            f"q{member}'s own file there, or remove it to train this member again."
        )
    load_state(module, content, path)
    found, stamped = fingerprint(module), content.get("fingerprint")
    if stamped not in (None, found):
        raise InputError(
            f"{path} was changed after it was written: fingerprint {found[:12]}, stamped {stamped[:12]}. Put the file "
            "back as it was, or remove it to train this member again."
        )
    return {key: value for key, value in content.items() if key not in ("state", "curve", "joint_curve")}


def curve(folder: Path, member: int, name: str = "curve") -> list[tuple[int, str, float]] | None:
    """The training curve that a finished member's checkpoint keeps, see :class:`miselbo.runs.tidy.Recorder`."""
    content = load_file(member_path(folder, member), in_memory=False)
    rows = content.get(name) if isinstance(content, dict) else None
    return None if rows is None else [(int(step), str(metric), float(value)) for step, metric, value in rows]


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
    folder: Path,
    target: TrainableTarget,
    members: Sequence[TrainableMember],
    only: Collection[int] | None = None,
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


def load_for(
    folder: Path, target: TrainableTarget, members: Sequence[TrainableMember], member: int
) -> list[int]:
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


def trained(target: Trainable) -> bool:
    """Whether a target has parameters, which are trained with q1."""
    return any(True for _ in target.parameters())


def load_ensemble(folder: Path, target: TrainableTarget, members: Sequence[TrainableMember]) -> Ensemble:
    """Fill freshly built modules from a run folder."""
    stamp = load_target(folder, target)
    for s, member in enumerate(members, start=1):
        load_member(folder, s, member, stamp)
    return Ensemble(target, members).eval()
