"""Fits the members of a VBPI ensemble independently, one after another or side by side: nothing of p is trained.

A plain loop: an iteration is a few milliseconds. Its noise comes from the member's own generator, and a resume point
holds everything, so a run that was killed goes on exactly as it would have.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pytorch_lightning.loggers.logger import Logger
from torch import Tensor

from miselbo.ensemble import Ensemble
from miselbo.noise import derive
from miselbo.phylo.data import AlignmentData
from miselbo.phylo.member import Training
from miselbo.phylo.objective import Objective
from miselbo.phylo.vbpi import Posterior, Vbpi
from miselbo.runs import checkpoints
from miselbo.runs.plan import Loggers, TrainingPlan, able
from miselbo.runtime import locks
from miselbo.runtime.files import write_tensors
from miselbo.runtime.progress import Meter
from miselbo.training.fit import fit_each

RESUME = {"member": dict, "optimiser": dict, "generator": Tensor, "counts": dict}


@able(Objective, apart=True)
def fit_members(
    target: Posterior,
    members: Sequence[Vbpi],
    data: AlignmentData,
    plan: TrainingPlan,
    folder: Path,
    loggers: Loggers,
    only: int | None = None,
) -> Ensemble:
    """Train an ensemble of posteriors over trees; see :func:`miselbo.training.fit.fit_each`."""
    return fit_each(target, members, data, plan, folder, loggers, only, fit_member)


def fit_member(
    target: Posterior,
    members: Sequence[Vbpi],
    s: int,
    data: AlignmentData,
    plan: TrainingPlan,
    folder: Path,
    loggers: Loggers,
) -> None:
    """Train q_s and keep it; its seed and initial values depend on s alone."""
    path, resume, member = (
        checkpoints.member_path(folder, s),
        checkpoints.resume_path(folder, s),
        members[s - 1],
    )
    settings = Objective(**plan.objective)
    with locks.hold(folder, f"q{s}"):
        if path.exists():  # another process has finished it since
            checkpoints.load_finished(folder, target, members, {s})
            return
        training = Training(target, member, settings, plan.epochs, derive(plan.seed, s))
        if resume.exists():
            with checkpoints.resuming(resume, RESUME) as state:
                training.load_state(state)
        run_epochs(plan, training, s, [*loggers(s), training.recorder], resume)
        info = {
            "stage": f"train q{s}",
            "seed": training.seed,
            "seconds": training.seconds,
            "cpu_seconds": training.cpu_seconds,
            "steps": training.step,
            "skipped_steps": training.skipped,
            "checks": [list(found) for found in training.checks],
            "refit": training.refit and asdict(training.refit),
            "decoder_passes": training.step * settings.num_particles,
            "curve": training.recorder.kept(),
        }
        checkpoints.save(path, "member", member, target, member=s, **info)
        resume.unlink(missing_ok=True)


def run_epochs(
    plan: TrainingPlan, training: Training, member: int, loggers: Sequence[Logger], resume: Path
) -> None:
    """All epochs of one member, with its curves and resume points."""
    length = training.objective.steps_per_epoch
    saved = time.monotonic()

    def save() -> None:
        write_tensors(resume, training.state())

    training.save = save
    while not training.finished:
        first, last = training.step // length, training.last_step // length
        meter = Meter(f"train q{member} epoch", last, plan.progress)
        meter.skip(first)
        try:
            for epoch in range(first, last):
                values = training.epoch()
                for logger in loggers:
                    logger.log_metrics(values, training.step - 1)
                meter.update(epoch + 1, f"IWELBO {values['val/iwelbo']:.2f} nats")
                if time.monotonic() - saved >= plan.resume_interval and not training.finished:
                    save()
                    saved = time.monotonic()
        finally:
            meter.close()
    for logger in loggers:
        logger.finalize("success")
