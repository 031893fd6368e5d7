"""q(tau): the subsplit Bayesian network (Zhang and Matsen 2018), exact, over unrooted topologies.

A rooted tree has probability P(root split) times the product of its children's probabilities given their parents; an
unrooted one the sum over all 2n - 3 edges as root. Nothing is clamped: a tree outside the support has log q = -inf.
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from miselbo.phylo.support import Support, Trees
from miselbo.phylo.text.newick import Topology
from miselbo.protocols import Saved


class Sbn(nn.Module):
    """Distribution over the topologies of a support, one logit per root split and per child of a choice.

    Args:
        support: root splits and pairs.

    Example:
        >>> sbn = Sbn(Support.from_topologies([(0b1100,), (0b1010,)], "abcd"))
        >>> sbn.topology_log_prob([(0b1100,), (0b1010,), (0b0110,)]).exp()
        tensor([0.5000, 0.5000, 0.0000], dtype=torch.float64, grad_fn=<ExpBackward0>)
    """

    def __init__(self, support: Support):
        super().__init__()
        self.support = support
        self.logits = nn.Parameter(torch.zeros(support.num_params, dtype=torch.float64))

    def log_probabilities(self) -> Tensor:
        """Log-probabilities of root splits and children, [num_params]: logits after a softmax per choice."""
        return SegmentLogSoftmax.apply(self.logits, self.support.tables["segments"])

    def sample(self, uniforms: Tensor, log_probabilities: Tensor | None = None) -> Trees:
        """Trees from uniform numbers [K, n - 1] in (0, 1), float64.

        ``log_probabilities``: of :meth:`log_probabilities`, where they are there already.
        """
        from miselbo.phylo.compiled.sbn import sample

        given = self.log_probabilities() if log_probabilities is None else log_probabilities
        tables, log_prob = self.support.tables, given.detach().numpy()
        found = np.empty((len(uniforms), self.support.num_taxa - 2), dtype=np.int64)
        sample(
            uniforms.numpy(), log_prob, self.support.num_splits, tables["roots"], tables["starts"],
            tables["params"], tables["views"], tables["below"], found,
        )  # fmt: skip
        return self.support.index(found)

    def log_prob(self, trees: Trees, log_probabilities: Tensor | None = None) -> Tensor:
        """log q(tau) of indexed trees: [K], nats."""
        given = self.log_probabilities() if log_probabilities is None else log_probabilities
        return TreeLogProb.apply(given, trees)

    def topology_log_prob(self, topologies: Iterable[Topology]) -> Tensor:
        """log q(tau) of any topologies, [K]; -inf outside the support."""
        topologies = list(topologies)
        inside = [self.support.holds(topology) for topology in topologies]
        known = [topology for topology, holds in zip(topologies, inside, strict=True) if holds]
        values = torch.full((len(topologies),), -torch.inf, dtype=torch.float64)
        if not known:
            return values
        return values.index_put((torch.tensor(inside),), self.log_prob(self.support.trees(known)))


class _Kept(Saved, Protocol):
    kept: tuple[np.ndarray, np.ndarray, np.ndarray]


class SegmentLogSoftmax(torch.autograd.Function):
    """Log-softmax within consecutive segments of a vector, which start and end at the given positions."""

    @staticmethod
    def forward(ctx: _Kept, logits: Tensor, segments: np.ndarray) -> Tensor:
        """[P] log-probabilities."""
        values, starts, lengths = logits.detach().numpy(), segments[:-1], np.diff(segments)
        shifted = values - np.repeat(np.maximum.reduceat(values, starts), lengths)
        weight = np.exp(shifted)
        total = np.repeat(np.add.reduceat(weight, starts), lengths)
        ctx.kept = (weight / total, starts, lengths)
        return torch.from_numpy(shifted - np.log(total))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Kept, grad: Tensor) -> tuple[Tensor, None]:
        """Gradient in the logits."""
        probability, starts, lengths = ctx.kept
        upstream = grad.numpy()
        total = np.repeat(np.add.reduceat(upstream, starts), lengths)
        return torch.from_numpy(upstream - probability * total), None


class _KeptTrees(Saved, Protocol):
    kept: tuple[list[np.ndarray], np.ndarray, np.ndarray, int]


class TreeLogProb(torch.autograd.Function):
    """log q(tau) from the log-probabilities of all choices."""

    @staticmethod
    def forward(ctx: _KeptTrees, log_prob: Tensor, trees: Trees) -> Tensor:
        """[K]."""
        from miselbo.phylo.compiled.sbn import tree_log_q

        arrays = [part.numpy() for part in (trees.nodes, trees.splits, trees.pairs)]
        log_q, rootings = np.empty(len(trees)), np.empty(trees.splits.shape)
        nodes, splits, pairs = arrays
        tree_log_q(log_prob.detach().numpy(), nodes, splits, pairs, log_q, rootings)
        ctx.kept = (arrays, log_q, rootings, len(log_prob))
        return torch.from_numpy(log_q)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _KeptTrees, grad: Tensor) -> tuple[Tensor, None]:
        """Gradient in the log-probabilities."""
        from miselbo.phylo.compiled.sbn import tree_log_q_gradient

        (nodes, splits, pairs), log_q, rootings, size = ctx.kept
        out = np.zeros(size)
        tree_log_q_gradient(nodes, splits, pairs, log_q, rootings, grad.contiguous().numpy(), out)
        return torch.from_numpy(out), None
