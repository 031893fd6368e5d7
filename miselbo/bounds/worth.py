r"""Is an ensemble worth its cost? S members against the best one alone with as many decoder passes.

At B = S l passes per example: the joint bound (or MISELBO) of all members with l draws each, against the IWELBO of the
best member with all B draws. The best member is chosen on one half of the examples and compared on the other, both ways
round, so that each example is compared with a member that was chosen without it; the difference is paired.
"""

import math
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from miselbo import bounds
from miselbo.bounds.diagnostics import paired
from miselbo.bounds.sums import WeightSums
from miselbo.errors import InputError


def shares(num_members: int, num_samples: int) -> list[int]:
    """The l at which S l draws of one member are at hand: 1, 2, 5, 10, ... and the largest.

    Example:
        >>> shares(5, 100), shares(3, 100), shares(5, 4), shares(1, 10)
        ([1, 2, 5, 10, 20], [1, 2, 5, 10, 20, 33], [], [])
    """
    most = num_samples // num_members if num_members > 1 else 0
    steps = (factor * 10**power for power in range(12) for factor in (1, 2, 5))
    return [*(step for step in steps if step < most), *([most] if most else [])]


class RunningWorth:
    """Bounds of one batch of examples at equal numbers of decoder passes, updated sample by sample.

    Args:
        num_members: S, at least 2.
        num_samples: L.

    Raises:
        InputError: S below 2, or L below 1.

    Example:
        >>> log_p, log_q = torch.randn(4, 2, 6), torch.randn(4, 2, 6, 2)
        >>> running = RunningWorth(2, 6)
        >>> running.update(log_p, log_q)
        >>> values = running.result()                       # l = 1, 2, 3 against 2, 4, 6 draws
        >>> torch.allclose(values["worth_joint"][:, 1], bounds.joint_bound(log_p[:, :, :2], log_q[:, :, :2]))
        True
        >>> torch.allclose(values["worth_iwelbo"][:, :, 1], bounds.iwelbo(log_p[:, :, :4], log_q[:, :, :4]))
        True
    """

    def __init__(self, num_members: int, num_samples: int):
        if num_members < 2 or num_samples < 1:
            raise InputError(
                f"expected at least 2 members and 1 sample, got {num_members!r} members and {num_samples!r} samples"
            )
        self.num_members, self.total, self.num_samples = num_members, num_samples, 0
        self.together = shares(num_members, num_samples)
        self.alone = [num_members * share for share in self.together]
        self.cuts = sorted({*self.together, *self.alone, num_samples})
        self._sums: tuple[WeightSums, WeightSums] | None = None
        self._of_all: list[Tensor] = []
        self._of_each: list[Tensor] = []

    @torch.no_grad()
    def update(self, log_p: Tensor, log_q: Tensor) -> None:
        """Absorb log_p [B, S, l] and log_q [B, S, l, S].

        Raises:
            InputError: dtype or shape.
        """
        log_p, log_q = bounds.check_scores(log_p, log_q)
        own = log_p - bounds.own_density(log_q)
        mixture = log_p - log_q.logsumexp(-1) + math.log(self.num_members)
        if self._sums is None:
            self._sums = WeightSums(torch.zeros_like(own[..., 0])), WeightSums(torch.zeros_like(own[..., 0]))
        start, samples = 0, own.shape[-1]
        while start < samples:
            goal = next(cut for cut in self.cuts if cut > self.num_samples)
            stop = min(samples, start + goal - self.num_samples)
            self._sums[0].add(mixture[..., start:stop])
            self._sums[1].add(own[..., start:stop])
            self.num_samples += stop - start
            start = stop
            if self.num_samples in self.together:
                self._of_all.append(self._sums[0].log_sum() - math.log(self.num_samples))
            if self.num_samples in self.alone:
                self._of_each.append(self._sums[1].log_sum() - math.log(self.num_samples))

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """``worth_joint`` and ``worth_miselbo`` [B, K], ``worth_iwelbo`` [B, S, K], K numbers of passes.

        Raises:
            InputError: fewer samples than L were given.
        """
        if self._sums is None or self.num_samples < self.total:
            raise InputError(
                f"L = {self.total} but only {self.num_samples} samples were given: update with all"
            )
        if not self.together:
            none = self._sums[0].first.new_zeros(len(self._sums[0].first), self.num_members, 0)
            return {"worth_joint": none[:, 0], "worth_miselbo": none[:, 0], "worth_iwelbo": none}
        strata = torch.stack(self._of_all, -1)  # [B, S, K]
        return {
            "worth_joint": strata.logsumexp(1) - math.log(self.num_members),
            "worth_miselbo": strata.mean(1),
            "worth_iwelbo": torch.stack(self._of_each, -1),
        }


class Worth(TypedDict, total=False):
    """S members against the best one, nats."""

    joint_bound: float
    best_iwelbo: float
    joint_gain: float
    joint_gain_se: float
    joint_gain_low: float
    joint_gain_high: float
    miselbo_gain: float
    miselbo_gain_se: float
    miselbo_gain_low: float
    miselbo_gain_high: float
    best: list[int]
    num_data: int


def against_best(joint: np.ndarray, miselbo: np.ndarray, iwelbo: np.ndarray) -> Worth | None:
    """S members against the best one at one number of passes.

    Args:
        joint: [N] joint bounds.
        miselbo: [N].
        iwelbo: [N, S] of every member with all the passes.

    Returns:
        ``joint_gain`` and ``miselbo_gain`` over the best member, each with ``_se``, ``_low``, ``_high`` (95%, paired);
        ``joint_bound``, ``best_iwelbo``: the means; ``best``: the members chosen (from 1), mostly one; ``num_data``.
        None with fewer than four examples whose values are finite.

    Example:
        >>> iwelbo = np.array([[0.0, -1.0]] * 4)
        >>> found = against_best(np.zeros(4) + 0.5, np.zeros(4), iwelbo)
        >>> found["best"], found["joint_gain"], found["miselbo_gain"]
        ([1], 0.5, 0.0)
    """
    finite = np.isfinite(joint) & np.isfinite(miselbo) & np.isfinite(iwelbo).all(1)
    joint, miselbo, iwelbo = joint[finite], miselbo[finite], iwelbo[finite]
    if len(joint) < 4:
        return None
    even = np.arange(len(joint)) % 2 == 0
    best = np.where(even, iwelbo[~even].mean(0).argmax(), iwelbo[even].mean(0).argmax())
    alone = iwelbo[np.arange(len(iwelbo)), best]
    found: Worth = {
        "joint_bound": float(joint.mean()),
        "best_iwelbo": float(alone.mean()),
        "best": sorted({int(s) + 1 for s in best}),
        "num_data": len(joint),
    }
    for name, values in (("joint_gain", joint), ("miselbo_gain", miselbo)):
        found.update(paired(name, values - alone))  # type: ignore[typeddict-item]
    return found
