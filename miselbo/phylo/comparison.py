"""How far the trees of a fitted ensemble are from a posterior sampled by MCMC, and its members' from each other.

From N trees of every member, drawn for this alone. The weights p / q (of a member its own q, of all of them the mixture
that weighs them equally) turn their frequencies into estimates of the posterior, by self-normalised importance
sampling: ``weighted`` beside the raw q.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from miselbo.noise import derive
from miselbo.phylo.distances import (
    asdsf,
    kl_inside,
    largest_split_difference,
    total_variation,
)
from miselbo.phylo.summaries import (
    consensus,
    consensus_newick,
    log_marginal,
    read_posterior,
    split_probabilities,
)
from miselbo.phylo.text.newick import Topology
from miselbo.protocols import EnsembleForm
from miselbo.runtime.files import atomic, write_json, write_text

DRAWS = 10_000  # per member
CHUNK = 1000  # of them at once
STREAM = 0x74726565  # the draws' seed is derived with it: fresh ones, none of the evaluation's


@dataclass(frozen=True)
class Drawn:
    """Trees of one member, or of all.

    Attributes:
        splits: [N, n - 3] inner splits by position in the support.
        log_p: [N] log p(Y, tau, x), nats.
        log_q: [N, S] of every member.
    """

    splits: Tensor
    log_p: Tensor
    log_q: Tensor


class Distance(TypedDict, total=False):
    """Of one distribution over trees, see :func:`distances`; of a member with its ELBO."""

    member: int
    elbo: float
    elbo_se: float
    log_marginal: float
    log_marginal_se: float | None
    log_marginal_k: float | None
    log_marginal_se_trusted: bool
    ess: float
    frequencies: tuple[dict[int, float], dict[int, float]]
    kl: float
    mass_outside: float
    tv: float
    q_outside: float
    asdsf: float
    largest_split_difference: float
    weighted_tv: float
    weighted_asdsf: float
    weighted_largest_split_difference: float


class Compared(TypedDict):
    """Of an ensemble, see :func:`compare`."""

    members: list[Distance]
    mixture: Distance
    between: dict[str, float]
    consensus: dict[str, dict[int, float]]


@torch.no_grad()
def compare(
    ensemble: EnsembleForm, seed: int, posterior: Mapping[Topology, float] | None = None, samples: int = DRAWS
) -> Compared:
    """The distances, as plain types.

    Args:
        ensemble: of :class:`miselbo.phylo.vbpi.Vbpi`.
        seed: of the draws.
        posterior: probability by topology to compare with; None without.
        samples: N per member.

    Returns:
        ``members``: a row each of what :func:`distances` says, with ``member``, ``elbo`` and its standard error;
        ``mixture``: the same of all; ``between`` the members, for two or more: ``asdsf`` and
        ``largest_split_difference`` of their raw split frequencies; ``consensus``: the majority-rule consensus of the
        mixture's raw and weighted splits.
    """
    size = len(ensemble.members)
    masks = list(ensemble.target.spec.support.root_splits)
    each = [draw(ensemble, s, samples, derive(seed, STREAM)) for s in range(size)]
    together = Drawn(
        *(torch.cat([getattr(one, name) for one in each]) for name in ("splits", "log_p", "log_q"))
    )
    reference = None
    if posterior:
        topologies, total = list(posterior), sum(posterior.values())
        probability = {topology: value / total for topology, value in posterior.items()}
        log_q = torch.stack([member.sbn.topology_log_prob(topologies) for member in ensemble.members], -1)
        reference = (probability, log_q)
    members: list[Distance] = []
    for s, one in enumerate(each):
        log_weight = one.log_p - one.log_q[:, s]
        found = distances(one, log_weight, masks, reference and (reference[0], reference[1][:, s]))
        error = log_weight.std().item() / math.sqrt(samples)
        members.append({"member": s + 1, "elbo": log_weight.mean().item(), "elbo_se": error, **found})
    of_mixture = together.log_q.logsumexp(-1) - math.log(size)
    at_reference = reference and (reference[0], reference[1].logsumexp(-1) - math.log(size))
    mixture = distances(together, together.log_p - of_mixture, masks, at_reference, size)
    raw = [row.pop("frequencies")[0] for row in members]
    q, weighted = mixture.pop("frequencies")
    between = (
        {"asdsf": asdsf(raw), "largest_split_difference": largest_split_difference(raw)} if size > 1 else {}
    )
    return {
        "members": members,
        "mixture": mixture,
        "between": between,
        "consensus": {"q": consensus(q), "weighted": consensus(weighted)},
    }


def draw(ensemble: EnsembleForm, s: int, samples: int, seed: int) -> Drawn:
    """Trees of member s (from 0) with their scores under all."""
    target, index = ensemble.target, torch.zeros(1, dtype=torch.int64)
    parts = []
    for some in torch.arange(samples).split(CHUNK):
        noise = target.noise(index, some, seed, index, s)
        found = target.draw(torch.zeros(1, 0), ensemble.members[s], None, noise)
        log_q = torch.stack([member.log_prob(None, found) for member in ensemble.members], -1)
        splits = found.trees.splits[:, target.num_taxa :].clone()
        parts.append((splits, found.log_p.flatten(), log_q.flatten(0, -2)))
    return Drawn(*(torch.cat(part) for part in zip(*parts, strict=True)))


def distances(
    drawn: Drawn,
    log_weight: Tensor,
    masks: Sequence[int],
    reference: tuple[Mapping[Topology, float], Tensor] | None,
    size: int = 1,
) -> Distance:
    """Of one distribution over trees: the log marginal likelihood it gives, and how far it is from a posterior.

    Args:
        drawn: N trees.
        log_weight: [N] log p / q.
        masks: of the support's splits.
        reference: the posterior, and log q [T] of its topologies.
        size: members that drew the trees, one after another.

    Returns:
        ``log_marginal``, ``log_marginal_se``, ``log_marginal_k``
        (:func:`miselbo.phylo.summaries.log_marginal`), ``ess``; ``frequencies`` of the splits, raw and weighted;
        with a reference ``kl`` = KL(posterior given the support || q), nats, and ``mass_outside`` of the posterior
        where q is 0 (both exact over its topologies), ``tv`` (exact), ``q_outside`` = share of q on topologies that the
        posterior lacks (exact), ``asdsf`` and ``largest_split_difference`` to it, and of the weighted trees
        ``weighted_tv``, ``weighted_asdsf``, ``weighted_largest_split_difference``.
    """
    share = (log_weight - log_weight.logsumexp(0)).exp()
    count = len(share)
    ess = 1 / (share**2).sum().item()
    different, which = torch.unique(drawn.splits, dim=0, return_inverse=True)
    topologies = [tuple(masks[split] for split in row) for row in different.tolist()]

    def by_topology(weight: Tensor) -> dict[Topology, float]:
        total = torch.zeros(len(topologies), dtype=torch.float64).index_add_(0, which, weight)
        return dict(zip(topologies, total.tolist(), strict=True))

    weighted = by_topology(share)
    raw_splits = split_probabilities(by_topology(torch.full_like(share, 1 / count)))
    weighted_splits = split_probabilities(weighted)
    result: Distance = {
        **log_marginal(log_weight, size),  # type: ignore[typeddict-item]
        "ess": ess,
        "frequencies": (raw_splits, weighted_splits),
    }
    if reference is None:
        return result
    posterior, at = reference[0], reference[1].numpy()
    kl, outside = kl_inside(np.array(list(posterior.values())), at)
    q = dict(zip(posterior, np.exp(at).tolist(), strict=True))
    known = split_probabilities(posterior)
    more: Distance = {
        "kl": kl,
        "mass_outside": outside,
        "tv": total_variation(posterior, q),
        "q_outside": max(1 - math.fsum(q.values()), 0.0),
        "asdsf": asdsf([raw_splits, known]),
        "largest_split_difference": largest_split_difference([raw_splits, known]),
        "weighted_tv": total_variation(posterior, weighted),
        "weighted_asdsf": asdsf([weighted_splits, known]),
        "weighted_largest_split_difference": largest_split_difference([weighted_splits, known]),
    }
    return {**result, **more}


def elbo_warnings(members: Sequence[Distance], reported: pd.DataFrame) -> list[str]:
    """A sentence for every member whose reported ELBO is more than 3 of its own errors from the fresh draws'.

    Args:
        members: rows of :func:`compare`.
        reported: ``results/per_member.csv``: member, L, elbo, elbo_se.
    """
    last = reported[reported["L"] == reported["L"].max()].set_index("member")
    sentences = []
    for row in members:
        if row["member"] not in last.index:
            continue
        value, error = (float(last.loc[row["member"], name]) for name in ("elbo", "elbo_se"))
        if math.isfinite(error) and abs(value - row["elbo"]) > 3 * error:
            sentences.append(
                f"The ELBO of q_{row['member']}, {value:.2f} with the standard error {error:.2f}, is "
                f"{abs(value - row['elbo']) / error if error else math.inf:.1f} of its errors from that of "
                f"{DRAWS:,} fresh draws, {row['elbo']:.2f} ({row['elbo_se']:.2f}): a few draws with "
                "tiny weights decide it, so neither error is to be relied on. More draws (evaluation.num_samples, "
                "dataset.replicates) or a model without such draws (model.approximation.largest_scale) help."
            )
    return sentences


def save_comparison(ensemble: EnsembleForm, seed: int, posterior: str | None, results: Path) -> None:
    """Write ``trees.csv``, ``consensus_weighted.nwk`` and ``distances.json`` for the report."""
    names = ensemble.target.spec.alignment.names
    found = compare(ensemble, seed, read_posterior(posterior, names) if posterior else None)
    rows = [*found["members"], {"member": "mixture", **found["mixture"]}]
    with atomic(results / "trees.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    trees = found["consensus"]
    write_text(results / "consensus_weighted.nwk", consensus_newick(trees["weighted"], names) + "\n")
    reported = results / "per_member.csv"
    warnings = elbo_warnings(found["members"], pd.read_csv(reported)) if reported.is_file() else []
    different = len(trees["q"].keys() ^ trees["weighted"].keys())
    content = {**found, "consensus": {"different_splits": different}, "warnings": warnings}
    write_json(results / "distances.json", content)
