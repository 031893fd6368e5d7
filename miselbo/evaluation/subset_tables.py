"""``subsets.csv`` and ``marginal.csv``: which members to use, from per-example values of the scoring pass.

Subsets are ranked by the mean MISELBO. Up to 8 members the ranking is by all L draws, which are also those reported;
so the best of many subsets that are equal in truth looks a little better than it is, by about the standard error
of a difference over the examples. Above 8 members the path is chosen on the even kept samples and reported on the odd.
The path in the order 1..S has no such choice in it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from miselbo.bounds import subsets
from miselbo.bounds.diagnostics import paired
from miselbo.bounds.weights import mixture_weights
from miselbo.evaluation.tables import columns
from miselbo.report.summary import Summary
from miselbo.runtime.files import write_csv

CRITERION = "miselbo"
Subset = tuple[int, ...]


@dataclass(frozen=True)
class Scored:
    """Subsets with their per-example bounds [N] at ``num_samples`` draws per member, and the greedy path."""

    num_samples: int
    of_subset: dict[Subset, dict[str, np.ndarray]]
    path: list[int]
    every: bool

    def prefixes(self) -> list[Subset]:
        """The subsets along the path, each in ascending order."""
        return [tuple(sorted(self.path[:size])) for size in range(1, len(self.path) + 1)]


def write(values: dict[str, np.ndarray], num_samples: int, results: Path) -> Summary:
    """Write ``subsets.csv`` and ``marginal.csv``; nothing, and no file of an earlier evaluation, for S = 1.

    Args:
        values: per-example values of :func:`miselbo.evaluation.shards.score_all`.
        num_samples: L.
        results: the folder.

    Returns:
        What goes into ``summary.json``: ``mixture_weights``, or nothing.
    """
    size = values["miselbo"].shape[1]
    tables = {"subsets.csv": subsets_table, "marginal.csv": marginal_table} if size > 1 else {}
    for name in ("subsets.csv", "marginal.csv"):
        (results / name).unlink(missing_ok=True)
    for name, table in tables.items():
        rows = table(values, num_samples)
        if len(rows):
            write_csv(rows, results / name)
    kept = "kept_log_p" in values and size > 1
    found = mixture_weights(values["kept_log_p"], values["kept_log_q"]) if kept else None
    return {"mixture_weights": found} if found else {}


def scored_subsets(values: dict[str, np.ndarray], num_samples: int) -> Scored:
    """All subsets up to 8 members; above that those of the greedy path, or none where no draws are left to measure on.

    Args:
        values: with ``subset_*`` of :class:`miselbo.bounds.subsets.RunningSubsets` [N, 2^S - 1], or ``kept_log_p``
            [N, S, K] and ``kept_log_q`` [N, S, K, S].
        num_samples: L, of the ``subset_*``.
    """
    if f"subset_{CRITERION}" in values:
        listed = subsets.list_subsets(values["miselbo"].shape[1])
        of_subset = {
            subset: {name: values[f"subset_{name}"][:, position] for name in subsets.NAMES}
            for position, subset in enumerate(listed)
        }
        path = subsets.greedy_path({subset: float(v[CRITERION].mean()) for subset, v in of_subset.items()})
        return Scored(num_samples, of_subset, path, every=True)
    if "kept_log_p" not in values or values["kept_log_p"].shape[2] < 2:
        return Scored(0, {}, [], every=False)
    p, q = torch.from_numpy(values["kept_log_p"]), torch.from_numpy(values["kept_log_q"])
    path = subsets.greedy_path_from_scores(p[:, :, ::2], q[:, :, ::2], CRITERION)
    odd_p, odd_q = p[:, :, 1::2], q[:, :, 1::2]
    scored = Scored(odd_p.shape[2], {}, path, every=False)
    for subset in scored.prefixes():
        found = subsets.subset_bounds(odd_p, odd_q, subset)
        scored.of_subset[subset] = {name: value.numpy() for name, value in found.items()}
    return scored


def subsets_table(values: dict[str, np.ndarray], num_samples: int) -> pd.DataFrame:
    """One row per scored subset.

    Args:
        values: as in :func:`scored_subsets`.
        num_samples: L.

    Returns:
        Columns ``members`` ("1+3+5"), ``size``, ``L``, ``miselbo``, ``joint_bound``, ``average_iwelbo`` and ``delta``
        with ``_se`` over the examples, ``to_best`` (its MISELBO minus that of the best subset of its size, paired, with
        ``_se``, ``_low``, ``_high``; empty for the best itself), ``best_of_size`` (highest mean MISELBO of that size;
        False throughout above 8 members, where not all are scored), ``greedy`` (place in the greedy path, or NaN).
    """
    scored = scored_subsets(values, num_samples)
    place = {subset: size for size, subset in enumerate(scored.prefixes(), 1)}
    best_of: dict[int, np.ndarray] = {}
    for subset, bounds in scored.of_subset.items():
        value = bounds[CRITERION]
        if len(subset) not in best_of or value.mean() > best_of[len(subset)].mean():
            best_of[len(subset)] = value
    rows = []
    for subset, bounds in scored.of_subset.items():
        with np.errstate(invalid="ignore"):  # -inf - -inf where p is zero at all draws
            found = {**bounds, "delta": bounds["miselbo"] - bounds["average_iwelbo"]}
            behind = paired("to_best", bounds[CRITERION] - best_of[len(subset)])
        row: dict[str, object] = {"members": label(subset), "size": len(subset), "L": scored.num_samples}
        for name in found:
            row |= columns(found, name, ())
        if best_of[len(subset)] is bounds[CRITERION]:
            behind = dict.fromkeys(behind, math.nan)
        rows.append({**row, **behind, "greedy": place.get(subset, math.nan)})
    table = pd.DataFrame(
        rows, columns=list(rows[0]) if rows else ["members", "size", "L", *_bound_columns(), "greedy"]
    )
    best = table.groupby("size")[CRITERION].transform("max") == table[CRITERION]
    table.insert(len(table.columns) - 1, "best_of_size", best & scored.every)
    return table


def marginal_table(values: dict[str, np.ndarray], num_samples: int) -> pd.DataFrame:
    """What each added member brings, along the order 1..S (at L) and along the greedy path.

    Args:
        values: as in :func:`scored_subsets`, with ``miselbo`` and ``joint_bound`` [N, S', L'].
        num_samples: L.

    Returns:
        Columns ``path`` ("order" or "greedy"), ``size``, ``member`` added, ``members``, ``L``, and for ``miselbo`` and
        ``joint_bound`` the value and ``_gain``, ``_gain_se``, ``_gain_low``, ``_gain_high``: the mean difference to the
        row above over the same examples with its 95% interval, NaN in the first row of a path.
    """
    size = values["miselbo"].shape[1]
    names = ("miselbo", "joint_bound")
    nested = [{name: values[name][:, s, -1] for name in names} for s in range(size)]
    rows = _path_rows("order", list(range(size)), nested, num_samples)
    scored = scored_subsets(values, num_samples)
    steps = [scored.of_subset[subset] for subset in scored.prefixes()]
    rows += _path_rows("greedy", scored.path, steps, scored.num_samples)
    return pd.DataFrame(rows)


def _path_rows(
    path: str, members: Sequence[int], steps: Sequence[dict[str, np.ndarray]], num_samples: int
) -> list[dict[str, object]]:
    rows = []
    for position, (member, bounds) in enumerate(zip(members, steps, strict=True)):
        so_far = label(sorted(members[: position + 1]))
        row: dict[str, object] = {
            "path": path,
            "size": position + 1,
            "member": member + 1,
            "members": so_far,
            "L": num_samples,
        }
        for name in ("miselbo", "joint_bound"):
            before = steps[position - 1][name] if position else np.full_like(bounds[name], math.nan)
            with np.errstate(invalid="ignore"):
                row |= {name: float(bounds[name].mean()), **paired(f"{name}_gain", bounds[name] - before)}
        rows.append(row)
    return rows


def label(subset: Sequence[int]) -> str:
    """Members counted from 1.

    Example:
        >>> label((0, 2, 4))
        '1+3+5'
    """
    return "+".join(str(s + 1) for s in subset)


def _bound_columns() -> list[str]:
    of_bounds = [f"{name}{end}" for name in (*subsets.NAMES, "delta") for end in ("", "_se")]
    return [*of_bounds, *(f"to_best{end}" for end in ("", "_se", "_low", "_high"))]
