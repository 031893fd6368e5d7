"""Whether the numbers of an evaluation can be trusted: shares, and sentences on what speaks against them."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from miselbo.bounds.diagnostics import k_threshold
from miselbo.evaluation.evidence import HEAVY_TAIL, MOST_LISTED, Evidence
from miselbo.evaluation.verdicts import sentences
from miselbo.report.summary import Trust


def heavy_share(k: np.ndarray, num_draws: int) -> dict[str, float]:
    """Share of the known k-hats [N] above :func:`~miselbo.bounds.diagnostics.k_threshold`, and how many are unknown.

    A k-hat that is not known counts neither as good nor as bad.

    Example:
        >>> heavy_share(np.array([0.6, 0.2, np.nan]), 100)
        {'share_heavy': 0.5, 'k_unknown': 1}
    """
    known = k[~np.isnan(k)]
    share = float((known > k_threshold(num_draws)).mean()) if len(known) else math.nan
    return {"share_heavy": share, "k_unknown": len(k) - len(known)}


def cell_trust(values: dict[str, np.ndarray], cell: tuple[int, int], num_samples: int) -> dict[str, float]:
    """Heavy tails and broken weights of one cell: :func:`heavy_share`, also above 0.7 whatever the number of draws."""
    k = values["pareto_k"][:, *cell]
    known = k[~np.isnan(k)]
    return {
        "k_threshold": k_threshold((cell[0] + 1) * num_samples),
        **heavy_share(k, (cell[0] + 1) * num_samples),
        "share_k_above_0.7": float((known > HEAVY_TAIL).mean()) if len(known) else math.nan,
        "non_finite": int(values["non_finite"][:, *cell].sum()),
    }


def trust(values: dict[str, np.ndarray], headline: Mapping[str, float]) -> Trust:
    """Whether the numbers can be trusted: shares, and a plain sentence for each thing that speaks against them.

    Args:
        values: per-example values of :func:`miselbo.evaluation.scoring.score_all`.
        headline: the last row of :func:`miselbo.evaluation.tables.bounds_table`.

    Returns:
        ``share_pareto_k_above_0.7`` (of the examples whose k-hat is known), ``k_unknown``, ``median_ess``,
        ``largest_responsibility`` (mean over the examples, of the member with most), ``non_finite`` (number of
        examples), ``non_finite_index`` (the first 20 of them), the same of examples whose bound is not finite, and
        ``sentences`` (:data:`miselbo.evaluation.verdicts.VERDICTS`).
    """
    about = Evidence(values, headline)
    k, ess = about.at("pareto_k"), about.at("ess")
    known = k[~np.isnan(k)]
    shares = pd.DataFrame(values["responsibility"][:, -1]).mean().dropna()
    bad = about.index[about.at("non_finite") > 0]
    infinite = about.index[~np.isfinite(about.at("miselbo")) | ~np.isfinite(about.at("joint_bound"))]
    return {
        "share_pareto_k_above_0.7": float((known > HEAVY_TAIL).mean()) if len(known) else None,
        "k_unknown": len(k) - len(known),
        "median_ess": None if np.isnan(ess).all() else float(np.nanmedian(ess)),
        "largest_responsibility": float(shares.max()) if len(shares) else None,
        "non_finite": len(bad),
        "non_finite_index": [int(index) for index in bad[:MOST_LISTED]],
        "bound_non_finite": len(infinite),
        "bound_non_finite_index": [int(index) for index in infinite[:MOST_LISTED]],
        "sentences": sentences(about),
    }


def finite_means(examples: pd.DataFrame) -> dict[str, float]:
    """Means over the examples whose MISELBO and joint bound are finite, and how many these are; empty if all or none.

    Example:
        >>> finite_means(pd.DataFrame({"miselbo": [-1.0, -np.inf], "joint_bound": [-0.5, -np.inf]}))
        {'miselbo': -1.0, 'joint_bound': -0.5, 'num_data': 1}
    """
    bounds = examples[["miselbo", "joint_bound"]]
    kept = bounds[np.isfinite(bounds.to_numpy(float)).all(1)]
    if len(kept) in (0, len(bounds)):
        return {}
    means = {str(name): float(value) for name, value in kept.mean().items()}
    return {**means, "num_data": len(kept)}
