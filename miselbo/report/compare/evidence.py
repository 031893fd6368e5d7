"""Bayes factors of trees: how much more probable one model's sequences are than another's."""

import math
from collections.abc import Sequence

import pandas as pd

from miselbo.report.compare.pairs import Entry, couples
from miselbo.report.folder import RunFolder
from miselbo.report.trees import load

FEW = 100  # effective draws below which a log marginal likelihood is not to be trusted


def table(entries: Sequence[Entry], over: str) -> pd.DataFrame:
    r"""log BF = log p(Y | other) - log p(Y | first) for every entry after the first; empty where there are no trees.

    The two estimates are taken as independent: the error is the root of the sum of their squares; the interval
    is 1.96 of it. Over seeds the estimates are averaged on the scale of log p. ``trusted`` is False where one rests on
    few effective draws.
    """
    rows = []
    for entry in entries[1:]:
        pairs = couples(entries[0], entry, over)
        found = [(_marginal(one), _marginal(two)) for one, two in pairs]
        known = [(one, two) for one, two in found if one is not None and two is not None]
        if len(known) < len(found):
            continue
        count = len(known)
        sums = [_mean([pair[side] for pair in known]) for side in (0, 1)]
        error = math.hypot(sums[0]["se"], sums[1]["se"])
        factor = sums[1]["value"] - sums[0]["value"]
        rows.append(
            {
                "run": entry.name,
                "against": entries[0].name,
                "log_marginal_first": sums[0]["value"],
                "log_marginal_first_se": sums[0]["se"],
                "log_marginal_other": sums[1]["value"],
                "log_marginal_other_se": sums[1]["se"],
                "log_bayes_factor": factor,
                "log_bayes_factor_se": error,
                "log_bayes_factor_low": factor - 1.96 * error,
                "log_bayes_factor_high": factor + 1.96 * error,
                "trusted": min(sums[0]["ess"], sums[1]["ess"]) >= FEW,
                "num": count,
            }
        )
    return pd.DataFrame(rows)


def _marginal(run: RunFolder) -> dict[str, float] | None:
    """Value, error and effective draws of a run's log marginal likelihood; None where it has no trees."""
    if "trees" not in run.sections:
        return None
    found = load(run.path / "results")
    if found is None:
        return None
    return {"value": found["log_marginal"], "se": found["log_marginal_se"], "ess": found["ess"]}


def _mean(each: Sequence[dict[str, float]]) -> dict[str, float]:
    count = len(each)
    return {
        "value": math.fsum(one["value"] for one in each) / count,
        "se": math.sqrt(math.fsum(one["se"] ** 2 for one in each)) / count,
        "ess": min(one["ess"] for one in each),
    }
