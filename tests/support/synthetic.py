"""A synthetic run folder: simulated log p and log q of a Gaussian posterior, and the bounds they give."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from miselbo.bounds import subsets
from miselbo.bounds.diagnostics import paired
from miselbo.evaluation import subset_tables

GRID = (1, 2, 5, 10, 20, 50, 100)
QUANTITIES = ("miselbo", "joint_bound", "average_iwelbo", "average_elbo", "delta", "jsd", "slack")
Array = NDArray[np.float64]


def log_mean(values: Array, axis: int) -> Array:
    top = values.max(axis=axis, keepdims=True)
    return np.log(np.exp(values - top).mean(axis=axis)) + top.squeeze(axis)


def normal(z: Array, mean: Array, sd: float) -> Array:
    return (-0.5 * ((z - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)).sum(-1)


def simulate(num_data: int, size: int, num_samples: int, seed: int = 0) -> tuple[Array, Array]:
    """log_p[B, S, L], log_q[B, S, L, S]: posterior N(0, I) in 3 dimensions, each member off-centre."""
    rng = np.random.default_rng(seed)
    log_px = rng.normal(-26.0, 7.0, num_data)
    centre = 0.45 * rng.normal(size=(num_data, size, 3)) + 0.4 * rng.normal(size=(1, size, 3))
    z = centre[:, :, None] + 0.9 * rng.normal(size=(num_data, size, num_samples, 3))
    log_p = log_px[:, None, None] + normal(z, np.zeros(3), 1.0)
    log_q = normal(z[:, :, :, None], centre[:, None, None], 0.9)
    return log_p, log_q


def score(log_p: Array, log_q: Array) -> dict[str, Array]:
    """Every quantity by its formula in DESIGN.md 2 with equal weights, one value for each example."""
    size = log_q.shape[1]
    own = np.einsum("bsls->bsl", log_q)
    mixture = log_mean(log_q, 3)
    iwelbo = log_mean(log_p - own, 2)
    members = log_mean(log_p - mixture, 2)
    joint = log_mean(members, 1)
    log_share = members - np.log(np.exp(members - members.max(1, keepdims=True)).sum(1, keepdims=True))
    log_share -= members.max(1, keepdims=True)
    out = {
        "miselbo": members.mean(1),
        "joint_bound": joint,
        "average_iwelbo": iwelbo.mean(1),
        "average_elbo": (log_p - own).mean((1, 2)),
        "jsd": (own - mixture).mean((1, 2)),
        "slack": -np.log(size) - log_share.mean(1),
    }
    out["delta"] = out["miselbo"] - out["average_iwelbo"]
    weights = np.exp(log_p - mixture - (log_p - mixture).max((1, 2), keepdims=True))
    weights /= weights.sum((1, 2), keepdims=True)
    out["ess"], out["max_weight"] = 1 / (weights**2).sum((1, 2)), weights.max((1, 2))
    for s in range(size):
        out[f"iwelbo_{s + 1}"], out[f"responsibility_{s + 1}"] = iwelbo[:, s], np.exp(log_share[:, s])
    return out


def spread(values: Array) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def make(
    run_dir: Path, size: int = 5, num_data: int = 200, grid: tuple[int, ...] = GRID, seed: int = 0
) -> Path:
    """Write every file of a finished run that the report reads."""
    results = run_dir / "results"
    results.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    full = max(grid)
    log_p, log_q = simulate(num_data, size, full, seed)

    rows = []
    for s in range(1, size + 1):
        for samples in grid:
            cell = score(log_p[:, :s, :samples], log_q[:, :s, :samples, :s])
            row: dict[str, float] = {"S": s, "L": samples}
            for name in QUANTITIES:
                row[name], row[f"{name}_se"] = cell[name].mean(), spread(cell[name])
                row[f"{name}_se_mc"] = np.nan if samples == 1 else 0.4 / np.sqrt(num_data * samples)
            row |= paired("delta", cell["delta"]) | paired(
                "joint_gain", cell["joint_bound"] - cell["miselbo"]
            )
            row |= {
                "share_k_above_0.7": 0.011 if s * samples >= 25 else np.nan,
                "k_unknown": 0,
                "non_finite": 0,
            }
            rows.append({**row, "num_data": num_data, "seconds": 0.02 * s * samples})
    bounds = pd.DataFrame(rows)
    bounds.to_csv(results / "bounds.csv", index=False)

    examples = score(log_p, log_q)
    frame = pd.DataFrame({"index": np.arange(num_data), **examples})
    frame["pareto_k"], frame["non_finite"] = rng.normal(0.35, 0.15, num_data), 0
    frame.to_parquet(results / "per_example.parquet")

    own = np.einsum("bsls->bsl", log_q)
    elbo = (log_p - own).mean(2)
    pd.DataFrame(
        {
            "member": range(1, size + 1),
            "L": full,
            "iwelbo": [examples[f"iwelbo_{s + 1}"].mean() for s in range(size)],
            "iwelbo_se": [spread(examples[f"iwelbo_{s + 1}"]) for s in range(size)],
            "iwelbo_se_mc": 0.006,
            "elbo": elbo.mean(0),
            "elbo_se": [spread(elbo[:, s]) for s in range(size)],
            "elbo_se_mc": 0.009,
            "ess": rng.uniform(20, 40, size),
            "max_weight": rng.uniform(0.1, 0.2, size),
        }
    ).to_csv(results / "per_member.csv", index=False)

    if size > 1:
        pairs = []
        for i in range(size):
            for j in range(i + 1, size):
                pair = score(log_p[:, [i, j]], log_q[:, [i, j]][..., [i, j]])["jsd"]
                pairs.append(
                    {"member_i": i + 1, "member_j": j + 1, "jsd": pair.mean(), "jsd_se": spread(pair)}
                )
        pd.DataFrame(pairs).to_csv(results / "pairwise_jsd.csv", index=False)

    found = write_subsets(results, log_p, log_q)
    write_images(results / "images.npz", size, rng)
    write_metrics(run_dir / "metrics.csv", size, rng)
    headline = {key: (None if np.isnan(value) else value) for key, value in rows[-1].items()}
    content = summary(headline, num_data, size, full) | found
    (results / "summary.json").write_text(json.dumps(content, default=float))
    return run_dir


def write_subsets(results: Path, log_p: Array, log_q: Array) -> dict[str, object]:
    """``subsets.csv`` and ``marginal.csv`` of all draws; returns the mixture weights."""
    size, full = log_p.shape[1:]
    nested = [score(log_p[:, :s], log_q[:, :s, :, :s]) for s in range(1, size + 1)]
    names = ("miselbo", "joint_bound", "average_iwelbo")
    values = {name: np.stack([cell[name] for cell in nested], 1)[..., None] for name in names}
    if 1 < size <= 8:
        listed = [list(subset) for subset in subsets.list_subsets(size)]
        every = [score(log_p[:, subset], log_q[:, subset][..., subset]) for subset in listed]
        values |= {f"subset_{name}": np.stack([cell[name] for cell in every], 1) for name in names}
    if size > 1:
        kept = subsets.num_kept(size, full)
        values |= {"kept_log_p": log_p[:, :, :kept], "kept_log_q": log_q[:, :, :kept]}
    return subset_tables.write(values, full, results)


def summary(headline: dict[str, float | None], num_data: int, size: int, full: int) -> dict[str, object]:
    passes = num_data * size * full
    return {
        "headline": headline,
        "protocol": {
            "model": "nvae", "dataset": "digits", "split": "test", "num_data": num_data,
            "binarisation": "once, each pixel drawn from its grey value, seed 777", "image": "1 x 8 x 8",
            "split_rule": "1257 / 180 / 360 by a fixed permutation, seed 0", "S": size, "L": full, "seed": 0,
            "dtype": "float32", "fingerprint": "3f9c2a71be04d6a8",
            "versions": {"miselbo": "0.1.0", "torch": "2.13.0+cpu", "python": "3.11.9"},
        },
        "cost": [
            {"stage": "train q1", "seconds": 141.2, "decoder_passes": None},
            *({"stage": f"train q{s}", "seconds": 63.4, "decoder_passes": None} for s in range(2, size + 1)),
            {"stage": "evaluate", "seconds": 58.07, "decoder_passes": passes},
        ],
        "trust": {
            "share_pareto_k_above_0.7": 0.011, "median_ess": 148.2, "non_finite": 0,
            "sentences": [
                "The importance weights are well behaved: Pareto k is above 0.7 for 1.1 % of the examples.",
                "Monte Carlo noise is small against the spread over the data.",
            ],
        },
        "num_dims": 64,
    }  # fmt: skip


def write_images(path: Path, size: int, rng: np.random.Generator) -> None:
    """Blobs of 8 x 8 pixels; reconstructions are the originals, blurred a little."""
    grid = np.linspace(-1, 1, 8)

    def blobs(count: int) -> Array:
        centre, radius = rng.uniform(-0.3, 0.3, (count, 2, 1, 1)), rng.uniform(0.3, 0.7, (count, 1, 1))
        distance = np.hypot(grid[None, :, None] - centre[:, 0], grid[None, None] - centre[:, 1])
        return np.exp(-(((distance - radius) / 0.25) ** 2))[:, None]

    originals = (blobs(8) > rng.uniform(size=(8, 1, 8, 8))).astype(float)
    blurred = (originals + np.roll(originals, 1, 2) + np.roll(originals, 1, 3)) / 3
    noise = 0.08 * rng.normal(size=(size, *originals.shape))
    np.savez(path, originals=originals, reconstructions=np.clip(blurred + noise, 0, 1), samples=blobs(16))


def write_metrics(path: Path, size: int, rng: np.random.Generator) -> None:
    rows = []
    for member in range(1, size + 1):
        steps = np.arange(0, 1200, 4)
        loss = 24 + member * 0.3 + 60 * np.exp(-steps / 90) + rng.normal(0, 1.5, len(steps))
        rate = 1e-2 * 0.5 * (1 + np.cos(np.pi * steps / 1200))
        for step, value, lr in zip(steps, loss, rate, strict=True):
            rows += [(member, step, "train/loss", value), (member, step, "lr", lr)]
        for step in range(100, 1201, 100):
            elbo = -25 - member * 0.3 - 60 * np.exp(-step / 90) + rng.normal(0, 0.2)
            rows += [(member, step, "val/elbo", elbo), (member, step, "train/elbo", elbo + 0.5)]
        jsd = 0.35 * np.log(member)
        for name, value in {"average_elbo": -26.0, "miselbo": -26.0 + jsd, "delta": jsd, "jsd": jsd}.items():
            rows.append((member, 1200, f"val/{name}", value))
    pd.DataFrame(rows, columns=["member", "step", "metric", "value"]).to_csv(path, index=False)
