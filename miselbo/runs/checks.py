"""Checks of the configuration's values before any work starts."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from miselbo.bounds.quantities import QUANTITIES
from miselbo.errors import InputError, nearest
from miselbo.runs import schema
from miselbo.runs.plain import plain

OPTIMIZED = tuple(quantity.name for quantity in QUANTITIES if quantity.tunes)


def check_values(cfg: DictConfig) -> None:
    """Refuse values no run can have, and values that do not go together.

    Raises:
        InputError: naming the key.
    """
    try:
        content = plain(cfg)
    except OmegaConfBaseException as error:
        raise InputError(f"cannot read the configuration: {str(error).splitlines()[0]}") from None
    schema.check(content)
    ensemble = content["ensemble"]
    check_importer(cfg.task, cfg.importer, cfg.scores, content["checkpoints"])
    check_optimized(cfg.optimized_metric)
    check_joint(ensemble["size"], ensemble["sampled"])
    check_member(cfg.task, cfg.member, ensemble["size"], ensemble["objective"], cfg.study is not None)
    if cfg.members is not None and cfg.task in ("run", "fit_member", "cost"):
        raise InputError(
            "members= puts trained members together: it needs task=evaluate and a run_dir= of its own"
        )


def check_optimized(name: str) -> None:
    """Refuse to tune by what is no bound, or on test data.

    Raises:
        InputError: such an ``optimized_metric``.
    """
    if name.startswith("test/"):
        raise InputError(
            f"optimized_metric={name}: settings tuned on test data make its numbers too good; the bounds of "
            f"the validation split are there for that: optimized_metric={name.removeprefix('test/')}"
        )
    if name not in OPTIMIZED:
        raise InputError(
            f"unknown optimized_metric={name}; {nearest(name, OPTIMIZED)}known are {', '.join(OPTIMIZED)}"
        )


def check_member(task: str, member: int | None, size: int, objective: str, study: bool) -> None:
    """``task=fit_member`` and ``member`` go together.

    Raises:
        InputError: one without the other, no such member, or members that cannot be trained apart.
    """
    if task != "fit_member":
        if member is not None:
            raise InputError(f"member={member} needs task=fit_member, got task={task}")
        return
    if type(member) is not int or not 1 <= member <= size:
        raise InputError(
            f"task=fit_member needs member=<number from 1 to ensemble.size={size}>, got member={member}"
        )
    if study:
        raise InputError(
            "task=fit_member is for single runs: a study trains the members of all its runs itself"
        )
    if objective == "mixture":
        raise InputError(
            "task=fit_member: ensemble.objective=mixture trains all members together at the end; use "
            "ensemble.workers in one job, or ensemble.objective=independent"
        )


def check_importer(task: str, importer: str | None, scores: str | None, checkpoints: object) -> None:
    """What is to be imported must be named, and by nothing but an importer.

    Raises:
        InputError: importer, task, scores, checkpoints and target do not go together.
    """
    if importer == "arrays" and (task not in ("evaluate", "report", "check") or scores is None):
        raise InputError("importer=arrays needs task=evaluate and scores=<an .npz or a folder of .npy files>")
    if importer == "nvlabs":
        if task not in ("evaluate", "report", "export", "check") or not checkpoint_paths(checkpoints):
            raise InputError(
                "importer=nvlabs needs task=evaluate and 'checkpoints=[a.pt,b.pt]', one per member"
            )
    elif checkpoints is not None and importer is None:
        raise InputError("checkpoints= needs importer=nvlabs and task=evaluate")


def checkpoint_paths(given: object) -> list[Path]:
    """``checkpoints`` as a list, one file or several, none for null.

    Raises:
        InputError: it lists something else than paths.
    """
    paths = [given] if isinstance(given, str) else list(given) if isinstance(given, Sequence) else []
    if not all(isinstance(path, str) and path for path in paths) or not (paths or given in (None, "", [])):
        raise InputError(f"checkpoints must list files, as in 'checkpoints=[a.pt,b.pt]', got {given}")
    return [Path(path) for path in paths]


def check_joint(size: int, sampled: int | None) -> None:
    """Refuse impossible settings of joint training.

    Raises:
        InputError: more components per step than there are.
    """
    if sampled is not None and sampled > size:
        raise InputError(
            f"ensemble.sampled is how many of the {size} components are sampled per step: a whole number from "
            f"1 to ensemble.size, or null; got {sampled!r}"
        )
