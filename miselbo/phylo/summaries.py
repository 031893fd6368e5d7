"""What users of trees expect of a fitted ensemble: split probabilities, a majority-rule consensus, the distance to a
posterior sampled by MCMC and of the members to each other, and the log marginal likelihood with its interval.

All come from N trees of every member, drawn for this alone. The mixture q_mix of the members weighs them equally; the
weights p / q_mix (p / q_s for a member alone) turn its frequencies into estimates of the posterior (self-normalised
importance sampling): ``weighted`` beside the raw ``q``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from miselbo.noise import derive
from miselbo.phylo.consensus import consensus, consensus_newick
from miselbo.phylo.distances import (
    asdsf,
    kl_inside,
    largest_split_difference,
    split_probabilities,
    total_variation,
)
from miselbo.phylo.text.newick import Topology
from miselbo.phylo.text.tree_files import read_topologies
from miselbo.runtime.files import atomic, write_json, write_text

SAMPLES = 10_000  # per member
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


@torch.no_grad()
def summarise(
    ensemble: Any, seed: int, posterior: Mapping[Topology, float] | None = None, samples: int = SAMPLES
) -> dict[str, Any]:
    """Split probabilities and the rest, as plain types.

    Args:
        ensemble: of :class:`miselbo.phylo.vbpi.Vbpi`.
        seed: of the draws.
        posterior: probability by topology to compare with; None without.
        samples: N per member.

    Returns:
        ``splits``: rows of split (mask), q, weighted, posterior; ``draws`` = S N; what :func:`distances` says of the
        mixture; ``members``: the same of each member, with ``elbo`` and its standard error; with two or more
        ``between``: ``asdsf`` and ``largest_split_difference`` of their raw split frequencies.
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
    members = []
    for s, one in enumerate(each):
        log_weight = one.log_p - one.log_q[:, s]
        found = distances(one, log_weight, masks, reference and (reference[0], reference[1][:, s]))
        elbo = {"elbo": log_weight.mean().item(), "elbo_se": log_weight.std().item() / math.sqrt(samples)}
        members.append({"member": s + 1, **elbo, **found})
    of_mixture = together.log_q.logsumexp(-1) - math.log(size)
    at_reference = reference and (reference[0], reference[1].logsumexp(-1) - math.log(size))
    mixture = distances(together, together.log_p - of_mixture, masks, at_reference)
    raw = [one.pop("frequencies")[0] for one in members]
    q, weighted = mixture.pop("frequencies")
    known = split_probabilities(posterior) if posterior else {}
    rows = [
        {"split": mask, "q": q.get(mask, 0.0), "weighted": weighted.get(mask, 0.0),
         "posterior": known.get(mask, 0.0) if posterior else None}
        for mask in masks if is_inner(mask, ensemble.target.num_taxa)
    ]  # fmt: skip
    between = {"asdsf": asdsf(raw), "largest_split_difference": largest_split_difference(raw)}
    return {
        "splits": sorted(rows, key=lambda row: (-row["q"], row["split"])),
        "draws": size * samples,
        **mixture,
        "members": members,
    } | ({"between": between} if size > 1 else {})


def draw(ensemble: Any, s: int, samples: int, seed: int) -> Drawn:
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
) -> dict[str, Any]:
    """Of one distribution over trees: the log marginal likelihood it gives, and how far it is from a posterior.

    Args:
        drawn: N trees.
        log_weight: [N] log p / q.
        masks: of the support's splits.
        reference: the posterior, and log q [T] of its topologies.

    Returns:
        ``log_marginal``, ``log_marginal_se`` (delta method), ``ess``; ``frequencies`` of the splits, raw and weighted;
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
    result: dict[str, Any] = {
        "log_marginal": log_weight.logsumexp(0).item() - math.log(count),
        "log_marginal_se": math.sqrt(max(1 / ess - 1 / count, 0.0)),
        "ess": ess,
        "frequencies": (raw_splits, weighted_splits),
    }
    if reference is None:
        return result
    posterior, at = reference[0], reference[1].numpy()
    kl, outside = kl_inside(np.array(list(posterior.values())), at)
    q = dict(zip(posterior, np.exp(at).tolist(), strict=True))
    known = split_probabilities(posterior)
    return result | {
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


def is_inner(mask: int, num_taxa: int) -> bool:
    """Whether a split (its side without taxon 0) is of an inner edge."""
    return mask.bit_count() > 1 and mask != (1 << num_taxa) - 2


def read_posterior(path: str, names: Sequence[str]) -> dict[Topology, float]:
    """Probability by topology of a tree file with weights."""
    topologies, weights = read_topologies(path, names)
    total = weights.sum(1)
    return dict(zip(topologies, (total / total.sum()).tolist(), strict=True))


def elbo_warnings(members: Sequence[Mapping[str, Any]], reported: pd.DataFrame) -> list[str]:
    """A sentence for every member whose reported ELBO is more than 3 of its own errors from the fresh draws'.

    Args:
        members: rows of :func:`summarise`.
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
                f"{SAMPLES:,} fresh draws, {row['elbo']:.2f} ({row['elbo_se']:.2f}): a few draws with "
                "tiny weights decide it, so neither error is to be relied on. More draws (evaluation.num_samples, "
                "dataset.replicates) or a model without such draws (model.approximation.largest_scale) help."
            )
    return sentences


def save(ensemble: Any, seed: int, posterior: str | None, results: Path) -> None:
    """Write ``splits.csv``, ``trees.csv``, ``consensus.nwk``, ``consensus_weighted.nwk`` and ``trees.json``."""
    names = ensemble.target.spec.alignment.names
    found = summarise(ensemble, seed, read_posterior(posterior, names) if posterior else None)
    rows = found.pop("splits")
    support = ensemble.target.spec.support
    full = (1 << len(names)) - 1  # a split is named by its smaller side
    shown = [support.name(min(row["split"], full ^ row["split"], key=int.bit_count)) for row in rows]
    write_table(
        [{**row, "split": name} for row, name in zip(rows, shown, strict=True)], results / "splits.csv"
    )
    mixture = {key: value for key, value in found.items() if not isinstance(value, list | dict)}
    write_table([*found["members"], {"member": "mixture", **mixture}], results / "trees.csv")
    trees = {}
    for kind, file in (("q", "consensus"), ("weighted", "consensus_weighted")):
        trees[file] = consensus({row["split"]: row[kind] for row in rows})
        write_text(results / f"{file}.nwk", consensus_newick(trees[file], names) + "\n")
    reported = results / "per_member.csv"
    warnings = elbo_warnings(found["members"], pd.read_csv(reported)) if reported.is_file() else []
    content = {**found, "warnings": warnings, "names": list(names)}
    write_json(results / "trees.json", content | {name: list(tree.items()) for name, tree in trees.items()})


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Rows as CSV."""
    with atomic(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
