"""Where the topologies of a support come from: a tree file, IQ-TREE's ultrafast bootstrap, bootstrap neighbour joining.

The result is kept in the user's cache under a hash of everything it depends on, so that it is made once.
"""

import contextlib
import gzip
import hashlib
import json
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import pooch

from miselbo.errors import InputError
from miselbo.phylo.alignment import Alignment
from miselbo.phylo.support import Support
from miselbo.phylo.text.newick import Topology, inner_splits, parse_newick
from miselbo.phylo.text.tree_files import UNRESOLVED, read_tree_files
from miselbo.phylo.tree import all_topologies
from miselbo.runtime.files import atomic
from miselbo.runtime.progress import Meter

METHODS = ("auto", "file", "iqtree", "nj", "all")
FORMAT = 2  # goes up when what a cached support holds changes
SATURATED = 3.0  # distance of sequences that differ in three quarters of their sites or more
MOST_ENUMERATED = 7
OF_FILES = ("burn_in", "unresolved")  # options that tree files alone have


@dataclass(frozen=True)
class SupportOptions:
    """How the topologies of the support are found.

    Args:
        method: ``file``; ``iqtree``, its ultrafast bootstrap; ``nj``, bootstrap neighbour joining; ``all`` of them, for
            up to 7 taxa; ``auto``: the file if there is one, all up to 5 taxa, else IQ-TREE if installed, else ``nj``.
        file: tree file or files: Newick, NEXUS (MrBayes .t, .trprobs; BEAST), a table of topologies and counts or of
            samples (RevBayes); None without.
        burn_in: left out at the start of every file: a share below 1 or a number of trees.
        unresolved: what becomes of a file's trees that are not fully resolved: ``skip`` (they are counted), ``random``
            (resolved at random) or ``refuse``.
        replicates: runs of the bootstrap with seeds 1, 2, ...; their kept trees are united.
        trees: per replicate of IQ-TREE (at least 1,000).
        nj_trees: per replicate of neighbour joining.
        keep: share of each replicate's trees (or of a file's weight, per column) that is kept, the most frequent first.

    Raises:
        InputError: a value that cannot be.
    """

    method: str = "auto"
    file: str | Sequence[str] | None = None
    replicates: int = 10
    trees: int = 10000
    nj_trees: int = 100
    keep: float = 0.95
    burn_in: float = 0.0
    unresolved: str = "skip"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(
                f"dataset.support.method must be one of {', '.join(METHODS)}, got {self.method!r}"
            )
        for name, least in (("replicates", 1), ("trees", 1000), ("nj_trees", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(
                    f"dataset.support.{name} must be a whole number of at least {least}, got {value!r}"
                )
        if isinstance(self.keep, bool) or not isinstance(self.keep, int | float) or not 0 < self.keep <= 1:
            raise InputError(f"dataset.support.keep must be a share above 0 and at most 1, got {self.keep!r}")
        burn_in = self.burn_in
        if isinstance(burn_in, bool) or not isinstance(burn_in, int | float) or not 0 <= burn_in < np.inf:
            raise InputError(
                f"dataset.support.burn_in must be a share below 1 or a number of trees, got {burn_in!r}"
            )
        if self.unresolved not in UNRESOLVED:
            raise InputError(
                f"dataset.support.unresolved must be one of {', '.join(UNRESOLVED)}, got {self.unresolved!r}"
            )
        if self.method == "file" and not self.files:
            raise InputError("dataset.support.method=file needs dataset.support.file=<a tree file>")
        for file in self.files:
            if not Path(file).is_file():
                raise InputError(f"dataset.support.file={file} does not exist")

    @property
    def files(self) -> list[str]:
        """The tree files."""
        return [] if self.file is None else [self.file] if isinstance(self.file, str) else list(self.file)


def iqtree_program() -> str | None:
    """The IQ-TREE on the PATH: ``iqtree2`` or ``iqtree``."""
    return next((name for name in ("iqtree2", "iqtree") if shutil.which(name)), None)


def chosen_method(options: SupportOptions, num_taxa: int) -> str:
    """What ``auto`` means here; the method itself otherwise.

    Raises:
        InputError: IQ-TREE is asked for and not installed, or all topologies of too many taxa.
    """
    if options.method == "auto":
        if options.files:
            return "file"
        if num_taxa <= 5:
            return "all"
        return "iqtree" if iqtree_program() else "nj"
    if options.method == "iqtree" and iqtree_program() is None:
        raise InputError(
            "dataset.support.method=iqtree: neither iqtree2 nor iqtree is on the PATH. Install the package iqtree "
            "(Debian: apt install iqtree; conda: conda install -c bioconda iqtree), or use dataset.support.method=nj, "
            "which needs no program, or dataset.support.file=<a tree file>"
        )
    if options.method == "all" and num_taxa > MOST_ENUMERATED:
        raise InputError(
            f"dataset.support.method=all is for up to {MOST_ENUMERATED} taxa, the alignment has {num_taxa}"
        )
    return options.method


class About(TypedDict):
    """How a support was found: by what, of how many topologies, with what to say."""

    method: str
    num_topologies: int
    notes: NotRequired[list[str]]


class Kept(TypedDict):
    """A support as the cache keeps it."""

    root_splits: list[int]
    pairs: list[tuple[int, int, int]]
    origins: list[list[int]]
    about: About


def find_support(
    alignment: Alignment, options: SupportOptions, cache: Path | None = None
) -> tuple[Support, About]:
    """The support and what is known of it: ``method``, ``num_topologies``, ``notes`` if any; cached.

    Args:
        alignment: whose taxa the trees have; the bootstraps use its columns.
        options: how.
        cache: folder; default the user's cache.

    Raises:
        InputError: no such file or program, or trees of other taxa.
    """
    method = chosen_method(options, alignment.num_taxa)
    content = asdict(options) | {"method": method, "format": FORMAT, "names": alignment.names}
    content = {key: value for key, value in content.items() if key not in OF_FILES} | {
        "file": options.files or None
    }
    digest = hashlib.sha256(alignment.codes.tobytes())
    if method == "file":
        kept_keys = ("method", "format", "names", "keep")
        content = {key: content[key] for key in kept_keys} | {key: getattr(options, key) for key in OF_FILES}
        digest = hashlib.sha256(b"".join(Path(file).read_bytes() for file in options.files))
    digest.update(json.dumps(content, sort_keys=True).encode())
    path = (cache or Path(pooch.os_cache("miselbo")) / "phylo") / f"{digest.hexdigest()[:32]}.json.gz"
    kept = load(path)
    if kept is not None:
        masks = kept["root_splits"]
        origins = [tuple(masks[place] for place in row) for row in kept["origins"]]
        pairs = ((a, b, c) for a, b, c in kept["pairs"])
        return Support(alignment.names, masks, pairs, origins), kept["about"]
    topologies, notes = find_topologies(alignment, options, method)
    support = Support.from_topologies(topologies, alignment.names)
    about: About = {"method": method, "num_topologies": len(topologies)}
    if notes:
        about["notes"] = notes
    with contextlib.suppress(OSError):  # a cache that cannot be written to costs time, nothing else
        keep: Kept = {
            "root_splits": list(support.root_splits),
            "pairs": list(support.pairs),
            "origins": [[support.rank[split] for split in topology] for topology in support.origins],
            "about": about,
        }
        store(path, keep)
    return support, about


def load(path: Path) -> Kept | None:
    """A cached support; None when there is none or the file is damaged."""
    try:
        return json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError):
        return None


def store(path: Path, content: Kept) -> None:
    """Keep a support."""
    with atomic(path) as temporary:
        temporary.write_bytes(gzip.compress(json.dumps(content).encode(), mtime=0))


def find_topologies(
    alignment: Alignment, options: SupportOptions, method: str
) -> tuple[list[Topology], list[str]]:
    """Topologies by one of the methods, those of little weight left out, and sentences on how they were found."""
    if method == "all":
        return list(all_topologies(alignment.num_taxa)), []
    if method == "file":
        found = read_tree_files(options.files, alignment.names, options.burn_in, options.unresolved)
        word = {"skip": "skipped", "random": "resolved at random"}.get(options.unresolved, "")
        notes = [f"{found.num_unresolved} trees that are not fully resolved were {word}"] * bool(
            found.num_unresolved
        )
        return most_frequent(found.topologies, found.weights, options.keep), notes
    kept: dict[Topology, None] = {}
    meter = Meter(f"support: {method} bootstrap", options.replicates)
    for seed in range(1, options.replicates + 1):
        if method == "iqtree":
            trees = iqtree_bootstrap(alignment, options.trees, seed)
        else:
            trees = nj_bootstrap(alignment, options.nj_trees, seed)
        counts = Counter(trees)
        weights = np.array(list(counts.values()), dtype=float)[:, None]
        share = options.keep if method == "iqtree" else 1.0  # few trees: every one counts
        kept |= dict.fromkeys(most_frequent(list(counts), weights, share))
        meter.update(seed, f"{len(kept)} topologies")
    meter.close()
    return list(kept), []


def most_frequent(topologies: Sequence[Topology], weights: np.ndarray, keep: float) -> list[Topology]:
    """The union over columns of the most frequent trees that together have at most the share ``keep``.

    The tree that crosses the share is left out, but one tree at least is kept; ties go by the topology.

    Args:
        topologies: T of them.
        weights: [T, R].
        keep: share of each column.

    Raises:
        InputError: a column without weight.

    Example:
        >>> most_frequent([(3,), (5,), (6,)], np.array([[60.0], [35], [5]]), 0.95)
        [(3,), (5,)]
    """
    if keep >= 1:
        return [topology for topology, row in zip(topologies, weights, strict=True) if row.any()]
    chosen: set[int] = set()
    for column in weights.T:
        if not column.sum() > 0:
            raise InputError("the trees of the support have no weight: all counts are 0")
        order = sorted(np.flatnonzero(column).tolist(), key=lambda i: (-column[i], topologies[i]))
        reached = np.cumsum(column[order]) <= keep * column.sum() * (1 + 1e-12)
        chosen.update(order[: max(1, int(reached.sum()))])
    return [topologies[i] for i in sorted(chosen)]


def iqtree_bootstrap(alignment: Alignment, trees: int, seed: int) -> list[Topology]:
    """Topologies of IQ-TREE's ultrafast bootstrap (Hoang et al. 2018) under JC69.

    Raises:
        InputError: IQ-TREE fails; its last words are in the message.
    """
    program = iqtree_program()
    if program is None:
        chosen_method(SupportOptions(method="iqtree"), alignment.num_taxa)
    labels = {f"t{taxon}": taxon for taxon in range(alignment.num_taxa)}  # names IQ-TREE does not change
    letters = np.array(list("?ACMGRSVTWYHKDBN"))
    with tempfile.TemporaryDirectory() as folder:
        fasta = Path(folder, "alignment.fasta")
        rows = zip(labels, letters[alignment.codes], strict=True)
        fasta.write_text("".join(f">{label}\n{''.join(row)}\n" for label, row in rows))
        command = [str(program), "-s", str(fasta), "-m", "JC", "-B", str(trees), "--boot-trees"]
        command += ["--seed", str(seed), "-T", "1", "--keep-ident", "--prefix", f"{folder}/out"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        found = Path(folder, "out.ufboot")
        if done.returncode or not found.is_file():
            words = " ".join((done.stdout + done.stderr).split())[-300:]
            raise InputError(f"{program} failed with status {done.returncode}: {words}")
        lines = [line for line in found.read_text().splitlines() if line.strip()]
    return [inner_splits(parse_newick(line, labels, "IQ-TREE's tree"), alignment.num_taxa) for line in lines]


def nj_bootstrap(alignment: Alignment, trees: int, seed: int) -> list[Topology]:
    """Neighbour-joining trees of JC69 distances of resampled columns.

    Ties, as between identical sequences, are broken at random.
    """
    from miselbo.phylo.compiled.joining import shares

    generator = np.random.default_rng([seed, alignment.num_taxa])
    codes, counts = alignment.patterns.codes, alignment.patterns.counts
    distance, found = np.empty((alignment.num_taxa, alignment.num_taxa)), []
    for _ in range(trees):
        weights = generator.multinomial(counts.sum(), counts / counts.sum())
        drawn = weights > 0
        shares(np.ascontiguousarray(codes[:, drawn]), weights[drawn].astype(float), distance)
        jukes_cantor = -0.75 * np.log(np.maximum(1 - 4 / 3 * distance, np.exp(-4 / 3 * SATURATED)))
        below = np.tril(jukes_cantor + 1e-9 * generator.random(distance.shape), -1)
        found.append(neighbour_joining(below + below.T))
    return found


def neighbour_joining(distance: np.ndarray) -> Topology:
    """The topology that neighbour joining (Saitou and Nei 1987) finds.

    Args:
        distance: [n, n], symmetric with a diagonal of zeros.

    Example:
        >>> pairs = np.array([[0, 3, 9, 9], [3, 0, 9, 9], [9, 9, 0, 3], [9, 9, 3, 0]])
        >>> [f"{split:04b}" for split in neighbour_joining(pairs)]
        ['1100']
    """
    from miselbo.phylo.compiled.joining import joins

    num_taxa = len(distance)
    pairs = np.empty((max(num_taxa - 3, 0), 2), dtype=np.int64)
    joins(distance.astype(float), pairs)
    masks, full, splits = [1 << taxon for taxon in range(num_taxa)], (1 << num_taxa) - 1, []
    for i, j in pairs.tolist():
        masks[i] |= masks[j]
        splits.append(full ^ masks[i] if masks[i] & 1 else masks[i])
    return tuple(sorted(splits))
