"""The one scoring pass over a data set, from a network or from imported arrays.

Examples go through in batches, samples in passes. A finished batch is a shard on disk with per-example values of every
(S', L') cell, so a killed evaluation goes on with the next batch and several processes can share the work. Tables are
means over all shards' examples.
"""

import copy
import hashlib
import json
import shutil
import time
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from miselbo.bounds.running import RunningBounds
from miselbo.bounds.subsets import MOST_MEMBERS, FirstSamples, RunningSubsets
from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.evaluation.settings import DTYPES, Settings
from miselbo.runtime import memory
from miselbo.runtime.files import atomic, write_text
from miselbo.runtime.progress import Meter

Passes = Iterator[tuple[Tensor, Tensor]]
SHARD_FORMAT = 3  # goes up when the arrays of a shard change, so that older shards are not mixed in


class Source(Protocol):
    """Where scores come from."""

    num_members: int
    num_data: int

    def batches(self) -> Iterator[tuple[Tensor, Any]]:
        """Example numbers [b] of each batch, with what :meth:`passes` needs to score it."""

    def passes(self, index: Tensor, batch: Any) -> Passes:
        """log_p [b, S, l] and log_q [b, S, l, S] of the next l samples, until L."""


class NetworkSource:
    """Scores a split of a data module with an ensemble.

    Args:
        ensemble: in any mode; its target may offer a faster :meth:`inference_form` of it.
        data: data module (:class:`miselbo.data.interface.Data`).
        settings: of the evaluation.
        device: where to score.

    Raises:
        InputError: the split is empty.
    """

    def __init__(self, ensemble: Ensemble, data: Any, settings: Settings, device: str):
        total = len(data.split(settings.split))
        self.num_data = min(total, settings.num_examples or total)
        if self.num_data == 0:
            raise InputError(f"the {settings.split} split holds no example: nothing to evaluate")
        self.num_members = len(ensemble.members)
        self.data, self.settings, self.device = data, settings, device
        self.samples_per_pass = settings.samples_per_pass
        self.scorer = inference_form(ensemble.to(device), settings.dtype, settings.compile)
        self.dtype = torch.float64 if settings.dtype == "float64" else torch.float32

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the split from its start, each example once."""
        left = self.num_data
        for batch in self.data.evaluation_batches(self.settings.split, self.settings.batch_size):
            take = min(left, len(batch["index"]))
            yield batch["index"][:take], batch[self.data.input_key][:take]
            left -= take
            if not left:
                return

    def passes(self, index: Tensor, batch: Tensor) -> Passes:
        """The network's scores."""
        settings = self.settings
        x = batch.to(self.device, self.dtype)
        return self.scorer.passes(
            x, settings.num_samples, self.samples_per_pass, settings.seed, index.to(self.device)
        )


def inference_form(ensemble: Ensemble, dtype: str, compiled: bool = False) -> Any:
    """The ensemble in its target's faster form where there is one, in the given dtype, compiled if asked for.

    Raises:
        InputError: bfloat16 or compilation without such a form.
    """
    if dtype == "float64":
        ensemble = copy.deepcopy(ensemble).double()
    make = getattr(ensemble.target, "inference_form", None) if ensemble.shares_target else None
    if make is not None:
        return make(ensemble, DTYPES[dtype], compiled)
    if dtype == "bfloat16":
        raise InputError(
            "evaluation.dtype=bfloat16 is there for NVAE with one decoder alone: use float32 or float64"
        )
    if compiled:
        raise InputError("evaluation.compile=true is there for NVAE with one decoder alone: leave it false")
    return ensemble


def shard_key(settings: Settings, stamp: str) -> str:
    """Name of the folder of shards: a hash of the settings and of the ensemble's and the data's fingerprint."""
    content = json.dumps([asdict(settings), stamp, SHARD_FORMAT], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def write_shards(
    source: Source, settings: Settings, folder: Path, meter: Meter, rank: int = 0, processes: int = 1
) -> None:
    """Score the batches rank, rank + processes, ... that have no shard in ``folder`` yet."""
    scores = ScoreFiles(folder.parent.parent / "scores", source, settings) if settings.save_scores else None
    fitting = Fitting(source, settings, scores)
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
            np.savez(file, allow_pickle=False, key=np.array(folder.name), **values)
        meter.update(done)


class Fitting:
    """Scores batches in the largest pieces that fit into memory, halving passes and then batches where they do not.

    Values change by round-off alone: the noise of (seed, example, member, sample) is the same however work is cut.

    Args:
        source: of the scores; its passes can be halved where it has ``samples_per_pass``.
        settings: of the evaluation.
        scores: where every score is kept, if it is.
    """

    def __init__(self, source: Any, settings: Settings, scores: "ScoreFiles | None"):
        self.source, self.settings, self.scores = source, settings, scores
        self.examples = settings.batch_size

    def score(self, index: Tensor, batch: Any, rows: slice) -> dict[str, np.ndarray]:
        """:func:`score_batch` of a batch whose examples have the positions ``rows`` in the split."""
        while len(index) <= self.examples:
            try:
                keep = self.scores.rows(rows, index) if self.scores else None
                return score_batch(self.source, index, batch, self.settings, keep)
            except (RuntimeError, MemoryError) as error:
                if not memory.out_of_memory(error) or not self._can_halve(len(index)):
                    raise
            self._halve(len(index))
        half = len(index) // 2
        middle = rows.start + half
        parts = [
            self.score(index[:half], batch[:half], slice(rows.start, middle)),
            self.score(index[half:], batch[half:], slice(middle, rows.stop)),
        ]
        both = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return both | {"seconds": both["seconds"].sum(keepdims=True)}

    def _can_halve(self, size: int) -> bool:
        per_pass = getattr(self.source, "samples_per_pass", None)
        return per_pass is not None and (per_pass > 1 or size > 1)

    def _halve(self, size: int) -> None:
        memory.free()
        per_pass = self.source.samples_per_pass
        if per_pass > 1:
            self.source.samples_per_pass = per_pass // 2
        else:
            self.examples = size // 2
        print(
            f"out of memory with {per_pass} samples of {size} examples at once: going on with "
            f"{self.source.samples_per_pass} of {min(size, self.examples)}",
            flush=True,
        )


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


def score_batch(
    source: Source, index: Tensor, batch: Any, settings: Settings, keep: Any = None
) -> dict[str, np.ndarray]:
    """All bounds of one batch of examples from one pass over its L samples.

    Args:
        source: of the scores.
        index: [b] example numbers.
        batch: what the source needs to score them.
        settings: of the evaluation.
        keep: called with the position of the first sample, log_p and log_q of every pass.

    Returns:
        Arrays of :meth:`miselbo.bounds.running.RunningBounds.result`, ``index`` [b] and ``seconds`` [1]; for S > 1
        also those of :class:`miselbo.bounds.subsets.FirstSamples` and, up to 8 members,
        :class:`miselbo.bounds.subsets.RunningSubsets`.
    """
    start = time.perf_counter()
    running = accumulators(source.num_members, settings)
    seen = 0
    with torch.inference_mode():
        for log_p, log_q in source.passes(index, batch):
            for sums in running:
                sums.update(log_p, log_q)
            if keep:
                keep(seen, log_p, log_q)
            seen += log_p.shape[-1]
        values = {name: value.cpu().numpy() for sums in running for name, value in sums.result().items()}
    return {**values, "index": index.cpu().numpy(), "seconds": np.array([time.perf_counter() - start])}


def accumulators(size: int, settings: Settings) -> list[Any]:
    """What takes the samples of one batch by ``update(log_p, log_q)`` and gives per-example values by ``result()``."""
    running: list[Any] = [RunningBounds(size, settings.grid)]
    if 2 <= size <= MOST_MEMBERS:
        running.append(RunningSubsets(size, settings.num_samples))
    if size >= 2:
        running.append(FirstSamples(size, settings.num_samples))
    return running


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

    def rows(self, rows: slice, index: Tensor) -> Any:
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
