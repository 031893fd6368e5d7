"""Trees with branch lengths drawn from a fitted ensemble, with their weights under the posterior.

The mixture of the members weighs them equally. The weights p / q_mix turn its draws into a sample of the posterior
(self-normalised importance sampling); with few effective draws they are worth less than no weights.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from miselbo.protocols import EnsembleForm

SAMPLES = 1000  # per member
ENOUGH = 100  # effective draws from which on the weights are used


@dataclass(frozen=True)
class Draws:
    """N draws of all members, one member after another.

    Attributes:
        names: of the n taxa.
        masks: split of every number in ``splits``.
        splits: [N, 2n - 3] split of every edge, a number of ``masks``; pendant edges by taxon, then inner ones.
        lengths: [N, 2n - 3] branch lengths, expected substitutions per site.
        log_likelihood: [N] log p(Y | tau, b), nats.
        log_prior: [N] log p(tau) p(b) p(parameters), a density in b and the parameters, nats.
        log_weight: [N] log p - log q_mix, nats; its log-mean-exp is the log marginal likelihood.
        parameters: [N] of every inferred parameter of the model, by MrBayes' name.
    """

    names: tuple[str, ...]
    masks: list[int]
    splits: np.ndarray
    lengths: np.ndarray
    log_likelihood: np.ndarray
    log_prior: np.ndarray
    log_weight: np.ndarray
    parameters: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.log_weight)

    @property
    def shares(self) -> np.ndarray:
        """Importance weights [N], which sum to 1."""
        return np.exp(self.log_weight - np.logaddexp.reduce(self.log_weight))

    @property
    def ess(self) -> float:
        """Effective sample size of the weights."""
        return float(1 / (self.shares**2).sum())

    @property
    def log_marginal(self) -> float:
        """Estimate of log p(Y), nats."""
        return float(np.logaddexp.reduce(self.log_weight) - math.log(len(self)))

    @property
    def weights(self) -> np.ndarray:
        """Weights [N] of the posterior sample: :attr:`shares` if enough of the draws are effective, else equal ones."""
        return self.shares if self.ess >= ENOUGH else np.full(len(self), 1 / len(self))

    @property
    def remark(self) -> str:
        """Which weights these are, in words."""
        if self.ess >= ENOUGH:
            return f"{len(self)} draws with importance weights, effective sample size {self.ess:.0f}"
        return (
            f"{len(self)} draws of the variational approximation itself: with importance weights only {self.ess:.0f} "
            f"of them would be effective (fewer than {ENOUGH}), so they have equal weights"
        )

    def tree(self, row: int) -> dict[int, float]:
        """Splits and lengths of one draw."""
        return dict(
            zip((self.masks[i] for i in self.splits[row].tolist()), self.lengths[row].tolist(), strict=True)
        )

    def topology(self, row: int) -> tuple[int, ...]:
        """Sorted inner splits of one draw."""
        return tuple(self.masks[i] for i in self.splits[row, len(self.names) :].tolist())


@torch.no_grad()
def draw_trees(ensemble: EnsembleForm, seed: int, samples: int = SAMPLES) -> Draws:
    """Draw from every member and score under all.

    Args:
        ensemble: of :class:`miselbo.phylo.vbpi.Vbpi`.
        seed: of the draws.
        samples: of every member.
    """
    target, size = ensemble.target, len(ensemble.members)
    index, numbers = torch.zeros(1, dtype=torch.int64), torch.arange(samples)
    parts: list[list[np.ndarray]] = []
    for s, member in enumerate(ensemble.members):
        draw = target.draw(torch.zeros(1, 0), member, None, target.noise(index, numbers, seed, index, s))
        log_q = torch.stack([other.log_prob(None, draw) for other in ensemble.members])
        log_weight = (draw.log_p - log_q.logsumexp(0) + math.log(size)).flatten()
        log_prior = target.log_branch_prior(draw.x) + target.log_p_topology
        log_likelihood = draw.log_p.flatten() - log_prior
        x, theta = draw.x[:, : target.num_edges], draw.x[:, target.num_edges :]
        log_prior = log_prior - x.sum(-1)  # a density in b, not in log b
        if target.inferred is not None:
            log_prior = log_prior - target.inferred.log_jacobian(theta)
            theta = target.inferred.natural(theta)
        found = (draw.trees.splits, x.exp(), log_likelihood, log_prior, log_weight, theta)
        parts.append([part.numpy() for part in found])
    splits, lengths, log_likelihood, log_prior, log_weight, theta = (
        np.concatenate(part) for part in zip(*parts, strict=True)
    )
    labels = () if target.inferred is None else target.inferred.labels
    masks, names = list(target.spec.support.root_splits), target.spec.alignment.names
    parameters = dict(zip(labels, theta.T, strict=True)) if labels else {}
    return Draws(tuple(names), masks, splits, lengths, log_likelihood, log_prior, log_weight, parameters)


def resampled(weights: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows of a sample of equal weights: systematic resampling, in random order.

    Args:
        weights: [N], which sum to 1.
        count: rows wanted.
        seed: of the offset and the order.

    Example:
        >>> sorted(resampled(np.array([0.5, 0.0, 0.5]), 4, 0).tolist())
        [0, 0, 2, 2]
    """
    generator = np.random.default_rng(seed)
    points = (generator.random() + np.arange(count)) / count
    rows = np.searchsorted(np.cumsum(weights) / weights.sum(), points, side="right")
    return generator.permutation(np.minimum(rows, len(weights) - 1))
