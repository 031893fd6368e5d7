"""Annealed bounds of a split beside those of the full run: ``results/annealed.csv`` and a line of the summary."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from miselbo.bounds.diagnostics import monte_carlo_error, paired, standard_error
from miselbo.data.interface import Data
from miselbo.ensemble import Ensemble
from miselbo.evaluation.annealed import Plan, anneal
from miselbo.evaluation.scoring import batch_at
from miselbo.evaluation.settings import Settings
from miselbo.evaluation.summary import number
from miselbo.report.summary import Annealed, Summary
from miselbo.runtime.files import atomic, write_csv, write_json
from miselbo.runtime.progress import Meter

ExamplesAt = Callable[[Tensor], tuple[Tensor, Tensor]]


def of_split(data: Data, settings: Settings) -> ExamplesAt:
    """x and numbers of the examples at some positions of a data module's split."""

    def examples_at(positions: Tensor) -> tuple[Tensor, Tensor]:
        batch = batch_at(data, settings.split, positions)
        return batch[data.input_key], batch["index"]

    return examples_at


def check(ensemble: Ensemble, examples_at: ExamplesAt) -> None:
    """Refuse an ensemble that cannot be annealed, before any long work.

    Raises:
        InputError: its target is not differentiable in z.
    """
    x, index = examples_at(torch.zeros(1, dtype=torch.int64))
    anneal(ensemble, x, Plan(1, 2, 1), index)


def add(
    summary: Summary,
    ensemble: Ensemble,
    examples_at: ExamplesAt,
    settings: Settings,
    plan: Plan,
    num_examples: int | None,
    folder: Path,
    stamp: str,
    device: str,
    show: bool = True,
) -> Summary:
    """Anneal the first examples of the split and write what they give; finished batches of an earlier call are kept.

    Args:
        summary: of the full run, which ``annealed`` is added to.
        ensemble: stays as it is.
        examples_at: positions in the split -> x [b, ...] and example numbers [b].
        settings: of the full run.
        plan: of the chains.
        num_examples: how many, at most those of the full run; None for all.
        folder: run folder.
        stamp: fingerprint of the ensemble and the data.
        device: where to run.
        show: progress.

    Returns:
        The summary.
    """
    results = folder / "results"
    per_example = pd.read_parquet(results / "per_example.parquet")
    count = min(len(per_example), num_examples or len(per_example))
    size = len(ensemble.members)
    rows = max(1, settings.samples_per_pass * settings.batch_size // (size * plan.chains))
    content = json.dumps([asdict(plan), settings.dtype, settings.split, rows, settings.refine_steps, stamp])
    place = results / "annealed" / hashlib.sha256(content.encode()).hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    dtype = torch.float64 if settings.dtype == "float64" else torch.float32
    ensemble = ensemble.to(device, dtype)
    meter, parts = Meter("anneal", count, show), []
    for first in range(0, count, rows):
        positions = torch.arange(first, min(first + rows, count))
        path = place / f"{first:08d}.npz"
        part = _read(path, len(positions))
        if part is None:
            x, index = examples_at(positions)
            found = anneal(ensemble, x.to(device, dtype), plan, index.to(device))
            part = {name: value.cpu().numpy() for name, value in found.items()}
            part["index"] = index.cpu().numpy()
            with atomic(path) as temporary, temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **part)
        parts.append(part)
        meter.update(int(positions[-1]) + 1)
    meter.close()
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    table = pd.DataFrame({"index": values["index"], "annealed": values["annealed"]})
    table["annealed_se_mc"] = np.sqrt(values["annealed_var"])
    table["effective_chains"], table["acceptance"] = values["annealed_ess"], values["acceptance"]
    bounds = per_example.set_index("index").loc[values["index"]]
    table["joint_bound"] = bounds["joint_bound"].to_numpy()
    write_csv(table, results / "annealed.csv")
    summary["annealed"] = about(table, plan, size, settings.num_samples)
    write_json(results / "summary.json", summary)
    return summary


def about(table: pd.DataFrame, plan: Plan, size: int, num_samples: int) -> Annealed:
    """Means, errors, passes and a sentence; plain JSON types.

    Args:
        table: of ``annealed.csv``.
        plan: of the chains.
        size: S.
        num_samples: L of the joint bound.
    """
    values, variances = (
        torch.from_numpy(part.to_numpy(float, copy=True))
        for part in (table["annealed"], table["annealed_se_mc"] ** 2)
    )
    gain = paired("gain", (table["annealed"] - table["joint_bound"]).to_numpy(float, copy=True))
    found = {
        "num_data": len(table),
        "annealed": float(values.mean()),
        "annealed_se": float(standard_error(values)),
        "annealed_se_mc": float(monte_carlo_error(variances)),
        "joint_bound": float(table["joint_bound"].mean()),
        **gain,
        "acceptance": float(table["acceptance"].mean()),
        "passes": plan.passes(size),
        "full_passes": size * num_samples,
        "plan": asdict(plan),
    }
    if gain["gain_low"] > 0:
        verdict = (
            f"the joint bound at L = {num_samples} misses at least {gain['gain']:.2g} nats of log p(x) here"
        )
    elif gain["gain_high"] < 0:
        verdict = (
            "so these chains do worse than plain draws here: more temperatures are needed, or none at all"
        )
    else:
        verdict = f"no more than the joint bound at L = {num_samples} has already"
    sentence = (
        f"Annealing from the mixture reaches {gain['gain']:+.3f} nats (95% interval {gain['gain_low']:+.3f} to "
        f"{gain['gain_high']:+.3f}) against the joint bound on {len(table)} examples, with {found['passes']:,} "
        f"gradient passes an example instead of {found['full_passes']:,} forward ones: {verdict}."
    )
    plain = {key: number(value) if isinstance(value, float) else value for key, value in found.items()}
    return plain | {"sentence": sentence}  # type: ignore[return-value]


def _read(path: Path, count: int) -> dict[str, np.ndarray] | None:
    """A finished batch; None where there is none, or none of this size."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as shard:
            values = {name: shard[name] for name in shard.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return values if len(values.get("index", [])) == count else None
