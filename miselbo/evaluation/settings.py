"""How an ensemble is scored: the checked ``evaluation`` group."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from miselbo.bounds.certificate import check_confidence
from miselbo.bounds.multilevel import chain
from miselbo.errors import InputError, nearest
from miselbo.evaluation.annealed import Plan
from miselbo.evaluation.precision import check_precision

METHODS = ("full", "multilevel", "annealed")
PIXELS_PER_PASS = 90_000  # so that the widest activations of a small network stay near 16 MB


@dataclass(frozen=True)
class Settings:
    """How an ensemble is scored.

    Args:
        split: "test" or "validation".
        num_samples: L.
        grid: the L' reported, increasing, the last one is L.
        batch_size: examples per batch (and shard).
        samples_per_pass: samples of one member that run at once for a batch.
        num_examples: how many examples of the split, from its start; None for all.
        seed: key of the noise.
        dtype: of the decoder's features: "float32", "bfloat16" or "float64".
        save_scores: keep every log_p and log_q in ``results/scores``.
        compile: run the network through ``torch.compile``.
        confidence: of the certificate, 1 - d.
        earlier: keys of the evaluations whose draws this one goes on from, the least L first.
        keep_draws: keep the scores of the draws after those, for one with a larger L.
        refine_steps: of every member for every x before it is scored, see :mod:`miselbo.models.refined`.
    """

    split: str
    num_samples: int
    grid: tuple[int, ...]
    batch_size: int
    samples_per_pass: int
    num_examples: int | None
    seed: int
    dtype: str = "float32"
    save_scores: bool = False
    compile: bool = False
    confidence: float = 0.95
    earlier: tuple[str, ...] = ()
    keep_draws: bool = False
    refine_steps: int = 0


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def make_settings(cfg: Any, seed: int, num_dims: int = 1) -> Settings:
    """Check the ``evaluation`` group and fill in what it leaves open.

    Args:
        cfg: the group.
        seed: default of ``evaluation.seed``.
        num_dims: scalars per example (pixels, latent dimensions), to choose the pass size by.

    Raises:
        InputError: a value that cannot be.
    """
    limit = cfg.num_examples
    sizes = (("num_samples", cfg.num_samples), ("batch_size", cfg.batch_size))
    for name, value in (*sizes, ("num_examples", 1 if limit is None else limit)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"evaluation.{name} must be a whole number of at least 1, got {value!r}")
    pictures, noise_seed = cfg.num_pictures, cfg.seed
    for name, value in (("num_pictures", pictures), ("seed", 0 if noise_seed is None else noise_seed)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InputError(f"evaluation.{name} must be a whole number of at least 0, got {value!r}")
    if cfg.split not in ("test", "validation"):
        raise InputError(f"evaluation.split must be 'test' or 'validation', got {cfg.split!r}")
    if cfg.dtype not in DTYPES:
        raise InputError(f"evaluation.dtype must be one of {', '.join(DTYPES)}, got {cfg.dtype!r}")
    for name, value in (("save_scores", cfg.save_scores), ("compile", cfg.compile)):
        if not isinstance(value, bool):
            raise InputError(f"evaluation.{name} must be true or false, got {value!r}")
    if cfg.stop_at_se is not None:
        check_goal(cfg.stop_at_se, "evaluation.stop_at_se")
    if cfg.method not in METHODS:
        hint = nearest(str(cfg.method), METHODS)
        raise InputError(f"unknown evaluation.method={cfg.method}; {hint}known are {', '.join(METHODS)}")
    check_confidence(cfg.confidence, "evaluation.confidence")
    check_refinement(cfg.refine_steps, cfg.method, "evaluation.")
    workers = cfg.workers
    if workers != "auto" and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise InputError(
            f"evaluation.workers must be 'auto' or a whole number of at least 1, got {workers!r}"
        )
    per_pass = cfg.samples_per_pass
    if per_pass is None:
        per_pass = max(1, PIXELS_PER_PASS // (num_dims * cfg.batch_size))
    elif not isinstance(per_pass, int) or per_pass < 1:
        raise InputError(
            f"evaluation.samples_per_pass must be a whole number of at least 1 or null, got {per_pass!r}"
        )
    settings = Settings(
        split=cfg.split,
        num_samples=cfg.num_samples,
        grid=make_grid(cfg.grid, cfg.num_samples),
        batch_size=cfg.batch_size,
        samples_per_pass=min(per_pass, cfg.num_samples),
        num_examples=limit,
        seed=seed if noise_seed is None else noise_seed,
        dtype=cfg.dtype,
        save_scores=cfg.save_scores,
        compile=cfg.compile,
        confidence=float(cfg.confidence),
        refine_steps=cfg.refine_steps,
    )
    if cfg.method == "multilevel":
        check_levels(settings, cfg.grid)
    make_plan(cfg.annealed, settings.seed)
    if cfg.precision is not None:
        check_precision(cfg.precision, cfg.num_samples)
    return settings


def make_plan(cfg: Any, seed: int) -> Plan:
    """The checked ``evaluation.annealed`` group.

    Raises:
        InputError: a value that cannot be.
    """
    count = cfg.num_examples
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise InputError(
            f"evaluation.annealed.num_examples must be a whole number of at least 1 or null, got {count!r}"
        )
    return Plan(cfg.temperatures, cfg.chains, cfg.leapfrog, seed)


def check_goal(goal: object, name: str) -> None:
    """A goal is a positive number of nats or "auto".

    Raises:
        InputError: it is neither.
    """
    if goal == "auto":
        return
    if isinstance(goal, bool) or not isinstance(goal, int | float) or not 0 < goal < math.inf:
        raise InputError(f"{name} must be a positive number of nats, auto or null, got {goal!r}")


def check_refinement(steps: Any, method: str, prefix: str = "") -> None:
    """Refuse steps that cannot be, or with multilevel, which would refine an example anew at every level.

    Raises:
        InputError: as said.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise InputError(f"{prefix}refine_steps must be a whole number of at least 0, got {steps!r}")
    if steps and method == "multilevel":
        raise InputError(
            f"{prefix}refine_steps refines an example once for all its draws: use {prefix}method=full or annealed, "
            "not multilevel"
        )


def check_levels(settings: Settings, grid: Sequence[int] | None) -> None:
    """Refuse what multilevel cannot do, before any work.

    Args:
        settings: of the evaluation.
        grid: the L' that are asked for; None for those there are.

    Raises:
        InputError: L with a large prime factor, kept scores, or a grid of other L' than the levels'.
    """
    draws = chain(settings.num_samples)
    if settings.save_scores:
        raise InputError(
            "evaluation.save_scores=true needs all scores: use evaluation.method=full instead of multilevel"
        )
    other = sorted(set(grid or draws) - set(draws))
    if other:
        raise InputError(
            f"evaluation.method=multilevel reports L' = {', '.join(map(str, draws))}; evaluation.grid also asks for "
            f"{', '.join(map(str, other))}: leave it null, or use evaluation.method=full"
        )


def doublings(settings: Settings, start: int = 16) -> Iterator[Settings]:
    """Settings for L = 16, 32, 64, ... up to ``settings.num_samples``, each with the part of the grid it reaches.

    Example:
        >>> whole = Settings("test", 50, (1, 10, 50), 4, 2, None, 0)
        >>> [step.grid for step in doublings(whole)]
        [(1, 10, 16), (1, 10, 32), (1, 10, 50)]
    """
    samples = min(start, settings.num_samples)
    while True:
        grid = (*(point for point in settings.grid if point < samples), samples)
        yield replace(settings, num_samples=samples, grid=grid)
        if samples == settings.num_samples:
            return
        samples = min(2 * samples, settings.num_samples)


def make_grid(grid: Sequence[int] | None, num_samples: int) -> tuple[int, ...]:
    """The L' to report: the given ones and L itself; 1, 2, 5, 10, 20, 50, ... up to L when none are given.

    Example:
        >>> make_grid(None, 30)
        (1, 2, 5, 10, 20, 30)
        >>> make_grid([1, 10], 30)
        (1, 10, 30)
    """
    if grid is None:
        steps = [factor * 10**power for power in range(12) for factor in (1, 2, 5)]
        return (*(step for step in steps if step < num_samples), num_samples)
    given = list(grid) if isinstance(grid, Iterable) and not isinstance(grid, str) else []
    if not given or any(type(value) is not int or not 1 <= value <= num_samples for value in given):
        raise InputError(
            f"evaluation.grid must list whole numbers from 1 to evaluation.num_samples={num_samples}, "
            f"got {given or grid}"
        )
    return tuple(sorted({*given, num_samples}))
