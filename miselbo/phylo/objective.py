"""The training objective of VBPI: a K-sample bound, its gradient, and the schedules.

    f_k = beta log p(Y | tau_k, x_k) + log p(x_k | tau_k) - log q(tau_k) - log q(x_k | tau_k)
    T = log 1/K sum_k exp f_k

Branch parameters have the reparameterised gradient of T. Topology parameters have VIMCO's (Mnih and Rezende 2016):
the gradient of T through log q(tau_k), plus sum_k (T - T_k) grad log q(tau_k), where T_k has f_k replaced by the mean
of the others. beta grows linearly from ``anneal_start`` to 1.

Once beta is 1 the branch parameters may have the doubly reparameterised gradient instead (DReG, Tucker et al. 2019):
sum_k v_k^2 (d f_k / d x_k) (d x_k / d phi) with v_k = exp f_k / sum_j exp f_j and log q(x | tau) in f_k a function of
x_k alone. It has the same mean, and a variance that vanishes as q comes near to p.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from miselbo.errors import InputError


@dataclass(frozen=True)
class Objective:
    """Hyper-parameters of training; an epoch is ``steps_per_epoch`` iterations.

    Args:
        num_particles: K, at least 2.
        steps_per_epoch: iterations per epoch.
        learning_rate_tree: of the topology parameters.
        learning_rate_branch: of the branch parameters.
        decay: both rates are multiplied by this...
        num_decays: ...so many times, at equal distances.
        anneal_start: beta of the first iteration.
        anneal_portion: share of the training until beta is 1.
        max_skipped_steps: non-finite steps in a row before training gives up.
        dreg: whether the branch parameters have the doubly reparameterised gradient once beta is 1.
        second_stage_tree: [first, last] learning rate of the topology parameters once beta is 1, falling exponentially
            in place of ``learning_rate_tree`` and its decay; None for none.
        second_stage_branch: the same of the branch parameters.
        rounds: of the second stage at most, each with falling rates, see :mod:`miselbo.phylo.rounds`; 1: one, without a
            check.
        enough_ess: effective sample size, as a share of fresh draws, at which no further round follows.
        least_gain: nats by which a round raises the importance-weighted estimate if another one is to follow.
        refit: draws with which q(tau) is fitted anew at the end, see :mod:`miselbo.phylo.refit`; 0: it is not.

    Raises:
        InputError: a value that cannot be.

    Example:
        >>> objective = Objective(anneal_portion=0.5)
        >>> [round(objective.beta(step, 40), 3) for step in (0, 10, 20)]
        [0.001, 0.501, 1.0]
        >>> staged = Objective(num_decays=0, second_stage_tree=(1e-2, 1e-4))
        >>> [round(staged.rates(step, 40)[0], 6) for step in (0, 19, 20, 30, 40)]
        [0.002, 0.002, 0.01, 0.001, 0.0001]
    """

    num_particles: int = 10
    steps_per_epoch: int = 1000
    learning_rate_tree: float = 2e-3
    learning_rate_branch: float = 3e-3
    decay: float = 0.75
    num_decays: int = 8
    anneal_start: float = 1e-3
    anneal_portion: float = 0.5
    max_skipped_steps: int = 20
    dreg: bool = False
    second_stage_tree: Sequence[float] | None = None
    second_stage_branch: Sequence[float] | None = None
    rounds: int = 1
    enough_ess: float = 0.06
    least_gain: float = 0.1
    refit: int = 0

    def __post_init__(self) -> None:
        whole = {
            "num_particles": 2,
            "steps_per_epoch": 1,
            "num_decays": 0,
            "max_skipped_steps": 0,
            "rounds": 1,
            "refit": 0,
        }
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "dreg":
                good, wanted = isinstance(value, bool), "true or false"
            elif field.name.startswith("second_stage"):
                good = value is None or (
                    not isinstance(value, str) and len(list(value)) == 2 and all(map(is_rate, value))
                )
                wanted = "null or two positive numbers, the first and the last learning rate of the stage"
            elif field.name in whole:
                good = isinstance(value, int) and not isinstance(value, bool) and value >= whole[field.name]
                wanted = f"a whole number of at least {whole[field.name]}"
            else:
                number = is_number(value)
                zero = field.name.startswith("anneal") or field.name == "least_gain"
                share = field.name.startswith("anneal") or field.name in ("decay", "enough_ess")
                good = number and (value >= 0 if zero else value > 0) and (value <= 1 or not share)
                wanted = f"a {'non-negative' if zero else 'positive'} number{' up to 1' if share else ''}"
            if not good:
                raise InputError(f"model.objective.{field.name} must be {wanted}, got {value!r}")

    def beta(self, step: int, total: int) -> float:
        """Weight of the likelihood at an iteration of ``total``."""
        length = self.anneal_portion * total
        return 1.0 if step >= length else min(1.0, self.anneal_start + step / length)

    def rate(self, step: int, total: int) -> float:
        """Factor of the learning rates at an iteration of ``total``."""
        return self.decay ** (step * self.num_decays // total)

    def second_stage(self, step: int, total: int) -> bool:
        """Whether beta has reached 1."""
        return step >= self.anneal_portion * total

    def ends(self, total: int) -> list[int]:
        """Iterations at which the rounds of the second stage end, whole epochs; the last one is ``total``.

        Example:
            >>> Objective(steps_per_epoch=10, anneal_portion=0.25, rounds=3).ends(80)
            [40, 60, 80]
            >>> Objective(steps_per_epoch=10, anneal_portion=0.25, rounds=3).ends(20)  # 15 are one epoch
            [20]
        """
        epochs = math.floor((1 - self.anneal_portion) * total / self.steps_per_epoch)
        count = max(1, min(self.rounds, epochs))
        length = epochs // count * self.steps_per_epoch
        return [total - left * length for left in reversed(range(count))]

    def rates(self, step: int, total: int) -> tuple[float, float]:
        """Learning rates of the topology and of the branch parameters at an iteration of at most ``total``."""
        factor = self.rate(step, total)
        stages = (self.second_stage_tree, self.second_stage_branch)
        tree, branch = self.learning_rate_tree * factor, self.learning_rate_branch * factor
        if not self.second_stage(step, total):
            return tree, branch
        ends = self.ends(total)
        number = min(bisect.bisect_right(ends, step), len(ends) - 1)
        start = ends[number - 1] if number else self.anneal_portion * total
        done = min((step - start) / max(ends[number] - start, 1), 1.0)
        falling = [stage and stage[0] * (stage[1] / stage[0]) ** done for stage in stages]
        return falling[0] or tree, falling[1] or branch


def is_number(value: object) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_rate(value: object) -> bool:
    """Whether it is a finite number above 0."""
    return isinstance(value, int | float) and is_number(value) and value > 0


def bound(f: np.ndarray) -> float:
    """T = log-mean-exp of f [K]."""
    return float(np.logaddexp.reduce(f) - math.log(len(f)))


def learning_signals(f: np.ndarray) -> np.ndarray:
    """T - T_k [K], T_k with f_k replaced by the mean of the others.

    Example:
        >>> learning_signals(np.array([1.0, 1.0, 1.0]))
        array([0., 0., 0.])
    """
    table = np.tile(f, (len(f), 1))
    np.fill_diagonal(table, (f.sum() - f) / (len(f) - 1))
    return np.logaddexp.reduce(f) - np.logaddexp.reduce(table, axis=1)


def coefficients(f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The estimated gradient of T is a sum of gradients with these coefficients.

    Args:
        f: [K].

    Returns:
        [K] of what f_k holds besides - log q(tau_k), and [K] of log q(tau_k).
    """
    weight = np.exp(f - np.logaddexp.reduce(f))
    return weight, learning_signals(f) - weight
