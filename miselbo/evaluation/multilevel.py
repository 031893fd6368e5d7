"""Multilevel evaluation: pieces of every level until the errors of the bounds reach their goal."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from miselbo.bounds import levels, multilevel
from miselbo.bounds.levels import Level
from miselbo.errors import InputError
from miselbo.evaluation.pieces import CORRECTION, FINE, Pieces
from miselbo.evaluation.precision import DrawSource
from miselbo.evaluation.settings import Settings
from miselbo.report.summary import Multilevel
from miselbo.runtime.progress import Meter

GOAL_BOUNDS = ("miselbo", "joint_bound", "average_iwelbo")  # whose errors have the goal
AUTO = 5.0  # goal "auto": this part of the error over the data, so the total error grows by 2%
FORMAT = 1

Share = Callable[[Sequence[int], Path, bool], None]


@dataclass(frozen=True)
class Levels:
    """A finished multilevel evaluation.

    Args:
        pieces: all scores.
        units: of each level.
        goals: nats, of the three bounds.
        errors: reached, of the three bounds.
        seconds: of scoring, all processes together.
    """

    pieces: Pieces
    units: list[int]
    goals: dict[str, float]
    errors: dict[str, float]
    seconds: float

    @property
    def passes(self) -> int:
        """Decoder passes of this evaluation, those of the pilot too."""
        source, draws = self.pieces.source, self.pieces.draws
        of_pilot = levels.pilot(draws, source.num_data)
        both = ((self.units, False), (of_pilot, True))
        return sum(levels.passes(n, draws, source.num_data, source.num_members, p) for n, p in both)

    @property
    def full_passes(self) -> int:
        """Decoder passes of the full run at L."""
        source = self.pieces.source
        return source.num_data * source.num_members * self.pieces.draws[-1]


def key(settings: Settings, stamp: str) -> str:
    """Name of the folder of pieces: what decides their values and places, the goal not."""
    draws = multilevel.chain(settings.num_samples)
    content = [
        draws, settings.split, settings.batch_size, settings.num_examples, settings.seed, settings.dtype,
        settings.compile, stamp, FORMAT,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def run(
    source: DrawSource,
    settings: Settings,
    goal: float | str,
    folder: Path | None,
    show: bool = True,
    share: Share | None = None,
) -> Levels:
    """Score what the goal needs.

    Args:
        source: of the scores.
        settings: of the evaluation.
        goal: nats, or "auto": a fifth of the error over the data.
        folder: of the pieces; None keeps them in memory.
        show: progress.
        share: called with the units and the folder before, to let other processes score some of the pieces.

    Raises:
        InputError: "auto" with a single example.
    """
    if goal == "auto" and source.num_data == 1:
        raise InputError(
            "evaluation.stop_at_se=auto is a part of the error over the data, and there is one example: give nats"
        )
    draws, size = multilevel.chain(settings.num_samples), source.num_members
    pieces = Pieces(source, draws, settings.seed, settings.batch_size, folder)
    note = ""

    def pick(piece: dict[str, np.ndarray]) -> np.ndarray:
        return moments(np.stack([piece[name][:, :, size - 1] for name in GOAL_BOUNDS], 2))

    def goals(parts: list[Level]) -> Tensor:
        if goal != "auto":
            return torch.full((len(GOAL_BOUNDS),), float(goal), dtype=torch.float64)
        return (variance_over_data(parts)[-1] / source.num_data).sqrt() / AUTO

    def measure(units: list[int], pilot: bool) -> list[Level]:
        nonlocal note
        if share is not None and folder is not None:
            share(units, folder, pilot)
        waiting = pieces.missing(units, pilot)
        meter = Meter("evaluate", sum((last - first) * draws[k] for k, _, first, last in waiting), show)
        done = 0
        for piece in waiting:
            pieces.score(piece)
            done += (piece[3] - piece[2]) * draws[piece[0]]
            meter.update(done, note)
        meter.close()
        parts = [pieces.level(k, count, pick, pilot) for k, count in enumerate(units)]
        if pilot:
            return parts
        error, wanted = levels.estimates(parts)[1][-1, :2].tolist(), goals(parts).tolist()
        note = f"error of MISELBO {error[0]:.2g} (goal {wanted[0]:.2g}), joint bound {error[1]:.2g} ({wanted[1]:.2g})"
        if show:
            share_of = levels.passes(units, draws, source.num_data, 1) / (source.num_data * draws[-1])
            print(f"multilevel, {share_of:.3g} of the full run's passes: {note}", flush=True)
        return parts

    with torch.inference_mode():
        units, parts = levels.reach(
            measure, goals, draws, source.num_data, range(len(GOAL_BOUNDS)), source.num_data * draws[-1]
        )
    reached = levels.estimates(parts)[1][-1].tolist()
    both = [(k, n, False) for k, n in enumerate(units)]
    both += [(k, n, True) for k, n in enumerate(levels.pilot(draws, source.num_data))]
    seconds = sum(float(piece["seconds"].sum()) for each in both for piece in pieces.read(*each))
    return Levels(
        pieces,
        units,
        dict(zip(GOAL_BOUNDS, goals(parts).tolist(), strict=True)),
        dict(zip(GOAL_BOUNDS, reached, strict=False)),
        seconds,
    )


def write_pieces(
    source: DrawSource,
    settings: Settings,
    folder: Path,
    units: Sequence[int],
    pilot: bool,
    rank: int,
    processes: int,
) -> None:
    """Score this process's share, by the pieces' names, of those that so many units of each level still need."""
    draws = multilevel.chain(settings.num_samples)
    pieces = Pieces(source, draws, settings.seed, settings.batch_size, folder)
    for piece in pieces.missing(units, pilot):
        k, replicate, first, _ = piece
        if (k + replicate + first // pieces.sizes[k]) % processes == rank:
            pieces.score(piece)


def forecast(settings: Settings, num_data: int, size: int) -> str:
    """What a multilevel evaluation costs at least and at most, for ``task=cost``; how often it pays only members tell.

    Example:
        >>> forecast(Settings("test", 1024, (1024,), 100, 1, None, 0), 10_000, 5)
        'multilevel: from ... passes (0.27% of the full run) up to those of the full run, 51,200,000, ...'
    """
    draws = multilevel.chain(settings.num_samples)
    first = levels.pilot(draws, num_data)
    few = [num_data, *[levels.whole(levels.LEAST, num_data)] * (len(draws) - 1)]
    both = ((first, True), (few, False))
    least = sum(levels.passes(units, draws, num_data, size, of_pilot) for units, of_pilot in both)
    full = num_data * size * settings.num_samples
    return (
        f"multilevel: from {least:,} passes ({least / full:.2%} of the full run) up to those of the full "
        f"run, {full:,}, as the goal and the spread of the weights ask; the minutes above are those of the full run"
    )


def about(found: Levels) -> Multilevel:
    """What the report says of the levels: plain JSON types."""
    pieces, size = found.pieces, found.pieces.source.num_members
    rows = []
    for k, (n, count) in enumerate(zip(pieces.draws, found.units, strict=True)):
        taken = levels.replicates(count, pieces.source.num_data, k)
        part = pieces.level(
            k,
            count,
            lambda piece: np.stack([piece[name][:, CORRECTION, size - 1] for name in GOAL_BOUNDS], 1),
        )
        variances = dict(zip(GOAL_BOUNDS, part.variance.tolist(), strict=True))
        rows.append(
            {
                "L": n,
                **{f"variance_{name}": value for name, value in variances.items()},
                "passes_each": n * size,
                "examples": min(count, pieces.source.num_data),
                "replicates": len(taken),
                "passes": sum(taken) * n * size,
            }
        )
    reached = all(found.errors[name] <= found.goals[name] for name in GOAL_BOUNDS)
    return {
        "levels": rows,
        "goals": found.goals,
        "errors": found.errors,
        "pilot_passes": found.passes - sum(row["passes"] for row in rows),
        "passes": found.passes,
        "full_passes": found.full_passes,
        "sentence": sentence(found, reached),
    }


def sentence(found: Levels, reached: bool) -> str:
    """Whether multilevel paid."""
    ratio = found.full_passes / found.passes
    if not reached:
        worst = max(GOAL_BOUNDS, key=lambda name: found.errors[name] / found.goals[name])
        return (
            f"Multilevel does not pay here: with {found.passes:,} decoder passes, {1 / ratio:.2g} of the full run's, "
            f"the error of {worst} is {found.errors[worst]:.2g} and not {found.goals[worst]:.2g} nats. Use "
            "evaluation.method=full, or a goal of more nats."
        )
    if ratio < 1.5:
        return (
            f"Multilevel hardly pays here: {found.passes:,} decoder passes against {found.full_passes:,} of the full "
            "run at this L. It does with a goal of more nats, more examples or a larger L."
        )
    return (
        f"Multilevel took {found.passes:,} decoder passes, {ratio:.3g} times fewer than the {found.full_passes:,} of "
        f"the full run at L = {found.pieces.draws[-1]}, whose expectation it estimates without further bias."
    )


def moments(values: np.ndarray) -> np.ndarray:
    """Y, f + (f - Y) and their product, [b, 3 C], from f and Y, [b, 2, C]."""
    fine, correction = values[:, FINE], values[:, CORRECTION]
    both = 2 * fine - correction
    return np.concatenate([correction, both, both * correction], 1)


def variance_over_data(parts: Sequence[Level]) -> Tensor:
    """Variance over the examples of the expectation of f_n at every level's draws, [K + 1, C].

    With m_k the expectation of an example at level k, Var m_k = Var m_{k-1} + Cov(m_k + m_{k-1}, m_k - m_{k-1}), the
    first from the examples of level 0, the covariance from those of level k.

    Args:
        parts: of :func:`moments`.
    """
    count = len(parts[0].mean) // 3
    found = [parts[0].between[:count]]
    for part in parts[1:]:
        correction, both, product = part.mean.split(count)
        found.append(found[-1] + product - correction * both)
    return torch.stack(found).clamp(min=0)


def spread(pieces: Pieces, units: Sequence[int], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, error over the data and Monte Carlo error of a quantity at every level's draws: [K + 1, ...] each."""

    def pick(piece: dict[str, np.ndarray]) -> np.ndarray:
        return moments(piece[name].reshape(*piece[name].shape[:2], -1))

    parts = [pieces.level(k, n, pick) for k, n in enumerate(units)]
    means, errors = (each[:, : each.shape[1] // 3] for each in levels.estimates(parts))
    over_data = (variance_over_data(parts) / pieces.source.num_data).sqrt()
    shape = (len(units), *next(pieces.read(0, units[0]))[name].shape[2:])
    return means.numpy().reshape(shape), over_data.numpy().reshape(shape), errors.numpy().reshape(shape)
