"""The scores of one batch, from a network or from imported arrays, and its bounds from one pass over the samples.

Examples go through in batches, samples in passes; :mod:`miselbo.evaluation.shards` keeps finished batches on disk.
"""

import copy
import inspect
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from miselbo.bounds.checks import RunningChecks
from miselbo.bounds.running import RunningBounds
from miselbo.bounds.subsets import MOST_MEMBERS, FirstSamples, RunningSubsets
from miselbo.bounds.worth import RunningWorth
from miselbo.data.interface import Data
from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.evaluation.settings import DTYPES, Settings
from miselbo.models.refined import Refined, refine
from miselbo.protocols import EnsembleForm
from miselbo.runtime import memory

GOING_THROUGH = 1000  # examples of a batch where a data module is gone through
Draws = tuple[Tensor, ...]  # log_p [b, S, l] and log_q [b, S, l, S]
Passes = Iterator[tuple[Tensor, Tensor]]
DRAWS = ("draws_log_p", "draws_log_q")
Keep = Callable[[int, Tensor, Tensor], None]  # position of the first sample, log_p and log_q of a pass


class Running(Protocol):
    """Takes the samples of a batch in passes, and gives per-example values."""

    def update(self, log_p: Tensor, log_q: Tensor) -> None:
        """The next samples, log_p [b, S, l] and log_q [b, S, l, S]."""

    def result(self) -> dict[str, Tensor]:
        """[b, ...] each."""


class Source(Protocol):
    """Where scores come from."""

    num_members: int
    num_data: int

    def batches(self) -> Iterator[tuple[Tensor, Any]]:
        """Example numbers [b] of each batch, with what :meth:`passes` needs to score it."""

    def passes(self, index: Tensor, batch: Any, first: int = 0) -> Passes:
        """log_p [b, S, l] and log_q [b, S, l, S] of the next l samples, from number ``first`` until L."""


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

    def __init__(self, ensemble: Ensemble, data: Data, settings: Settings, device: str):
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

    def passes(self, index: Tensor, batch: Tensor, first: int = 0) -> Passes:
        """The network's scores."""
        return self._passes(index, batch, self.settings.num_samples, self.settings.seed, first)

    def at(self, positions: Tensor, num_samples: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Example numbers [b], log_p [b, S, n] and log_q [b, S, n, S] of the examples at some positions."""
        batch = batch_at(self.data, self.settings.split, positions)
        scores = list(self._passes(batch["index"], batch[self.data.input_key], num_samples, seed))
        log_p, log_q = (torch.cat(part, 2) for part in zip(*scores, strict=True))
        return batch["index"], log_p, log_q

    def _passes(self, index: Tensor, batch: Tensor, num_samples: int, seed: int, first: int = 0) -> Passes:
        x = batch.to(self.device, self.dtype)
        step = min(self.samples_per_pass, num_samples)
        return self.scorer.passes(x, num_samples, step, seed, index.to(self.device), first)


def batch_at(data: Data, split: str, positions: Tensor) -> Mapping[str, Tensor]:
    """One batch of the examples at some positions of a split, in that order.

    Data modules whose ``evaluation_batches`` take no ``indices`` are gone through from the start.
    """
    if "indices" in inspect.signature(data.evaluation_batches).parameters:
        return next(data.evaluation_batches(split, len(positions), indices=positions))  # type: ignore[call-arg]
    found: dict[int, dict[str, Tensor]] = {}
    wanted, first = set(positions.tolist()), 0
    for batch in data.evaluation_batches(split, GOING_THROUGH):
        rows = range(first, first + len(batch["index"]))
        found |= {row: {k: v[row - first] for k, v in batch.items()} for row in wanted.intersection(rows)}
        first = rows.stop
        if len(found) == len(wanted):
            break
    rows_of = [found[row] for row in positions.tolist()]
    return {name: torch.stack([row[name] for row in rows_of]) for name in rows_of[0]}


def inference_form(ensemble: Ensemble, dtype: str, compiled: bool = False) -> EnsembleForm:
    """The ensemble in its target's faster form where there is one, in the given dtype, compiled if asked for.

    Raises:
        InputError: bfloat16 or compilation without such a form.
    """
    if dtype == "float64":
        ensemble = copy.deepcopy(ensemble).double()
    make = getattr(ensemble.target, "inference_form", None) if ensemble.shares_target else None
    if any(isinstance(member, Refined) for member in ensemble.members):
        make = None
    if make is not None:
        return make(ensemble, DTYPES[dtype], compiled)
    refuse_form(dtype, compiled)
    return ensemble


def refined(ensemble: Ensemble, settings: Settings) -> Ensemble:
    """The ensemble, with ``settings.refine_steps`` of members that refine themselves for every x.

    Raises:
        InputError: members that cannot be refined.
    """
    if not settings.refine_steps:
        return ensemble
    if not ensemble.shares_target:
        raise InputError("refine_steps needs one model: these members have a decoder each (target=each)")
    members = refine(ensemble.target, ensemble.members, settings.refine_steps, settings.seed)
    return Ensemble(ensemble.target, members)


def refuse_form(dtype: str, compiled: bool) -> None:
    """Refuse what only a target with a faster form has."""
    if dtype == "bfloat16":
        raise InputError(
            "evaluation.dtype=bfloat16 is there for NVAE with one decoder alone: use float32 or float64"
        )
    if compiled:
        raise InputError("evaluation.compile=true is there for NVAE with one decoder alone: leave it false")


def check_form(target: object, dtype: str, compiled: bool) -> None:
    """Refuse a form that a target does not have, before it is trained.

    Raises:
        InputError: as :func:`inference_form`; or compilation without a C++ compiler, which it needs on a CPU.
    """
    if not hasattr(target, "inference_form"):
        refuse_form(dtype, compiled)
    names = (os.environ.get("CXX"), "g++", "clang++")
    if compiled and not torch.cuda.is_available() and not any(name and shutil.which(name) for name in names):
        raise InputError(
            "evaluation.compile=true needs a C++ compiler (g++), and none is found: leave it false"
        )


class Fitting:
    """Scores batches in the largest pieces that fit into memory, halving passes and then batches where they do not.

    Values change by round-off alone: the noise of (seed, example, member, sample) is the same however work is cut.

    Args:
        source: of the scores; its passes can be halved where it has ``samples_per_pass``.
        settings: of the evaluation.
        keeping: gives the keeper of every score of the examples at some positions; None keeps none.
    """

    def __init__(self, source: Any, settings: Settings, keeping: Callable[[slice, Tensor], Keep] | None):
        self.source, self.settings, self.keeping = source, settings, keeping
        self.examples = settings.batch_size

    def score(
        self, index: Tensor, batch: Any, rows: slice, draws: Draws | None = None
    ) -> dict[str, np.ndarray]:
        """:func:`score_batch` of a batch whose examples have the positions ``rows`` in the split."""
        while len(index) <= self.examples:
            try:
                keep = self.keeping(rows, index) if self.keeping else None
                return score_batch(self.source, index, batch, self.settings, keep, draws)
            except (RuntimeError, MemoryError) as error:
                if not memory.out_of_memory(error) or not self._can_halve(len(index)):
                    raise
            self._halve(len(index))
        half = len(index) // 2
        middle = rows.start + half
        low, high = (
            (None, None) if draws is None else zip(*(d.tensor_split([half]) for d in draws), strict=True)
        )
        parts = [
            self.score(index[:half], batch[:half], slice(rows.start, middle), low),
            self.score(index[half:], batch[half:], slice(middle, rows.stop), high),
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


def score_batch(
    source: Source,
    index: Tensor,
    batch: Any,
    settings: Settings,
    keep: Keep | None = None,
    draws: Draws | None = None,
) -> dict[str, np.ndarray]:
    """All bounds of one batch of examples from one pass over its L samples.

    Args:
        source: of the scores.
        index: [b] example numbers.
        batch: what the source needs to score them.
        settings: of the evaluation.
        keep: called with the position of the first sample, log_p and log_q of every pass.
        draws: scores of the first samples that are at hand.

    Returns:
        Arrays of :meth:`miselbo.bounds.running.RunningBounds.result` and
        :meth:`miselbo.bounds.checks.RunningChecks.result`, ``index`` [b] and ``seconds`` [1]; for S > 1 also those of
        :class:`miselbo.bounds.subsets.FirstSamples`, :class:`miselbo.bounds.worth.RunningWorth` and, up to 8 members,
        :class:`miselbo.bounds.subsets.RunningSubsets`; with ``settings.keep_draws`` also :data:`DRAWS`, the scores of
        the samples that are not in ``draws``.
    """
    start = time.perf_counter()
    running = accumulators(source.num_members, settings)
    first = 0 if draws is None else draws[0].shape[2]
    at_hand = (
        () if draws is None else zip(*(d.split(settings.samples_per_pass, 2) for d in draws), strict=True)
    )
    fresh, seen = list[Draws](), 0
    with torch.inference_mode():
        for log_p, log_q in itertools.chain(at_hand, source.passes(index, batch, first)):
            for sums in running:
                sums.update(log_p, log_q)
            if keep:
                keep(seen, log_p, log_q)
            if settings.keep_draws and seen >= first:
                fresh.append((log_p.cpu(), log_q.cpu()))
            seen += log_p.shape[-1]
        values = {name: value.cpu().numpy() for sums in running for name, value in sums.result().items()}
    if fresh:
        parts = zip(*fresh, strict=True)
        values |= {name: torch.cat(part, 2).numpy() for name, part in zip(DRAWS, parts, strict=True)}
    return {**values, "index": index.cpu().numpy(), "seconds": np.array([time.perf_counter() - start])}


def accumulators(size: int, settings: Settings) -> list[Running]:
    """What takes the samples of one batch by ``update(log_p, log_q)`` and gives per-example values by ``result()``."""
    running: list[Running] = [RunningBounds(size, settings.grid), RunningChecks(size, settings.num_samples)]
    if 2 <= size <= MOST_MEMBERS:
        running.append(RunningSubsets(size, settings.num_samples))
    if size >= 2:
        running.append(FirstSamples(size, settings.num_samples))
        running.append(RunningWorth(size, settings.num_samples))
    return running
