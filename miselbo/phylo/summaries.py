"""What users of trees expect of a fitted ensemble: split probabilities, a majority-rule consensus, the distance to a
posterior sampled by MCMC, and the log marginal likelihood with its interval.

All come from N trees of every member. The mixture q_mix of the members weighs them equally; the weights p / q_mix turn
its frequencies into estimates of the posterior (self-normalised importance sampling).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from miselbo.bounds.diagnostics import k_threshold, pareto_k
from miselbo.bounds.jackknife import joint_jackknife
from miselbo.phylo.output.draws import Draws
from miselbo.phylo.output.splits import summarise_splits
from miselbo.phylo.text.newick import Topology
from miselbo.phylo.text.tree_files import read_topologies
from miselbo.phylo.tree import bits, quote
from miselbo.protocols import EnsembleForm
from miselbo.runtime.files import atomic, write_json, write_text

if TYPE_CHECKING:  # it draws
    from miselbo.report.trees import Trees

MAJORITY = 0.5


def summarise(
    ensemble: EnsembleForm, draws: Draws, posterior: Mapping[Topology, float] | None = None
) -> "Trees":
    """Split probabilities and the rest, as plain types.

    Args:
        ensemble: of :class:`miselbo.phylo.vbpi.Vbpi`.
        draws: of the ensemble.
        posterior: probability by topology to compare with; None without.

    Returns:
        ``splits``: rows of split (mask), q, weighted, posterior, the Monte Carlo errors ``q_se`` and ``weighted_se``,
        and ``length_mean``, ``length_low``, ``length_high`` (95%) of the posterior sample; ``log_marginal``,
        ``log_marginal_se`` (jackknife), ``log_marginal_k`` (Pareto k-hat) and ``ess`` of S N draws; with a posterior
        ``kl`` = KL(posterior given the support || q_mix) over topologies, nats, and ``mass_outside`` of the posterior
        where q_mix is 0.
    """
    num_taxa, count = len(draws.names), len(draws)
    plain = summarise_splits(draws, np.full(count, 1 / count))
    weighted = summarise_splits(draws, draws.shares)
    lengths = summarise_splits(draws, draws.weights)
    reference = split_probabilities(posterior) if posterior else {}
    rows: list[dict[str, Any]] = []
    for mask in draws.masks:
        if not is_inner(mask, num_taxa):
            continue
        row = {
            "split": mask,
            "q": 0.0,
            "weighted": 0.0,
            "posterior": reference.get(mask, 0.0) if posterior else None,
        }
        for name, found in (("q", plain.get(mask)), ("weighted", weighted.get(mask))):
            row |= {name: found.probability if found else 0.0, f"{name}_se": found.error if found else 0.0}
        if mask in lengths:
            found = lengths[mask]
            row |= {"length_mean": found.mean, "length_low": found.low, "length_high": found.high}
        rows.append(row)
    result: Trees = {
        "splits": sorted(rows, key=lambda row: (-row["q"], row["split"])),
        **log_marginal(torch.from_numpy(draws.log_weight), len(ensemble.members)),  # type: ignore[typeddict-item]
        "ess": draws.ess,
        "draws": count,
        "sample": draws.remark,
    }
    if posterior:
        found_kl = kl_to(posterior, ensemble)
        result["kl"], result["mass_outside"] = found_kl["kl"], found_kl["mass_outside"]
    return result


def log_marginal(log_weight: Tensor, size: int) -> dict[str, float | None]:
    """The log marginal likelihood by importance sampling with the mixture of the members.

    Args:
        log_weight: [S N] log p - log q_mix, one member after another.
        size: S.

    Returns:
        ``log_marginal``, its jackknife error ``log_marginal_se`` (members are strata; None where unknown),
        ``log_marginal_k``, Pareto k-hat of the weights (None below 25 draws), and ``log_marginal_se_trusted``: False
        where the error is unknown or, by k-hat, too small.

    Example:
        >>> found = log_marginal(torch.zeros(8), 2)
        >>> found["log_marginal_se"], found["log_marginal_k"], found["log_marginal_se_trusted"]
        (0.0, None, True)
    """
    weights = log_weight.double()
    value, variance, _ = joint_jackknife(weights.view(size, -1))
    error, k = float(variance.sqrt()), float(pareto_k(weights))
    return {
        "log_marginal": float(value),
        "log_marginal_se": error if math.isfinite(error) else None,
        "log_marginal_k": k if math.isfinite(k) else None,
        "log_marginal_se_trusted": math.isfinite(error) and not k > k_threshold(len(weights)),
    }


@torch.no_grad()
def kl_to(posterior: Mapping[Topology, float], ensemble: EnsembleForm) -> dict[str, float]:
    """KL(posterior given the support || q_mix) over topologies, and the posterior's mass outside the support."""
    topologies = list(posterior)
    probability = torch.tensor([posterior[topology] for topology in topologies], dtype=torch.float64)
    probability = probability / probability.sum()
    log_q = torch.stack([member.sbn.topology_log_prob(topologies) for member in ensemble.members])
    mixture = log_q.logsumexp(0) - math.log(len(ensemble.members))
    inside = mixture.isfinite()
    mass = probability[inside].sum()
    given = probability[inside] / mass
    kl = (given * (given.log() - mixture[inside]))[given > 0].sum()
    return {"kl": float(kl), "mass_outside": float(1 - mass)}


def is_inner(mask: int, num_taxa: int) -> bool:
    """Whether a split (its side without taxon 0) is of an inner edge."""
    return mask.bit_count() > 1 and mask != (1 << num_taxa) - 2


def split_probabilities(posterior: Mapping[Topology, float]) -> dict[int, float]:
    """Probability of each inner split under weighted topologies.

    Example:
        >>> split_probabilities({(0b1100,): 3.0, (0b1010,): 1.0})
        {12: 0.75, 10: 0.25}
    """
    total, found = sum(posterior.values()), dict[int, float]()
    for topology, weight in posterior.items():
        for split in topology:
            found[split] = found.get(split, 0.0) + weight / total
    return found


def consensus(probability: Mapping[int, float]) -> dict[int, float]:
    """The majority-rule consensus: splits of more than one half, which always fit together.

    Example:
        >>> consensus({0b1100: 0.75, 0b1010: 0.25})
        {12: 0.75}
    """
    return {split: value for split, value in sorted(probability.items()) if value > MAJORITY}


def consensus_newick(splits: Mapping[int, float], names: Sequence[str]) -> str:
    """Newick text of a consensus, its splits' probabilities as node labels; seen from taxon 0.

    Example:
        >>> consensus_newick({0b1100: 0.75}, ["a", "b", "c", "d"])
        '(a,b,(c,d)0.750);'
    """
    text = {1 << taxon: quote(name) for taxon, name in enumerate(names)}
    top = dict(enumerate(text))  # largest clade so far of each taxon
    for split in sorted(splits):
        parts = list(dict.fromkeys(top[taxon] for taxon in bits(split)))
        text[split] = f"({','.join(text[part] for part in parts)}){splits[split]:.3f}"
        top |= dict.fromkeys(bits(split), split)
    return f"({','.join(text[part] for part in dict.fromkeys(top.values()))});"


def read_posterior(path: str, names: Sequence[str]) -> dict[Topology, float]:
    """Probability by topology of a tree file with weights."""
    topologies, weights = read_topologies(path, names)
    total = weights.sum(1)
    return dict(zip(topologies, (total / total.sum()).tolist(), strict=True))


def save(ensemble: EnsembleForm, draws: Draws, posterior: str | None, results: Path) -> None:
    """Write ``splits.csv``, ``consensus.nwk`` and ``trees.json`` for the report."""
    names = ensemble.target.spec.alignment.names
    found = summarise(ensemble, draws, read_posterior(posterior, names) if posterior else None)
    rows = found.pop("splits")
    tree = consensus({row["split"]: row["q"] for row in rows})
    support = ensemble.target.spec.support
    full = (1 << len(names)) - 1  # a split is named by its smaller side
    shown = [support.name(min(row["split"], full ^ row["split"], key=int.bit_count)) for row in rows]
    table = pd.DataFrame([{**row, "split": name} for row, name in zip(rows, shown, strict=True)])
    with atomic(results / "splits.csv") as temporary:
        table.to_csv(temporary, index=False)
    write_text(results / "consensus.nwk", consensus_newick(tree, names) + "\n")
    write_json(results / "trees.json", {**found, "names": list(names), "consensus": list(tree.items())})
