"""Multilevel on exact Gaussians: z ~ N(0, 1), x | z ~ N(z, 1), members N(x/2 + shift_s, spread_s)."""

import math

import torch
from torch.distributions import Normal

from miselbo.bounds import levels, multilevel


class Exact:
    def __init__(self, num_examples, shifts, spreads, draws):
        self.x = 1.4 * torch.linspace(-2, 2, num_examples, dtype=torch.float64)
        self.shifts, self.spreads = torch.tensor(shifts).double(), torch.tensor(spreads).double()
        self.draws = draws

    def scores(self, index, n, generator):
        mean = self.x[index, None] / 2 + self.shifts  # [U, S]
        eps = torch.empty(*mean.shape, n, dtype=torch.float64).normal_(generator=generator)
        z = mean[..., None] + self.spreads[:, None] * eps
        x = self.x[index, None, None]
        log_p = Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(x)
        log_q = Normal(mean[:, None, None], self.spreads).log_prob(z[..., None])
        return log_p, log_q

    def corrections(self, index, k, generator):
        """[3, U, C] of level k at some examples."""
        blocks = 0 if k == 0 else self.draws[k] // self.draws[k - 1]
        found = multilevel.corrections(*self.scores(index, self.draws[k], generator), blocks, subsets=False)
        return torch.cat([found[name].flatten(2) for name in NAMES], 2)

    def run(self, seed, goal):
        """Units, estimates and errors of one run with one goal for the three bounds."""
        generator = torch.Generator().manual_seed(seed)
        count = len(self.x)
        orders = [torch.randperm(count, generator=generator) for _ in self.draws]
        known = {}

        def measure(units, of_pilot):
            parts = []
            for k, n in enumerate(units):
                index, values = [], []
                for replicate, size in enumerate(levels.replicates(n, count, k, of_pilot), 5000 * of_pilot):
                    have = known.get((k, replicate), torch.zeros(0, 1))
                    if len(have) < size:
                        new = self.corrections(orders[k][len(have) : size], k, generator)[1]
                        have = torch.cat([have, new]) if len(have) else new
                        known[k, replicate] = have
                    index.append(orders[k][:size])
                    values.append(have[:size])
                parts.append(levels.level(torch.cat(index), torch.cat(values), count))
            return parts

        size = len(self.shifts)
        of = [size - 1, 2 * size - 1, 3 * size - 1]
        limit = count * self.draws[-1]
        units, parts = levels.reach(measure, lambda _: torch.full((3,), goal), self.draws, count, of, limit)
        return units, *levels.estimates(parts)

    def truth(self, repetitions):
        """Means over the examples of the expectations at L, [C], and their own errors."""
        generator, count = torch.Generator().manual_seed(10_000), len(self.x)
        index = torch.arange(count).repeat(20)
        parts = [
            self.corrections(index, len(self.draws) - 1, generator)[0].mean(0) for _ in range(repetitions)
        ]
        values = torch.stack(parts)
        return values.mean(0), values.std(0) / repetitions**0.5

    def columns(self):
        return [f"{name} {s + 1}" for name in NAMES for s in range(len(self.shifts))]


NAMES = ("miselbo", "joint_bound", "average_iwelbo", "delta", "jsd", "average_elbo", "slack")


def light(num_examples=300, draws=64):
    return Exact(num_examples, (-0.3, 0.4), (0.8, 0.6), multilevel.chain(draws))


def heavy(num_examples=300, draws=64):
    spread = math.sqrt(0.5)
    return Exact(num_examples, (-0.8, 0.9), (0.5 * spread, 0.45 * spread), multilevel.chain(draws))
