r"""Scores made elsewhere (Pyro, NumPyro, TFP, ...) as plain arrays, checked before anything is computed from them.

    log_p[n, s, l]    = log p(x_n, z_{s,l}),            z_{s,l} ~ q_s(z | x_n)      [N, S, L]
    log_q[n, s, l, j] = log q_j(z_{s,l} | x_n)                                      [N, S, L, S]

A file is an ``.npz`` with the two arrays, or a folder with ``log_p.npy`` and ``log_q.npy``, which is memory-mapped
and never read as a whole. ``index`` [N] labels the examples; without it they are 0..N-1.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from miselbo.errors import InputError, nearest
from miselbo.importers.axes import check_axes

CHUNK = 2**22  # values looked at, or handed on, at once
EXPECTED = "expected log_p [N, S, L] and log_q [N, S, L, S] (docs/arrays.md)"
WORDS = {  # the draws are what they are: no key of a run brings more of them
    "raise evaluation.num_samples or evaluation.num_examples": "score more draws or more examples",
    "raise evaluation.num_samples": "score more draws of every member",
}
DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Scores:
    """Scores of N examples under S members, L samples each, in nats.

    Args:
        path: where they come from.
        log_p: [N, S, L] float32 or float64, an array or a memory map.
        log_q: [N, S, L, S].
        index: [N] int64, labels of the examples.
    """

    path: Path
    log_p: np.ndarray
    log_q: np.ndarray
    index: np.ndarray

    def part(self, rows: slice, samples: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """log_p [n, S, l] and log_q [n, S, l, S] of some examples and samples, float64."""
        log_p, log_q = (
            torch.from_numpy(array[rows, :, samples].astype(np.float64)) for array in (self.log_p, self.log_q)
        )
        return log_p, log_q


def read_scores(path: str | Path) -> Scores:
    """Open and check scores.

    Args:
        path: an ``.npz``, or a folder of ``.npy`` files such as ``results/scores`` of a run with
            ``evaluation.save_scores=true``.

    Raises:
        InputError: naming the file: it is missing, damaged or of another kind; an array is missing, of another dtype
            or of another shape; N, S or L is 0; a value is NaN or +inf, or a member's own log_q is -inf (log_p = -inf
            and log_q = -inf of another member are legal); an example's label is not a whole number or comes twice.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "scores.npz"
        >>> np.savez(file, log_p=np.zeros((4, 2, 10)), log_q=np.zeros((4, 2, 10, 2)))
        >>> scores = read_scores(file)
        >>> scores.log_q.shape, scores.index
        ((4, 2, 10, 2), array([0, 1, 2, 3]))
        >>> [part["log_p"].shape[0] for part in batches(scores, size=3)]
        [3, 1]
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"scores={path} does not exist; {EXPECTED} in an .npz or a folder of .npy files")
    arrays = _read_folder(path) if path.is_dir() else _read_npz(path)
    for name in ("log_p", "log_q"):
        _check_dtype(path, name, arrays[name])
    check_axes(path, arrays["log_p"].shape, arrays["log_q"].shape)
    index = _check_index(path, arrays.get("index"), len(arrays["log_p"]))
    scores = Scores(path, arrays["log_p"], arrays["log_q"], index)
    _check_values(scores)
    return scores


def batches(scores: Scores, size: int) -> Iterator[dict[str, Tensor]]:
    """Pieces of ``size`` examples: ``index`` int64 [b], ``log_p`` [b, S, L] and ``log_q`` [b, S, L, S] float64."""
    for rows in _slices(len(scores.index), size):
        log_p, log_q = scores.part(rows)
        yield {"index": torch.from_numpy(scores.index[rows]), "log_p": log_p, "log_q": log_q}


class ArraySource:
    """Scores from a file as a :class:`miselbo.evaluation.scoring.Source`.

    Args:
        path: as in :func:`read_scores`.
        num_samples: L, the first so many samples; None for all.
        batch_size: examples per batch (and shard).
        num_examples: the first so many examples; None for all.

    Raises:
        InputError: as :func:`read_scores`, or more samples are asked for than the file holds.
    """

    def __init__(
        self,
        path: str | Path,
        num_samples: int | None = None,
        batch_size: int = 100,
        num_examples: int | None = None,
    ):
        self.scores = read_scores(path)
        total, self.num_members, held = self.scores.log_p.shape
        if num_samples is not None and not 1 <= num_samples <= held:
            raise InputError(
                f"evaluation.num_samples={num_samples}, but {path} holds L = {held} samples per member: "
                f"ask for 1 to {held}, or leave it out for all"
            )
        self.num_samples = held if num_samples is None else num_samples
        self.num_data = total if num_examples is None else min(num_examples, total)
        self.batch_size = batch_size

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all values."""
        digest = hashlib.sha256(self.scores.index.tobytes())
        for array in (self.scores.log_p, self.scores.log_q):
            digest.update(f"{array.dtype} {array.shape}".encode())
            for block in _blocks(array):
                digest.update(np.ascontiguousarray(array[block]).tobytes())
        return digest.hexdigest()

    def batches(self) -> Iterator[tuple[Tensor, slice]]:
        """Labels [b] and rows of each batch."""
        for rows in _slices(self.num_data, self.batch_size):
            yield torch.from_numpy(self.scores.index[rows]), rows

    def passes(self, index: Tensor, batch: slice, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """log_p [b, S, l] and log_q [b, S, l, S] of the next l samples, from number ``first`` until L."""
        # the bounds of all nested ensembles need S^3 values per example and sample
        step = max(1, CHUNK // (len(index) * self.num_members**3))
        for samples in _slices(self.num_samples - first, step):
            yield self.scores.part(batch, slice(first + samples.start, first + samples.stop))

    def protocol(self) -> dict[str, object]:
        """What the numbers depend on, plain JSON types."""
        total = len(self.scores.index)
        return {
            "model": "imported scores",
            "dataset": self.scores.path.stem,
            "split": "given",
            "num_examples": self.num_data,
            "split_rule": f"the first {self.num_data:,} of {total:,} examples in the file",
            "binarisation": "unknown: scores were made elsewhere",
            "binarisation_seed": None,
            "source": str(self.scores.path),
        }


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        what = "a single array (.npy)" if path.suffix == ".npy" else "no .npz file, or damaged"
        raise InputError(f"{path} is {what}; {EXPECTED} written by np.savez(path, log_p=..., log_q=...)")
    arrays: dict[str, np.ndarray] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            _check_names(path, file.files)
            for name in ("log_p", "log_q", "index"):
                if name in file.files:
                    arrays[name] = file[name]
    except InputError:
        raise
    except DAMAGE as error:
        raise _unreadable(path, error) from None
    return arrays


def _read_folder(folder: Path) -> dict[str, np.ndarray]:
    files = {file.stem: file for file in sorted(folder.glob("*.npy"))}
    _check_names(folder, list(files))
    arrays: dict[str, np.ndarray] = {}
    for name in ("log_p", "log_q", "index"):
        if name in files:
            try:
                arrays[name] = np.load(files[name], mmap_mode="r", allow_pickle=False)
            except DAMAGE as error:
                raise _unreadable(files[name], error) from None
    return arrays


def _check_names(path: Path, names: list[str]) -> None:
    for name in ("log_p", "log_q"):
        if name not in names:
            listed = ", ".join(names) or "no array"
            hint = nearest(name, [other for other in names if other not in ("log_p", "log_q", "index")])
            raise InputError(f"{path} holds no {name}, only {listed}; {hint}{EXPECTED}")


def _unreadable(path: Path, error: BaseException) -> InputError:
    text = " ".join(str(error).split())
    if "Object arrays" in text or "Python objects" in text:
        return InputError(
            f"{path} holds an array of dtype object, which is not loaded: it could run code; {EXPECTED} of float64: "
            "save np.asarray(log_p, dtype='float64')"
        )
    if isinstance(error, MemoryError):
        return InputError(
            f"{path} does not fit into memory: save log_p.npy and log_q.npy in a folder instead"
        )
    return InputError(
        f"{path} cannot be read ({text or type(error).__name__}); it is damaged: write it again"
    )


def _check_dtype(path: Path, name: str, array: object) -> None:
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
        raise InputError(
            f"{name} in {path} is of dtype {getattr(array, 'dtype', 'unknown')}; expected float64 (or float32): "
            f"save {name}.astype('float64')"
        )


def _check_index(path: Path, index: object, count: int) -> np.ndarray:
    if index is None:
        return np.arange(count)
    if not isinstance(index, np.ndarray) or index.dtype.kind not in "iu":
        raise InputError(
            f"index in {path} is of dtype {getattr(index, 'dtype', 'unknown')}; expected whole numbers [N], "
            "such as index=np.arange(N), or no index"
        )
    if index.shape != (count,):
        raise InputError(
            f"index in {path} is of shape {list(index.shape)}; expected [{count}], one label per example of log_p"
        )
    labels = np.array(index, dtype=np.int64)
    order = labels.argsort(kind="stable")
    same = np.flatnonzero(np.diff(labels[order]) == 0)
    if len(same):
        first, second = order[same[0]], order[same[0] + 1]
        raise InputError(
            f"index in {path} holds {labels[first]} twice (positions {first} and {second}), {len(same)} repeats in "
            "all; every example must have its own label (if an evaluation with save_scores=true wrote the folder, "
            "let it finish)"
        )
    return labels


def _check_values(scores: Scores) -> None:
    """NaN and +inf nowhere, -inf not in a member's own log_q."""
    own = np.eye(scores.log_p.shape[1], dtype=bool)[:, None]  # [s, 1, j]
    for name, array, what in (
        ("log_p", scores.log_p, "NaN or +inf"),
        ("log_q", scores.log_q, "NaN, +inf, or -inf of a member at its own sample"),
    ):
        count, first = 0, None
        for block in _blocks(array):
            values = array[block]
            bad = ~(values < np.inf)  # NaN and +inf
            if name == "log_q":
                bad |= np.isneginf(values) & own
            found = np.argwhere(bad)
            if len(found):
                at = tuple((found[0] + [part.start or 0 for part in block]).tolist())
                count, first = count + len(found), min(at, first or at)
        if first is not None:
            axes = "[n, s, l]" if name == "log_p" else "[n, s, l, j]"
            raise InputError(
                f"{name} in {scores.path} holds {count} values that are {what}, the first at {axes} = {list(first)} "
                f"({array[first]}); expected finite log-densities (-inf only in log_p, or in log_q of another member "
                "than the one that drew the sample): score these again, or leave out their examples"
            )


def _slices(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _blocks(array: np.ndarray) -> Iterator[tuple[slice, ...]]:
    """Cuts of [N, S, L, ...] along N, and along L where one example is large, of at most about ``CHUNK`` values."""
    per_sample = array[:1, :, :1].size
    samples = max(1, CHUNK // per_sample)
    rows = max(1, CHUNK // (per_sample * array.shape[2]))
    rest = [slice(None)] * (array.ndim - 3)
    for row in _slices(len(array), rows):
        for sample in _slices(array.shape[2], samples):
            yield (row, slice(None), sample, *rest)
