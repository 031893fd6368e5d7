"""Checks of the configuration's values before any work starts."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from miselbo.errors import InputError, nearest
from miselbo.runs import schema

OPTIMIZED = ("joint_bound", "miselbo", "average_iwelbo", "average_elbo")


def check_values(cfg: DictConfig) -> None:
    """Refuse values no run can have, and values that do not go together.

    Raises:
        InputError: naming the key.
    """
    schema.check(cfg)
    check_importer(cfg)
    check_optimized(cfg.optimized_metric)
    check_joint(cfg.ensemble)
    check_member(cfg)
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


def check_member(cfg: DictConfig) -> None:
    """``task=fit_member`` and ``member`` go together.

    Raises:
        InputError: one without the other, no such member, or members that cannot be trained apart.
    """
    member, size = cfg.member, cfg.ensemble.size
    if cfg.task != "fit_member":
        if member is not None:
            raise InputError(f"member={member} needs task=fit_member, got task={cfg.task}")
        return
    if type(member) is not int or not 1 <= member <= size:
        raise InputError(
            f"task=fit_member needs member=<number from 1 to ensemble.size={size}>, got member={member}"
        )
    if cfg.study is not None:
        raise InputError(
            "task=fit_member is for single runs: a study trains the members of all its runs itself"
        )
    if cfg.ensemble.objective == "mixture":
        raise InputError(
            "task=fit_member: ensemble.objective=mixture trains all members together at the end; use "
            "ensemble.workers in one job, or ensemble.objective=independent"
        )


def check_importer(cfg: DictConfig) -> None:
    """What is to be imported must be named, and by nothing but an importer.

    Raises:
        InputError: importer, task, scores, checkpoints and target do not go together.
    """
    if cfg.importer == "arrays" and (cfg.task not in ("evaluate", "report", "check") or cfg.scores is None):
        raise InputError("importer=arrays needs task=evaluate and scores=<an .npz or a folder of .npy files>")
    if cfg.importer == "nvlabs":
        if cfg.task not in ("evaluate", "report", "export", "check") or not checkpoint_paths(cfg):
            raise InputError(
                "importer=nvlabs needs task=evaluate and 'checkpoints=[a.pt,b.pt]', one per member"
            )
    elif cfg.checkpoints is not None and cfg.importer is None:
        raise InputError("checkpoints= needs importer=nvlabs and task=evaluate")


def checkpoint_paths(cfg: DictConfig) -> list[Path]:
    """``checkpoints`` as a list, one file or several.

    Raises:
        InputError: it lists something else than paths.
    """
    given = cfg.checkpoints
    paths = [given] if isinstance(given, str) else list(given or [])
    if not all(isinstance(path, str) and path for path in paths):
        raise InputError(f"checkpoints must list files, as in 'checkpoints=[a.pt,b.pt]', got {given}")
    return [Path(path) for path in paths]


def check_joint(ensemble: Any) -> None:
    """Refuse impossible settings of joint training.

    Raises:
        InputError: more components per step than there are.
    """
    if ensemble.sampled is not None and ensemble.sampled > ensemble.size:
        raise InputError(
            f"ensemble.sampled is how many of the {ensemble.size} components are sampled per step: a whole number from "
            f"1 to ensemble.size, or null; got {ensemble.sampled!r}"
        )
