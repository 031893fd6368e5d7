"""One member as a job of its own: on a cluster, jobs for the members of an ensemble share a run folder.

The job of q_1 comes first where it trains the target too, the others run at any time after it, on any machine that sees
the folder; ``task=evaluate`` concludes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from miselbo.data.interface import Data
from miselbo.errors import InputError
from miselbo.protocols import TrainableMember, TrainableTarget
from miselbo.runs import checkpoints, curves
from miselbo.runs.plan import TrainingPlan, is_able, needs_earlier


def check_apart(plan: TrainingPlan, fit: Callable[..., object], alone: bool) -> None:
    """Refuse to train members apart from each other where that cannot be.

    Args:
        plan: of the training.
        fit: of the family.
        alone: whether one member is to be trained in a job of its own.

    Raises:
        InputError: the family trains all its members at once, or knows no joint training; or devices and workers do
            not go together.
    """
    asked = "task=fit_member" if alone else f"ensemble.workers={plan.workers}"
    if (alone or plan.workers not in (1, "auto")) and not is_able(fit, "apart"):
        raise InputError(f"{asked}: model={plan.name} trains all its members at once, in one process")
    if plan.objective.get("loss") is not None and not is_able(fit, "losses"):
        raise InputError(
            f"model.objective.loss (objective=...) is for images: model={plan.name} has an objective of its own"
        )
    if (alone or plan.workers not in (1, "auto")) and needs_earlier(plan):
        raise InputError(
            f"{asked}: a boosted member is trained against all earlier ones, so they follow one another in one process"
        )
    if plan.joint and not is_able(fit, "joint"):
        raise InputError(
            f"ensemble.objective=mixture: model={plan.name} has no joint training; use independent"
        )
    from miselbo.training.parallel.side_by_side import number_of_workers  # imports Lightning

    number_of_workers(plan, 2)


def fit_member(
    target: TrainableTarget,
    members: Sequence[TrainableMember],
    number: int,
    data: Data,
    plan: TrainingPlan,
    folder: Path,
    fit: Callable[..., object],
) -> dict[str, object]:
    """Train one member in a run folder that jobs for the others share."""
    if number not in checkpoints.load_for(folder, target, members, number):
        fit(target, members, data, plan, folder, partial(curves.logger_of, folder), only=number)
    missing = checkpoints.missing_members(folder, len(members))
    rest = (
        f"missing: {', '.join(f'q{s}' for s in missing)}"
        if missing
        else "all members are there: task=evaluate"
    )
    print(f"q{number} is finished in {folder}; {rest}")
    return {"member": number, "missing": missing}


def check_all(folder: Path, size: int) -> None:
    """Refuse to evaluate a run whose members are not all there.

    Raises:
        InputError: names the missing ones and the commands that train them.
    """
    missing = checkpoints.missing_members(folder, size)
    if missing:
        path = checkpoints.member_path(folder, missing[0])
        raise InputError(
            f"{', '.join(f'q{s}' for s in missing)} of {size} members are missing ({path} does not exist): train each "
            f"with task=fit_member member={missing[0]} run_dir={folder}, or all with the run's own command"
        )
