"""Joint fine-tuning: encoders that were trained one by one become one mixture, trained by MISELBO, decoder frozen."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from miselbo.bounds.sampled import ESTIMATORS, chosen
from miselbo.data.interface import TrainingData
from miselbo.ensemble import Ensemble
from miselbo.errors import TrainingDivergedError
from miselbo.noise import derive
from miselbo.protocols import Approximation, Frozen, Target, TrainableMember, TrainableTarget, latent_noise
from miselbo.runs import checkpoints
from miselbo.runs.plan import Joint, Loggers, TrainingPlan
from miselbo.runs.tidy import Recorder
from miselbo.training.callbacks import EpochMeter, ResumePoint
from miselbo.training.parallel import collectives
from miselbo.training.trainer import run_trainer

JOINT = 2**32  # stream of the joint phase, apart from every member's own
MOST_SKIPPED = 20


def mixture_bound(
    target: Target, members: Sequence[Approximation], x: Tensor, noise: Callable[[int], list[Tensor]],
    estimator: str, rows: Tensor, columns: Tensor,
) -> Tensor:  # fmt: skip
    """MISELBO of each example at L = 1 by one of the estimators, differentiable in the members, [B].

    Args:
        target: p(x, z).
        members: A encoders.
        x: [B, ...].
        noise: standard normal noise of the member of a number, per latent [1, B, ...].
        estimator: name in :data:`miselbo.bounds.sampled.ESTIMATORS`.
        rows: numbers of the members that are sampled.
        columns: numbers of those in the denominator.
    """
    needed = sorted({*rows.tolist(), *columns.tolist()})
    contexts = {j: members[j].encode(x) for j in needed}
    log_p, log_q = [], []
    for s in rows.tolist():
        draw = target.draw(x, members[s], contexts[s], noise(s))
        log_p.append(draw.log_p[0])
        log_q.append(torch.stack([members[j].log_prob(contexts[j], draw)[0] for j in columns.tolist()], -1))
    return ESTIMATORS[estimator](torch.stack(log_p, -1), torch.stack(log_q, -2))


class JointTraining(pl.LightningModule):
    """Trains all encoders of an ensemble together; the target is frozen, batch-norm statistics stay as they are.

    Args:
        target: finished.
        members: finished, trained one by one.
        options: of the joint training.
        seed: of the noise and of the choice of components.
    """

    def __init__(
        self, target: TrainableTarget, members: Sequence[TrainableMember], options: Joint, seed: int
    ):
        super().__init__()
        self.members: Sequence[TrainableMember] = nn.ModuleList(  # type: ignore[assignment]
            member.requires_grad_(True)  # type: ignore[misc]
            for member in members
        )
        self._target = Frozen(target)  # after the members, which may hold parts of it
        self.options, self.seed = options, seed
        self.skipped_in_a_row, self.passes = 0, 0

    @property
    def leaves_out_parameters(self) -> bool:
        """Whether a step uses only some of the members."""
        return bool(self.options.estimator == "some_to_some")

    def train(self, mode: bool = True) -> "JointTraining":
        """Evaluation mode for good: one density per member, whoever's samples it scores."""
        return super().train(False)

    def on_train_epoch_end(self) -> None:
        """Check what is frozen."""
        self._target.verify()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Minus the mean bound of a batch."""
        x, index = batch["image"], batch["index"]
        options, target = self.options, self._target.module
        rows, columns = chosen(
            options.estimator, len(self.members), options.sampled, self.seed, self.global_step
        )
        step = torch.full((1,), self.global_step, device=x.device)

        def noise(s: int) -> list[Tensor]:
            return latent_noise(target.latent_shapes, self.seed, index, s, step, x.dtype)

        whole = collectives.total(len(x), x.device)
        bounds = mixture_bound(target, list(self.members), x, noise, options.estimator, rows, columns)
        bound = bounds.mean() * collectives.share(len(x), whole)
        self.passes = self.passes + int(len(rows) * whole)
        self.log(
            "joint/miselbo", bound.detach().float(), on_step=False, on_epoch=True, batch_size=1,
            sync_dist=collectives.size() > 1,
        )  # fmt: skip
        return -bound

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn a step with a non-finite gradient into none; stop after too many in a row."""
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        if bool(torch.stack([gradient.norm() for gradient in gradients]).isfinite().all()):
            self.skipped_in_a_row = 0
            return
        optimizer.zero_grad(set_to_none=True)
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= MOST_SKIPPED:
            raise TrainingDivergedError(
                f"joint training stopped: {MOST_SKIPPED} steps in a row had a non-finite gradient. The members trained "
                "one by one are kept in members/independent. Try a smaller ensemble.joint_learning_rate."
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adamax, its rate falling to zero along a cosine."""
        optimizer = torch.optim.Adamax(
            [p for member in self.members for p in member.parameters()], lr=self.options.learning_rate
        )
        steps = max(int(self.trainer.estimated_stepping_batches), 1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Keep the counts."""
        checkpoint["counts"] = [self.passes]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them."""
        (self.passes,) = checkpoint["counts"]


def fine_tune(
    target: TrainableTarget,
    members: Sequence[TrainableMember],
    data: TrainingData,
    plan: TrainingPlan,
    folder: Path,
    loggers: Loggers,
) -> Ensemble:
    """Train finished members jointly, unless the folder has done so; returns the ensemble.

    The members as they were trained one by one stay in ``members/independent``; joint training always starts there, so
    a killed one, or one of a larger ensemble, does not build on half of an earlier one.
    """
    every = list(range(1, len(members) + 1))
    writes = collectives.rank() == 0
    if checkpoints.trained_jointly(folder, len(members)):
        return Ensemble(target, members).eval()
    before = {s: checkpoints.read(checkpoints.member_path(folder, s), "member") for s in every}
    if writes:
        for s in every:
            if "trained_with" not in before[s]:
                kept_path(folder, s).parent.mkdir(exist_ok=True)
                shutil.copyfile(checkpoints.member_path(folder, s), kept_path(folder, s))
    collectives.barrier()
    for s, member in zip(every, members, strict=True):
        kept = kept_path(folder, s)
        before[s] = checkpoints.read(kept, "member")
        checkpoints.load_state(member, before[s], kept)
    resume = folder / "members" / f"joint{len(members)}.resume.ckpt"
    module = JointTraining(target, members, plan.joint or Joint(), derive(plan.seed, JOINT))
    data.stream_seed = module.seed
    started = time.perf_counter()
    recorder = Recorder()
    _run(data, plan, folder, [*loggers(0), recorder], module, resume, recorder)
    module._target.verify()
    for s, member in zip(every, members, strict=True) if writes else ():
        info = {
            key: value
            for key, value in before[s].items()
            if key in ("seed", "steps", "skipped_steps", "member", "curve")
        }
        info |= {
            "seconds": before[s]["seconds"] + (time.perf_counter() - started) / len(every),
            "decoder_passes": before[s]["decoder_passes"] + module.passes // len(every),
            "objective": "mixture",
            "trained_with": every,
            "stage": f"train {'p and q1' if s == 1 else f'q{s}'}, with its share of the joint training",
        }
        if s == 1:
            info["joint_curve"] = recorder.kept()
        checkpoints.save(checkpoints.member_path(folder, s), "member", member, target, **info)
    if writes:
        resume.unlink(missing_ok=True)
    return Ensemble(target, members).eval()


def kept_path(folder: Path, member: int) -> Path:
    """Where q_member stays as it was trained alone."""
    return folder / "members" / "independent" / f"q{member}.ckpt"


def _run(
    data: TrainingData,
    plan: TrainingPlan,
    folder: Path,
    loggers: Sequence[Logger],
    module: JointTraining,
    resume: Path,
    recorder: Recorder,
) -> None:
    epochs = max(1, round(module.options.epoch_share * plan.epochs))
    callbacks = [
        ResumePoint(resume, plan.resume_interval, recorder),
        EpochMeter("jointly", plan.progress),
    ]
    arguments = {"check_val_every_n_epoch": epochs, "limit_val_batches": 0}
    run_trainer(plan, data, folder, module, callbacks, loggers, resume, epochs, **arguments)
