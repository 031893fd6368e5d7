"""What an evaluation says of its own weights, per example: the evidence that the verdicts go by."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from miselbo.bounds.diagnostics import k_threshold

MOST_LISTED = 20
FEWEST_FOR_THRESHOLD = 50  # below that many draws k-hat is too noisy for a threshold under 0.7
HEAVY_TAIL = 0.7  # Pareto k-hat above which a mean of weights is not to be trusted, however many draws
ROUND_OFF = 1e-6  # of float32 scores, relative to a log-density


@dataclass(frozen=True)
class Evidence:
    """Per-example values of all members at all L draws, and the headline.

    Args:
        values: of :func:`miselbo.evaluation.scoring.score_all`.
        headline: the last row of ``bounds.csv``; NaN or None where unknown.
    """

    values: dict[str, np.ndarray]
    headline: Mapping[str, float]

    def at(self, name: str) -> np.ndarray:
        """[N], or [N, S] of members: the value at the last grid point."""
        found = self.values[name]
        return found[:, :, -1] if name.startswith("member_") and found.ndim == 3 else found[:, -1, -1]

    def number(self, name: str) -> float:
        """Of the headline; NaN where it is not known."""
        value = self.headline.get(name)
        return math.nan if value is None else float(value)

    @property
    def index(self) -> np.ndarray:
        """[N] labels of the examples."""
        return self.values["index"]

    @property
    def size(self) -> int:
        """S."""
        return int(self.headline["S"])

    @property
    def samples(self) -> int:
        """L."""
        return int(self.headline["L"])

    @cached_property
    def sound(self) -> np.ndarray:
        """[N], examples with finite bounds and no broken draw."""
        finite = np.isfinite(np.stack([self.at(name) for name in ("miselbo", "joint_bound")])).all(0)
        return finite & (self.at("non_finite") == 0)

    @cached_property
    def scale(self) -> float:
        """What differences are compared with to call them round-off."""
        bound = self.at("joint_bound")[self.sound]
        return ROUND_OFF * max(1.0, float(np.abs(bound).mean()) if len(bound) else 1.0)

    @cached_property
    def exact(self) -> bool:
        """Whether every draw of every member gives its example the same weight p / q_s, up to round-off."""
        if not self.sound.all() or self.samples * self.size < 2:
            return False
        gap = self.at("joint_bound") - self.at("average_elbo")
        return bool(np.abs(gap).max() < self.scale)


def threshold(num_draws: int) -> float:
    """:func:`~miselbo.bounds.diagnostics.k_threshold`, but 0.7 below 50 draws, whose k-hat is too noisy for less.

    Example:
        >>> threshold(100), threshold(10_000), threshold(30)
        (0.5, 0.7, 0.7)
    """
    return k_threshold(num_draws) if num_draws >= FEWEST_FOR_THRESHOLD else HEAVY_TAIL


def heavy(k: np.ndarray, num_draws: int) -> bool:
    """Whether the k-hats [N] of as many examples say that weights are heavy, and not only that k-hat is noisy.

    Fires where most are above the :func:`threshold` of their number of draws, or more than a tenth above 0.7 (20 / n
    for n < 200 draws: of log-normal weights with log-sd 1, whose tails are light, 2 to 20% are above 0.7 there).

    Example:
        >>> heavy(np.array([0.9, 0.8, 0.2]), 1000), heavy(np.array([0.9, 0.1, 0.2] * 9), 30), heavy(np.array([]), 30)
        (True, False, False)
    """
    k = k[~np.isnan(k)]
    if len(k) == 0:
        return False
    above, far = k > threshold(num_draws), k > HEAVY_TAIL
    if len(k) < 5:
        return bool(far.sum() > len(k) / 2)
    allowed = max(0.1, min(20 / num_draws, 0.5))
    return bool(above.mean() > 0.5 or (far.mean() > allowed and far.sum() > 1))


def pooled_k(about: Evidence) -> np.ndarray:
    """k-hat [N] of p / q_mix over all draws; -inf where the weights are all alike."""
    draws = about.size * about.samples
    return np.where(light(about.at("max_weight"), draws), -np.inf, about.at("pareto_k"))[about.sound]


def light(largest: np.ndarray, num_draws: int) -> np.ndarray:
    """Whether the largest normalised weight is at most 1.1 times the mean one: then a tail is round-off."""
    return np.asarray(largest) * num_draws <= 1.1


def listed(index: Sequence[int] | np.ndarray) -> str:
    """The first 20 labels.

    Example:
        >>> listed([3, 7]), listed(range(30))[-11:]
        ('3, 7', '18, 19, ...')
    """
    return ", ".join(str(int(label)) for label in index[:MOST_LISTED]) + (
        ", ..." if len(index) > MOST_LISTED else ""
    )
