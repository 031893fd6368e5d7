"""Fits an amortised ensemble: the decoder with q_1, then q_2..q_S, then all jointly where that is asked."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers.logger import Logger

from miselbo.ensemble import Ensemble
from miselbo.noise import derive
from miselbo.runs import checkpoints
from miselbo.runs.building import build_ensemble
from miselbo.runtime import locks
from miselbo.runtime.progress import EpochMeter
from miselbo.training.callbacks import EnsembleMonitor, ResumePoint
from miselbo.training.joint import fine_tune
from miselbo.training.member import MemberTraining, Objective
from miselbo.training.parallel import collectives
from miselbo.training.parallel.side_by_side import fit_in_processes, number_of_workers
from miselbo.training.trainer import run_trainer


def fit_members(
    cfg: DictConfig,
    data: pl.LightningDataModule,
    folder: Path,
    loggers: Callable[[int], list[Logger]],
    objective: Mapping[str, Any],
    only: int | None = None,
) -> Ensemble:
    """Train what the run folder lacks; returns the ensemble in evaluation mode.

    Args:
        cfg: the whole resolved configuration.
        data: images.
        folder: run folder; finished members in it are loaded, an unfinished one goes on from its resume point.
        loggers: makes the loggers of a member.
        objective: hyper-parameters of :class:`~miselbo.training.member.Objective`.
        only: train this member alone, and look at no other one's files but q_1's.

    Raises:
        InputError: a checkpoint in the folder does not belong to this run, or another process trains a member.
        TrainingDivergedError: too many non-finite steps in a row.
        MembersFailedError: members that were trained side by side failed.
    """
    size = cfg.ensemble.size
    target, members = build_ensemble(cfg, data.spec, size)  # type: ignore[attr-defined]
    wanted = range(1, size + 1) if only is None else (only,)
    if only is None:
        finished = checkpoints.load_finished(folder, target, members)
    else:
        finished = checkpoints.load_for(folder, target, members, only)
    missing = [s for s in wanted if s not in finished]
    if missing[:1] == [1]:
        fit_member(cfg, data, folder, loggers, objective, target, members, missing.pop(0))
    workers = number_of_workers(cfg, len(missing))
    if workers > 1:
        fit_in_processes(cfg, missing, workers, loggers)
        checkpoints.load_finished(folder, target, members, missing)
    else:
        for s in missing:
            fit_member(cfg, data, folder, loggers, objective, target, members, s)
    if cfg.ensemble.objective == "mixture" and size > 1 and only is None:
        return fine_tune(cfg, data, folder, loggers, target, members)
    return Ensemble(target, members).eval()


def fit_member(
    cfg: DictConfig,
    data: pl.LightningDataModule,
    folder: Path,
    loggers: Callable[[int], list[Logger]],
    objective: Mapping[str, Any],
    target: Any,
    members: Sequence[Any],
    s: int,
) -> None:
    """Train q_s, with the target where s = 1, and keep it; its seed, data and initial values depend on s alone."""
    path, seed = checkpoints.member_path(folder, s), derive(cfg.seed, s)
    own = [members[0], members[s - 1]] if s > 1 else [members[0]]
    module = MemberTraining(target, own, Objective(**objective), seed, member=s)
    if collectives.rank():  # rank 0 writes, the others read
        _train(cfg, data, folder, loggers, module)
        collectives.barrier()
        checkpoints.load_member(folder, s, members[s - 1], checkpoints.load_target(folder, target))
        return
    with locks.hold(folder, f"q{s}"):
        if path.exists() and collectives.size() == 1:  # another process has finished it since
            checkpoints.load_finished(folder, target, list(members), {1, s})
            return
        _train(cfg, data, folder, loggers, module)
        info = {
            "seed": seed,
            "seconds": module.seconds,
            "steps": module.global_step,
            "skipped_steps": module.skipped,
            "decoder_passes": int(module.examples_seen),
        }
        if s == 1:
            parts = {"model": plain(cfg.model), "dataset": plain(cfg.dataset)}
            checkpoints.save(checkpoints.target_path(folder), "target", target, target, **parts)
        else:
            module._target.verify()  # type: ignore[operator]
        checkpoints.save(path, "member", members[s - 1], target, member=s, **info)
        checkpoints.resume_path(folder, s).unlink(missing_ok=True)
    collectives.barrier()


def _train(
    cfg: DictConfig, data: Any, folder: Path, loggers: Callable[[int], list[Logger]], module: MemberTraining
) -> None:
    resume = checkpoints.resume_path(folder, module.member)
    resume.parent.mkdir(parents=True, exist_ok=True)
    data.stream_seed = module.seed
    callbacks = [
        EnsembleMonitor(cfg.ensemble.monitor_samples),
        ResumePoint(resume, cfg.ensemble.resume_interval),
        EpochMeter(f"q{module.member}", cfg.trainer.enable_progress_bar),
    ]
    epochs = cfg.trainer.max_epochs
    if module.member > 1:
        epochs = max(1, round(cfg.model.member_epoch_share * epochs))
    validations = cfg.trainer.check_val_every_n_epoch or max(epochs // 10, 1)
    logs = loggers(module.member)
    run_trainer(
        cfg, data, folder, module, callbacks, logs, resume, epochs, check_val_every_n_epoch=validations
    )


def plain(node: DictConfig) -> Any:
    """A configuration node as plain types, interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True)
