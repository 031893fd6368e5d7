"""``task=check``: does a result's card hold? Against tables, data and model, and new scores of some examples."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from miselbo.bounds.quantities import NEEDED as BOUNDS
from miselbo.data.interface import Data
from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.evaluation import card as cards
from miselbo.evaluation.data_hash import hash_examples
from miselbo.evaluation.scoring import Fitting, NetworkSource, refined
from miselbo.evaluation.settings import DTYPES, Settings
from miselbo.protocols import fingerprint
from miselbo.report.checked import read_summary, read_table
from miselbo.report.summary import Summary
from miselbo.runtime.reading import read_json

TOLERANCE = 1e-6  # of a value, relative to the bound's size where that is above one nat
EXAMPLES, PIECE, CPU_SECONDS = 100, 20, 100.0


def check(
    folder: Path,
    ensemble: Ensemble,
    data: Data,
    settings: Settings,
    about: Mapping[str, object],
    device: str = "cpu",
) -> dict[str, object]:
    """Hold every field of ``results/card.json`` against the run folder.

    Values, errors, shares and certificate are computed again from ``per_example.parquet``; what was scored and by what
    is hashed again; S, L and the rest must agree with the tables. When all that holds, up to 100 examples chosen at
    random are scored again with the card's settings, fewer where that takes more than 100 seconds of processor time.

    Args:
        folder: run folder.
        ensemble: its members with their target.
        data: its data module, set up.
        settings: of its configuration; what the card says takes their place.
        about: fields that the configuration gives: ``model``, ``seed``, and of an ensemble of several targets
            ``remark`` and ``target_fingerprint``.
        device: where to score.

    Returns:
        ``confirmed``; ``verdict``, a sentence; ``failed``: each field that does not hold, with ``card`` and ``found``;
        ``num_scored``, ``largest`` (difference of a re-scored value, relative) and ``seconds``.

    Raises:
        InputError: there is no result with a card.
    """
    start = time.process_time()
    results = folder / "results"
    said, examples, summary = read(folder)
    found = expected(said, results, examples, summary, ensemble, data, about)
    failed = [
        {"field": name, "card": said.get(name), "found": found.get(name)}
        for name in dict.fromkeys([*found, *said])
        if not same(said.get(name), found.get(name))
    ]
    count, largest = 0, 0.0
    if not failed:
        now = scoring_settings(said, settings, ensemble.target)
        count, largest, failed = score_again(ensemble, data, now, examples, device, start)
    seconds = time.process_time() - start
    return {
        "confirmed": not failed,
        "verdict": verdict(failed, count, len(examples), largest),
        "failed": failed,
        "num_scored": count,
        "largest": largest,
        "seconds": seconds,
    }


def read(folder: Path) -> tuple[dict[str, Any], pd.DataFrame, Summary]:
    """Card, table of examples and summary.

    Raises:
        InputError: one of them is missing or damaged.
    """
    results = folder / "results"
    path = results / "summary.json"
    if path.is_file() and read_summary(path).get("protocol", {}).get("method") == "multilevel":
        raise InputError(
            f"{folder} was evaluated by evaluation.method=multilevel: its values are no means over examples, so "
            "task=check needs evaluation.method=full"
        )
    for name in ("summary.json", "per_example.parquet", "bounds.csv", "card.json"):
        if not (results / name).is_file():
            raise InputError(
                f"{results / name} does not exist: task=check needs a result with a card, which an evaluation writes "
                f"(task=evaluate run_dir={folder})"
            )
    said = read_json(results / "card.json")
    if not isinstance(said, dict):
        raise InputError(f"{results / 'card.json'} is no card: it must hold values by name")
    columns = (
        "index",
        *(name for bound in BOUNDS for name in (bound, f"{bound}_se_mc")),
        "pareto_k",
        "non_finite",
    )
    return said, read_table(results / "per_example.parquet", columns), read_summary(results / "summary.json")


def expected(
    said: Mapping[str, Any],
    results: Path,
    examples: pd.DataFrame,
    summary: Summary,
    ensemble: Ensemble,
    data: Data,
    about: Mapping[str, object],
) -> dict[str, object]:
    """The card that data, model and tables give."""
    protocol = dict(summary.get("protocol", {}))
    split = str(protocol.get("split"))
    split = split if split in data.splits else str(data.splits[0])
    last = read_table(results / "bounds.csv", ("S", "L", "seconds"))
    hashes, whole = hash_examples(data, split, len(examples))
    target = ensemble.target
    own = target.protocol() if hasattr(target, "protocol") else {}
    fresh = {
        **{name: value for name, value in {**data.protocol(split), **own}.items() if name in cards.DATA},
        "data_sha256": whole,
        "num_data": len(hashes),
        "S": len(ensemble.members),
        "L": int(last["L"].iloc[-1]),
        "grid": sorted({int(value) for value in last["L"]}),
        "fingerprint": fingerprint(ensemble),
        "target_fingerprint": fingerprint(target),
        **about,
    }
    found = cards.card(
        {
            "certificate": {"confidence": 0.95, **summary.get("certificate", {})},  # type: ignore[typeddict-item]
            "protocol": {**protocol, **fresh},  # type: ignore[typeddict-item]
            "cost": [*summary.get("cost", []), {"decoder_passes": 0, "seconds": 0.0}],
        },
        examples,
        results / "per_example.parquet",
    )
    found["decoder_passes"] = len(examples) * fresh["S"] * fresh["L"]
    found["seconds"] = float(last["seconds"].iloc[-1])
    return found


def same(one: object, two: object) -> bool:
    """Whether two entries of a card agree: numbers to nine digits, as sums differ in their order, the rest exactly.

    Example:
        >>> same(1.0, 1.0 + 1e-13), same(1.0, 1.000001), same(True, 1), same([1, 2], [1, 2])
        (True, False, False, True)
    """
    numbers = [type(value) in (int, float) for value in (one, two)]
    if all(numbers) and isinstance(one, int | float) and isinstance(two, int | float):
        return abs(one - two) <= 1e-9 * max(abs(one), abs(two))
    return type(one) is type(two) and bool(one == two)


def scoring_settings(said: Mapping[str, Any], settings: Settings, target: object) -> Settings:
    """How the card says that its values were made."""
    own = target.protocol() if hasattr(target, "protocol") else {}
    grid = tuple(said["grid"])
    return replace(
        settings,
        split=said["split"],
        num_samples=said["L"],
        grid=grid,
        samples_per_pass=min(settings.samples_per_pass, said["L"]),
        num_examples=None,
        seed=said["evaluation_seed"],
        dtype=said["dtype"] if "dtype" not in own and said["dtype"] in DTYPES else settings.dtype,
        compile=bool(said.get("compile", False)),
        refine_steps=int(said.get("refine_steps", 0)),
        save_scores=False,
    )


def score_again(
    ensemble: Ensemble, data: Data, settings: Settings, examples: pd.DataFrame, device: str, start: float
) -> tuple[int, float, list[dict[str, object]]]:
    """Score some examples anew: how many, the largest difference, and the bounds that differ by too much."""
    chosen = np.random.default_rng().permutation(len(examples))[:EXAMPLES]
    source = NetworkSource(refined(ensemble, settings), data, settings, device)
    fitting = Fitting(source, settings, None)
    failed: dict[str, dict[str, object]] = {}
    count, largest = 0, 0.0
    for index, batch in pieces(data, settings.split, np.sort(chosen), chosen):
        values = fitting.score(index, batch, slice(count, count + len(index)))
        before = examples.set_index("index").loc[index.numpy()]
        count += len(index)
        scale = np.maximum(np.abs(before["miselbo"].to_numpy(float)), 1.0)
        for name in BOUNDS:
            now, then = values[name][:, -1, -1], before[name].to_numpy(float)
            with np.errstate(invalid="ignore"):  # -inf - -inf
                off = np.where(now == then, 0.0, np.abs(now - then) / scale)
            off = np.where(np.isnan(now) & np.isnan(then), 0.0, np.where(np.isnan(off), np.inf, off))
            worst = int(off.argmax())
            largest = max(largest, float(off[worst]))
            if off[worst] > TOLERANCE and name not in failed:
                failed[name] = {
                    "field": name,
                    "example": int(index[worst]),
                    "card": float(then[worst]),
                    "found": float(now[worst]),
                }
        if time.process_time() - start > CPU_SECONDS:
            break
    return count, largest, list(failed.values())


def pieces(
    data: Data, split: str, rows: np.ndarray, order: np.ndarray, size: int = PIECE
) -> Iterator[tuple[Tensor, Tensor]]:
    """Numbers and examples at some places of a split, in an order of their own: a part is a random choice too."""
    kept, numbers, done = [], [], 0
    for batch in data.evaluation_batches(split, 100):
        length = len(batch["index"])
        here = torch.from_numpy(rows[(rows >= done) & (rows < done + length)] - done)
        kept.append(batch[data.input_key][here])
        numbers.append(batch["index"][here])
        done += length
    x, index = torch.cat(kept), torch.cat(numbers)
    place = torch.from_numpy(np.searchsorted(rows, order))
    yield from zip(index[place].split(size), x[place].split(size), strict=True)


def verdict(failed: list[dict[str, object]], count: int, total: int, largest: float) -> str:
    """What the check found, in a sentence.

    Example:
        >>> verdict([], 100, 300, 2e-8)
        'confirmed to 1e-6: every field of the card, and 100 of 300 examples scored again (largest difference 2e-08)'
        >>> verdict([{"field": "L", "card": 100, "found": 50}], 0, 300, 0.0)
        'does not hold: L (the card says 100, found 50)'
    """
    if not failed:
        return (
            f"confirmed to 1e-6: every field of the card, and {count} of {total} examples scored again "
            f"(largest difference {largest:.0e})"
        )
    parts = []
    for one in failed:
        where = f" of example {one['example']}" if "example" in one else ""
        source = "scored again" if "example" in one else "found"
        word = "the table says" if "example" in one else "the card says"
        parts.append(f"{one['field']}{where} ({word} {one['card']!r}, {source} {one['found']!r})")
    return f"does not hold: {'; '.join(parts)}"
