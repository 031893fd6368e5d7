"""The tables of a multilevel evaluation: the columns of the full run's, from the levels."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from miselbo.bounds.diagnostics import error_trusted, half_width
from miselbo.bounds.quantities import NEEDED as BOUNDS
from miselbo.evaluation import subset_tables
from miselbo.evaluation.multilevel import Levels, about, spread
from miselbo.evaluation.pieces import CORRECTION
from miselbo.evaluation.settings import Settings
from miselbo.evaluation.summary import About, Frames, write_frames
from miselbo.evaluation.tables import example_table, pairwise_table
from miselbo.evaluation.trust import cell_trust, heavy_share
from miselbo.report.summary import Summary

ENOUGH = 20  # examples that a level needs for its weights to speak for all
SUBSET = "subset_"
BIASED = ("miselbo", "joint_bound", "average_iwelbo", "delta")


def write(found: Levels, settings: Settings, folder: Path, of: About) -> Summary:
    """Write ``results/`` of a run folder; returns the content of ``summary.json``.

    Args:
        found: the evaluation.
        settings: of it.
        folder: run folder.
        of: protocol, costs before it and what else stands with the tables.
    """
    results = folder / "results"
    whole = whole_values(found)
    examples, speaking, draws = example_tables(found)
    frames = Frames(
        bounds_table(found),
        member_table(found),
        pairwise_table(whole),
        examples,
        speaking,
        pd.DataFrame(),
        draws,
    )
    extra = subset_tables.write(whole, settings.num_samples, results)
    extra["multilevel"] = about(found)
    row = {"stage": "evaluate", "seconds": found.seconds, "decoder_passes": found.passes}
    cost = [*of.cost, row]
    complete = About(of.protocol, cost, of.num_dims, of.words, of.sections, of.cautions)
    return write_frames(frames, settings, results, complete, extra)


def bounds_table(found: Levels) -> pd.DataFrame:
    """One row per (S', L' of a level), as :func:`miselbo.evaluation.tables.bounds_table`.

    The spread over the data is that of the full run, by the same telescoping sum of squares. Trust is that of the
    examples which were scored with L' draws.
    """
    pieces, units = found.pieces, found.units
    size, draws = pieces.source.num_members, pieces.draws
    quantities = {name: spread(pieces, units, name) for name in (*BOUNDS, "joint_gain")}
    rows, ratio = [], draws[-1] // draws[-2] if len(draws) > 1 else 1
    of_level = [_trusts(found, k) for k in range(len(draws))]
    trusts = [
        {
            name: ratio > 1 and trusted(found, len(draws) - 1, name, s, of_level[-1]["pareto_k"][:, s, 0])
            for name in BIASED
        }
        for s in range(size)
    ]
    for s in range(size):
        for k, num_samples in enumerate(draws):
            row: dict[str, float] = {"S": s + 1, "L": num_samples}
            for name in (*BOUNDS, "joint_gain"):
                value, over_data, error = (float(each[k, s]) for each in quantities[name])
                row |= {name: value, f"{name}_se": over_data}
                if name != "joint_gain":
                    row[f"{name}_se_mc"] = error
                    row[f"{name}_se_mc_trusted"] = trusted(
                        found, k, name, s, of_level[k]["pareto_k"][:, s, 0]
                    )
                if name in ("delta", "joint_gain"):
                    half = half_width(pieces.source.num_data) * math.hypot(over_data, error)
                    row |= {f"{name}_low": value - half, f"{name}_high": value + half}
            row |= biases(quantities, k, s, trusts[s], ratio)
            row |= cell_trust(of_level[k], (s, 0), num_samples)
            share = (s + 1) * num_samples / (size * draws[-1])
            row |= {"num_data": pieces.source.num_data, "seconds": found.seconds * share}
            rows.append(row)
    return pd.DataFrame(rows)


def biases(
    quantities: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    k: int,
    s: int,
    light: dict[str, bool],
    ratio: int,
) -> dict[str, float]:
    """``<name>_debiased`` and ``<name>_bias`` as in the full run's table, from the correction of the last level.

    A bias of c / L changes by (r - 1) c / L from L / r to L draws, so the limit is f_L + E Y_K / (r - 1).
    """
    found: dict[str, float] = {}
    for name in BIASED:
        value, limit = quantities[name][0][:, s], math.nan
        if light[name]:
            limit = float(value[-1] + (value[-1] - value[-2]) / (ratio - 1))
        found |= {f"{name}_bias": float(value[k]) - limit, f"{name}_debiased": limit}
    for name in ("average_elbo", "jsd"):
        found |= {f"{name}_bias": 0.0, f"{name}_debiased": float(quantities[name][0][k, s])}
    return found


def trusted(found: Levels, k: int, name: str, s: int, k_hat: np.ndarray) -> bool:
    """Whether a Monte Carlo error is known and its tails are light: by k-hat [U] of those who had the draws.

    A unit has the share in it that it has in the variance of the level's correction. A plain mean has no weights.
    """
    values = np.concatenate([piece[name][:, CORRECTION, s] for piece in found.pieces.read(k, found.units[k])])
    if name in ("average_elbo", "jsd"):
        return bool(np.isfinite(values).all())
    draws = found.pieces.draws[k] * (1 if name == "member_iwelbo" else s + 1)
    shares = np.square(values - values.mean())
    return error_trusted(torch.from_numpy(k_hat), torch.from_numpy(shares), draws)


def member_table(found: Levels) -> pd.DataFrame:
    """One row per (member, L' of a level)."""
    pieces, units = found.pieces, found.units
    iwelbo, elbo = (spread(pieces, units, f"member_{name}") for name in ("iwelbo", "elbo"))
    of_level = [_trusts(found, k) for k in range(len(units))]
    rows = []
    for s in range(pieces.source.num_members):
        for k, num_samples in enumerate(pieces.draws):
            row: dict[str, float] = {"member": s + 1, "L": num_samples}
            for name, parts in (("iwelbo", iwelbo), ("elbo", elbo)):
                value, over_data, error = (float(each[k, s]) for each in parts)
                row |= {name: value, f"{name}_se": over_data, f"{name}_se_mc": error}
            k_hat = of_level[k]["member_pareto_k"][:, s, 0]
            row["iwelbo_se_mc_trusted"] = trusted(found, k, "member_iwelbo", s, k_hat)
            row |= heavy_share(k_hat, num_samples)
            row["ess"] = float(of_level[k]["member_ess"][:, s, 0].mean())
            row["max_weight"] = float(of_level[k]["member_max_weight"][:, s, 0].mean())
            rows.append(row)
    return pd.DataFrame(rows)


def example_tables(found: Levels) -> tuple[pd.DataFrame, dict[str, np.ndarray], int]:
    """One row per example with the values at the most draws it had (``L``); values of those that speak for the weights.

    These are the examples of the highest level with 20 examples or more, whose draws come third.
    """
    frames, total = [], found.pieces.source.num_data
    trusted: tuple[dict[str, np.ndarray], int] = ({}, 0)
    for k, count in enumerate(found.units):
        values = _trusts(found, k)
        first = np.unique(values["positions"], return_index=True)[1]  # of an example's replicates the first
        values = {name: value[first] for name, value in values.items()}
        frame = example_table(values)
        frame.insert(1, "L", found.pieces.draws[k])
        frame["position"] = values["positions"]
        frames.append(frame)
        if min(count, total) >= min(ENOUGH, total):
            trusted = values, found.pieces.draws[k]
    table = pd.concat(frames).drop_duplicates("position", keep="last").sort_values("position")
    return table.drop(columns="position").reset_index(drop=True), *trusted


def whole_values(found: Levels) -> dict[str, np.ndarray]:
    """Values [N, ...] whose means over the examples are the multilevel estimates at L, for tables of such means.

    An example's value is the sum over the levels that took it of N / n times its correction, so its spread over the
    examples is that of data and Monte Carlo together.
    """
    pieces, total = found.pieces, found.pieces.source.num_data
    first = next(pieces.read(0, found.units[0]))
    names = [name for name in first if name.startswith(SUBSET)]
    names += ["miselbo", "joint_bound", "average_iwelbo", "pairwise_jsd"]
    values = {name: np.zeros((total, *first[name].shape[2:])) for name in names}
    for k, count in enumerate(found.units):
        parts = list(pieces.read(k, count))
        positions = np.concatenate([piece["positions"] for piece in parts])
        replicates = np.bincount(positions, minlength=total)
        scale = total / np.count_nonzero(replicates) / replicates[positions]
        for name in names:
            each = np.concatenate([piece[name][:, CORRECTION] for piece in parts])
            np.add.at(values[name], positions, each * scale.reshape(-1, *[1] * (each.ndim - 1)))
    kept = list(pieces.read(pieces.kept_level, found.units[pieces.kept_level]))
    for name in ("kept_log_p", "kept_log_q"):
        values[name] = np.concatenate([piece[name] for piece in kept])
    for name in ("miselbo", "joint_bound", "average_iwelbo"):
        values[name] = values[name][..., None]
    return values


def _trusts(found: Levels, k: int) -> dict[str, np.ndarray]:
    """What the full run would say of one level's units at its draws, with ``index`` and ``positions``."""
    pieces = list(found.pieces.read(k, found.units[k]))
    names = {name.removeprefix("trust_"): name for name in pieces[0] if name.startswith("trust_")}
    names |= {"index": "index", "positions": "positions"}
    return {name: np.concatenate([piece[key] for piece in pieces]) for name, key in names.items()}
