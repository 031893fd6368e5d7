"""Whether the numbers of an evaluation can be trusted: shares, and sentences on what speaks against them."""

import math
from typing import Any

import numpy as np
import pandas as pd

from miselbo.bounds.diagnostics import k_threshold

HEAVY_TAIL = 0.7  # Pareto k-hat above which a mean of weights is not to be trusted
MOST_LISTED = 20


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


def trust(examples: pd.DataFrame, headline: dict[str, Any]) -> dict[str, Any]:
    """Whether the numbers can be trusted: shares, and a plain sentence for each thing that speaks against them.

    Args:
        examples: :func:`example_table`.
        headline: the last row of :func:`bounds_table`.

    Returns:
        ``share_pareto_k_above_0.7`` (of the examples whose k-hat is known), ``k_unknown``, ``median_ess``,
        ``largest_responsibility`` (mean over the examples, of the member with most), ``non_finite`` (number of
        examples), ``non_finite_index`` (the first 20 of them) and ``sentences``.
    """
    k = examples["pareto_k"].dropna()
    bad = examples.loc[examples["non_finite"] > 0, "index"]
    shares = examples.filter(regex=r"^responsibility_\d+$").mean().dropna()
    bounds = examples[["miselbo", "joint_bound"]].to_numpy(float)
    infinite = examples.loc[~np.isfinite(bounds).all(1), "index"]
    found = {
        "share_pareto_k_above_0.7": float((k > HEAVY_TAIL).mean()) if len(k) else None,
        "k_unknown": len(examples) - len(k),
        "median_ess": None if examples["ess"].isna().all() else float(examples["ess"].median()),
        "largest_responsibility": float(shares.max()) if len(shares) else None,
        "non_finite": len(bad),
        "non_finite_index": [int(index) for index in bad[:MOST_LISTED]],
        "bound_non_finite": len(infinite),
        "bound_non_finite_index": [int(index) for index in infinite[:MOST_LISTED]],
    }
    dominating = str(shares.idxmax()).removeprefix("responsibility_") if len(shares) else ""
    sentences = [
        *_about_bounds(examples, found),
        *_about_weights(found, headline),
        *_about_members(found, headline, dominating),
    ]
    names = ("miselbo", "joint_bound", "average_iwelbo", "average_elbo")
    lost = [name for name in names if name in headline and not _is_finite(headline[name])]
    if lost and not sentences:
        sentences.append(f"Not finite: {', '.join(lost)}; some draws lie outside the support of the model.")
    none = (
        "No warning: weights are finite, tails light where known, samples enough, members overlap and differ."
    )
    return {**found, "sentences": sentences or [none]}


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


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


def _about_bounds(examples: pd.DataFrame, found: dict[str, Any]) -> list[str]:
    """Examples whose bound itself is not finite."""
    count = found["bound_non_finite"]
    if not count:
        return []
    listed = ", ".join(map(str, found["bound_non_finite_index"])) + (", ..." if count > MOST_LISTED else "")
    means = finite_means(examples)
    rest = (
        f"Over the other {means['num_data']} examples the mean MISELBO is {means['miselbo']:.4f} and the mean joint "
        f"bound {means['joint_bound']:.4f}."
        if means
        else "No example has a finite bound."
    )
    return [
        f"Non-finite bound: example index {listed} ({count} of {len(examples)}) has a bound of -inf or NaN, as where "
        f"all its draws lie outside the support of the model, so the mean is not finite. {rest}"
    ]


def _about_weights(found: dict[str, Any], headline: dict[str, Any]) -> list[str]:
    """Broken weights, heavy tails, too few samples."""
    samples, draws = int(headline["L"]), int(headline["S"] * headline["L"])
    sentences = []
    if found["non_finite"]:
        listed = ", ".join(map(str, found["non_finite_index"]))
        more = ", ..." if found["non_finite"] > MOST_LISTED else ""
        sentences.append(
            f"Non-finite weights: {found['non_finite']} examples have a NaN or infinite log-density (index {listed}"
            f"{more}). They are in every mean, so a mean may be NaN or infinite; look at these inputs, or score in "
            "float64."
        )
    share = found["share_pareto_k_above_0.7"]
    if share is not None and share > 0.1:
        sentences.append(
            f"Heavy tails: {share:.0%} of the examples have a Pareto k-hat above 0.7, so a few rare draws decide "
            "their bounds, and the Monte Carlo errors are too small. The bounds still are lower bounds in "
            "expectation; raise evaluation.num_samples, or train the members longer."
        )
    if samples > 1 and found["median_ess"] is not None and found["median_ess"] < min(10, 0.9 * draws):
        sentences.append(
            f"Too few samples: the median effective sample size is {found['median_ess']:.1f} of {draws} draws, "
            "so each bound rests on a few of them; raise evaluation.num_samples."
        )
    delta, error = headline.get("delta"), headline.get("delta_se_mc")
    round_off = 1e-12 * max(1.0, abs(headline.get("miselbo") or 0.0))
    several = headline["S"] > 1 and delta is not None and error is not None
    if several and abs(delta or 0.0) > round_off and (error or 0.0) > abs(delta or 0.0) / 2:
        sentences.append(
            f"Too few samples for Delta: its Monte Carlo error ({error:.2g}) is more than half of Delta "
            f"({delta:.2g}), so even its sign is open; raise evaluation.num_samples or evaluation.num_examples, or "
            "read Delta at a smaller L."
        )
    return sentences


def _about_members(found: dict[str, Any], headline: dict[str, Any], dominating: str) -> list[str]:
    """One member dominates, members collapsed, members that do not overlap."""
    size, jsd = int(headline["S"]), headline["jsd"]
    if size == 1 or jsd is None:
        return []
    most = math.log(size)
    sentences = []
    share = found["largest_responsibility"]
    if share is not None and share > 0.9:
        sentences.append(
            f"One member dominates: q{dominating} holds {share:.0%} of the posterior, so the others add little but "
            "cost MISELBO through their equal weights (slack). Compare the joint bound and the mixture weights, and "
            "train the others longer or leave them out."
        )
    jsd_error = headline.get("jsd_se_mc")
    if jsd_error is not None and jsd < -3 * jsd_error and jsd < -1e-9:
        sentences.append(
            f"Impossible JSD: {jsd:.3f} is more than 3 Monte Carlo errors ({jsd_error:.3f}) below 0, which no "
            "divergence is, so log_q cannot be that of the members that drew: look at its axes, or whether "
            "it was computed at another x."
        )
    elif jsd < 0.01:
        sentences.append(
            "The members have collapsed to nearly one approximation (JSD near 0): scored as one mixture they are "
            "hardly better than one alone. Give them other seeds, other architectures or less shared training."
        )
    if jsd > 0.95 * most:
        sentences.append(
            f"The members hardly overlap (JSD near log S = {most:.3f}): at L = 1 the gain over the average is log S "
            "whatever the members are, so Delta says nothing about their quality. Judge by the joint bound and by "
            "the best single member."
        )
    return sentences
