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


def posterior_samples(
    ensemble: Ensemble, count: int, drawn: int, seed: int
) -> tuple[float, list, torch.Tensor]:
    """log Z by importance sampling of every topology with ``count`` draws, added up; and independent draws of the
    posterior, resampled from the same: topologies and log branch lengths."""
    target, branches = ensemble.target, ensemble.members[0].branches
    every = list(all_topologies(target.num_taxa))
    trees = target.spec.support.trees(every)
    generator = torch.Generator().manual_seed(seed)
    weights, lengths = [], []
    for k in range(len(every)):
        row = trees[torch.full((count,), k)]
        eps = torch.randn(count, target.num_edges, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            x, log_q = branches.sample(row, eps)
            weights.append(target.log_joint(row, x) - log_q - math.log(count))
        lengths.append(x)
    weight, x = torch.cat(weights), torch.cat(lengths)
    rows = torch.multinomial(weight.softmax(0), drawn, replacement=True, generator=generator)
    return float(weight.logsumexp(0)), [every[row // count] for row in rows.tolist()], x[rows]
