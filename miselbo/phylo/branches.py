"""q(x | tau), x = log b: branch lengths of a tree given its topology, by split and primary subsplit pair embeddings.

The mean and the log standard deviation of an edge are sums over the (at most three) embedding rows of the edge: its
split and the primary subsplit pairs at either end. With z = mu + sigma eps and a flow F, x = F(z) + shift.

A sum of three embeddings knows no bound, and edges that are seldom drawn end up with standard deviations of 3 to 7,
where the posterior of a log length has at most about 1.3 (the log of an exponential variable: 1.28): one draw in a
hundred then costs the ELBO most of what it misses. ``largest_scale`` is the soft cap of :func:`capped`.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from miselbo.errors import InputError
from miselbo.phylo.flows import Flow, Identity, MakeFlow, Table
from miselbo.phylo.support import Support, Trees

SHIFT = -2.0


class Branches(nn.Module):
    """Conditional density of log branch lengths.

    Args:
        support: whose splits and primary subsplit pairs have rows.
        flow: called with the number of taxa and of rows; identity by default.
        start: initial median of a branch length; e^-2 in the papers.
        largest_scale: which no standard deviation of the base z exceeds; None for no cap.

    Raises:
        InputError: a ``largest_scale`` that is not positive.

    Example:
        >>> support = Support.from_topologies([(0b1100,), (0b1010,)], "abcd")
        >>> branches = Branches(support)
        >>> trees = support.trees([(0b1100,)])
        >>> x, log_q = branches.sample(trees, torch.zeros(1, 5, dtype=torch.float64))
        >>> x.shape, torch.allclose(log_q, branches.log_prob(trees, x))
        (torch.Size([1, 5]), True)
    """

    def __init__(
        self,
        support: Support,
        flow: MakeFlow | None = None,
        start: float = math.exp(SHIFT),
        largest_scale: float | None = None,
    ):
        super().__init__()
        if largest_scale is not None and (
            isinstance(largest_scale, bool) or not 0 < largest_scale < math.inf
        ):
            raise InputError(
                "model.approximation.largest_scale must be a positive number (1.3: the sd of the log of an exponential "
                f"variable), or null for no cap; got {largest_scale!r}"
            )
        self.largest_scale = largest_scale
        self.num_splits, self.num_rows = support.num_splits, support.num_rows
        self.table = Table(self.num_rows, 2, bound=math.sqrt(6 / (self.num_rows + 2)))  # Xavier
        with torch.no_grad():  # every edge has one split, so this moves every median
            self.table.weight[: self.num_splits, 0] += math.log(start) - SHIFT
        self.flow: Flow = (flow or Identity)(support.num_taxa, self.num_rows)

    def rows(self, trees: Trees) -> Tensor:
        """Embedding rows [K, B, 3] of the edges, ``num_rows`` for none."""
        psps = torch.where(trees.psps < 0, self.num_rows, trees.psps + self.num_splits)
        return torch.cat((trees.splits[..., None], psps), -1)

    def base(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation [K, B] of z."""
        mu, log_sigma = self.table(rows).unbind(-1)
        return mu, capped(log_sigma, self.largest_scale)

    def sample(self, trees: Trees, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Log branch lengths x [K, B] from standard normal eps [K, B], and log q(x | tau) [K]."""
        rows = self.rows(trees)
        mu, log_sigma = self.base(rows)
        x, log_det = self.flow(mu + log_sigma.exp() * eps, rows)
        return x + SHIFT, standard(eps) - log_sigma.sum(-1) - log_det

    def log_prob(self, trees: Trees, x: Tensor) -> Tensor:
        """log q(x | tau) [K] of any log branch lengths [K, B]; -inf where the flow's inverse leaves the numbers."""
        rows = self.rows(trees)
        mu, log_sigma = self.base(rows)
        z, log_det = self.flow.inverse(x - SHIFT, rows)
        value = standard((z - mu) * (-log_sigma).exp()) - log_sigma.sum(-1) - log_det
        return torch.where(value.isfinite(), value, -torch.inf)

    forward = log_prob

    def path_log_prob(self, trees: Trees, x: Tensor) -> Tensor:
        """:meth:`log_prob` as a function of x alone: its gradient goes to x, and to no parameter directly.

        The flow needs a differentiable inverse.
        """
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return torch.func.functional_call(self, frozen, (trees, x))


def capped(log_sigma: Tensor, largest: float | None) -> Tensor:
    """c - softplus(c - log_sigma), c = log(largest), of sharpness 4: below c, and log_sigma itself far below.

    Example:
        >>> capped(torch.tensor([-3.0, 0.0, 2.0]), math.exp(0.25)).round(decimals=3)
        tensor([-3.0000, -0.0780,  0.2500])
        >>> capped(torch.tensor([2.0]), None)
        tensor([2.])
    """
    if largest is None:
        return log_sigma
    limit = math.log(largest)
    return limit - functional.softplus(limit - log_sigma, beta=4)


def standard(eps: Tensor) -> Tensor:
    """log N(eps; 0, I) over the last axis."""
    return -0.5 * (eps * eps).sum(-1) - 0.5 * math.log(2 * math.pi) * eps.shape[-1]
