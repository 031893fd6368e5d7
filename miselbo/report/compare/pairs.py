"""Paired differences: the same examples of two runs, or the same seeds of two sweeps, one minus the other.

What two runs share (hard and easy images, a lucky seed) drops out of the differences, so their interval is far narrower
than the two errors suggest. Intervals are Student's t, 95%, over examples or over seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from miselbo.bounds.diagnostics import paired
from miselbo.errors import InputError
from miselbo.report.folder import QUANTITIES, RunFolder

EXAMPLES, SEEDS = "examples", "seeds"


@dataclass(frozen=True)
class Entry:
    """What is compared: a run, or the runs of one configuration of a sweep, by their seed."""

    name: str
    runs: Mapping[int, RunFolder]

    @property
    def first(self) -> RunFolder:
        """Of the smallest seed."""
        return self.runs[min(self.runs)]


def unit(entries: Sequence[Entry]) -> str:
    """Over what the intervals are: single runs are paired by example, sweeps by seed."""
    return EXAMPLES if all(len(entry.runs) == 1 for entry in entries) else SEEDS


def couples(first: Entry, other: Entry, over: str) -> list[tuple[RunFolder, RunFolder]]:
    """The pairs of runs whose numbers are subtracted.

    Raises:
        InputError: sweeps with fewer than two seeds in common.
    """
    if over == EXAMPLES:
        return [(first.first, other.first)]
    seeds = sorted(first.runs.keys() & other.runs.keys())
    if len(seeds) < 2:
        raise InputError(
            f"{first.name} and {other.name} are paired by seed, which needs two seeds that both have; {first.name} "
            f"has {sorted(first.runs)}, {other.name} has {sorted(other.runs)}"
        )
    return [(first.runs[seed], other.runs[seed]) for seed in seeds]


def example_differences(first: RunFolder, other: RunFolder) -> pd.DataFrame:
    """Other minus first, one row per example that both have, by its number; a column for each quantity.

    Raises:
        InputError: fewer than two examples in common, or one stands there twice.
    """
    one, two = (run.per_example.set_index("index") for run in (first, other))
    for run, frame in ((first, one), (other, two)):
        if not frame.index.is_unique:
            raise InputError(f"{run.path}: an example stands twice in results/per_example.parquet")
    common = one.index.intersection(two.index)
    if len(common) < 2:
        raise InputError(
            f"{first.path} and {other.path} have {len(common)} examples in common: nothing to pair"
        )
    names = [name for name in QUANTITIES if name in one and name in two]
    with np.errstate(invalid="ignore"):  # -inf - -inf
        return two.loc[common, names] - one.loc[common, names]


def table(entries: Sequence[Entry], over: str) -> pd.DataFrame:
    """One row for each entry after the first and each quantity.

    Columns: ``run``, ``against``, ``quantity``, ``first`` and ``other`` (means over the common examples, and seeds),
    ``difference`` = other - first with ``difference_se``, ``difference_low``, ``difference_high`` (95%), ``over`` and
    ``num`` (how many examples or seeds), ``left_out`` (examples where a value is not finite), ``difference_se_mc``
    (Monte Carlo error of the difference, were the draws of the two independent).
    """
    rows = []
    reference = entries[0]
    for entry in entries[1:]:
        pairs = couples(reference, entry, over)
        found = [example_differences(*pair) for pair in pairs]
        for name in found[0].columns:
            rows.append(
                {
                    "run": entry.name,
                    "against": reference.name,
                    "quantity": name,
                    **_row(name, pairs, [frame[name] for frame in found], over),
                }
            )
    return pd.DataFrame(rows)


def _row(
    name: str, pairs: Sequence[tuple[RunFolder, RunFolder]], found: Sequence[pd.Series], over: str
) -> dict[str, object]:
    kept = [series[np.isfinite(series)] for series in found]
    left_out = sum(len(series) - len(part) for series, part in zip(found, kept, strict=True))
    if any(part.empty for part in kept):
        nothing = dict.fromkeys(("", "_se", "_low", "_high"), math.nan)
        row: dict[str, object] = {f"difference{tail}": value for tail, value in nothing.items()}
        return {"first": math.nan, "other": math.nan, **row, "over": over, "num": 0, "left_out": left_out}
    means = [
        np.mean(
            [
                run.per_example.set_index("index").loc[part.index, name].mean()
                for run, part in zip(runs, kept, strict=True)
            ]
        )
        for runs in zip(*pairs, strict=True)
    ]
    values = np.array(kept[0], dtype=float) if over == EXAMPLES else np.array([part.mean() for part in kept])
    errors = [_monte_carlo(pair, name, part) for pair, part in zip(pairs, kept, strict=True)]
    return {
        "first": means[0],
        "other": means[1],
        **paired("difference", values),
        "over": over,
        "num": len(values),
        "left_out": left_out,
        "difference_se_mc": math.sqrt(sum(error**2 for error in errors)) / len(errors),
    }


def _monte_carlo(pair: tuple[RunFolder, RunFolder], name: str, kept: pd.Series) -> float:
    """Root of the sum of the two runs' Monte Carlo variances of the mean; NaN where one is not known."""
    total, column = 0.0, f"{name}_se_mc"
    for run in pair:
        if column not in run.per_example.columns:
            return math.nan
        total += float((run.per_example.set_index("index").loc[kept.index, column] ** 2).sum(skipna=False))
    return math.sqrt(total) / len(kept)
