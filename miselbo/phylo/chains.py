"""Chains of posterior draws of trees with branch lengths, as MrBayes' ``.t`` files, and what they say of log p(Y)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from miselbo.errors import InputError
from miselbo.phylo import mrbayes
from miselbo.phylo.alignment import Alignment
from miselbo.phylo.evidence import Chain, two_sided
from miselbo.phylo.text.newick import parse_newick
from miselbo.phylo.text.reading import read_text
from miselbo.phylo.text.tree_files import check_binary, number_burnt
from miselbo.phylo.text.tree_texts import tree_texts
from miselbo.phylo.tree import lengths_of
from miselbo.protocols import EnsembleForm
from miselbo.runtime.files import write_json

MRBAYES = "mrbayes"  # in place of files: run it
RISK = 0.05  # that log p(Y) is not between the two sides


@dataclass(frozen=True)
class Evidence:
    """The ``dataset.evidence`` group: independent chains of the posterior, and a claim to be held against both sides.

    Args:
        chains: tree files, one per independent run of the same model and prior; ``mrbayes`` to run it, see
            :mod:`miselbo.phylo.mrbayes`; None for none.
        burn_in: left out at the start of every file: a share below 1, or a number of trees.
        claimed: a log marginal likelihood, nats, that is put inside or outside; None for none.
        runs: of MrBayes.
        generations: of a run of MrBayes.

    Raises:
        InputError: a file or a program that is not there, or a claim without chains.

    Example:
        >>> Evidence().files
        []
    """

    chains: str | Sequence[str] | None = None
    burn_in: float = 0.25
    claimed: float | None = None
    runs: int = 4
    generations: int = 500_000

    def __post_init__(self) -> None:
        if self.chains == MRBAYES:
            mrbayes.check_program()
        missing = [str(path) for path in self.files if not path.is_file()]
        if missing:
            raise InputError(
                f"dataset.evidence.chains: {', '.join(missing)} does not exist: list tree files with branch lengths "
                "(MrBayes .t), one per independent run"
            )
        if self.claimed is not None and not self.chains:
            raise InputError(
                "dataset.evidence.claimed needs dataset.evidence.chains=[<tree files of independent runs>]: without "
                "draws of the posterior there is no upper side"
            )

    @property
    def files(self) -> list[Path]:
        """The tree files that are given."""
        if self.chains == MRBAYES:
            return []
        given = [self.chains] if isinstance(self.chains, str) else self.chains
        return [Path(path) for path in given or ()]

    def read(self, names: Sequence[str]) -> list[Chain]:
        """The draws of every chain, see :func:`read_chain`."""
        return [read_chain(path, names, self.burn_in) for path in self.files]

    def made(self, alignment: Alignment, branch_rate: float) -> list[Chain]:
        """The draws of MrBayes' runs, if it is to be run."""
        if self.chains != MRBAYES:
            return []
        names = [f"t{taxon}" for taxon in range(alignment.num_taxa)]
        paths = mrbayes.chain_files(alignment, branch_rate, self.runs, self.generations)
        return [read_chain(path, names, self.burn_in) for path in paths]


def read_chain(path: str | Path, names: Sequence[str], burn_in: float = 0.25) -> Chain:
    """Topologies and log branch lengths [M, 2n - 3], in the order of :func:`miselbo.phylo.tree.edge_splits`.

    Args:
        path: NEXUS or Newick, gzipped or not; a tree per draw.
        names: of the n taxa, in the alignment's order.
        burn_in: left out at the start: a share below 1, or a number of trees.

    Raises:
        InputError: no tree, other taxa, trees with weights or that are not fully resolved, and lengths that are
            missing or 0, whose logarithm is none.
    """
    trees = list(tree_texts(read_text(Path(path)), names, str(path)))
    if not trees:
        raise InputError(f"{path} holds no tree: expected Newick or NEXUS with branch lengths")
    topologies, lengths = [], []
    first = number_burnt(burn_in, len(trees))
    for position, (text, weights, taxa) in enumerate(trees[first:], start=first + 1):
        source = f"tree {position} of {path}"
        if weights != [1.0]:
            raise InputError(f"{source} has a weight: a chain is a file of unweighted draws (MrBayes .t)")
        tree = parse_newick(text, taxa, source)
        check_binary(tree, len(names), source)
        topology, row = lengths_of(tree, len(names))
        if not (row > 0).all():  # NaN too
            raise InputError(
                f"{source} has an edge of length 0 or without a length: draws of a continuous posterior have none"
            )
        topologies.append(topology)
        lengths.append(row)
    return topologies, torch.from_numpy(np.log(np.stack(lengths)))


class Sides(TypedDict, total=False):
    """Both sides of log p(Y), nats, and a claim held against them."""

    lower: float
    upper: float
    bridge: float
    bridge_se: float
    q_outside: float
    risk: float
    chains: list[int]
    claimed: float | None
    inside: bool
    sentence: str


def save_evidence(
    ensemble: EnsembleForm, evidence: Evidence, chains: Sequence[Chain], seed: int, results: Path
) -> Sides:
    """Write ``evidence.json``: both sides of log p(Y), the bridge estimate, and where the claim stands.

    Args:
        ensemble: of :class:`miselbo.phylo.vbpi.Vbpi`.
        evidence: whose claim it is, and whether MrBayes is to be run.
        chains: of :meth:`Evidence.read`.
        seed: of q's draws.
        results: folder.

    Raises:
        InputError: a model with inferred parameters, which the trees of a chain do not hold; MrBayes for another model
            than JC69.
    """
    claimed, target = evidence.claimed, ensemble.target
    if ensemble.target.inferred is not None:
        raise InputError(
            "dataset.evidence.chains needs a given model of substitution: the draws of a tree file hold no inferred "
            "parameters (model.target.inferred.model=null)"
        )
    if evidence.chains == MRBAYES:
        if not target.substitution.plain:
            raise InputError(
                "dataset.evidence.chains=mrbayes is run with JC69 alone: give the tree files of your own runs"
            )
        chains = evidence.made(target.spec.alignment, float(target.branch_rate))
    found: Sides = {
        **two_sided(ensemble, chains, seed, RISK),  # type: ignore[typeddict-item]
        "risk": RISK,
        "chains": [len(topologies) for topologies, _ in chains],
        "claimed": claimed,
    }
    if claimed is not None:
        found["inside"] = bool(found["lower"] <= claimed <= found["upper"])
    found["sentence"] = sentence(found)
    write_json(results / "evidence.json", found)
    print(found["sentence"])
    return found


def sentence(found: Sides) -> str:
    """Both sides in words, with what they rest on.

    Example:
        >>> print(sentence({"lower": -430.1, "upper": -427.1, "risk": 0.05, "bridge": -429.67, "bridge_se": 0.04,
        ...     "chains": [600, 600], "q_outside": 0.0, "claimed": -425.0, "inside": False}))  # doctest: +ELLIPSIS
        log p(Y) lies between -430.10 and -427.10 nats with probability 95%: ... -425.00 is OUTSIDE.
    """
    text = (
        f"log p(Y) lies between {found['lower']:.2f} and {found['upper']:.2f} nats with probability "
        f"{1 - found['risk']:.0%}: the lower side from q's own draws, the upper one from "
        f"{sum(found['chains'])} draws of {len(found['chains'])} chains, provided that these are independent and have "
        f"reached their stationary state. Bridge estimate {found['bridge']:.3f} (standard error "
        f"{found['bridge_se']:.3f}); {found['q_outside']:.2%} of the chains' draws are trees that q cannot draw."
    )
    if found["claimed"] is None:
        return text
    return f"{text} The claimed {found['claimed']:.2f} is {'inside' if found['inside'] else 'OUTSIDE'}."
