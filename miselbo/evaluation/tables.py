"""Result tables from per-example values: means over examples, errors over the data and over Monte Carlo apart."""

import math

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from miselbo.bounds.diagnostics import (
    error_trusted,
    few_examples,
    monte_carlo_error,
    paired,
    standard_error,
)
from miselbo.bounds.quantities import QUANTITIES, names
from miselbo.evaluation.trust import cell_trust, heavy_share

# means over the draws, with no logarithm outside
PLAIN = (*(quantity.name for quantity in QUANTITIES if quantity.limit == "itself"), "member_elbo")


def columns(values: dict[str, np.ndarray], name: str, cell: tuple[int, ...]) -> dict[str, float]:
    """``name``, ``name_se``, ``name_se_mc`` of one cell of [N, ...] values."""
    at: tuple[slice | int, ...] = (slice(None), *cell)
    chosen = torch.from_numpy(values[name][at])
    row = {name: float(chosen.mean()), f"{name}_se": float(standard_error(chosen))}
    if f"{name}_var" in values:
        row[f"{name}_se_mc"] = error_of_mean(name, torch.from_numpy(values[f"{name}_var"][at]))
    return row


def error_of_mean(name: str, variances: Tensor) -> float:
    """Monte Carlo error of the mean of a quantity from the examples' variances [N].

    That of log-means minds that few examples' variances are estimates: :func:`miselbo.bounds.diagnostics.few_examples`.
    """
    return float(monte_carlo_error(variances)) * (1.0 if name in PLAIN else few_examples(variances))


def bounds_table(values: dict[str, np.ndarray], grid: tuple[int, ...], seconds: float) -> pd.DataFrame:
    """One row per (S', L')."""
    num_data, size = values["miselbo"].shape[:2]
    rows = []
    last = len(grid) - 1
    light_at_l = [trusted_errors(values, (s, last), grid[-1]) for s in range(size)]
    for s in range(size):
        for i, num_samples in enumerate(grid):
            row: dict[str, float] = {"S": s + 1, "L": num_samples}
            cell = (s, i)
            for name in names():
                row |= columns(values, name, cell)
            row |= trusted_errors(values, cell, num_samples)
            row |= biases(values, row, cell, light_at_l[s])
            row |= paired("delta", values["delta"][:, *cell])
            with np.errstate(invalid="ignore"):  # -inf - -inf where p is zero at all draws
                row |= paired("joint_gain", values["joint_bound"][:, *cell] - values["miselbo"][:, *cell])
            row |= cell_trust(values, cell, num_samples)
            share = (s + 1) * num_samples / (size * grid[-1])
            rows.append({**row, "num_data": num_data, "seconds": seconds * share})
    return pd.DataFrame(rows)


def biases(
    values: dict[str, np.ndarray], row: dict[str, float], cell: tuple[int, int], light: dict[str, bool]
) -> dict[str, float]:
    """``<name>_debiased`` and ``<name>_bias``: the jackknife's estimate of the limit in L, and what the row is off by.

    The limit is estimated once, at L, for all rows of an ensemble. It is an estimate, no bound; NaN where the weights
    at L are heavy (``light`` is False) or the error there is unknown. Average ELBO and JSD do not change with L.
    """
    found: dict[str, float] = {}
    for quantity in QUANTITIES:
        name = quantity.name
        if quantity.limit == "jackknife":
            limit = math.nan
            if light[f"{name}_se_mc_trusted"]:
                limit = float((values[name][:, cell[0], -1] - values[f"{name}_bias"][:, cell[0]]).mean())
            found |= {f"{name}_bias": row[name] - limit, f"{name}_debiased": limit}
        elif quantity.limit == "itself":
            found |= {f"{name}_bias": 0.0, f"{name}_debiased": row[name]}
    return found


def trusted_errors(values: dict[str, np.ndarray], cell: tuple[int, int], num_samples: int) -> dict[str, bool]:
    """``<name>_se_mc_trusted`` of one cell: False where the error is unknown, or too small by its weights' tails.

    MISELBO, joint bound and slack go by the weights p / q_mix, the average IWELBO by those of every member alone, Delta
    by both. A plain mean (average ELBO, JSD) has no weights.
    """
    s, i = cell
    members = slice(0, s + 1)

    def by(k: np.ndarray, variances: np.ndarray, draws: int) -> bool:
        return error_trusted(torch.from_numpy(k), torch.from_numpy(variances), draws)

    pooled, draws = values["pareto_k"][:, s, i], (s + 1) * num_samples
    of_members = by(
        values["member_pareto_k"][:, members, i], values["member_iwelbo_var"][:, members, i], num_samples
    )
    light = {
        q.name: of_members if q.weights == "members" else by(pooled, values[f"{q.name}_var"][:, s, i], draws)
        for q in QUANTITIES
        if q.weights
    }
    light |= {q.name: all(light[name] for name in q.trusted_with) for q in QUANTITIES if q.trusted_with}
    known = {name: bool(np.isfinite(values[f"{name}_var"][:, s, i]).all()) for name in names()}
    return {f"{name}_se_mc_trusted": known[name] and light.get(name, True) for name in names()}


def member_table(values: dict[str, np.ndarray], grid: tuple[int, ...]) -> pd.DataFrame:
    """One row per (member, L'); ``iwelbo_to_best``: minus that of the best member, paired, empty for itself."""
    rows = []
    means = values["member_iwelbo"].mean(0)
    best = np.where(np.isnan(means), -math.inf, means).argmax(0)  # of every L'
    for s in range(values["member_iwelbo"].shape[1]):
        for i, num_samples in enumerate(grid):
            row: dict[str, float] = {"member": s + 1, "L": num_samples}
            for name in ("member_iwelbo", "member_elbo"):
                named = columns(values, name, (s, i))
                row |= {key.removeprefix("member_"): value for key, value in named.items()}
            k, variances = (
                torch.from_numpy(values[name][:, s, i]) for name in ("member_pareto_k", "member_iwelbo_var")
            )
            row["iwelbo_se_mc_trusted"] = error_trusted(k, variances, num_samples)
            with np.errstate(invalid="ignore"):
                behind = values["member_iwelbo"][:, s, i] - values["member_iwelbo"][:, best[i], i]
            to_best = paired("iwelbo_to_best", behind)
            row |= to_best if s != best[i] else dict.fromkeys(to_best, math.nan)
            row |= heavy_share(k.numpy(), num_samples)
            row["ess"] = float(values["member_ess"][:, s, i].mean())
            row["max_weight"] = float(values["member_max_weight"][:, s, i].mean())
            rows.append(row)
    return pd.DataFrame(rows)


def example_table(values: dict[str, np.ndarray]) -> pd.DataFrame:
    """One row per example, at all members and samples."""
    table = {"index": values["index"]}
    if "data_hash" in values:
        table["data_hash"] = values["data_hash"]
    for name in (*names(), "ess", "max_weight"):
        table[name] = values[name][:, -1, -1]
    table["pareto_k"] = values["pareto_k"][:, -1, -1]
    table["non_finite"] = values["non_finite"][:, -1, -1].astype(int)
    for name in names():
        table[f"{name}_se_mc"] = np.sqrt(values[f"{name}_var"][:, -1, -1])
    for s in range(values["member_iwelbo"].shape[1]):
        table[f"iwelbo_{s + 1}"] = values["member_iwelbo"][:, s, -1]
        table[f"pareto_k_{s + 1}"] = values["member_pareto_k"][:, s, -1]
        table[f"responsibility_{s + 1}"] = values["responsibility"][:, -1, s]
    return pd.DataFrame(table)


def pairwise_table(values: dict[str, np.ndarray]) -> pd.DataFrame:
    """JSD of every ordered pair of members."""
    pairwise = values["pairwise_jsd"]
    mean, error = pairwise.mean(0), standard_error(torch.from_numpy(pairwise)).numpy()
    size = mean.shape[0]
    rows = [(i + 1, j + 1, mean[i, j], error[i, j]) for i in range(size) for j in range(size)]
    return pd.DataFrame(rows, columns=["member_i", "member_j", "jsd", "jsd_se"])
