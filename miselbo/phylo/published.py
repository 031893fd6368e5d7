"""What the published evaluation recipe would report for given draws: for comparison only, it bounds nothing.

Own draws are scored as everywhere. For another member j the recipe keeps log q_j(tau) at the tree tau_sl that member s
drew, but takes the branch lengths' density at another place: s's base values z_sl (before s's flow), edge by edge, are
put into the normal whose means and standard deviations j has on the tree tau_jl that j itself drew l-th, and pushed
through j's flow on that tree,

    log q_j(tau_sl) + log N(z_sl; mu_j(tau_jl), sigma_j(tau_jl)) - log |det dF_j(. | tau_jl) / dz| at z_sl.

The tree has other edges in another order, and F_j(z_sl) is not the point x_sl, so this is no density of the draw.
Inner edges come in our order (sorted splits), which puts more equal edges side by side than the traversal order of the
published code does: its error may be larger.
"""

import torch
from torch import Tensor

from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.phylo.branches import Branches, standard
from miselbo.phylo.vbpi import Draw, Vbpi


@torch.no_grad()
def score_both_ways(
    ensemble: Ensemble, num_samples: int, seed: int, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of the same draws, correct and by the published recipe.

    Args:
        ensemble: of :class:`miselbo.phylo.vbpi.Vbpi`, on the CPU.
        num_samples: L.
        seed: of the noise; with the ``seed`` and ``index`` of an evaluation the draws are that evaluation's.
        index: [B] numbers of the replicates.

    Returns:
        log_p [B, S, L], log_q [B, S, L, S], and log_q [B, S, L, S] of the recipe; nats, float64.

    Example:
        >>> from miselbo.phylo.data import simulated
        >>> from miselbo.phylo.vbpi import Posterior, Vbpi
        >>> data = simulated()
        >>> data.setup()
        >>> posterior = Posterior(data.spec)
        >>> two = Ensemble(posterior, [Vbpi(posterior), Vbpi(posterior)])
        >>> [tuple(scores.shape) for scores in score_both_ways(two, 4, 0, torch.arange(3))]
        [(3, 2, 4), (3, 2, 4, 2), (3, 2, 4, 2)]
    """
    parts = [_one_replicate(ensemble, num_samples, seed, one) for one in index.split(1)]
    log_p, log_q, recipe = zip(*parts, strict=True)
    return torch.stack(log_p), torch.stack(log_q), torch.stack(recipe)


def _one_replicate(
    ensemble: Ensemble, num_samples: int, seed: int, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """[S, L], [S, L, S] and [S, L, S] of one replicate."""
    target, members = ensemble.target, list(ensemble.members)
    x, samples = torch.zeros(1, 0), torch.arange(num_samples)
    noise = [target.noise(x, samples, seed, index, s) for s in range(len(members))]
    draws = [target.draw(x, q, None, eps) for q, eps in zip(members, noise, strict=True)]
    log_p = torch.stack([draw.log_p[:, 0] for draw in draws])
    log_q = [torch.stack([q.log_prob(None, draw)[:, 0] for q in members], -1) for draw in draws]
    places = [_place(q, draw) for q, draw in zip(members, draws, strict=True)]
    recipe = [row.clone() for row in log_q]
    for s, (draw, (_, normals)) in enumerate(zip(draws, noise, strict=True)):
        _, mean, log_sd = places[s]
        base = mean + log_sd.exp() * normals[:, 0]
        for j, member in enumerate(members):
            if j != s:
                lengths = _misplaced(member, base, *places[j])
                recipe[s][:, j] = member.sbn.log_prob(draw.trees) + lengths
    return log_p, torch.stack(log_q), torch.stack(recipe)


def _place(member: Vbpi, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """Embedding rows [L, B, 3], means and log standard deviations [L, B] of a member on the trees it drew."""
    rows = _lengths(member).rows(draw.trees)
    mean, log_sd = _lengths(member).table(rows).unbind(-1)
    return rows, mean, log_sd


def _lengths(member: Vbpi) -> Branches:
    if not isinstance(member.branches, Branches):
        raise InputError("the published recipe knows no inferred parameters: give a model with given ones")
    return member.branches


def _misplaced(member: Vbpi, base: Tensor, rows: Tensor, mean: Tensor, log_sd: Tensor) -> Tensor:
    """The recipe's value for the branch lengths, [L]."""
    _, log_det = member.branches.flow(base, rows)
    value = standard((base - mean) * (-log_sd).exp()) - log_sd.sum(-1) - log_det
    return torch.where(value.isfinite(), value, -torch.inf)
