"""Variational Bayesian phylogenetic inference: the posterior p(tau, x | Y) and its approximations q(tau) q(x | tau).

p(Y, tau, x) = p(Y | tau, b) p(b | tau) p(tau) with x = log b (natural logarithms of the branch lengths), a reversible
model of substitution, b_e iid Exponential, tau uniform over the (2n - 5)!! unrooted topologies. Every density is one in
x, so the prior carries the Jacobian sum x. Nothing of p is trained: the alignment and the prior are given. The
parameters of the model of substitution are given too, or latent (:mod:`miselbo.phylo.inferred`), and then part of x.

All members of an ensemble share one support, and a draw keeps the indexed trees and the branch lengths themselves: each
member's density is that of the very tree and point another member drew.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from miselbo import noise
from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.phylo.alignment import Alignment
from miselbo.phylo.branches import SHIFT, Branches
from miselbo.phylo.flows import MakeFlow
from miselbo.phylo.inferred import make_inferred
from miselbo.phylo.likelihood import Parametric, Reversible, make_likelihood
from miselbo.phylo.parameters import BranchesAndParameters
from miselbo.phylo.sbn import Sbn
from miselbo.phylo.substitution import Substitution
from miselbo.phylo.support import Support, Trees
from miselbo.phylo.tree import log_number_of_topologies


@dataclass(frozen=True, eq=False)
class PhyloSpec:
    """What a model must know: the alignment, and the topologies its approximations may use."""

    alignment: Alignment
    support: Support


@dataclass(frozen=True)
class Draw:
    """Trees and log branch lengths, flat over [L, B], with their scores.

    Attributes:
        log_p: [L, B] log p(Y, tau, x), nats.
        trees: of L B topologies.
        x: [L B, num_continuous], the log lengths and the coordinates of inferred parameters.
    """

    log_p: Tensor
    trees: Trees
    x: Tensor


class Posterior(nn.Module):
    """log p(Y, tau, x), the common target.

    Args:
        spec: alignment and support.
        branch_rate: of the exponential prior of a branch length; 10 gives the mean 0.1.
        substitution: arguments of :class:`miselbo.phylo.substitution.Substitution`; None for JC69.
        inferred: arguments of :class:`miselbo.phylo.inferred.Inferred`, whose parameters theta are then latent too,
            beside x; frequencies may be ``empirical``. None, or its model None, for a given model.

    Raises:
        InputError: a rate that is not positive, a model of substitution that cannot be, or two of them.

    Example:
        >>> from miselbo.phylo.data import simulated
        >>> data = simulated()
        >>> data.setup()
        >>> posterior = Posterior(data.spec)
        >>> trees = Vbpi(posterior).sbn.sample(torch.full((2, 7), 0.5, dtype=torch.float64))
        >>> posterior.log_joint(trees, torch.full((2, 13), -3.0, dtype=torch.float64)).shape
        torch.Size([2])
    """

    branch_rate: Tensor

    def __init__(
        self,
        spec: PhyloSpec,
        branch_rate: float = 10.0,
        substitution: Mapping[str, object] | None = None,
        inferred: Mapping[str, object] | None = None,
    ):
        super().__init__()
        if isinstance(branch_rate, bool) or not branch_rate > 0:
            raise InputError(f"model.target.branch_rate must be a positive number, got {branch_rate!r}")
        self.spec = spec
        self.substitution = Substitution(**(substitution or {}))  # type: ignore[arg-type]
        self.inferred = make_inferred(spec.alignment, inferred, self.substitution)
        self.likelihood = make_likelihood(spec.alignment, self.substitution)
        self.parametric = Parametric(spec.alignment) if self.inferred else None
        self.num_taxa = spec.alignment.num_taxa
        self.num_edges = 2 * self.num_taxa - 3
        self.num_continuous = self.num_edges + (self.inferred.size if self.inferred else 0)
        self.latent_shapes = [(self.num_taxa - 3,), (self.num_continuous,)]
        self.log_p_topology = -log_number_of_topologies(self.num_taxa)
        patterns = spec.alignment.patterns
        self.register_buffer("patterns", torch.from_numpy(patterns.codes))
        self.register_buffer("counts", torch.from_numpy(patterns.counts))
        self.register_buffer("branch_rate", torch.tensor(float(branch_rate), dtype=torch.float64))
        self.register_buffer("support", torch.from_numpy(digest(spec.support)))
        if isinstance(self.likelihood, Reversible):
            self.register_buffer("rate_matrix", torch.from_numpy(self.likelihood.rate_matrix))
            self.register_buffer("category_rates", torch.from_numpy(self.likelihood.rates))
        if self.inferred:
            self.register_buffer(
                "inferred_model", torch.tensor(list(self.inferred.describe().encode()), dtype=torch.uint8)
            )

    def protocol(self) -> dict[str, str]:
        """The model in words, for the protocol of an evaluation."""
        given = self.substitution.describe(self.substitution.pi(self.spec.alignment))
        model = f"{self.inferred.describe()}, inferred" if self.inferred else given
        prior = (
            f"iid exponential branch lengths of rate {self.branch_rate.item():g}, uniform unrooted topologies"
        )
        return {"substitution_model": f"{model}, {prior}", "dtype": "float64"}

    def log_likelihood(self, trees: Trees, x: Tensor) -> Tensor:
        """log p(Y | tau, b) [K], of points x [K, 2n - 3] or [K, 2n - 3 + D] with theta behind the log lengths."""
        if self.inferred is None or self.parametric is None:
            return self.likelihood(trees.nodes, x.exp())
        lengths, theta = x[:, : self.num_edges].exp(), x[:, self.num_edges :]
        return self.parametric.of(trees.nodes, lengths, self.inferred.values(theta))

    def log_branch_prior(self, x: Tensor) -> Tensor:
        """log p(x | tau) [K]: exponential in b = e^x, with the Jacobian; and the prior of inferred theta."""
        rate = self.branch_rate
        lengths, theta = x[:, : self.num_edges], x[:, self.num_edges :]
        value = (rate.log() - rate * lengths.exp() + lengths).sum(-1)
        return value if self.inferred is None else value + self.inferred.log_prior(theta)

    def log_joint(self, trees: Trees, x: Tensor) -> Tensor:
        """log p(Y, tau, x) [K], nats; -inf where it is no number."""
        value = self.log_likelihood(trees, x) + self.log_branch_prior(x) + self.log_p_topology
        return torch.where(value.isnan(), -torch.inf, value)

    def noise(
        self, x: Tensor, samples: Tensor, seed: int, index: Tensor, member: int
    ) -> tuple[Tensor, Tensor]:
        """Uniform numbers [L, B, n - 1] for the topologies, normal ones [L, B, num_continuous], float64."""
        samples, index = samples.cpu(), index.cpu()
        choices, edges = self.num_taxa - 1, self.num_continuous
        coarse = noise.uniform(seed, index, 2 * choices, member=member, sample=samples).double()
        high, low = coarse.split(choices, -1)  # 23 bits each
        eps = noise.normal(seed, index, edges, member=member, sample=samples).double()
        return high - 2.0**-24 + 2.0**-23 * low, eps

    @torch.no_grad()
    def draw(self, x: Tensor, member: "Vbpi", context: None, eps: tuple[Tensor, Tensor]) -> Draw:
        """Trees and lengths of ``member`` with their scores under p."""
        uniforms, normals = eps
        trees = member.sbn.sample(uniforms.flatten(0, 1))
        lengths, _ = member.branches.sample(trees, normals.flatten(0, 1))
        return Draw(self.log_joint(trees, lengths).unflatten(0, normals.shape[:2]), trees, lengths)

    @torch.no_grad()
    def at(self, x: Tensor, z: list[Tensor]) -> Draw:
        """Scores of given trees and lengths.

        Args:
            x: [B, 0].
            z: inner splits [L, B, n - 3], by position in ``spec.support.root_splits``; log lengths [L, B, 2n - 3] in
                the order of :func:`miselbo.phylo.tree.edge_splits`.

        Raises:
            InputError: the support lacks a clade of a tree.
        """
        masks = list(self.spec.support.root_splits)
        rows = z[0].flatten(0, 1).to(torch.int64).tolist()
        trees = self.spec.support.trees([tuple(sorted(masks[split] for split in row)) for row in rows])
        lengths = z[1].flatten(0, 1).double()
        return Draw(self.log_joint(trees, lengths).unflatten(0, z[1].shape[:2]), trees, lengths)

    def inference_form(
        self, ensemble: Ensemble, dtype: torch.dtype = torch.float64, compiled: bool = False
    ) -> Ensemble:
        """The ensemble on the CPU, in float64 whatever is asked: lengths of 1e-9 and cross-scores need it.

        Raises:
            InputError: bfloat16 or compilation.
        """
        if dtype == torch.bfloat16 or compiled:
            raise InputError("evaluation.dtype=bfloat16 and evaluation.compile=true are there for NVAE alone")
        return ensemble.to("cpu")

    def _load_from_state_dict(self, state: Mapping[str, Tensor], prefix: str, *rest: object) -> None:
        for name, mine in self.named_buffers():
            if not torch.equal(state[prefix + name].cpu(), mine.cpu()):
                raise InputError(
                    f"the run was made for another posterior: its {name} differs from that of this dataset. Give the "
                    "alignment, the trees of the support and the prior of the run, or use another run_dir"
                )


class Vbpi(nn.Module):
    """One member: q(tau) a subsplit Bayesian network, q(x | tau) by embeddings and a flow.

    Args:
        target: the posterior, whose support the trees are in.
        flow: called with the number of taxa and of embedding rows (a class of :mod:`miselbo.phylo.flows`); None for
            the identity.
        start: initial median of a branch length.
        largest_scale: soft cap of the standard deviation of a log branch length before the flow; None for none.
    """

    def __init__(
        self,
        target: Posterior,
        flow: MakeFlow | None = None,
        start: float = math.exp(SHIFT),
        largest_scale: float | None = None,
    ):
        super().__init__()
        if isinstance(start, bool) or not 0 < start < math.inf:
            raise InputError(f"model.approximation.start must be a positive branch length, got {start!r}")
        self.sbn = Sbn(target.spec.support)
        lengths = Branches(target.spec.support, flow, start, largest_scale)
        inferred = target.inferred
        self.branches: Branches | BranchesAndParameters = lengths
        if inferred is not None:
            self.branches = BranchesAndParameters(lengths, inferred.start(target.spec.alignment))

    def encode(self, x: Tensor) -> None:
        """Nothing depends on x: there is one data point."""

    def log_prob(self, context: None, draw: Draw) -> Tensor:
        """log q(tau) + log q(x | tau) [L, B] of a draw, whoever drew it; -inf outside the support."""
        value = self.sbn.log_prob(draw.trees) + self.branches.log_prob(draw.trees, draw.x)
        return value.unflatten(0, draw.log_p.shape)


def digest(support: Support) -> np.ndarray:
    """SHA-256 of a support, as 32 bytes."""
    text = repr((list(support.names), list(support.root_splits), list(support.pairs)))
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype=np.uint8).copy()
