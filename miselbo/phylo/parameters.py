"""q(x, theta | tau): branch lengths beside the inferred parameters of the substitution model, which are Gaussian.

theta = m + L eps with a lower triangular L of positive diagonal, so the covariance L L' is any; theta does not depend
on the tree or its lengths. A point is the log branch lengths with theta behind them, and everything that draws, scores
and trains lengths (:class:`miselbo.phylo.branches.Branches`) draws, scores and trains such points.
"""

import torch
from torch import Tensor, nn

from miselbo.phylo.branches import Branches, standard
from miselbo.phylo.flows import Flow
from miselbo.phylo.support import Trees

START_SCALE = 0.2  # initial standard deviation of a coordinate


class BranchesAndParameters(nn.Module):
    """Density of log branch lengths and parameters.

    Args:
        lengths: q(x | tau).
        start: [D] initial means of the coordinates.

    Example:
        >>> from miselbo.phylo.support import Support
        >>> support = Support.from_topologies([(0b1100,), (0b1010,)], "abcd")
        >>> both = BranchesAndParameters(Branches(support), torch.zeros(2, dtype=torch.float64))
        >>> trees = support.trees([(0b1100,)])
        >>> point, log_q = both.sample(trees, torch.ones(1, 7, dtype=torch.float64))
        >>> point.shape, torch.allclose(log_q, both.log_prob(trees, point))
        (torch.Size([1, 7]), True)
    """

    def __init__(self, lengths: Branches, start: Tensor):
        super().__init__()
        self.lengths = lengths
        self.mean = nn.Parameter(start.clone())
        self.log_diagonal = nn.Parameter(torch.full_like(start, START_SCALE).log())
        self.below = nn.Parameter(start.new_zeros(len(start), len(start)))

    @property
    def flow(self) -> Flow:
        """That of the lengths."""
        return self.lengths.flow

    @property
    def factor(self) -> Tensor:
        """L [D, D]."""
        return self.below.tril(-1) + torch.diag(self.log_diagonal.exp())

    def sample(self, trees: Trees, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Points [K, 2n - 3 + D] from standard normal eps of that shape, and log q [K]."""
        edges = trees.splits.shape[1]
        x, log_q = self.lengths.sample(trees, eps[:, :edges])
        theta = self.mean + eps[:, edges:] @ self.factor.mT
        return torch.cat((x, theta), -1), log_q + standard(eps[:, edges:]) - self.log_diagonal.sum()

    def log_prob(self, trees: Trees, point: Tensor) -> Tensor:
        """log q [K] of any points [K, 2n - 3 + D]."""
        edges = trees.splits.shape[1]
        centred = (point[:, edges:] - self.mean).mT
        eps = torch.linalg.solve_triangular(self.factor, centred, upper=False).mT
        return self.lengths.log_prob(trees, point[:, :edges]) + standard(eps) - self.log_diagonal.sum()

    forward = log_prob

    def path_log_prob(self, trees: Trees, point: Tensor) -> Tensor:
        """:meth:`log_prob` as a function of the point alone: its gradient goes to no parameter directly."""
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return torch.func.functional_call(self, frozen, (trees, point))
