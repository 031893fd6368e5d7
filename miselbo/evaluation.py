"""The one scoring pass over a data set, and the tables made of it.

Examples go through in batches, samples in passes. Each finished batch is a shard on disk holding per-example values of
every (S', L') cell, so a killed evaluation goes on with the next batch. Tables are means over all shards' examples.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.files import atomic
from miselbo.progress import Meter
from miselbo.streaming import RunningBounds
from miselbo.subsets import MOST_MEMBERS, FirstSamples, RunningSubsets

SHARD_FORMAT = 2  # goes up when the arrays of a shard change, so that older shards are not mixed in
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
    """

    split: str
    num_samples: int
    grid: tuple[int, ...]
    batch_size: int
    samples_per_pass: int
    num_examples: int | None
    seed: int


def make_settings(cfg: Any, seed: int, num_dims: int) -> Settings:
    """Check the ``evaluation`` group and fill in what it leaves open.

    Args:
        cfg: the group.
        seed: default of ``evaluation.seed``.
        num_dims: pixels per image, to choose the pass size by.

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
    per_pass = cfg.samples_per_pass
    if per_pass is None:
        per_pass = max(1, PIXELS_PER_PASS // (num_dims * cfg.batch_size))
    elif not isinstance(per_pass, int) or per_pass < 1:
        raise InputError(
            f"evaluation.samples_per_pass must be a whole number of at least 1 or null, got {per_pass!r}"
        )
    return Settings(
        split=cfg.split,
        num_samples=cfg.num_samples,
        grid=make_grid(cfg.grid, cfg.num_samples),
        batch_size=cfg.batch_size,
        samples_per_pass=min(per_pass, cfg.num_samples),
        num_examples=limit,
        seed=seed if noise_seed is None else noise_seed,
    )


def make_grid(grid: Any, num_samples: int) -> tuple[int, ...]:
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


def score_split(
    ensemble: Ensemble,
    data: Any,
    settings: Settings,
    folder: Path,
    stamp: str,
    device: str = "cpu",
    show: bool = True,
) -> dict[str, np.ndarray]:
    """Score the split once; per-example values of every cell.

    Args:
        ensemble: in any mode and on any device; moved to ``device``.
        data: data module with ``evaluation_batches(split, batch_size)``.
        settings: of the evaluation.
        folder: where shards go (and come from, after a kill).
        stamp: fingerprint of the ensemble and the data protocol; shards of another one are not used.
        device: where to score.
        show: progress.

    Returns:
        Arrays of :meth:`miselbo.streaming.RunningBounds.result` with the examples of all batches on the first
        axis, ``index`` [N], and ``seconds`` [number of batches]; for S > 1 also those of
        :class:`miselbo.subsets.FirstSamples` and, up to 8 members, :class:`miselbo.subsets.RunningSubsets`.

    Raises:
        InputError: the split is empty.
    """
    total = len(data.split(settings.split))
    total = min(total, settings.num_examples or total)
    if total == 0:
        raise InputError(f"the {settings.split} split holds no example: nothing to evaluate")
    key = hashlib.sha256(json.dumps([asdict(settings), stamp, SHARD_FORMAT], sort_keys=True).encode()).hexdigest()[:16]
    shards = folder / key
    for other in folder.glob("*") if folder.exists() else ():
        if other.name != key:
            shutil.rmtree(other)
    meter = Meter("evaluate", total, show)
    ensemble = ensemble.to(device)
    parts = []
    done = 0
    for batch in limited(data.evaluation_batches(settings.split, settings.batch_size), total):
        path = shards / f"{done:08d}.npz"
        done += len(batch["index"])
        if path.exists():
            meter.skip(done)
        else:
            with atomic(path) as temporary, temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **score_batch(ensemble, batch, settings, device))
            meter.update(done)
        with np.load(path) as shard:
            parts.append({name: shard[name] for name in shard.files})
    meter.close()
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def limited(batches: Iterator[dict[str, torch.Tensor]], total: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches up to ``total`` examples."""
    for batch in batches:
        take = min(total, len(batch["index"]))
        yield {name: values[:take] for name, values in batch.items()}
        total -= take
        if not total:
            return


@torch.inference_mode()
def score_batch(ensemble: Ensemble, batch: Any, settings: Settings, device: str) -> dict[str, np.ndarray]:
    """All bounds of one batch of examples from one pass over its L samples."""
    start = time.perf_counter()
    x, index = batch["image"].to(device), batch["index"].to(device)
    size = len(ensemble.members)
    running: list[Any] = [RunningBounds(size, settings.grid)]
    if 2 <= size <= MOST_MEMBERS:
        running.append(RunningSubsets(size, settings.num_samples))
    if size >= 2:
        running.append(FirstSamples(size, settings.num_samples))
    for log_p, log_q in ensemble.passes(
        x, settings.num_samples, settings.samples_per_pass, settings.seed, index
    ):
        for sums in running:
            sums.update(log_p, log_q)
    values = {name: value.cpu().numpy() for sums in running for name, value in sums.result().items()}
    return {**values, "index": index.cpu().numpy(), "seconds": np.array([time.perf_counter() - start])}
