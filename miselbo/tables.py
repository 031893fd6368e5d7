"""Result tables from per-example values: means over examples, errors over the data and over Monte Carlo apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from miselbo.diagnostics import monte_carlo_error, standard_error
from miselbo.files import atomic

BOUNDS = ("miselbo", "joint_bound", "average_iwelbo", "average_elbo", "delta", "jsd", "slack")


def columns(values: dict[str, np.ndarray], name: str, cell: tuple[int, ...]) -> dict[str, float]:
    """``name``, ``name_se``, ``name_se_mc`` of one cell of [N, ...] values."""
    at: Any = (slice(None), *cell)
    chosen = torch.from_numpy(values[name][at])
    row = {name: float(chosen.mean()), f"{name}_se": float(standard_error(chosen))}
    if f"{name}_var" in values:
        row[f"{name}_se_mc"] = float(monte_carlo_error(torch.from_numpy(values[f"{name}_var"][at])))
    return row


def bounds_table(values: dict[str, np.ndarray], grid: tuple[int, ...], seconds: float) -> pd.DataFrame:
    """One row per (S', L')."""
    num_data, size = values["miselbo"].shape[:2]
    rows = []
    for s in range(size):
        for i, num_samples in enumerate(grid):
            row: dict[str, Any] = {"S": s + 1, "L": num_samples}
            for name in BOUNDS:
                row |= columns(values, name, (s, i))
            share = (s + 1) * num_samples / (size * grid[-1])
            rows.append({**row, "num_data": num_data, "seconds": seconds * share})
    return pd.DataFrame(rows)


def member_table(values: dict[str, np.ndarray], grid: tuple[int, ...]) -> pd.DataFrame:
    """One row per (member, L')."""
    rows = []
    for s in range(values["member_iwelbo"].shape[1]):
        for i, num_samples in enumerate(grid):
            row: dict[str, Any] = {"member": s + 1, "L": num_samples}
            for name in ("member_iwelbo", "member_elbo"):
                named = columns(values, name, (s, i))
                row |= {key.removeprefix("member_"): value for key, value in named.items()}
            row["ess"] = float(values["member_ess"][:, s, i].mean())
            row["max_weight"] = float(values["member_max_weight"][:, s, i].mean())
            rows.append(row)
    return pd.DataFrame(rows)


def example_table(values: dict[str, np.ndarray]) -> pd.DataFrame:
    """One row per example, at all members and samples."""
    table = {"index": values["index"]}
    for name in (*BOUNDS, "ess", "max_weight"):
        table[name] = values[name][:, -1, -1]
    table["pareto_k"] = values["pareto_k"][:, -1]
    table["non_finite"] = values["non_finite"]
    for s in range(values["member_iwelbo"].shape[1]):
        table[f"iwelbo_{s + 1}"] = values["member_iwelbo"][:, s, -1]
        table[f"responsibility_{s + 1}"] = values["responsibility"][:, -1, s]
    return pd.DataFrame(table)


def pairwise_table(values: dict[str, np.ndarray]) -> pd.DataFrame:
    """JSD of every ordered pair of members."""
    pairwise = values["pairwise_jsd"]
    mean, error = pairwise.mean(0), standard_error(torch.from_numpy(pairwise)).numpy()
    size = mean.shape[0]
    rows = [(i + 1, j + 1, mean[i, j], error[i, j]) for i in range(size) for j in range(size)]
    return pd.DataFrame(rows, columns=["member_i", "member_j", "jsd", "jsd_se"])


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table atomically."""
    with atomic(path) as temporary:
        frame.to_csv(temporary, index=False)


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Write a table atomically."""
    with atomic(path) as temporary:
        frame.to_parquet(temporary, index=False)


def trust(examples: pd.DataFrame, headline: dict[str, Any]) -> dict[str, Any]:
    """Whether the numbers can be trusted: shares and plain sentences for what speaks against it."""
    size, samples = headline["S"], headline["L"]
    share = float((examples["pareto_k"] > 0.7).mean())
    bad = int((examples["non_finite"] > 0).sum())
    ess = float(examples["ess"].median())
    sentences = []
    if bad:
        sentences.append(
            f"{bad} examples have non-finite weights (column non_finite of per_example.parquet)."
        )
    if share > 0.1:
        sentences.append(
            f"Heavy tails: {share:.0%} of the examples have a Pareto k-hat above 0.7, so their bounds and error bars "
            "are optimistic about how well more samples would do; raise evaluation.num_samples."
        )
    if ess < 10 and samples > 1:
        sentences.append(f"Few effective samples: the median is {ess:.1f} of {size * samples}.")
    if size > 1 and headline["jsd"] < 0.01:
        sentences.append(
            "The members have collapsed to nearly one approximation (JSD near 0): the ensemble adds nothing."
        )
    if size > 1 and headline["jsd"] > 0.95 * np.log(size):
        sentences.append(
            f"The members hardly overlap (JSD near log S = {np.log(size):.3f}): the gain over the average at L = 1 is "
            "log S whatever the members are."
        )
    if not sentences:
        sentences.append("No warning: weights are finite, tails light, members overlap and differ.")
    return {"share_pareto_k_above_0.7": share, "median_ess": ess, "non_finite": bad, "sentences": sentences}
