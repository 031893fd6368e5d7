"""Fits classical members all at once: S independent optimisations, or one mixture, as one batch of parameters."""

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from pytorch_lightning.loggers.logger import Logger
from torch import Tensor

from miselbo.bounds.sampled import ESTIMATORS, chosen
from miselbo.data.interface import Data
from miselbo.ensemble import Ensemble
from miselbo.errors import InputError, TrainingDivergedError
from miselbo.models.classical import DensityTarget
from miselbo.models.gaussian import Gaussian
from miselbo.noise import derive
from miselbo.protocols import TrainableMember, TrainableTarget
from miselbo.runs import checkpoints
from miselbo.runs.plan import Joint, Loggers, TrainingPlan, able
from miselbo.runs.tidy import Recorder
from miselbo.runtime.files import write_tensors
from miselbo.runtime.progress import Meter
from miselbo.training.stack import Signature, Stack, signature

RESUME = {"counts": list, "numbers": list, "total": int, "parameters": list, "optimiser": dict}


@dataclass(frozen=True)
class Objective:
    """How classical members are optimised: Adam on minus the mean ELBO of K fresh samples per step.

    Args:
        learning_rate: of the first step; it falls on a straight line.
        learning_rate_end: of the last step.
        steps_per_epoch: steps between two values of the training curves; ``trainer.max_epochs`` counts these.
        num_samples: K, per member and step.
    """

    learning_rate: float = 1e-2
    learning_rate_end: float = 1e-3
    steps_per_epoch: int = 1000
    num_samples: int = 100

    def __post_init__(self) -> None:
        for name in ("steps_per_epoch", "num_samples"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(
                    f"model.objective.{name} must be a whole number of at least 1, got {value!r}"
                )
        for name in ("learning_rate", "learning_rate_end"):
            if not getattr(self, name) > 0:
                raise InputError(f"model.objective.{name} must be positive, got {getattr(self, name)!r}")


@able(Objective, joint=True)
def fit_together(
    target: DensityTarget,
    members: Sequence[Gaussian],
    data: Data,
    plan: TrainingPlan,
    folder: Path,
    loggers: Loggers,
) -> Ensemble:
    """Train the members that the run folder lacks, all at once; returns the ensemble.

    With ``ensemble.objective=independent`` a member's result does not depend on which others are trained beside it, so
    a larger ensemble extends a smaller one. With ``mixture`` the components depend on each other: all are trained,
    from their initial points, and the ensemble cannot be extended.

    Args:
        target: the density.
        members: q_1..q_S at their initial points.
        data: a :class:`~miselbo.data.density.DensityData`.
        folder: run folder; finished members in it are loaded, unfinished ones go on from their resume point.
        loggers: makes the loggers of a member.

    Raises:
        InputError: a checkpoint does not belong to this run; a target that gives NaN or +inf.
        TrainingDivergedError: a loss that is not finite.
    """
    settings = Objective(**plan.objective)
    numbers = missing(folder, target, members, plan.joint is not None)
    if not numbers:
        return Ensemble(target, members).eval()
    chosen_members = [members[s - 1] for s in numbers]
    warn_of_copies(numbers, chosen_members)
    training = Training(target, chosen_members, numbers, settings, plan)
    training.run(folder, [[*loggers(s), training.recorders[s]] for s in numbers])
    path = checkpoints.target_path(folder)
    checkpoints.save(path, "target", target, target, **plan.record)
    together = f"q{numbers[0]}..q{numbers[-1]}" if len(numbers) > 1 else f"q{numbers[0]}"
    for s, member in zip(numbers, chosen_members, strict=True):
        info = {
            "member": s,
            "seed": getattr(member, "seed", None),
            "seconds": training.seconds / len(numbers),
            "steps": training.step,
            "decoder_passes": training.passes // len(numbers),
            "objective": "mixture" if plan.joint else "independent",
            "trained_with": numbers,
            "curve": training.recorders[s].kept(),
            "stage": f"train q{s} (its share of {together} at once)",
        }
        checkpoints.save(checkpoints.member_path(folder, s), "member", member, target, **info)
    checkpoints.resume_path(folder, numbers[0]).unlink(missing_ok=True)
    return Ensemble(target, members).eval()


def missing(
    folder: Path, target: TrainableTarget, members: Sequence[TrainableMember], mixture: bool
) -> list[int]:
    """Numbers of the members to train; the others are loaded.

    Raises:
        InputError: a mixture of another size is in the folder.
    """
    finished = checkpoints.load_finished(folder, target, members)
    every = list(range(1, len(members) + 1))
    if not mixture:
        return [s for s in every if s not in finished]
    for s in finished:
        before = checkpoints.read(checkpoints.member_path(folder, s), "member")["trained_with"]
        if before != every:
            raise InputError(
                f"{folder} holds a mixture of {len(before)} components trained jointly; it cannot become one of "
                f"{len(every)}: use another run_dir"
            )
    return [] if finished == every else every


def warn_of_copies(numbers: Sequence[int], members: Sequence[Gaussian]) -> None:
    """Warn of members with identical seeds and initial points."""
    for (s, one), (t, other) in combinations(zip(numbers, members, strict=True), 2):
        first, second = one.state_dict(), other.state_dict()
        same = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
        if same and one.seed == other.seed:
            warnings.warn(
                f"q{s} and q{t} have the same seed and the same initial point, so they train to the same "
                "approximation: the ensemble is one approximation counted twice (JSD 0). Leave out model.members' "
                "seed or initial values, or give different ones.",
                stacklevel=2,
            )


class Training:
    """The optimisation and where it stands.

    Args:
        target: the density.
        members: to train.
        numbers: of these members.
        settings: of the optimisation.
        plan: epochs, seed, resume points; whether the members are trained jointly.
    """

    def __init__(
        self,
        target: DensityTarget,
        members: Sequence[Gaussian],
        numbers: Sequence[int],
        settings: Objective,
        plan: TrainingPlan,
    ):
        self.plan, self.target, self.settings = plan, target, settings
        self.numbers = list(numbers)
        self.recorders = {s: Recorder() for s in numbers}
        self.stacks, self.positions = make_stacks(members)
        self.mixture = plan.joint is not None
        self.choice_seed = derive(plan.seed, 2**32)  # apart from the members' own
        if self.mixture and len(self.stacks) > 1:
            raise InputError(
                "ensemble.objective=mixture needs members of one family with the same trained parameters"
            )
        self.parameters = [value for stack in self.stacks for value in stack.free.values()]
        self.step = self.passes = 0
        self.seconds = 0.0
        epochs = plan.epochs if self.parameters else 0
        self.total = epochs * settings.steps_per_epoch
        self.optimiser = (
            torch.optim.Adam(self.parameters, lr=settings.learning_rate, fused=True) if self.total else None
        )

    def run(self, folder: Path, loggers: Sequence[Sequence[Logger]]) -> None:
        """Train to the end, from the resume point where there is one."""
        resume = checkpoints.resume_path(folder, self.numbers[0])
        self._load(resume)
        started, saved = time.perf_counter() - self.seconds, time.monotonic()
        label = f"train {len(self.numbers)} members, step"
        meter = Meter(label, self.total, self.plan.progress)
        meter.skip(self.step)
        while self.step < self.total:
            curves = [self._advance() for _ in range(self.settings.steps_per_epoch)]
            means = torch.stack(curves).mean(0).tolist()
            self.seconds = time.perf_counter() - started
            for value, own in zip(means, loggers, strict=True):
                for logger in own:
                    metrics = {"train/elbo": value} if not self.mixture else {"train/miselbo": value}
                    logger.log_metrics(metrics, self.step)
            meter.update(
                self.step, f"{'MISELBO' if self.mixture else 'ELBO'} {sum(means) / len(means):.3f} nats"
            )
            if time.monotonic() - saved >= self.plan.resume_interval:
                self._save(resume)
                saved = time.monotonic()
        meter.close()
        for stack in self.stacks:
            stack.store()
        self.seconds = time.perf_counter() - started

    def _advance(self) -> Tensor:
        """One step; the bound of every member, [S]."""
        assert self.optimiser is not None
        share = self.step / max(self.total - 1, 1)
        rate = (1 - share) * self.settings.learning_rate + share * self.settings.learning_rate_end
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        if self.mixture:
            values = self._mixture_bound()
            loss = -values.mean()
        else:
            values = independent_bounds(self.target, self.stacks, self.step, self.settings.num_samples)
            values = values[self.positions]
            loss = -values.sum()
            self.passes += len(values) * self.settings.num_samples
        if not bool(loss.isfinite()):
            bad = [
                s for s, value in zip(self.numbers, values.tolist(), strict=True) if not math.isfinite(value)
            ]
            raise TrainingDivergedError(
                f"the bound of {', '.join(f'q{s}' for s in bad)} is not finite at step {self.step}: samples where "
                "log p(z) = -inf (a target with bounded support: change its variables so that it lives on R^d), or "
                f"too large a learning rate (model.objective.learning_rate={rate / 3:.1g} is a third of it)"
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.step += 1
        return values.detach()

    def _mixture_bound(self) -> Tensor:
        """MISELBO by the chosen estimator, repeated for every component: [S]."""
        joint, stack = self.plan.joint or Joint(), self.stacks[0]
        size, seed = len(self.numbers), self.choice_seed
        rows, columns = chosen(joint.estimator, size, joint.sampled, seed, self.step)
        z = stack.rsample(self.step, self.settings.num_samples, rows)
        log_p, log_q = self.target.log_prob(z), stack.log_prob_of(columns, z)
        self.passes += log_p.numel()
        value = ESTIMATORS[joint.estimator](log_p.T, log_q.transpose(0, 1)).mean()
        return value.expand(size)

    def _save(self, path: Path) -> None:
        assert self.optimiser is not None
        state = {
            "counts": [self.step, self.passes, self.seconds],
            "numbers": self.numbers,
            "total": self.total,
            "parameters": [value.detach() for value in self.parameters],
            "optimiser": self.optimiser.state_dict(),
            "curves": {s: recorder.kept() for s, recorder in self.recorders.items()},
        }
        write_tensors(path, state)

    @torch.no_grad()
    def _load(self, path: Path) -> None:
        if not path.exists() or self.optimiser is None:
            return
        with checkpoints.resuming(path, RESUME) as state:
            if state["numbers"] != self.numbers or state["total"] != self.total:
                return  # of another set of members: a member's training does not depend on it, so it starts anew
            self.step, self.passes, self.seconds = state["counts"]
            checkpoints.check_shapes(state["parameters"], self.parameters)
            for parameter, value in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(value)
            self.optimiser.load_state_dict(state["optimiser"])
            kept = state.get("curves", {})
            for s, recorder in self.recorders.items():
                recorder.restore(kept.get(s))


def make_stacks(members: Sequence[Gaussian]) -> tuple[list[Stack], list[int]]:
    """Stacks of members with one signature each, and for every member its row in their concatenation."""
    groups: dict[Signature, list[int]] = {}
    for position, member in enumerate(members):
        groups.setdefault(signature(member), []).append(position)
    order = [position for group in groups.values() for position in group]
    stacks = [
        Stack([members[i] for i in group], [members[i].seed for i in group]) for group in groups.values()
    ]
    return stacks, [order.index(position) for position in range(len(members))]


def independent_bounds(target: DensityTarget, stacks: Sequence[Stack], step: int, count: int) -> Tensor:
    """ELBO of every member from K samples of its own, [S], differentiable."""
    values = []
    for stack in stacks:
        z = stack.rsample(step, count)
        values.append((target.log_prob(z) - stack.log_prob(z)).mean(1))
    return torch.cat(values)
