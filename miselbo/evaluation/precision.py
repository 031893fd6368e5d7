"""Every example's log p(x) to a given Monte Carlo error: L grows example by example."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from miselbo.bounds.equations import check_scores
from miselbo.bounds.jackknife import joint_jackknife
from miselbo.errors import InputError
from miselbo.noise import derive
from miselbo.report.summary import Summary
from miselbo.runtime.files import write_csv, write_json
from miselbo.runtime.progress import Meter

if TYPE_CHECKING:  # it imports the check of a goal
    from miselbo.evaluation.settings import Settings

STREAM = int.from_bytes(b"precise")  # keeps these seeds apart from others derived of the same one
FIRST = 16  # draws per member that every example gets


class DrawSource(Protocol):
    """Where scores come from, by the examples' positions."""

    num_members: int
    num_data: int

    def at(self, positions: Tensor, num_samples: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Example numbers [b], log_p [b, S, n] and log_q [b, S, n, S] of some examples with noise of a seed."""


@dataclass(frozen=True)
class Precise:
    """Examples at the draws each needed.

    Args:
        table: index, L (per member), log_p_bound (the joint bound), se_mc, debiased (an estimate of log p(x), no
            bound), reached.
        goal: nats.
        most: draws per member at most.
        passes: decoder passes in all.
        uniform_passes: with the same L for all, that of the example that needed most.
    """

    table: pd.DataFrame
    goal: float
    most: int
    passes: int
    uniform_passes: int

    @property
    def sentence(self) -> str:
        """What was reached, with the examples that were not."""
        missed = self.table.loc[~self.table["reached"], "index"].tolist()
        text = (
            f"log p(x) of {len(self.table) - len(missed)} of {len(self.table)} examples to {self.goal:g} nats with "
            f"{self.passes:,} decoder passes; one L for all would take {self.uniform_passes:,}."
        )
        if missed:
            listed = ", ".join(map(str, missed[:20])) + (", ..." if len(missed) > 20 else "")
            text += (
                f" Not reached with {self.most} draws per member: {len(missed)} examples (index {listed})."
            )
        return text


def to_precision(
    source: DrawSource, goal: float, most: int, seed: int = 0, batch_size: int = 100, show: bool = False
) -> Precise:
    """Draw 16, 32, 64, ... samples per member of an example until the error of its joint bound is at most ``goal``.

    The k-th doubling draws with noise of (seed, k, example, member, sample), whatever the other examples need.

    Args:
        source: of the scores.
        goal: nats.
        most: draws per member at most.
        seed: key of the noise.
        batch_size: examples at once in the first round.
        show: progress.

    Raises:
        InputError: a goal that is not positive, or fewer than 16 draws at most.
    """
    check_precision(goal, most)
    meter, rows, done = Meter("precision", source.num_data, show), [], 0
    with torch.inference_mode():
        for positions in torch.arange(source.num_data).split(batch_size):
            rows += _batch(source, positions, float(goal), most, seed)
            done += len(positions)
            meter.update(done)
    meter.close()
    table = pd.DataFrame(rows).sort_values("position").drop(columns="position").reset_index(drop=True)
    draws = int(table["L"].sum()) * source.num_members
    return Precise(table, goal, most, draws, int(table["L"].max()) * source.num_members * len(table))


def add(
    summary: Summary, source: DrawSource, goal: float, settings: "Settings", results: Path, show: bool
) -> None:
    """Write ``precision.csv``, and what it says into ``summary.json``.

    Args:
        summary: of the run, which ``precision`` is added to.
        source: of the scores.
        goal: nats.
        settings: of the evaluation; L is the most draws.
        results: the folder.
        show: progress.
    """
    found = to_precision(source, goal, settings.num_samples, settings.seed, settings.batch_size, show)
    write_csv(found.table, results / "precision.csv")
    summary["precision"] = {
        "goal": goal,
        "reached": int(found.table["reached"].sum()),
        "num_data": len(found.table),
        "mean_log_p_bound": float(found.table["log_p_bound"].mean()),
        "mean_debiased": float(found.table["debiased"].mean()),
        "passes": found.passes,
        "uniform_passes": found.uniform_passes,
        "sentence": found.sentence,
    }
    write_json(results / "summary.json", summary)
    print(found.sentence)


def check_precision(goal: object, most: int) -> None:
    """Refuse what cannot be a goal.

    Raises:
        InputError: a goal that is not positive, or fewer than 16 draws at most.
    """
    if isinstance(goal, bool) or not isinstance(goal, int | float) or not 0 < goal < np.inf:
        raise InputError(f"evaluation.precision must be a positive number of nats or null, got {goal!r}")
    if most < FIRST:
        raise InputError(
            f"evaluation.precision begins with {FIRST} draws per member: num_samples={most} is fewer"
        )


def _batch(
    source: DrawSource, positions: Tensor, goal: float, most: int, seed: int
) -> list[dict[str, float]]:
    """Rows of some examples, in the order in which they are finished."""
    rows: list[dict[str, float]] = []
    total, doubling = 0, 0
    log_w = torch.zeros(len(positions), source.num_members, 0, dtype=torch.float64)
    while len(positions):
        new = min(max(FIRST, total), most - total)
        parts, index = [], []
        for some in positions.split(max(1, len(positions) * FIRST // new)):
            numbers, log_p, log_q = source.at(some, new, derive(seed, STREAM, doubling))
            log_p, log_q = check_scores(log_p, log_q)
            parts.append((log_p - log_q.logsumexp(-1) + np.log(source.num_members)).cpu())
            index.append(numbers.cpu())
        log_w, numbers = torch.cat([log_w, torch.cat(parts)], 2), torch.cat(index)
        total, doubling = total + new, doubling + 1
        value, variance, debiased = joint_jackknife(log_w)
        error = variance.sqrt()
        reached = error <= goal
        finished = reached | (total >= most)
        columns: Sequence[Tensor] = (positions, numbers, value, error, debiased, reached)
        for row in finished.nonzero()[:, 0].tolist():
            place, number, bound, se, estimate, good = (column[row].item() for column in columns)
            rows.append(
                {
                    "position": place, "index": number, "L": total, "log_p_bound": bound, "se_mc": se,
                    "debiased": estimate, "reached": bool(good),
                }
            )  # fmt: skip
        positions, log_w = positions[~finished], log_w[~finished]
    return rows
