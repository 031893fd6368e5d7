"""Speed of phylogenetics against plain programs, in one process, sides alternating.

    OMP_NUM_THREADS=1 python benchmarks/phylo.py --root <folder with DS1.fasta and DS1_ufboot.tsv.gz>

1. Likelihood and gradient of 10 particles: this project's compiled kernel (float64, patterns merged up to relabelling)
   against pruning in torch with autograd, tree by tree (float32, ``benchmarks/plain_phylo.py``).
2. Whole training iterations, identity flow, at the start of training: this project's against the published cost
   structure (trees drawn and indexed in Python, a Python loop over nodes, autograd, Adam).

Both sides are checked to give the same numbers first. Times are the process's own CPU time with one thread, medians
over repeats. Below them stands where this project's iterations spend their time (cProfile, own time of each function).
"""

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from plain_phylo import PlainLikelihood, PlainSbn, psp_rows
from torch import Tensor

from miselbo.phylo.data import benchmark
from miselbo.phylo.member import Training
from miselbo.phylo.objective import Objective, coefficients
from miselbo.phylo.vbpi import PhyloSpec, Posterior, Vbpi

PARTICLES = 10


def plain_iteration(spec: PhyloSpec) -> Callable[[], float]:
    """One VIMCO step as published programs do it, at beta = 1; returns the bound."""
    support = spec.support
    sbn, likelihood, psp = PlainSbn(support), PlainLikelihood(spec.alignment), psp_rows(support)
    logits = torch.zeros(support.num_params, requires_grad=True)
    table = torch.zeros(support.num_rows + 1, 2)
    table[: support.num_splits, 0] = -2.6
    table.requires_grad_()
    optimiser = torch.optim.Adam([logits, table], 1e-3)

    def step() -> float:
        log_prob = sbn.log_probabilities(logits)
        probability = log_prob.detach().exp()
        topologies = [sbn.sample(probability) for _ in range(PARTICLES)]
        log_q, rest = [], []
        for topology in topologies:
            index, keys = sbn.indices(topology)
            log_q.append(log_prob[index].sum(1).logsumexp(0))
            mu, log_sigma = table[sbn.rows(topology, keys, psp)].sum(1).unbind(-1)
            eps = torch.randn(len(mu))
            x = mu + log_sigma.exp() * eps - 2
            log_lik = likelihood(spec_nodes(topology, support.num_taxa), x.exp())
            prior = (np.log(10.0) - 10 * x.exp() + x).sum()
            rest.append(log_lik + prior + 0.5 * (eps**2).sum() + log_sigma.sum())
        log_q, rest = torch.stack(log_q), torch.stack(rest)
        f = (rest - log_q).detach().double().numpy()
        to_rest, to_tree = (torch.from_numpy(part).float() for part in coefficients(f))
        optimiser.zero_grad()
        (-(to_rest * rest + to_tree * log_q).sum()).backward()
        optimiser.step()
        return float(np.logaddexp.reduce(f))

    return step


def spec_nodes(topology: tuple[int, ...], num_taxa: int) -> list[list[int]]:
    """Inner nodes of a topology as lists."""
    from miselbo.phylo.tree import nodes

    return nodes(topology, num_taxa).tolist()


def likelihood_sides(spec: PhyloSpec) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Value and gradient of ten trees: plain and ours, checked against each other."""
    target = Posterior(spec)
    torch.manual_seed(0)
    trees = Vbpi(target).sbn.sample(torch.rand(PARTICLES, target.num_taxa - 1, dtype=torch.float64))
    rows = [spec_nodes(topology, target.num_taxa) for topology in spec.support.topologies(trees)]
    lengths = torch.empty(PARTICLES, 2 * target.num_taxa - 3, dtype=torch.float64).exponential_(20)
    plain = PlainLikelihood(spec.alignment)

    def slow() -> Tensor:
        b = lengths.clone().requires_grad_()
        torch.stack([plain(row, one) for row, one in zip(rows, b, strict=True)]).sum().backward()
        return b.grad

    def fast() -> Tensor:
        b = lengths.clone().requires_grad_()
        target.likelihood(trees.nodes, b).sum().backward()
        return b.grad

    exact = PlainLikelihood(spec.alignment, torch.float64)
    for row, one, value in zip(rows, lengths, target.likelihood(trees.nodes, lengths), strict=True):
        assert abs(float(exact(row, one)) - float(value)) < 1e-7
    assert torch.allclose(slow(), fast(), rtol=2e-2, atol=2.0)
    return slow, fast


def check_log_q(spec: PhyloSpec) -> None:
    """Both sides' log q(tau) of the same trees."""
    model = Vbpi(Posterior(spec))
    with torch.no_grad():
        model.sbn.logits.copy_(torch.randn(len(model.sbn.logits), generator=torch.Generator().manual_seed(0)))
    plain = PlainSbn(spec.support)
    log_prob = plain.log_probabilities(model.sbn.logits.detach())
    topologies = [plain.sample(log_prob.exp()) for _ in range(5)]
    ours = model.sbn.topology_log_prob(topologies)
    for topology, value in zip(topologies, ours.tolist(), strict=True):
        assert abs(float(log_prob[plain.indices(topology)[0]].sum(1).logsumexp(0)) - value) < 1e-9


def alternate(
    slow: Callable[[], object], fast: Callable[[], object], repeats: int, inner: int
) -> tuple[float, float]:
    """Median milliseconds per call of two sides that take turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for side, (call, count) in enumerate(((slow, 1), (fast, inner))):
            start = time.process_time()
            for _ in range(count):
                call()
            times[side].append((time.process_time() - start) * 1000 / count)
    return statistics.median(times[0]), statistics.median(times[1])


def profile_text(call: Callable[[], object], count: int, rows: int = 10) -> str:
    """Shares of the time that functions take themselves, the largest first."""
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(count):
        call()
    profile.disable()
    found = pstats.Stats(profile).strip_dirs()
    times = sorted(((row[2], *key) for key, row in found.stats.items()), reverse=True)
    total = sum(one[0] for one in times)
    lines = [f"profile of {count} training iterations, share of the time"]
    for spent, file, _, name in times[:rows]:
        lines.append(f"{100 * spent / total:5.1f} %  {name if file == '~' else f'{file}: {name}'}")
    return "\n".join(lines)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="folder of the alignments")
    parser.add_argument("--dataset", default="ds1")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = benchmark(arguments.dataset, arguments.root, {}, 1)
    data.setup()
    spec = data.spec
    check_log_q(spec)
    slow, fast = likelihood_sides(spec)
    rows = [("likelihood + gradient, 10 particles", *alternate(slow, fast, arguments.repeats, 5))]
    target = Posterior(spec)
    training = Training(target, Vbpi(target, start=0.01), Objective(anneal_portion=0.0), 50, 0)
    step = plain_iteration(spec)
    for call in (step, training.iteration):
        call()
    rows.append(("training iteration, identity", *alternate(step, training.iteration, arguments.repeats, 5)))
    print(f"{arguments.dataset}, one thread, CPU milliseconds, medians of {arguments.repeats}")
    print(f"{'':40s}{'plain':>10s}{'ours':>10s}{'ratio':>8s}")
    for name, one, other in rows:
        print(f"{name:40s}{one:10.2f}{other:10.2f}{one / other:8.1f}")
    print(profile_text(training.iteration, 300))


if __name__ == "__main__":
    main()
