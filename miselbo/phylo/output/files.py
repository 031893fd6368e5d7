"""Posterior trees as files of MrBayes' kind, which FigTree, Tracer, Biopython, DendroPy and sumt / sump read.

``trees.trees``: a sample with branch lengths; ``parameters.p``: log likelihood, log prior and tree length
of the same rows; ``consensus.tre`` and ``map.tre``: annotated trees; ``credible_set.trprobs``: the fewest
topologies of 95%; ``parameters.csv``: means and intervals.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from miselbo.phylo.output.best_tree import best_topology
from miselbo.phylo.output.draws import Draws, resampled
from miselbo.phylo.output.newick import newick_of
from miselbo.phylo.output.splits import SplitSummary, credible_set, interval, summarise_splits
from miselbo.phylo.tree import edge_splits, newick
from miselbo.protocols import EnsembleForm
from miselbo.runtime.files import write_csv, write_text

MAJORITY = 0.5


def nexus_trees(names: Sequence[str], trees: Sequence[str], remark: str) -> str:
    """A NEXUS file with a translate table.

    Args:
        names: of the taxa.
        trees: ``name = newick``, with the taxa as numbers from 1 on.
        remark: a comment on the file.

    Example:
        >>> print(nexus_trees(["a b", "c"], ["one = [&U] (1,2);"], "made by hand"))
        #NEXUS
        [made by hand]
        begin trees;
           translate
              1 'a b',
              2 c;
           tree one = [&U] (1,2);
        end;
        <BLANKLINE>
    """
    table = ",\n".join(f"      {number} {quoted(name)}" for number, name in enumerate(names, start=1))
    lines = "".join(f"   tree {tree}\n" for tree in trees)
    return f"#NEXUS\n[{remark}]\nbegin trees;\n   translate\n{table};\n{lines}end;\n"


def quoted(name: str) -> str:
    """A name in quotes where NEXUS wants them; a hyphen counts, at which some readers end a name.

    Example:
        >>> quoted("Wren_north.1"), quoted("Wren-north"), quoted("it's")
        ('Wren_north.1', "'Wren-north'", "'it''s'")
    """
    return name if re.fullmatch(r"[\w.|#@]+", name) else "'" + name.replace("'", "''") + "'"


def sample_text(
    draws: Draws, rows: np.ndarray, weights: np.ndarray | None, outgroup: int, remark: str
) -> str:
    """The trees of some draws, with weights ``[&W ...]`` if given."""
    labels = [str(number) for number in range(1, len(draws.names) + 1)]
    mark = "[&R]" if outgroup else "[&U]"
    trees = []
    for place, row in enumerate(rows.tolist()):
        weight = "" if weights is None else f"[&W {weights[place]:.6g}] "
        trees.append(f"gen.{place} = {weight}{mark} {newick_of(draws.tree(row), labels, outgroup)}")
    return nexus_trees(draws.names, trees, remark)


def parameters_text(draws: Draws, rows: np.ndarray, weights: np.ndarray | None = None) -> str:
    """Tracer's and sump's table: generation, log likelihood, log prior, tree length, parameters, perhaps weights."""
    columns = ["Gen", "LnL", "LnPr", "TL", *draws.parameters] + ["weight"] * (weights is not None)
    lines = ["\t".join(columns)]
    for place, row in enumerate(rows.tolist()):
        values = [draws.log_likelihood[row], draws.log_prior[row], draws.lengths[row].sum()]
        values += [column[row] for column in draws.parameters.values()]
        values += [] if weights is None else [weights[place]]
        lines.append("\t".join([str(place), *(f"{value:.8g}" for value in values)]))
    return "[ID: 0]\n" + "\n".join(lines) + "\n"


def annotation(summary: SplitSummary) -> tuple[str, str]:
    """MrBayes' and FigTree's annotations of a node and of the edge above it."""
    node = f"[&prob={summary.probability:.6g},prob_stddev={summary.error:.3g}]"
    edge = (
        f"[&length_mean={summary.mean:.6g},length_median={summary.median:.6g},"
        f"length_95%HPD={{{summary.low:.6g},{summary.high:.6g}}}]"
    )
    return node, edge


def annotated_text(
    draws: Draws, splits: Sequence[int], summaries: dict[int, SplitSummary], outgroup: int, remark: str
) -> str:
    """A NEXUS file with one tree of mean lengths and the annotations of its splits."""
    tree = {split: summaries[split].mean for split in splits}
    labels = [str(number) for number in range(1, len(draws.names) + 1)]
    text = newick_of(tree, labels, outgroup, lambda split: annotation(summaries[split]))
    return nexus_trees(draws.names, [f"tree_1 = {'[&R]' if outgroup else '[&U]'} {text}"], remark)


def credible_text(draws: Draws, weights: np.ndarray, remark: str) -> str:
    """The topologies of the 95% credible set, as MrBayes' ``.trprobs``."""
    rows = np.flatnonzero(weights)
    found = credible_set([draws.topology(row) for row in rows.tolist()], weights[rows])
    labels = [str(number) for number in range(1, len(draws.names) + 1)]
    total, trees = 0.0, []
    for number, (topology, share) in enumerate(found, start=1):
        total += share
        trees.append(
            f"tree_{number} [p = {share:.4f}, P = {total:.4f}] = [&W {share:.6g}] {newick(topology, labels)}"
        )
    return nexus_trees(draws.names, trees, remark)


def save_trees(
    ensemble: EnsembleForm, draws: Draws, outgroup: int, seed: int, folder: Path
) -> dict[int, SplitSummary]:
    """Write the files of a run's ``results``; returns the summaries of all splits.

    Args:
        ensemble: whose draws these are.
        draws: trees with lengths.
        outgroup: mask of the taxa to root at; 0 for unrooted trees.
        seed: of the resampling.
        folder: to write in.
    """
    weights, remark, taxa = draws.weights, draws.remark, len(draws.names)
    summaries = summarise_splits(draws, weights)
    rows = resampled(weights, len(draws), seed)
    write_text(
        folder / "trees.trees",
        sample_text(draws, rows, None, outgroup, f"{remark}; resampled to equal weights"),
    )
    write_text(folder / "parameters.p", parameters_text(draws, rows))
    major = [split for split, found in summaries.items() if found.probability > MAJORITY]
    write_text(
        folder / "consensus.tre",
        annotated_text(draws, major, summaries, outgroup, f"majority-rule consensus of {remark}"),
    )
    drawn = dict.fromkeys(draws.topology(row) for row in range(len(draws)))
    topology, log_q = best_topology([member.sbn for member in ensemble.members], drawn)
    splits = edge_splits(topology, taxa)
    missing = {split: SplitSummary(*[0.0] * 6) for split in splits}  # drawn by no member
    missing |= summarise_splits(draws, np.full(len(draws), 1 / len(draws)))
    write_text(
        folder / "map.tre",
        annotated_text(
            draws, splits, missing | summaries, outgroup,
            f"topology of the highest probability under q, {np.exp(log_q):.4f}; lengths and supports of {remark}",
        ),
    )  # fmt: skip
    write_text(
        folder / "credible_set.trprobs", credible_text(draws, weights, f"95% credible set of {remark}")
    )
    write_csv(parameter_table(draws, weights), folder / "parameters.csv")
    return summaries


def parameter_table(draws: Draws, weights: np.ndarray) -> pd.DataFrame:
    """Mean, standard deviation, median and shortest 95% interval of the tree length and the inferred parameters."""
    rows = []
    for name, values in {"TL": draws.lengths.sum(1), **draws.parameters}.items():
        mean = float(np.average(values, weights=weights))
        deviation = math.sqrt(float(np.average((values - mean) ** 2, weights=weights)))
        median, low, high = interval(values, weights)
        rows.append(
            {"parameter": name, "mean": mean, "sd": deviation, "median": median, "low": low, "high": high}
        )
    return pd.DataFrame(rows)


def save_sample(
    draws: Draws, count: int, weighted: bool, outgroup: int, seed: int, folder: Path
) -> dict[str, object]:
    """Write a posterior sample; returns what was made.

    Args:
        draws: trees with lengths.
        count: trees of the sample, resampled to equal weights; all draws with their weights if ``weighted``.
        weighted: write importance weights, ``[&W ...]``.
        outgroup: mask of the taxa to root at; 0 for unrooted trees.
        seed: of the resampling.
        folder: to write in.
    """
    rows = np.arange(len(draws)) if weighted else resampled(draws.weights, count, seed)
    shares = draws.shares if weighted else None
    remark = draws.remark if not weighted else f"{len(draws)} draws, effective sample size {draws.ess:.0f}"
    stem = f"seed{seed}-num{len(rows)}{'-weighted' if weighted else ''}"
    path = folder / f"{stem}.trees"
    write_text(path, sample_text(draws, rows, shares, outgroup, remark))
    write_text(folder / f"{stem}.p", parameters_text(draws, rows, shares))
    print(f"{len(rows)} trees ({remark}): {path}")
    return {"path": str(path), "num": len(rows), "ess": draws.ess, "seed": seed, "weighted": weighted}
