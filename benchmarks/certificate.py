"""How often the certified lower limit of mean log p(x) lies above the truth: at most 5 times in 100.

    python benchmarks/certificate.py

Exact models: the weights p(x) exp(s e - s^2 / 2) with e standard normal have mean p(x) for every s; here log p(x) = 0.
Light (s = 0.5) to hopeless (s = 30), N = 1 to 1,000 examples, L draws of one member or of each of three.
"""

import argparse

import torch

from miselbo.bounds.certificate import lower_limit

CASES = [(1, 1, 1), (1, 1, 10), (1, 3, 10), (20, 1, 1), (20, 1, 100), (20, 3, 10), (1000, 1, 10)]  # N, S, L
SPREADS = (0.5, 1.0, 2.0, 4.0, 8.0, 30.0)


def violations(
    spread: float, num_data: int, size: int, samples: int, repetitions: int, seed: int = 0
) -> tuple[float, float]:
    """Shares of the repetitions whose limit is above the truth: by the joint bound, by the best member alone."""
    generator = torch.Generator().manual_seed(seed)
    joint, best = 0, 0
    for _ in range(repetitions):
        noise = torch.empty(num_data, size, samples, dtype=torch.float64).normal_(generator=generator)
        log_w = spread * noise - spread**2 / 2
        alone = log_w.logsumexp(-1) - torch.tensor(float(samples)).log()
        mixture = alone.logsumexp(-1) - torch.tensor(float(size)).log()
        joint += int(lower_limit(mixture) > 0)
        best += int(lower_limit(alone, statements=size).max() > 0)
    return joint / repetitions, best / repetitions


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=1000)
    options = parser.parse_args()
    print("| N | S | L | " + " | ".join(f"sd {spread:g}" for spread in SPREADS) + " |")
    print("|---|---|---|" + "---|" * len(SPREADS))
    for num_data, size, samples in CASES:
        found = [violations(spread, num_data, size, samples, options.repetitions) for spread in SPREADS]
        cells = [f"{100 * joint:.1f} / {100 * best:.1f}" for joint, best in found]
        print(f"| {num_data:,} | {size} | {samples} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
