"""One member as a job of its own: on a cluster, jobs for the members of an ensemble share a run folder.

The job of q_1 comes first where it trains the target too, the others run at any time after it, on any machine that sees
the folder; ``task=evaluate`` concludes.
"""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from miselbo.errors import InputError
from miselbo.runs import checkpoints, curves
from miselbo.runs.folder import claim_folder
from miselbo.training.parallel.side_by_side import number_of_workers


def check_apart(cfg: DictConfig, fit: Any) -> None:
    """Refuse to train members apart from each other where that cannot be.

    Raises:
        InputError: the family trains all its members at once, or devices and workers do not go together.
    """
    asked = "task=fit_member" if cfg.task == "fit_member" else f"ensemble.workers={cfg.ensemble.workers}"
    apart = cfg.task == "fit_member" or cfg.ensemble.workers not in (1, "auto")
    if apart and "only" not in inspect.signature(getattr(fit, "func", fit)).parameters:
        raise InputError(f"{asked}: model={cfg.model.name} trains all its members at once, in one process")
    number_of_workers(cfg, cfg.ensemble.size)


def fit_member(
    cfg: DictConfig, data: Any, folder: Path, target: Any, members: list[Any], fit: Callable[..., Any]
) -> dict[str, Any]:
    """Train one member in a run folder that jobs for the others share; makes the folder where there is none."""
    number = cfg.member
    finished = checkpoints.load_for(folder, target, members, number)
    claim = cfg.copy()
    claim.task, claim.member = "run", None
    claim_folder(claim, folder)
    if number not in finished:
        fit(cfg, data, folder, partial(curves.logger_of, folder), only=number)
    missing = checkpoints.missing_members(folder, cfg.ensemble.size)
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
