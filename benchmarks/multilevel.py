"""Multilevel against the full run: passes, seconds, agreement; and on images simulated from the model.

    python benchmarks/multilevel.py RUN_DIR --samples 1024 --goal 0.01 --full FULL_RUN_DIR
    python benchmarks/multilevel.py RUN_DIR --samples 1024 --simulated 10000
    python benchmarks/multilevel.py FULL_RUN_DIR --kept 200 --samples 256 --goal 0.01

The first compares with ``bounds.csv`` of a full evaluation (another seed, all L' of the levels), the third takes draws
with replacement from its kept scores (``evaluation.save_scores=true``), whose expectation is known, 200 times.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from miselbo import evaluate, load_run
from miselbo.bounds import levels, multilevel

NAMES = ("miselbo", "joint_bound", "average_iwelbo", "delta", "jsd", "average_elbo")
SAID = ("miselbo", "joint_bound", "average_iwelbo")


def row(label, result, seconds):
    """One line of the table."""
    about, headline = result.summary["multilevel"], result.summary["headline"]
    goals = ", ".join(f"{about['goals'][name]:.4f}" for name in SAID)
    errors = ", ".join(f"{about['errors'][name]:.4f}" for name in SAID)
    print("| images | S | L | goals | errors reached | passes | full run's | ratio | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|")
    print(
        f"| {label} | {headline['S']} | {headline['L']} | {goals} | {errors} | {about['passes']:,} | "
        f"{about['full_passes']:,} | 1/{about['full_passes'] / about['passes']:.1f} | {seconds:.0f} |",
        flush=True,
    )


def agree(result, folder):
    """Largest difference to a full run over its cells, in combined errors."""
    full = pd.read_csv(Path(folder) / "results" / "bounds.csv").set_index(["S", "L"])
    found, worst = result.bounds.set_index(["S", "L"]), []
    for name in NAMES:
        error = np.hypot(full[f"{name}_se_mc"], found[f"{name}_se_mc"])
        away = ((found[name] - full[name]).abs() / error).where(error > 1e-12).dropna()
        worst.append(
            f"{name} {away.max():.2f} at S, L = {away.idxmax()}, {int((away > 3).sum())} of {len(away)} above 3"
        )
    print("differences in combined errors:", *worst, sep="\n  ")


class Kept:
    """Kept scores as the population that draws are taken from, with replacement."""

    def __init__(self, folder, draws):
        place = Path(folder) / "results" / "scores"
        self.log_p = torch.from_numpy(np.load(place / "log_p.npy"))
        self.log_q = torch.from_numpy(np.load(place / "log_q.npy"))
        self.draws = draws

    def corrections(self, index, k, generator):
        """[2, U, C] of level k at some examples: f and Y."""
        size, most = self.log_p.shape[1:]
        chosen = torch.randint(most, (len(index), size, self.draws[k]), generator=generator)
        log_p = self.log_p[index].gather(2, chosen)
        log_q = self.log_q[index].gather(2, chosen[..., None].expand(*chosen.shape, size))
        blocks = self.draws[k] // self.draws[k - 1] if k else 0
        found = multilevel.corrections(log_p, log_q, blocks, subsets=False)
        return torch.cat([found[name].flatten(2) for name in NAMES], 2)

    def run(self, seed, goal):
        """Estimates and errors at L of one seed."""
        generator, count = torch.Generator().manual_seed(seed), len(self.log_p)
        orders = [torch.randperm(count, generator=generator) for _ in self.draws]
        known = {}

        def measure(units, of_pilot):
            parts = []
            for k, n in enumerate(units):
                index, values = [], []
                for r, size in enumerate(levels.replicates(n, count, k, of_pilot), 5000 * of_pilot):
                    have = known.setdefault((k, r), [])
                    done = sum(map(len, have))
                    for part in orders[k][done:size].split(max(1, 4096 // self.draws[k])):
                        have.append(self.corrections(part, k, generator)[1])
                    index.append(orders[k][:size])
                    values.append(torch.cat(have)[:size])
                parts.append(levels.level(torch.cat(index), torch.cat(values), count))
            return parts

        size = self.log_p.shape[1]
        of = [size - 1, 2 * size - 1, 3 * size - 1]
        goals = torch.full((3,), goal, dtype=torch.float64)
        limit = count * self.draws[-1]
        units, parts = levels.reach(measure, lambda _: goals, self.draws, count, of, limit)
        means, errors = levels.estimates(parts)
        return means[-1], errors[-1], levels.passes(units, self.draws, count, 1) / limit

    def truth(self, repetitions):
        """Expectation at L, [C], and its error."""
        generator = torch.Generator().manual_seed(10_000)
        found, k = [], len(self.draws) - 1
        for _ in range(repetitions):
            parts = torch.arange(len(self.log_p)).split(max(1, 4096 // self.draws[k]))
            found.append(torch.cat([self.corrections(part, k, generator)[0] for part in parts]).mean(0))
        values = torch.stack(found)
        return values.mean(0), values.std(0) / repetitions**0.5


def coverage(folder, samples, goal, seeds):
    """Share of seeds whose interval holds the expectation, of every quantity."""
    kept = Kept(folder, multilevel.chain(samples))
    truth, error = kept.truth(40)
    runs = [kept.run(seed, goal) for seed in range(seeds)]
    means, errors = (torch.stack([run[part] for run in runs]) for part in range(2))
    inside = ((means - truth).abs() <= 1.96 * (errors.square() + error.square()).sqrt()).double().mean(0)
    moving = means.std(0) > 1e-9
    size = kept.log_p.shape[1]
    print(
        f"goal {goal}, L = {samples}, {seeds} seeds, {np.mean([run[2] for run in runs]):.3f} of the full run's draws"
    )
    for number, (share, moves) in enumerate(zip(inside.tolist(), moving.tolist(), strict=True)):
        if moves:
            print(f"  {NAMES[number // size]}, S = {number % size + 1}: {share:.3f}")
    print(
        f"lowest {inside[moving].min():.3f}, mean {inside[moving].mean():.3f}, highest {inside[moving].max():.3f}"
    )


def main():
    """What the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument(
        "--goal", type=float, default=None, help="nats; default a fifth of the error over the data"
    )
    parser.add_argument("--simulated", type=int, default=0, help="so many images simulated from the model")
    parser.add_argument("--full", default=None, help="run folder of a full evaluation to compare with")
    parser.add_argument("--kept", type=int, default=0, help="seeds of the coverage from kept scores")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.kept:
        coverage(args.run, args.samples, args.goal or 0.01, args.kept)
        return
    run = load_run(args.run)
    ensemble, goal = run.ensemble(), args.goal or "auto"
    if args.simulated:
        parts = torch.arange(args.simulated).split(500)
        x = torch.cat([ensemble.target.simulate(part, 0)[0] for part in parts])
        label = f"{args.simulated:,} simulated"
    else:
        data = run.data()
        x = torch.cat([batch[data.input_key] for batch in data.evaluation_batches("test", 100)])
        label = f"{len(x):,} of the test split"
    start = time.process_time()
    result = evaluate(
        ensemble.target,
        ensemble.members,
        x,
        args.samples,
        method="multilevel",
        stop_at_se=goal,
        progress=True,
    )
    row(label, result, time.process_time() - start)
    if args.full:
        agree(result, args.full)


if __name__ == "__main__":
    main()
