"""Fits an ensemble member by member: with q_1 the target where it has parameters, then the others, then all jointly.

One loop for all families whose members are trained apart; what trains one member is the family's own.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from miselbo.data.interface import Data, TrainingData
from miselbo.ensemble import Ensemble
from miselbo.models.hierarchical import HierarchicalDecoder, HierarchicalEncoder
from miselbo.noise import derive
from miselbo.protocols import TrainableMember, TrainableTarget
from miselbo.runs import checkpoints
from miselbo.runs.plan import Loggers, TrainingPlan, able, needs_earlier
from miselbo.runs.tidy import Recorder
from miselbo.runtime import locks
from miselbo.training.callbacks import EnsembleMonitor, EpochMeter, ResumePoint
from miselbo.training.joint import fine_tune
from miselbo.training.member import MemberTraining, Objective
from miselbo.training.parallel import collectives
from miselbo.training.parallel.side_by_side import fit_in_processes, number_of_workers
from miselbo.training.trainer import run_trainer

T = TypeVar("T", bound=TrainableTarget)
M = TypeVar("M", bound=TrainableMember)
D = TypeVar("D", bound=Data)
FitMember = Callable[[T, Sequence[M], int, D, TrainingPlan, Path, Loggers], None]
FineTune = Callable[[T, Sequence[M], D, TrainingPlan, Path, Loggers], Ensemble]


@able(Objective, apart=True, ranks=True, joint=True, losses=True)
def fit_members(
    target: HierarchicalDecoder,
    members: Sequence[HierarchicalEncoder],
    data: TrainingData,
    plan: TrainingPlan,
    folder: Path,
    loggers: Loggers,
    only: int | None = None,
) -> Ensemble:
    """Train an amortised ensemble of images; see :func:`fit_each`."""
    return fit_each(target, members, data, plan, folder, loggers, only, fit_member, fine_tune)


def fit_each(
    target: T,
    members: Sequence[M],
    data: D,
    plan: TrainingPlan,
    folder: Path,
    loggers: Loggers,
    only: int | None,
    fit_member: FitMember[T, M, D],
    fine_tune: FineTune[T, M, D] | None = None,
) -> Ensemble:
    """Train what the run folder lacks; returns the ensemble in evaluation mode.

    Args:
        target: with fresh parameters, or none.
        members: q_1..q_S with fresh parameters.
        data: data module of the family.
        plan: how.
        folder: run folder; finished members in it are loaded, an unfinished one goes on from its resume point.
        loggers: makes the loggers of a member.
        only: train this member alone, and look at no other one's files but q_1's where it trains the target.
        fit_member: trains one member and keeps it in the folder.
        fine_tune: trains all of them together at the end, where the plan says so.

    Raises:
        InputError: a checkpoint in the folder does not belong to this run, or another process trains a member.
        TrainingDivergedError: too many non-finite steps in a row.
        MembersFailedError: members that were trained side by side failed.
    """
    wanted = range(1, len(members) + 1) if only is None else (only,)
    if only is None:
        finished = checkpoints.load_finished(folder, target, members)
    else:
        finished = checkpoints.load_for(folder, target, members, only)
    trains_target, path = checkpoints.trained(target), checkpoints.target_path(folder)
    if not trains_target and not path.exists():
        checkpoints.save(path, "target", target, target, **plan.record)
    missing = [s for s in wanted if s not in finished]
    if trains_target and missing[:1] == [1]:
        fit_member(target, members, missing.pop(0), data, plan, folder, loggers)
    workers = 1 if needs_earlier(plan) else number_of_workers(plan, len(missing))
    if workers > 1:
        fit_in_processes(plan, missing, workers, loggers)
        checkpoints.load_finished(folder, target, members, missing)
    else:
        for s in missing:
            fit_member(target, members, s, data, plan, folder, loggers)
    if fine_tune and plan.joint and len(members) > 1 and only is None:
        return fine_tune(target, members, data, plan, folder, loggers)
    return Ensemble(target, members).eval()


def fit_member(
    target: HierarchicalDecoder,
    members: Sequence[HierarchicalEncoder],
    s: int,
    data: TrainingData,
    plan: TrainingPlan,
    folder: Path,
    loggers: Loggers,
) -> None:
    """Train q_s, with the target where s = 1, and keep it; its seed, data and initial values depend on s alone."""
    path, seed = checkpoints.member_path(folder, s), derive(plan.seed, s)
    settings = Objective(**plan.objective)
    own = [*members[: s - 1 if needs_earlier(plan) else min(s - 1, 1)], members[s - 1]]
    module = MemberTraining(target, own, settings, seed, member=s)
    if collectives.rank():  # rank 0 writes, the others read
        _train(data, plan, folder, loggers, module, Recorder())
        collectives.barrier()
        checkpoints.load_member(folder, s, members[s - 1], checkpoints.load_target(folder, target))
        return
    with locks.hold(folder, f"q{s}"):
        if path.exists() and collectives.size() == 1:  # another process has finished it since
            checkpoints.load_finished(folder, target, members, {1, s})
            return
        recorder = Recorder()
        _train(data, plan, folder, loggers, module, recorder)
        info = {
            "seed": seed,
            "seconds": module.seconds,
            "steps": module.global_step,
            "skipped_steps": module.skipped,
            "decoder_passes": int(module.examples_seen),
            "curve": recorder.kept(),
        }
        if s == 1:
            checkpoints.save(checkpoints.target_path(folder), "target", target, target, **plan.record)
        else:
            for frozen in module._frozen:  # a callback may come after the last epoch
                frozen.verify()
        checkpoints.save(path, "member", members[s - 1], target, member=s, **info)
        checkpoints.resume_path(folder, s).unlink(missing_ok=True)
    collectives.barrier()


def _train(
    data: TrainingData,
    plan: TrainingPlan,
    folder: Path,
    loggers: Loggers,
    module: MemberTraining,
    recorder: Recorder,
) -> None:
    resume = checkpoints.resume_path(folder, module.member)
    resume.parent.mkdir(parents=True, exist_ok=True)
    data.stream_seed = module.seed
    callbacks = [
        EnsembleMonitor(plan.monitor_samples),
        ResumePoint(resume, plan.resume_interval, recorder),
        EpochMeter(f"q{module.member}", plan.progress),
    ]
    epochs = plan.epochs_of(module.member)
    validations = plan.trainer.get("check_val_every_n_epoch") or max(epochs // 10, 1)
    logs = [*loggers(module.member), recorder]
    run_trainer(
        plan, data, folder, module, callbacks, logs, resume, epochs, check_val_every_n_epoch=validations
    )
