"""Fits an amortised ensemble: the decoder with q_1, then q_2..q_S one by one, then all jointly where that is asked."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers.logger import Logger

from miselbo import checkpoints
from miselbo.building import build_ensemble
from miselbo.ensemble import Ensemble
from miselbo.noise import derive
from miselbo.progress import EpochMeter
from miselbo.training import collectives
from miselbo.training.callbacks import EnsembleMonitor, ResumePoint
from miselbo.training.joint import fine_tune
from miselbo.training.lightning import run_trainer
from miselbo.training.module import MemberTraining, Objective


def fit_members(
    cfg: DictConfig,
    data: pl.LightningDataModule,
    folder: Path,
    loggers: Callable[[int], list[Logger]],
    objective: Mapping[str, Any],
) -> Ensemble:
    """Train what the run folder lacks; returns the ensemble in evaluation mode.

    Args:
        cfg: the whole resolved configuration.
        data: images.
        folder: run folder; finished members in it are loaded, an unfinished one goes on from its resume point.
        loggers: makes the loggers of a member.
        objective: hyper-parameters of :class:`~miselbo.training.module.Objective`.

    Raises:
        InputError: a checkpoint in the folder does not belong to this run.
        TrainingDivergedError: too many non-finite steps in a row.
    """
    size = cfg.ensemble.size
    target, members = build_ensemble(cfg, data.spec, size)  # type: ignore[attr-defined]
    finished = checkpoints.load_finished(folder, target, members)
    for s in range(1, size + 1):
        if s in finished:
            continue
        seed = derive(cfg.seed, s)
        module = MemberTraining(target, members[:s], Objective(**objective), seed)
        _train(cfg, data, folder, loggers, module)
        if collectives.rank():  # rank 0 writes, the others read
            collectives.barrier()
            checkpoints.load_member(folder, s, members[s - 1], checkpoints.load_target(folder, target))
            continue
        info = {
            "seed": seed,
            "seconds": module.seconds,
            "steps": module.global_step,
            "skipped_steps": module.skipped,
            "decoder_passes": int(module.examples_seen),
        }
        if s == 1:
            path = checkpoints.target_path(folder)
            checkpoints.save(
                path, "target", target, target, model=plain(cfg.model), dataset=plain(cfg.dataset)
            )
        else:
            module._target.verify()  # type: ignore[operator]
        checkpoints.save(
            checkpoints.member_path(folder, s), "member", members[s - 1], target, member=s, **info
        )
        checkpoints.resume_path(folder, s).unlink(missing_ok=True)
        collectives.barrier()
    if cfg.ensemble.objective == "mixture" and size > 1:
        return fine_tune(cfg, data, folder, loggers, target, members)
    return Ensemble(target, members).eval()


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
