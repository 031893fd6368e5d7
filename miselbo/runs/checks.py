"""Checks of the configuration's values before any work starts."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from miselbo.errors import InputError, nearest
from miselbo.importers.nvlabs import DECODERS
from miselbo.runtime import stopping

IMPORTERS = ("arrays", "nvlabs")
OPTIMIZED = ("joint_bound", "miselbo", "average_iwelbo", "average_elbo")
TASKS = (
    "run", "fit_member", "evaluate", "report", "cost", "export", "sample", "sandwich", "sweep_report", "log",
    "new",
)  # fmt: skip


def check_values(cfg: DictConfig) -> None:
    """Refuse values no run can have.

    Raises:
        InputError: for ensemble.size, seed or task.
    """
    if cfg.task not in TASKS:
        raise InputError(
            f"unknown task={cfg.task}; {nearest(str(cfg.task), TASKS)}known are {', '.join(TASKS)}"
        )
    if cfg.importer not in (None, *IMPORTERS):
        raise InputError(f"unknown importer={cfg.importer}; known are {', '.join(IMPORTERS)}")
    check_importer(cfg)
    check_optimized(str(cfg.optimized_metric))
    check_from_run(cfg.from_run)
    for key, least in (("ensemble.size", 1), ("ensemble.monitor_samples", 1), ("seed", 0)):
        value = OmegaConf.select(cfg, key)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{key} must be a whole number of at least {least}, got {value!r}")
    if cfg.num_threads is not None and (type(cfg.num_threads) is not int or cfg.num_threads < 1):
        raise InputError(f"num_threads must be a whole number of at least 1 or null, got {cfg.num_threads!r}")
    check_joint(cfg.ensemble)
    check_member(cfg)
    workers = cfg.ensemble.workers
    if workers != "auto" and (type(workers) is not int or workers < 1):
        raise InputError(f"ensemble.workers must be 'auto' or a whole number of at least 1, got {workers!r}")
    stopping.seconds(cfg.trainer.max_time)
    epochs = cfg.trainer.max_epochs
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise InputError(f"trainer.max_epochs must be a whole number of at least 1, got {epochs!r}")


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


def check_from_run(value: object) -> None:
    """``from_run`` is a folder, "auto" or null.

    Raises:
        InputError: it is something else.
    """
    if value is not None and (not isinstance(value, str) or not value):
        raise InputError(f"from_run must be auto, a run folder or null, got {value!r}")


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
    if cfg.importer == "arrays" and (cfg.task not in ("evaluate", "report") or cfg.scores is None):
        raise InputError("importer=arrays needs task=evaluate and scores=<an .npz or a folder of .npy files>")
    if cfg.target not in DECODERS:
        raise InputError(
            f"unknown target={cfg.target}; {nearest(str(cfg.target), DECODERS)}known are {', '.join(DECODERS)}"
        )
    if cfg.importer == "nvlabs":
        if cfg.task not in ("evaluate", "report", "export") or not checkpoint_paths(cfg):
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
        InputError: for one of the keys.
    """
    known = {
        "objective": ("independent", "mixture"),
        "estimator": ("all_to_all", "some_to_all", "some_to_some"),
    }
    for key, values in known.items():
        if ensemble[key] not in values:
            hint = nearest(str(ensemble[key]), values)
            raise InputError(f"unknown ensemble.{key}={ensemble[key]}; {hint}known are {', '.join(values)}")
    sampled = ensemble.sampled
    if sampled is not None and (type(sampled) is not int or not 1 <= sampled <= ensemble.size):
        raise InputError(
            f"ensemble.sampled is how many of the {ensemble.size} components are sampled per step: a whole number from "
            f"1 to ensemble.size, or null; got {sampled!r}"
        )
    for key in ("joint_epoch_share", "joint_learning_rate"):
        value = ensemble[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise InputError(f"ensemble.{key} must be a positive number, got {value!r}")
