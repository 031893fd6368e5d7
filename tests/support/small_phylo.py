"""Small alignments with their supports, and trained members."""

import functools
import math

import torch

from miselbo.ensemble import Ensemble
from miselbo.phylo.data import AlignmentData
from miselbo.phylo.member import Training
from miselbo.phylo.objective import Objective
from miselbo.phylo.simulation import NAMES, TREE, simulate
from miselbo.phylo.tree import all_topologies
from miselbo.phylo.vbpi import Posterior, Vbpi

FIVE = "((a:0.1,b:0.2):0.03,(c:0.15,d:0.1):0.02,e:0.2);"
SEVEN = "(((a:0.1,b:0.2):0.03,(c:0.15,d:0.1):0.02):0.02,e:0.2,(f:0.1,g:0.1):0.04);"


@functools.cache
def data(five: bool = False, seven: bool = False) -> AlignmentData:
    few = five or seven
    tree, names = (FIVE, tuple("abcde")) if five else (SEVEN, tuple("abcdefg")) if seven else (TREE, NAMES)
    support = {"method": "all"} if few else {"method": "nj", "replicates": 1, "nj_trees": 30}
    made = AlignmentData("small", lambda: simulate(tree, names, 100, 1), support, 3)
    made.setup()
    return made


def fitted(made: AlignmentData, epochs: int, size: int, **objective) -> Ensemble:
    target, members = Posterior(made.spec), []
    for seed in range(size):
        torch.manual_seed(seed)
        member = Vbpi(target, start=0.05)
        training = Training(target, member, Objective(learning_rate_branch=0.01, **objective), epochs, seed)
        for _ in range(epochs):
            training.epoch()
        members.append(member)
    return Ensemble(target, members).eval()


def mixture(ensemble: Ensemble) -> dict:
    """Exact probabilities of the five-taxon topologies under the mixture."""
    every = list(all_topologies(5))
    log_q = torch.stack([member.sbn.topology_log_prob(every) for member in ensemble.members]).detach()
    return dict(zip(every, log_q.exp().mean(0).tolist(), strict=True))


WIDER = 1.25  # than the members' standard deviations: weights without a heavy tail
FIRST = 200  # draws of a topology, to see whether it matters


def posterior_samples(
    ensemble: Ensemble, count: int, drawn: int, seed: int
) -> tuple[float, list, torch.Tensor]:
    """log Z by importance sampling of every topology, added up, and ``drawn`` independent draws of the posterior,
    resampled from the same: topologies and log branch lengths. Topologies above 1e-4 of it have ``count`` draws."""
    target, branches = ensemble.target, ensemble.members[0].branches
    every = list(all_topologies(target.num_taxa))
    trees = target.spec.support.trees(every)
    generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def of_one(k: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = trees[torch.full((size,), k)]
        eps = torch.randn(size, target.num_edges, dtype=torch.float64, generator=generator)
        x, log_q = branches.sample(row, WIDER * eps)
        log_q = log_q + ((WIDER**2 - 1) / 2 * eps**2 - math.log(WIDER)).sum(-1)
        return target.log_joint(row, x) - log_q - math.log(size), x

    found = [of_one(k, min(count, FIRST)) for k in range(len(every))]
    share = torch.stack([weight.logsumexp(0) for weight, _ in found]).softmax(0)
    for k in (share > 1e-4).nonzero().flatten().tolist() if count > FIRST else ():
        found[k] = of_one(k, count)
    weight, x = (torch.cat(part) for part in zip(*found, strict=True))
    owner = [topology for topology, (part, _) in zip(every, found, strict=True) for _ in part]
    rows = torch.multinomial(weight.softmax(0), drawn, replacement=True, generator=generator)
    return float(weight.logsumexp(0)), [owner[row] for row in rows.tolist()], x[rows]
