"""One data point scored in R replicates: the log of the mean over them, beside the mean of their logs.

A replicate's joint bound is the log of an unbiased estimate of p(x), so the log of the MEAN of these estimates is the
joint bound of all R L draws of every member: as much a lower bound in expectation, with far less bias than the mean of
the R logs. The same of every member's IWELBO. The error is the delete-one jackknife over the replicates, which for
light weights is the delta method's; Pareto k-hat of the R estimates says whether to believe it.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from miselbo.bounds.diagnostics import error_trusted, pareto_k
from miselbo.bounds.jackknife import joint_jackknife


def log_of_mean(values: dict[str, np.ndarray]) -> dict[str, Any] | None:
    """Joint bound and average IWELBO of all replicates' draws together, at all members.

    Args:
        values: per-replicate values of :func:`miselbo.evaluation.shards.score_all`.

    Returns:
        ``replicates``; for ``joint_bound`` and ``average_iwelbo`` the value, ``_se``, ``_k`` (the worst member's; None
        below 25 replicates), ``_se_trusted`` and ``_mean_of_logs``; ``members``, the IWELBO of each with ``_se`` and
        ``_k``; ``sentence``. None with one replicate, or where a value is not finite.

    Example:
        >>> joint, alone = np.log([[[[1.0]], [[3.0]]]] * 2)
        >>> found = log_of_mean({"joint_bound": joint, "member_iwelbo": alone})
        >>> round(float(np.exp(found["joint_bound"])), 9), round(found["joint_bound_mean_of_logs"], 4)
        (2.0, 0.5493)
    """
    joint = torch.from_numpy(values["joint_bound"][:, -1, -1]).double()
    alone = torch.from_numpy(values["member_iwelbo"][:, :, -1]).double()
    count = len(joint)
    if count < 2 or not bool(joint.isfinite().all() and alone.isfinite().all()):
        return None
    value, variance, k = _together(joint[None])
    own_value, own_variance, own_k = _together(alone.T)
    size = len(own_value)
    quantities = {
        "joint_bound": (value, variance, k, joint.mean()),
        "average_iwelbo": (own_value.mean(0, keepdim=True), own_variance / size**2, own_k, alone.mean()),
    }
    found: dict[str, Any] = {"replicates": count}
    for name, (estimate, variances, shapes, logs) in quantities.items():
        found |= {
            name: float(estimate),
            f"{name}_se": _known(variances.sum().sqrt()),
            f"{name}_k": _known(shapes.max()),
            f"{name}_se_trusted": error_trusted(shapes, variances, count),
            f"{name}_mean_of_logs": float(logs),
        }
    rows = zip(own_value, own_variance.sqrt(), own_k, strict=True)
    found["members"] = [
        {"member": s, "iwelbo": float(each), "iwelbo_se": _known(error), "iwelbo_k": _known(shape)}
        for s, (each, error, shape) in enumerate(rows, 1)
    ]
    return {**found, "sentence": _sentence(found)}


def _together(logs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log mean exp over the last axis [M, R], its jackknife variance, and k-hat: [M] each."""
    value, variance, _ = joint_jackknife(logs[:, None])
    return value, variance, pareto_k(logs)


def _known(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None


def _sentence(found: dict[str, Any]) -> str:
    error, k = found["joint_bound_se"], found["joint_bound_k"]
    shown = "error unknown" if error is None else f"s.e. {error:.4f}"
    if error is not None and not found["joint_bound_se_trusted"]:
        shown = f"s.e. >{error:.4f}"
    tail = "unknown" if k is None else f"{k:.2f}"
    return (
        f"Log of the mean over the {found['replicates']} replicates: joint bound {found['joint_bound']:.4f} ({shown}, "
        f"k-hat of the replicates {tail}), less biased than {found['joint_bound_mean_of_logs']:.4f}, the mean of their "
        "logs."
    )
