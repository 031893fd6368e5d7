"""A scored data set on disk: a finished batch is a shard with per-example values of every (S', L') cell.

A killed evaluation goes on with the next batch and several processes share the work. Tables are means over all shards'
examples.
"""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from torch import Tensor

from miselbo.errors import InputError
from miselbo.evaluation.scoring import Fitting, Keep, Source
from miselbo.evaluation.settings import Settings
from miselbo.runtime.files import atomic, write_text
from miselbo.runtime.progress import Meter

SHARD_FORMAT = 6  # goes up when the arrays of a shard change, so that older shards are not mixed in


def shard_key(settings: Settings, stamp: str) -> str:
    """Name of the folder of shards: a hash of the settings and of the ensemble's and the data's fingerprint."""
    scoring = asdict(settings)
    del scoring["confidence"]  # no score depends on it
    content = json.dumps([scoring, stamp, SHARD_FORMAT], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def write_shards(
    source: Source, settings: Settings, folder: Path, meter: Meter, rank: int = 0, processes: int = 1
) -> None:
    """Score the batches rank, rank + processes, ... that have no shard in ``folder`` yet."""
    keeping = None
    if settings.save_scores:
        keeping = ScoreFiles(folder.parent.parent / "scores", source, settings).rows
    fitting = Fitting(source, settings, keeping)
    done = 0
    for number, (index, batch) in enumerate(source.batches()):
        path = folder / f"{done:08d}.npz"
        rows = slice(done, done + len(index))
        done = rows.stop
        if number % processes != rank:
            continue
        if path.exists():
            check_shard(path, index)
            meter.skip(done)
            continue
        values = fitting.score(index, batch, rows)
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez(file, key=np.array(folder.name), **values)  # type: ignore[arg-type]
        meter.update(done)


def check_shard(path: Path, index: Tensor) -> None:
    """Refuse a shard that is not of this evaluation.

    Raises:
        InputError: another ensemble, seed, setting or other examples; or not a shard at all.
    """
    fix = f"Delete {path}; the same command scores these examples again."
    try:
        with np.load(path) as shard:
            key, examples = str(shard["key"]), shard["index"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as scores of an evaluation ({error}). {fix}") from error
    if key != path.parent.name:
        raise InputError(
            f"{path} holds scores with fingerprint {key}, this evaluation has {path.parent.name}: they are of "
            f"another ensemble, seed or setting. {fix}"
        )
    if not np.array_equal(examples, index.cpu().numpy()):
        raise InputError(f"{path} holds scores of {len(examples)} other examples than its place says. {fix}")


def read_shards(folder: Path) -> dict[str, np.ndarray]:
    """All shards of a folder, examples on the first axis."""
    parts = []
    for path in sorted(folder.glob("[0-9]*.npz")):
        with np.load(path) as shard:
            parts.append({name: shard[name] for name in shard.files if name != "key"})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def forget_other_shards(folder: Path, keys: Collection[str]) -> None:
    """Remove the shards of earlier evaluations, those not named in ``keys``."""
    for other in folder.iterdir():
        if other.name not in keys:
            shutil.rmtree(other)


class ScoreFiles:
    """Every score of an evaluation, memory-mapped: ``log_p.npy`` [N, S, L], ``log_q.npy`` [N, S, L, S], float64.

    Args:
        folder: ``results/scores``.
        source: gives N and S.
        settings: gives L.
    """

    def __init__(self, folder: Path, source: Source, settings: Settings):
        shape = (source.num_data, source.num_members, settings.num_samples)
        self.log_p = _memory_map(folder / "log_p.npy", shape)
        self.log_q = _memory_map(folder / "log_q.npy", (*shape, source.num_members))
        self.index = _memory_map(folder / "index.npy", shape[:1], "int64")

    def rows(self, rows: slice, index: Tensor) -> Keep:
        """Writer of the scores of some examples."""

        def keep(seen: int, log_p: Tensor, log_q: Tensor) -> None:
            samples = slice(seen, seen + log_p.shape[-1])
            self.log_p[rows, :, samples] = log_p.cpu().numpy()
            self.log_q[rows, :, samples] = log_q.cpu().numpy()
            self.index[rows] = index.cpu().numpy()

        return keep


def _memory_map(path: Path, shape: tuple[int, ...], dtype: str = "float64") -> Any:
    if path.exists():
        existing = np.load(path, mmap_mode="r+")
        if existing.shape == shape:
            return existing
    path.parent.mkdir(parents=True, exist_ok=True)
    return open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def scores_bytes(source: Source, settings: Settings) -> int:
    """Size of :class:`ScoreFiles` on disk."""
    per_example = source.num_members * settings.num_samples * (1 + source.num_members) * 8
    return source.num_data * per_example


def score_all(
    source: Source,
    settings: Settings,
    folder: Path,
    stamp: str,
    show: bool = True,
    share: Any = None,
) -> dict[str, np.ndarray]:
    """Score every example once; per-example values of every cell.

    Args:
        source: of the scores.
        settings: of the evaluation.
        folder: ``results/shards``; shards of this very evaluation in it are not redone.
        stamp: fingerprint of the ensemble and the data; with the settings it names the shards.
        show: progress.
        share: called with the shards' folder before, to let other processes write some of them.

    Returns:
        Arrays of :func:`score_batch` with the examples of all batches on the first axis.
    """
    shards = folder / shard_key(settings, stamp)
    shards.mkdir(parents=True, exist_ok=True)
    if settings.save_scores:
        print(
            f"keeping every score: {scores_bytes(source, settings) / 2**20:.1f} MiB in {folder.parent / 'scores'}"
        )
        claim_scores(folder.parent / "scores", shards)
        ScoreFiles(
            folder.parent / "scores", source, settings
        )  # the files exist before several processes open them
    if share is not None:
        share(shards)
    meter = Meter("evaluate", source.num_data, show)
    write_shards(source, settings, shards, meter)
    meter.close()
    return read_shards(shards)


def claim_scores(folder: Path, shards: Path) -> None:
    """Start ``scores`` anew when they are of another evaluation; shards without their scores are redone."""
    key = folder / "key"
    if not key.exists() or key.read_text() != shards.name:
        shutil.rmtree(folder, ignore_errors=True)
        for shard in shards.iterdir():
            shard.unlink()
        write_text(key, shards.name)
