"""How often value +- 1.96 printed Monte Carlo errors hold the expected bound: 95 times in 100, were the errors true.

    python benchmarks/coverage.py --out docs/benchmarks

A repetition is an evaluation of N = 20 examples through the tables of ``evaluate_scores``; the truth is the mean over
very many other examples. S members N(s, 1) draw z; log p / q_mix there is normal with standard deviation 1, 4 or 8, or
that of a power tail (weights u^-k, k = .64: the mean is finite, the variance is not). ``marked`` is the share of the
repetitions whose table says itself that the error is too small (``<name>_se_mc_trusted`` is False).
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from miselbo.bounds.running import RunningBounds
from miselbo.evaluation import tables

EXAMPLES = 20
NAMES = ("miselbo", "joint_bound", "average_iwelbo", "average_elbo", "delta", "jsd")
WEIGHTS = {
    "sd 1": ("normal", 1.0),
    "sd 4": ("normal", 4.0),
    "sd 8": ("normal", 8.0),
    "k .64": ("power", 0.64),
}
PIECE = 1000


def scores(
    weights: str, count: int, size: int, samples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """log_p [count, S, L] and log_q [count, S, L, S]."""
    kind, scale = WEIGHTS[weights]
    shape = (count, size, samples)
    means = torch.arange(size, dtype=torch.float64)
    z = torch.empty(shape, dtype=torch.float64).normal_(generator=generator) + means[:, None]
    log_q = -(z[..., None] - means).square() / 2
    spread = torch.empty(shape, dtype=torch.float64)
    if kind == "normal":
        spread.normal_(0, scale, generator=generator)
    else:
        spread = -scale * spread.uniform_(generator=generator).log()
    return spread + log_q.logsumexp(-1) - math.log(size), log_q


def values(
    weights: str, count: int, size: int, grid: tuple[int, ...], generator: torch.Generator
) -> Iterator[dict[str, Tensor]]:
    """Per-example values, in pieces."""
    for start in range(0, count, PIECE):
        running = RunningBounds(size, grid)
        running.update(*scores(weights, min(PIECE, count - start), size, grid[-1], generator))
        yield running.result()


def coverage(
    weights: str, size: int, grid: tuple[int, ...], repetitions: int, reference: int, seed: int = 0
) -> pd.DataFrame:
    """One row per (L, quantity): coverage, share marked, and the root mean square error printed over the true one."""
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {}
    for part in values(weights, reference, size, grid, generator):
        for name in NAMES:
            sums[name] = sums.get(name, 0) + part[name][:, -1].sum(0)
    truth = {name: total / reference for name, total in sums.items()}
    rows = []
    for part in values(weights, EXAMPLES * repetitions, size, grid, generator):
        arrays = {name: value.numpy() for name, value in part.items()}
        for first in range(0, len(arrays["miselbo"]), EXAMPLES):
            one = {name: value[first : first + EXAMPLES] for name, value in arrays.items()}
            table = tables.bounds_table(one, grid, 1.0)
            rows += table[table["S"] == size].to_dict("records")
    found = []
    for position, samples in enumerate(grid):
        of_l = pd.DataFrame([row for row in rows if row["L"] == samples])
        for name in NAMES if size > 1 else NAMES[:4]:
            error = of_l[f"{name}_se_mc"]
            off = (of_l[name] - float(truth[name][position])).abs()
            found.append(
                {
                    "weights": weights,
                    "S": size,
                    "L": samples,
                    "quantity": name,
                    "coverage": float((off <= 1.96 * error).mean()),
                    "marked": float((~of_l[f"{name}_se_mc_trusted"]).mean()),
                    "printed_over_true": math.sqrt(float((error**2).mean())) / float(of_l[name].std()),
                }
            )
    return pd.DataFrame(found)


def wide(table: pd.DataFrame) -> str:
    """Markdown: a row per (weights, S, L), coverage of every quantity, and the share marked where it is not 0."""
    lines = [
        f"| log-weights | S | L | {' | '.join(f'`{name}`' for name in NAMES)} |",
        "|---|---|---|" + "---|" * len(NAMES),
    ]
    for key, rows in table.groupby(["weights", "S", "L"], sort=False):
        cells = []
        for name in NAMES:
            one = rows[rows["quantity"] == name]
            if len(one) == 0:
                cells.append("")
                continue
            covered, marked = one["coverage"].iloc[0], one["marked"].iloc[0]
            cells.append(f"{covered:.3f}" + (f" ({marked:.0%} marked)" if marked else ""))
        lines.append(f"| {' | '.join(map(str, key))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=400)
    parser.add_argument("--reference", type=int, default=100_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--samples", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--weights", nargs="+", choices=list(WEIGHTS), default=list(WEIGHTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for coverage.csv")
    options = parser.parse_args()
    parts = []
    for weights in options.weights:
        for size in options.sizes:
            for samples in options.samples:  # an evaluation of its own each: no row below L
                reference = options.reference
                parts.append(
                    coverage(weights, size, (samples,), options.repetitions, reference, options.seed)
                )
                print(parts[-1].to_string(index=False, float_format="%.3f"), flush=True)
    table = pd.concat(parts)
    print(wide(table))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.out / "coverage.csv", index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
