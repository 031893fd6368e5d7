"""``worth.csv`` and one sentence: do S members beat the best one at equal cost?"""

import json
from collections.abc import Mapping

import numpy as np
import pandas as pd

from miselbo.bounds.worth import against_best, shares
from miselbo.report.summary import Summary
from miselbo.runtime.words import reword

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def worth_table(values: dict[str, np.ndarray], num_samples: int) -> pd.DataFrame:
    """One row per number of decoder passes B: S members with B / S draws each against the best with B.

    Args:
        values: with ``worth_*`` of :class:`miselbo.bounds.worth.RunningWorth`.
        num_samples: L.

    Returns:
        ``passes`` B, ``L`` = B / S, and what :func:`miselbo.bounds.worth.against_best` gives; no row for S = 1,
        L < S or fewer than four finite examples.
    """
    rows = []
    size = values["miselbo"].shape[1]
    for k, share in enumerate(shares(size, num_samples)):
        at = (values[f"worth_{name}"][..., k] for name in ("joint", "miselbo", "iwelbo"))
        found = against_best(*at)
        if found:
            best = "+".join(f"q{s}" for s in found["best"])
            rows.append({"passes": size * share, "S": size, "L": share, **found, "best": best})
    return pd.DataFrame(rows)


def verdict(table: pd.DataFrame) -> str | None:
    """The row with most passes in a sentence; None without one.

    Example:
        >>> row = {"passes": 100, "S": 5, "L": 20, "best": "q2", "joint_gain": 0.0029, "joint_gain_low": -0.0018}
        >>> verdict(pd.DataFrame([row | {"joint_gain_high": 0.0076, "miselbo_gain": -0.02}]))[:52]
        'Five members do not beat the best one at equal cost:'
    """
    if not len(table):
        return None
    row = table.iloc[-1].to_dict()
    size = int(row["S"])
    several = NUMBERS[size].capitalize() if size < len(NUMBERS) else str(size)
    low, high = row["joint_gain_low"], row["joint_gain_high"]
    claim = "beat" if low > 0 else "do not beat"
    best = f"{row['best'].replace('+', ' or ')}, chosen on the other half of the examples"
    return (
        f"{several} members {claim} the best one at equal cost: with {row['passes']} decoder passes per example, the "
        f"joint bound of all minus the IWELBO of the best alone ({best}) is "
        f"{row['joint_gain']:+.4f} nats (95% interval {low:+.4f} to {high:+.4f}); MISELBO minus it "
        f"{row['miselbo_gain']:+.4f}."
    )


def summary(table: pd.DataFrame, words: Mapping[str, str]) -> Summary:
    """What goes into ``summary.json``: ``worth`` with the ``sentence`` and the ``rows`` of the table, or nothing."""
    sentence = verdict(table)
    if sentence is None:
        return {}
    rows = json.loads(table.to_json(orient="records", double_precision=15))
    return {"worth": {"sentence": reword(sentence, words), "rows": rows}}
