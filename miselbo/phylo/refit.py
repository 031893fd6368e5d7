"""Fit q(tau) anew at the end of a member's training, to the posterior of topologies that its branch model gives.

VIMCO sees the trees that q draws. A mode that was lost in the annealing has a probability of 1e-6 and does not come
back, though the trees the support was made from hold it; and the ratio of two trees that are drawn often is as noisy as
the gradient. But q(x | tau) is known for every tree of the support, so that

    log p(tau, Y) = log E_{q(x | tau)} [ p(Y, tau, x) / q(x | tau) ]

can be estimated topology by topology: for those the support was made from, and those q draws. The candidates have
:data:`FIRST` draws each; the others are shared out by the square root of the probability so far, in two turns. With
v(tau) the estimates over their sum, the parameters of q(tau) maximise sum v log q, which minimises KL(v, q).

Nothing is taken on trust. Where a flat posterior has topologies that are neither (Good and Turing's estimate: the share
of q's draws that are no tree of the support's and were seen once) nothing is changed, and a fit that lowers the ELBO of
the same fresh draws is undone. The effective sample size is told alone: of heavy weights it is too noisy to decide.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from miselbo.phylo import rounds
from miselbo.phylo.support import Trees
from miselbo.phylo.vbpi import Posterior, Vbpi

FIRST = 10  # draws of every candidate
CHUNK = 1000  # draws at once
UNSEEN = 0.1  # of q on topologies that are no candidates, above which there is no fit
ITERATIONS = 30  # of expectation maximisation
PRIOR = 1e-4  # weight of the old q(tau) in every choice, beside 1 of the topologies
SMALLEST = 1e-7  # probability of a topology that counts


@dataclass(frozen=True)
class Refit:
    """What became of it.

    Attributes:
        kept: whether q(tau) is the new one.
        unseen: estimated share of q on topologies that were no candidates.
        elbo: before and after, nats; NaN after where there was no fit.
        ess: before and after, as shares of the draws.
    """

    kept: bool
    unseen: float
    elbo: tuple[float, float]
    ess: tuple[float, float]


@torch.no_grad()
def scored(
    target: Posterior, member: Vbpi, uniforms: Tensor, eps: Tensor
) -> tuple[Trees, Tensor, float, float]:
    """Trees drawn from q, log p / q [N], the ELBO and the share of effective draws."""
    trees, weights = [], []
    for some, others in zip(uniforms.split(CHUNK), eps.split(CHUNK), strict=True):
        found = member.sbn.sample(some)
        x, log_q = member.branches.sample(found, others)
        weights.append(target.log_joint(found, x) - log_q - member.sbn.log_prob(found))
        trees.append(found)
    weight = torch.cat(weights)
    fields = ("nodes", "splits", "psps", "pairs")
    together = Trees(*(torch.cat([getattr(part, name) for part in trees]) for name in fields))
    return together, weight, float(weight.mean()), rounds.check(weight)[1]


def candidates(trees: Trees, member: Vbpi, num_taxa: int) -> tuple[Trees, float]:
    """The topologies the support was made from and those of drawn ``trees``, and the unseen share."""
    support = member.sbn.support
    known = list(support.origins)
    rows, counts = torch.unique(trees.splits[:, num_taxa:], dim=0, return_counts=True)
    masks, seen = list(support.root_splits), set(known)
    drawn = [tuple(masks[split] for split in row) for row in rows.tolist()]
    new = [
        (topology, count)
        for topology, count in zip(drawn, counts.tolist(), strict=True)
        if topology not in seen
    ]
    unseen = sum(count == 1 for _, count in new) / len(trees)
    return support.trees([*known, *(topology for topology, _ in new)]), unseen


@torch.no_grad()
def posterior(
    target: Posterior, member: Vbpi, trees: Trees, draws: int, generator: torch.Generator
) -> Tensor:
    """v [T]: probabilities of the topologies, from ``FIRST`` draws each and ``draws`` more."""
    size = len(trees)
    peak = torch.full((size,), -torch.inf, dtype=torch.float64)
    total, count = torch.zeros_like(peak), torch.zeros_like(peak)

    def add(owner: Tensor) -> None:
        nonlocal peak, total
        for some in owner.split(CHUNK):
            part = trees[some]
            eps = torch.randn(len(some), target.num_continuous, dtype=torch.float64, generator=generator)
            x, log_q = member.branches.sample(part, eps)
            weight = target.log_joint(part, x) - log_q
            high = peak.scatter_reduce(0, some, weight, "amax")
            total = total * torch.where(total > 0, (peak - high).exp(), 0.0)
            total = total.index_add(0, some, (weight - high[some]).exp().nan_to_num(0.0))
            peak = high
            count.index_add_(0, some, torch.ones_like(weight))

    def shares() -> Tensor:
        return (peak + total.log() - count.log()).nan_to_num(-torch.inf).softmax(0)

    add(torch.arange(size).repeat_interleave(FIRST))
    for _ in range(2):
        root = shares().sqrt()
        add(torch.arange(size).repeat_interleave((root / root.sum() * (draws // 2)).long()))
    return shares()


def fit(member: Vbpi, trees: Trees, v: Tensor) -> None:
    """Maximise sum v log q in the parameters of q(tau), by expectation maximisation over the hidden root.

    The gradient of sum v log q in the log-probabilities is how often every choice is made; its share is the new
    probability. ``PRIOR`` of the old one keeps what no topology shows.
    """
    some = (v > SMALLEST).nonzero().flatten()
    weight, part = v[some] / v[some].sum(), trees[some]
    old = member.sbn.log_probabilities().detach().exp()
    for _ in range(ITERATIONS):
        choices = member.sbn.log_probabilities().detach().requires_grad_()
        (counts,) = torch.autograd.grad((weight * member.sbn.log_prob(part, choices)).sum(), choices)
        with torch.no_grad():
            member.sbn.logits.copy_((counts + PRIOR * old).log())


def refit(target: Posterior, member: Vbpi, draws: int, seed: int) -> Refit:
    """Fit q(tau) in place, or leave it.

    Args:
        target: the posterior.
        member: with a trained branch model.
        draws: of the second pass, beside :data:`FIRST` of every candidate.
        seed: of all draws.
    """
    generator = torch.Generator().manual_seed(seed % 2**63)
    noise = [
        torch.rand(rounds.DRAWS, target.num_taxa - 1, dtype=torch.float64, generator=generator),
        torch.randn(rounds.DRAWS, target.num_continuous, dtype=torch.float64, generator=generator),
    ]
    drawn, before, elbo, ess = scored(target, member, *noise)
    trees, unseen = candidates(drawn, member, target.num_taxa)
    if unseen > UNSEEN:
        return Refit(False, unseen, (elbo, math.nan), (ess, math.nan))
    old = member.sbn.logits.detach().clone()
    fit(member, trees, posterior(target, member, trees, draws, generator))
    _, after, new_elbo, new_ess = scored(target, member, *noise)
    error = float((after.var() + before.var()).sqrt()) / math.sqrt(len(after))
    kept = new_elbo >= elbo - 2 * error
    if not kept:
        with torch.no_grad():
            member.sbn.logits.copy_(old)
    return Refit(kept, unseen, (elbo, new_elbo), (ess, new_ess))
