"""Data modules of alignments: the benchmark sets DS1..DS8, any file, and a small simulated one."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from miselbo.data.interface import Scoring
from miselbo.data.replicates import Replicates
from miselbo.errors import InputError
from miselbo.phylo.alignment import Alignment
from miselbo.phylo.chains import Evidence, save_evidence
from miselbo.phylo.evidence import Chain
from miselbo.phylo.output.newick import outgroup_mask
from miselbo.phylo.simulation import NAMES, SEED, SITES, TREE, simulate
from miselbo.phylo.topologies import About, SupportOptions, find_support
from miselbo.phylo.vbpi import PhyloSpec
from miselbo.protocols import EnsembleForm

ENDINGS = (".fasta", ".fa", ".fas", ".nex", ".nexus", ".phy", ".aln", ".fasta.gz")
TREE_ENDINGS = ("_ufboot.tsv.gz", ".trprobs", ".ufboot")
POSTERIOR_ENDINGS = ("_mrbayes_posterior.tsv.gz", "_posterior.trprobs")


class AlignmentData(Replicates):
    """One alignment and the topologies its approximations may use.

    Args:
        name: for the protocol.
        read: gives the alignment.
        support: options of :class:`miselbo.phylo.topologies.SupportOptions`.
        replicates: how often the evaluation is repeated.
        posterior: a tree file with the posterior's topologies (MrBayes ``.trprobs``) to compare with; None without.
        outgroup: a taxon or several, at which written trees are rooted; None for unrooted ones.
        evidence: arguments of :class:`miselbo.phylo.chains.Evidence`: draws of the posterior that bound log p(Y) from
            above; None for none.

    Example:
        >>> data = simulated()
        >>> data.setup()
        >>> data.spec.alignment.num_taxa
        8
    """

    sections = ("trees",)

    def __init__(
        self,
        name: str,
        read: Callable[[], Alignment],
        support: Mapping[str, object],
        replicates: int,
        posterior: str | None = None,
        outgroup: str | Sequence[str] | None = None,
        evidence: Mapping[str, object] | None = None,
    ):
        super().__init__(name, replicates)
        self.read, self.options, self.outgroup = read, options_of(support), outgroup
        self.evidence = Evidence(**(evidence or {}))  # type: ignore[arg-type]
        self.chains: list[Chain] = []
        if posterior is not None and not Path(posterior).is_file():
            raise InputError(
                f"dataset.posterior={posterior} does not exist: give a tree file with weights, or null"
            )
        self.posterior = posterior
        self._spec: PhyloSpec | None = None
        self.about: About = {"method": "", "num_topologies": 0}

    def setup(self, stage: str | None = None) -> None:
        """Read the alignment and find the support."""
        if self._spec is None:
            alignment = self.read()
            if alignment.num_missing == alignment.num_sites:
                raise InputError(f"{alignment.source} holds no base at all: every character is missing")
            self.root = outgroup_mask(alignment.names, self.outgroup)
            self.chains = self.evidence.read(alignment.names)
            support, self.about = find_support(alignment, self.options)
            self._spec = PhyloSpec(alignment, support)
            self.pass_dims = 8 * (2 * alignment.num_taxa - 3)  # embedding rows are what a pass holds

    @property
    def spec(self) -> PhyloSpec:
        """Alignment and support."""
        self.setup()
        if self._spec is None:
            raise RuntimeError("no alignment")
        return self._spec

    def save_extras(self, ensemble: EnsembleForm, settings: Scoring, count: int, results: Path) -> None:
        """Posterior trees as files, and split probabilities, log marginal likelihood and distances for the report."""
        from miselbo.phylo.comparison import save_comparison
        from miselbo.phylo.output.draws import draw_trees
        from miselbo.phylo.output.files import save_trees
        from miselbo.phylo.summaries import save

        (results / "evidence.json").unlink(missing_ok=True)  # of other chains
        if self.evidence.chains:
            save_evidence(ensemble, self.evidence, self.chains, settings.seed, results)
        draws = draw_trees(ensemble, settings.seed)
        save(ensemble, draws, self.posterior, results)
        save_trees(ensemble, draws, self.root, settings.seed, results)
        save_comparison(ensemble, settings.seed, self.posterior, results)

    def draw_samples(
        self, ensemble: EnsembleForm, count: int, weighted: bool, seed: int, folder: Path
    ) -> dict[str, object]:
        """``task=sample``: write a posterior sample of trees, and its parameters; see :mod:`~miselbo.phylo.output`.

        Args:
            ensemble: finished.
            count: trees, resampled to equal weights; with ``weighted`` about so many draws with their weights.
            weighted: write weights.
            seed: of the draws.
            folder: to write in.
        """
        from miselbo.phylo.output.draws import draw_trees
        from miselbo.phylo.output.files import save_sample

        size = len(ensemble.members)
        draws = draw_trees(ensemble, seed, -(-count // size) if weighted else max(1000, -(-count // size)))
        return save_sample(draws, count, weighted, self.root, seed, folder)

    def protocol(self, split: str = "test") -> dict[str, object]:
        """Alignment and support beside what a replicate is."""
        alignment, support = self.spec.alignment, self.spec.support
        return {
            **super().protocol(split),
            "alignment": f"{alignment.source}: {alignment.describe()}",
            "support": (
                f"{self.about['num_topologies']} topologies ({self.about['method']}): {support.num_splits} splits, "
                f"{len(support.pair_params)} subsplit pairs"
                + "".join(f"; {note}" for note in self.about.get("notes", ()))
            ),
        }


def options_of(support: Mapping[str, object]) -> SupportOptions:
    """Checked options; InputError for an unknown one."""
    try:
        return SupportOptions(**support)  # type: ignore[arg-type]
    except TypeError as error:
        raise InputError(f"dataset.support: {error}") from None


def benchmark(
    name: str,
    root: str | None,
    support: Mapping[str, object],
    replicates: int,
    posterior: str | None = None,
    outgroup: str | Sequence[str] | None = None,
    evidence: Mapping[str, object] | None = None,
) -> AlignmentData:
    """One of DS1..DS8, from ``root``.

    A tree file ``<name>_ufboot.tsv.gz`` or ``<name>.trprobs`` there is used as the support, and
    ``<name>_mrbayes_posterior.tsv.gz`` or ``<name>_posterior.trprobs`` as the posterior, where none is given.

    Raises:
        InputError: no ``root``, or no such alignment in it.
    """
    stem = name.upper()
    if root is None:
        raise InputError(
            f"dataset={name} needs dataset.root=<a folder with {stem}.fasta>: DS1..DS8 are the 'hohna' alignments in "
            "the numbering of the VBPI papers (docs/phylo.md says where they are published and lists their sizes); any "
            "other file: dataset=alignment dataset.path=<file>"
        )
    files = [Path(root, letters + ending) for letters in (stem, name) for ending in ENDINGS]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise InputError(
            f"{root} holds no {stem}.fasta (nor .nex, .phy): dataset.root is the folder of the alignments"
        )
    options = dict(support)
    trees = [Path(root, stem + ending) for ending in TREE_ENDINGS]
    found = next((file for file in trees if file.is_file()), None)
    if found is not None and options.get("file") is None and options.get("method", "auto") == "auto":
        options["file"] = str(found)
    if posterior is None:
        found = next(filter(Path.is_file, (Path(root, stem + end) for end in POSTERIOR_ENDINGS)), None)
        posterior = None if found is None else str(found)
    return AlignmentData(
        name, lambda: Alignment.from_file(path), options, replicates, posterior, outgroup, evidence
    )


def from_file(
    path: str | None,
    support: Mapping[str, object],
    replicates: int,
    name: str = "alignment",
    posterior: str | None = None,
    outgroup: str | Sequence[str] | None = None,
    evidence: Mapping[str, object] | None = None,
) -> AlignmentData:
    """An alignment in FASTA, PHYLIP, NEXUS or Clustal.

    Raises:
        InputError: no path, or no such file.
    """
    if path is None:
        raise InputError("dataset=alignment needs dataset.path=<a FASTA, PHYLIP, NEXUS or Clustal file>")
    if not Path(path).is_file():
        raise InputError(f"dataset.path={path} does not exist")
    return AlignmentData(
        name, lambda: Alignment.from_file(str(path)), support, replicates, posterior, outgroup, evidence
    )


def simulated(
    support: Mapping[str, object] | None = None,
    replicates: int = 10,
    name: str = "simulated",
    max_epochs: int | None = None,
    outgroup: str | Sequence[str] | None = None,
) -> AlignmentData:
    """The embedded alignment: 8 taxa, 400 sites, made by :mod:`miselbo.phylo.simulation` from its recipe.

    ``max_epochs`` is read by ``conf/model/vbpi.yaml``: how long a model trains on it by default.
    """
    return AlignmentData(
        name,
        lambda: simulate(TREE, NAMES, SITES, SEED),
        dict(support or {"method": "nj"}),
        replicates,
        None,
        outgroup,
    )
