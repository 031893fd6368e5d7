"""``sandwich.csv``: how far the bounds can be from log p(x), measured on data simulated from the model itself."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch

from miselbo import noise
from miselbo.bounds.sandwich import both_sides, summarise
from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.evaluation.scoring import inference_form
from miselbo.evaluation.settings import Settings
from miselbo.report.summary import Summary
from miselbo.runtime.files import write_csv, write_json

STREAM = 0x53414E44  # of the simulated data and their draws
SHARE = 15  # so many evaluated examples for one simulated


def check(ensemble: Ensemble) -> None:
    """Refuse an ensemble whose target cannot simulate.

    Raises:
        InputError: members with decoders of their own, or a target without ``simulate``.
    """
    if not ensemble.shares_target:
        raise InputError("a sandwich needs one model: these members have a decoder each (target=each)")
    if not hasattr(ensemble.target, "simulate"):
        raise InputError(
            f"a sandwich needs data simulated from the model, and {type(ensemble.target).__name__} has no method "
            "simulate(index, seed) -> (x, z): leave sandwich=false"
        )


def measure(
    ensemble: Ensemble, settings: Settings, num_data: int, device: str = "cpu", confidence: float = 0.95
) -> pd.DataFrame:
    """Simulate, score, and bound from both sides.

    Args:
        ensemble: with a target that has ``simulate(index, seed) -> (x [B, ...], z)``, z per latent [B, ...].
        settings: of the evaluation; its grid, L and seed are used.
        num_data: examples to simulate.
        device: where to score.
        confidence: of the certified ends.

    Returns:
        One row per (S', L'): ``S``, ``L`` and what :func:`miselbo.bounds.sandwich.summarise` gives.

    Raises:
        InputError: as :func:`check`.
    """
    check(ensemble)
    ensemble = ensemble.to(device).eval()
    scorer = inference_form(ensemble, settings.dtype)
    dtype = torch.float64 if settings.dtype == "float64" else torch.float32
    seed, parts = noise.derive(settings.seed, STREAM), []
    for index in torch.arange(num_data, device=device).split(settings.batch_size):
        with torch.inference_mode():
            x, z = ensemble.target.simulate(index, seed)
            passes = scorer.passes(x.to(dtype), settings.num_samples, settings.samples_per_pass, seed, index)
            log_p, log_q = (torch.cat(list(pieces), 2) for pieces in zip(*passes, strict=True))
            size = log_p.shape[1]
            star_p, star_q = ensemble.log_prob(x, [latent.expand(size, 1, *latent.shape) for latent in z])
            choice = noise.uniform(seed, index, 1, member=2**20)[:, 0]
            found = both_sides(log_p, log_q, star_p[:, 0, 0], star_q[:, 0, 0], choice, list(settings.grid))
        parts.append({name: value.cpu() for name, value in found.items()})
    sides = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    rows = []
    for s in range(sides["lower"].shape[1]):
        for i, samples in enumerate(settings.grid):
            of_cell = summarise(sides["lower"][:, s, i], sides["upper"][:, s, i], confidence)
            rows.append({"S": s + 1, "L": samples, **of_cell, "confidence": confidence})
    return pd.DataFrame(rows)


def add(ensemble: Ensemble, settings: Settings, summary: Summary, folder: Path, device: str) -> Summary:
    """Measure, write ``results/sandwich.csv``, and put ``sandwich`` into ``summary.json``; returns the summary.

    About one example is simulated for fifteen that were evaluated, so that it takes less than a tenth of that time.
    """
    start = time.perf_counter()
    num_data = max(2, summary["protocol"]["num_data"] // SHARE)
    rows = measure(ensemble, settings, num_data, device, settings.confidence)
    write_csv(rows, folder / "results" / "sandwich.csv")
    seconds = time.perf_counter() - start
    row = json.loads(rows.tail(1).to_json(orient="records", double_precision=15))[0]
    summary["sandwich"] = {**row, "seconds": seconds, "sentence": sentence(row)}
    write_json(folder / "results" / "summary.json", summary)
    return summary


def sentence(row: Mapping[str, float]) -> str:
    """What the sandwich says, and what it does not say of real data."""
    return (
        f"On {row['num_data']} examples simulated from the model, log p(x) lies between the joint bound "
        f"{row['lower']:.3f} and an upper bound {row['upper']:.3f} on average: the joint bound misses at most "
        f"{row['width']:.2g} nats (standard error {row['width_se']:.2g}), and with probability "
        f"{row['confidence']:.0%} their mean log p(x) is within {row['certified_low']:.3f} and "
        f"{row['certified_high']:.3f}. On real data only the lower side holds: inputs unlike the model's own may be "
        "bounded worse, and nothing here sees that."
    )
