"""A scored data set on disk: a finished batch is a shard with per-example values of every (S', L') cell.

A killed evaluation goes on with the next batch and several processes share the work. Tables are means over all shards'
examples.
"""

import hashlib
import itertools
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from miselbo.errors import InputError
from miselbo.evaluation.scoring import DRAWS, Draws, Fitting, Keep, Source, accumulators
from miselbo.evaluation.settings import Settings
from miselbo.runtime import faults
from miselbo.runtime.files import atomic, memory_map, write_text
from miselbo.runtime.progress import Meter
from miselbo.runtime.words import shown

# of a shard: the position of its first example, before it level and replicate where it is a piece of multilevel
NAME = re.compile(r"(level\d{2}-\d{4}-)?\d{8}\.npz")
KEY = re.compile(r"[0-9a-f]{16}")  # of a folder of shards
OWN = ("key", "checksum", *DRAWS)  # arrays of a shard that are no values
SCORES = ("log_p.npy", "log_q.npy", "index.npy", "key")


def shard_key(settings: Settings, stamp: str, members: int) -> str:
    """Name of the folder of shards: a hash of the settings, the fingerprint of ensemble and data, and the format."""
    scoring = asdict(settings)
    del scoring["confidence"]  # no score depends on it
    if not scoring["refine_steps"]:  # the key of a version without
        del scoring["refine_steps"]
    content = json.dumps([scoring, stamp, shard_format(settings, members)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def shard_format(settings: Settings, members: int) -> list[str]:
    """Names, types and axes of a shard's arrays as this version writes them, from two samples of one example.

    Shards of a version that keeps other arrays have another key and are scored again, not misread.
    """
    few = replace(settings, num_samples=2, grid=(1, 2))
    log_p, log_q = torch.zeros(1, members, 2), torch.zeros(1, members, 2, members)
    found = dict[str, Tensor]()
    for sums in accumulators(members, few):
        sums.update(log_p, log_q)
        found |= sums.result()
    return sorted(f"{name} {value.dtype} {value.ndim}" for name, value in found.items())


def write_shards(
    source: Source, settings: Settings, folder: Path, meter: Meter, rank: int = 0, processes: int = 1
) -> list[tuple[Path, Tensor]]:
    """Score the batches rank, rank + processes, ... that have no shard in ``folder`` yet.

    Returns:
        The shard of every batch, those of other processes included, and the numbers of its examples.
    """
    keeping = None
    if settings.save_scores:
        keeping = ScoreFiles(folder.parent.parent / "scores", source, settings).rows
    fitting = Fitting(source, settings, keeping)
    done, places = 0, []
    for number, (index, batch) in enumerate(source.batches()):
        path = folder / f"{done:08d}.npz"
        rows = slice(done, done + len(index))
        done = rows.stop
        places.append((path, index))
        if number % processes != rank:
            continue
        if path.exists():
            read_shard(path, index)
            meter.skip(done)
            continue
        draws = draws_at_hand([folder.parent / key / path.name for key in settings.earlier], index)
        write_shard(path, fitting.score(index, batch, rows, draws))
        meter.update(done)
    return places


def write_shard(path: Path, values: Mapping[str, np.ndarray]) -> None:
    """Write arrays with the key, which is the name of the folder, and their checksum."""
    keyed = {"key": np.array(path.parent.name), **values}
    stored = {**keyed, "checksum": np.array(checksum(keyed))}
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **stored)  # type: ignore[arg-type]


def checksum(values: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of arrays, their names, types and shapes.

    Example:
        >>> checksum({"a": np.zeros(2)}) == checksum({"a": np.zeros(3)})
        False
    """
    digest = hashlib.sha256()
    for name, value in sorted(values.items()):
        digest.update(f"{name} {value.dtype.str} {value.shape} ".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def draws_at_hand(paths: Sequence[Path], index: Tensor) -> Draws | None:
    """The scores that earlier evaluations have kept of a batch's first samples; None without.

    Args:
        paths: their shards of the batch, the least L first; what comes after a missing one does not count.
        index: [b] example numbers.
    """
    found = []
    for path in itertools.takewhile(Path.exists, paths):
        values = read_shard(path, index, DRAWS)
        found.append([torch.from_numpy(values[name]).to(index.device) for name in DRAWS])
    return tuple(torch.cat(parts, 2) for parts in zip(*found, strict=True)) if found else None


def read_shard(
    path: Path,
    examples: Tensor,
    names: Collection[str] | None = None,
    *,
    name: str = "index",
    part: bool = False,
) -> dict[str, np.ndarray]:
    """The values of one shard (or the arrays of some names), which must be of its evaluation and as it was written.

    Args:
        path: of the shard.
        examples: whose values it must hold.
        names: of the arrays; None for all values.
        name: of the array that says whose they are.
        part: the first of ``examples`` are enough, one at least.

    Raises:
        InputError: another ensemble, seed, setting or other examples; changed, damaged, or not a shard at all.
    """
    fix = f"Delete {path}; the same command scores these examples again."
    try:
        with np.load(path, allow_pickle=False) as file:
            values = {array: file[array] for array in file.files}
        key, found, stamped = str(values["key"]), values[name], str(values.pop("checksum"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, OSError) and faults.explain(error) is not None:
            raise
        raise InputError(f"{path} cannot be read as scores of an evaluation ({error}). {fix}") from error
    if key != path.parent.name:
        raise InputError(
            f"{path} holds scores with fingerprint {key}, this evaluation has {path.parent.name}: they are of "
            f"another ensemble, seed or setting. {fix}"
        )
    wanted = examples[: max(1, found.size)] if part else examples
    if not np.array_equal(found, wanted.cpu().numpy()):
        raise InputError(f"{path} holds scores of {found.size} other examples than its place says. {fix}")
    if checksum(values) != stamped:
        raise InputError(f"{path} was changed after it was written: its checksum differs. {fix}")
    return {array: v for array, v in values.items() if (array in names if names else array not in OWN)}


def read_shards(places: Sequence[tuple[Path, Tensor]]) -> dict[str, np.ndarray]:
    """The named shards, examples on the first axis, every example exactly once.

    Raises:
        InputError: one is missing or not of this evaluation, or an example is in two.
    """
    if missing := [path for path, _ in places if not path.exists()]:
        raise InputError(
            f"{missing[0]} has gone while the evaluation ran ({len(missing)} of {len(places)} are missing): the same "
            "command scores these examples again"
        )
    parts = [read_shard(path, index) for path, index in places]
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    numbers, counts = np.unique(values["index"], return_counts=True)
    if (counts > 1).any():
        raise InputError(
            f"{places[0][0].parent}: example {numbers[counts > 1][0]} is in two shards: delete the folder"
        )
    return values


def forget_other_shards(folder: Path, keys: Collection[str]) -> None:
    """Remove the shards of earlier evaluations, those not named in ``keys``; name what is none and leave it alone."""
    stray = []
    for other in sorted(folder.iterdir()):
        if other.is_symlink() or not other.is_dir() or not KEY.fullmatch(other.name):
            stray.append(other)
            continue
        ours, others = sorted_out(other)
        if other.name not in keys:
            stray += others
            for path in ours:
                path.unlink(missing_ok=True)
            if not others:
                other.rmdir()
    if stray:
        names = ", ".join(shown(path.relative_to(folder)) for path in stray[:3])
        print(f"{folder}: left alone {len(stray)} that no evaluation of miselbo has written: {names}")


def sorted_out(folder: Path) -> tuple[list[Path], list[Path]]:
    """What is in a folder of shards: shards and what a killed process left of one, and anything else."""
    ours: list[Path] = []
    others: list[Path] = []
    for path in sorted(folder.iterdir()):
        half = re.fullmatch(rf"\.{NAME.pattern}\..*\.tmp", path.name) is not None
        plain = path.is_file() and not path.is_symlink()
        (ours if plain and (half or _is_shard(path)) else others).append(path)
    return ours, others


def _is_shard(path: Path) -> bool:
    """Whether an evaluation has written a file: by its name and by the key in it."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return NAME.fullmatch(path.name) is not None and str(file["key"]) == path.parent.name
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return False


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


def _memory_map(path: Path, shape: tuple[int, ...], dtype: str = "float64") -> np.memmap:
    if path.exists():
        existing = np.load(path, mmap_mode="r+", allow_pickle=False)
        if existing.shape == shape:
            return existing
    return memory_map(path, shape, dtype)


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
    share: Callable[[Path], None] | None = None,
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
    shards = folder / shard_key(settings, stamp, source.num_members)
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
    places = write_shards(source, settings, shards, meter)
    meter.close()
    known = {path for path, _ in places}
    if strays := [path.name for path in sorted(shards.glob("*.npz")) if path not in known]:
        print(
            f"{shards}: left alone {len(strays)} files that are not of this evaluation: {', '.join(strays[:3])}"
        )
    return read_shards(places)


def claim_scores(folder: Path, shards: Path) -> None:
    """Start ``scores`` anew when they are of another evaluation; shards without their scores are redone."""
    key = folder / "key"
    if not key.exists() or key.read_text() != shards.name:
        for name in SCORES:
            (folder / name).unlink(missing_ok=True)
        for shard in sorted_out(shards)[0]:
            shard.unlink()
        write_text(key, shards.name)
