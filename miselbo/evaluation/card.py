"""The protocol card: ``results/card.json`` says of one result all that another must know to repeat it, and its values.

Every field is one that :mod:`miselbo.evaluation.check` can hold against the folder: data, model, tables, new scores.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from miselbo.bounds.certificate import lower_limit
from miselbo.bounds.diagnostics import standard_error
from miselbo.bounds.quantities import NEEDED as BOUNDS
from miselbo.evaluation.tables import error_of_mean
from miselbo.report.summary import Summary
from miselbo.runtime.files import write_json

FORMAT = 1
ESTIMATOR = (
    "multiple importance sampling: L draws of each of S equally weighted members, each scored under all"
)
DATA = ("dataset", "split", "split_rule", "binarisation", "binarisation_seed", "likelihood", "alignment", "data_sha256",
        "num_data")  # fmt: skip
MODEL = ("model", "fingerprint", "target_fingerprint", "remark")
SETTINGS = ("S", "L", "grid", "seed", "evaluation_seed", "dtype", "compile", "refine_steps")
ORIGIN = ("device", "versions", "commit")


def card(summary: Summary, examples: pd.DataFrame, table: Path) -> dict[str, object]:
    """The card of a result.

    Args:
        summary: content of ``summary.json``; its protocol has the fields on data, model, settings and origin.
        examples: ``per_example.parquet``; every value, error and share is computed from it.
        table: its file, for the hash.

    Returns:
        Plain JSON types by field.
    """
    protocol: Mapping[str, object] = summary["protocol"]
    given = {name: protocol[name] for name in (*DATA, *MODEL, *SETTINGS, *ORIGIN) if name in protocol}
    evaluation = summary["cost"][-1]
    return {
        "card": FORMAT,
        "estimator": ESTIMATOR,
        **given,
        **values(examples, summary["certificate"]["confidence"], summary["certificate"].get("looks", 1)),
        "decoder_passes": evaluation["decoder_passes"],
        "seconds": evaluation["seconds"],
        "per_example_sha256": hashlib.sha256(table.read_bytes()).hexdigest(),
    }


def values(examples: pd.DataFrame, confidence: float, looks: int = 1) -> dict[str, object]:
    """Mean, error over the data and Monte Carlo error of every bound, certificate and k-hat shares, of a table.

    Returns:
        ``<bound>``, ``<bound>_se``, ``<bound>_se_mc``, ``confidence``, ``certificate`` (of the joint bound),
        ``k_unknown`` (a share), ``share_pareto_k_above_0.7`` (of the known ones) and ``non_finite`` (draws); None is no
        finite number.
    """
    found: dict[str, float] = {}
    for name in BOUNDS:
        column = torch.from_numpy(np.array(examples[name], dtype=float))
        variances = torch.from_numpy(np.square(np.array(examples[f"{name}_se_mc"], dtype=float)))
        found |= {name: float(column.mean()), f"{name}_se": float(standard_error(column))}
        found[f"{name}_se_mc"] = error_of_mean(name, variances)
    k = np.array(examples["pareto_k"], dtype=float)
    known = k[~np.isnan(k)]
    joint = torch.from_numpy(np.array(examples["joint_bound"], dtype=float))
    found |= {"confidence": confidence, "certificate": float(lower_limit(joint, confidence, looks))}
    found["k_unknown"] = float(np.isnan(k).mean())
    found["share_pareto_k_above_0.7"] = float((known > 0.7).mean()) if len(known) else np.nan
    found["non_finite"] = float(examples["non_finite"].sum())
    return {name: value if np.isfinite(value) else None for name, value in found.items()}


def write(folder: Path, summary: Summary) -> dict[str, object]:
    """Write ``results/card.json`` of a run folder whose tables are written; returns the card."""
    table = folder / "results" / "per_example.parquet"
    made = card(summary, pd.read_parquet(table), table)
    write_json(folder / "results" / "card.json", made)
    return made
