"""Log-likelihood of trees with branch lengths, differentiable in the lengths."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from miselbo.errors import InputError
from miselbo.phylo import tree as trees
from miselbo.phylo.alignment import Alignment
from miselbo.phylo.inferred import Values
from miselbo.phylo.substitution import Substitution
from miselbo.phylo.text.newick import parse_newick, taxon_numbers
from miselbo.phylo.transitions import transitions
from miselbo.protocols import Saved


class Likelihood:
    """log p(Y | tau, b) of an alignment, nats; a subclass has the compiled ``kernel``."""

    def kernel(
        self, nodes: np.ndarray, lengths: np.ndarray, gradient: bool, values: np.ndarray, slopes: np.ndarray
    ) -> None:
        """Fill values [K] and, if asked for, gradients [K, 2n - 3]."""
        raise NotImplementedError

    def __call__(self, nodes: Tensor, lengths: Tensor) -> Tensor:
        """Log-likelihood of K trees.

        Args:
            nodes: [K, n - 2, 3] int32, see :mod:`miselbo.phylo.tree`.
            lengths: [K, 2n - 3], expected substitutions per site, in edge order.

        Returns:
            [K] float64; -inf where the data are impossible.
        """
        return Pruning.apply(lengths, nodes, self)

    def evaluate(
        self, nodes: np.ndarray, lengths: np.ndarray, gradient: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Values [K] and, if asked for, gradients [K, 2n - 3]; trees are shared out over torch's threads."""
        values, slopes = np.empty(len(lengths)), np.empty_like(lengths)

        def part(rows: slice) -> None:
            with np.errstate(all="ignore"):
                self.kernel(nodes[rows], lengths[rows], gradient, values[rows], slopes[rows])

        share_out(part, len(lengths))
        return values, slopes


def share_out(part: Callable[[slice], None], count: int) -> None:
    """Run a function of rows on all of them, shared out over torch's threads."""
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        part(slice(None))
        return
    cuts = np.linspace(0, count, threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, (slice(a, b) for a, b in zip(cuts[:-1], cuts[1:], strict=True))))


class JukesCantor(Likelihood):
    """The model of Jukes and Cantor (1969).

    Args:
        alignment: its patterns are merged up to relabelling the states.

    Example:
        >>> alignment = Alignment.from_sequences({"a": "AC", "b": "AC", "c": "AT", "d": "AT"})
        >>> nodes = torch.from_numpy(trees.nodes((0b1100,), 4))[None]
        >>> JukesCantor(alignment)(nodes, torch.full((1, 5), 0.1, dtype=torch.float64))
        tensor([-7.0530], dtype=torch.float64)
    """

    def __init__(self, alignment: Alignment):
        from miselbo.phylo.compiled.jc import blocks

        patterns = alignment.merged_patterns
        self.tips, self.counts = blocks(patterns.tips, patterns.counts)

    def kernel(
        self, nodes: np.ndarray, lengths: np.ndarray, gradient: bool, values: np.ndarray, slopes: np.ndarray
    ) -> None:
        """Fill values and gradients."""
        from miselbo.phylo.compiled.jc import jc_trees

        jc_trees(nodes, lengths, self.tips, self.counts, gradient, values, slopes)


class Reversible(Likelihood):
    """Whatever reversible model, with rate categories.

    Args:
        alignment: identical columns are merged.
        model: with its parameters.

    Example:
        >>> alignment = Alignment.from_sequences({"a": "AC", "b": "AC", "c": "AT", "d": "AT"})
        >>> nodes = torch.from_numpy(trees.nodes((0b1100,), 4))[None]
        >>> model = Substitution("hky", kappa=1.0, frequencies=[0.25] * 4)
        >>> Reversible(alignment, model)(nodes, torch.full((1, 5), 0.1, dtype=torch.float64))
        tensor([-7.0530], dtype=torch.float64)
    """

    def __init__(self, alignment: Alignment, model: Substitution):
        from miselbo.phylo.compiled.jc import blocks

        patterns = alignment.patterns
        tips, self.counts = blocks(patterns.tips, patterns.counts)
        self.tips = tips.reshape(*tips.shape[:2], 4, -1)
        self.pi = model.pi(alignment)
        self.rates = model.category_rates()
        self.rate_matrix = model.rate_matrix(self.pi)
        root = np.sqrt(self.pi)
        values, vectors = np.linalg.eigh(
            root[:, None] * self.rate_matrix / root
        )  # symmetric: Q is reversible
        self.eigen = (vectors / root[:, None], values, np.ascontiguousarray(vectors.T * root))

    def kernel(
        self, nodes: np.ndarray, lengths: np.ndarray, gradient: bool, values: np.ndarray, slopes: np.ndarray
    ) -> None:
        """Fill values and gradients."""
        from miselbo.phylo.compiled.reversible import reversible_trees

        reversible_trees(
            nodes, lengths, self.tips, self.counts, self.pi, self.rate_matrix, *self.eigen, self.rates, gradient,
            values, slopes,
        )  # fmt: skip


class Parametric(Likelihood):
    """A reversible model for each tree of its own, differentiable in the lengths and in the model.

    Args:
        alignment: identical columns are merged.

    Example:
        >>> from miselbo.phylo.inferred import Inferred
        >>> alignment = Alignment.from_sequences({"a": "AC", "b": "AC", "c": "AT", "d": "AT"})
        >>> nodes = torch.from_numpy(trees.nodes((0b1100,), 4))[None]
        >>> jukes_cantor = Inferred("jc69").values(torch.zeros(1, 0, dtype=torch.float64))
        >>> Parametric(alignment).of(nodes, torch.full((1, 5), 0.1, dtype=torch.float64), jukes_cantor)
        tensor([-7.0530], dtype=torch.float64)
    """

    def __init__(self, alignment: Alignment):
        from miselbo.phylo.compiled.jc import blocks

        patterns = alignment.patterns
        tips, self.counts = blocks(patterns.tips, patterns.counts)
        self.tips = tips.reshape(*tips.shape[:2], 4, -1)

    def of(self, nodes: Tensor, lengths: Tensor, values: Values) -> Tensor:
        """Log-likelihood [K] of K trees.

        Args:
            nodes: [K, n - 2, 3] int32, see :mod:`miselbo.phylo.tree`.
            lengths: [K, 2n - 3], expected substitutions per site, in edge order.
            values: of K models.
        """
        times = lengths[:, :, None] * values.category_rates[:, None]
        change = transitions(values.rate_matrix, values.frequencies, times)
        roots = values.category_weights[:, :, None] * values.frequencies[:, None]
        return MatrixPruning.apply(change, roots, nodes, self)


class MatrixPruning(torch.autograd.Function):
    """The compiled value of given transition matrices [K, 2n - 3, C, 4, 4] and vectors at the root [K, C, 4]."""

    @staticmethod
    def forward(ctx: Saved, change: Tensor, roots: Tensor, nodes: Tensor, model: Parametric) -> Tensor:
        """Values [K]; the gradients are made with them when they are needed."""
        from miselbo.phylo.compiled.matrices import matrix_trees

        wanted = any(ctx.needs_input_grad[:2])
        matrices, vectors, shapes = (
            change.detach().contiguous().numpy(),
            roots.detach().contiguous().numpy(),
            nodes.numpy(),
        )
        size = len(matrices) if wanted else 0
        values = np.empty(len(matrices))
        slopes, ends = np.empty((size, *matrices.shape[1:])), np.empty((size, *vectors.shape[1:]))

        def part(rows: slice) -> None:
            with np.errstate(all="ignore"):
                matrix_trees(
                    shapes[rows], matrices[rows], vectors[rows], model.tips, model.counts, wanted, values[rows],
                    slopes[rows], ends[rows],
                )  # fmt: skip

        share_out(part, len(matrices))
        if wanted:
            ctx.save_for_backward(torch.from_numpy(slopes), torch.from_numpy(ends))
        return torch.from_numpy(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Saved, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients in the matrices and the vectors."""
        slopes, ends = ctx.saved_tensors
        dead = grad == 0  # of impossible data the slopes are no numbers
        to_change = torch.where(
            dead[:, None, None, None, None], 0.0, grad[:, None, None, None, None] * slopes
        )
        return to_change, torch.where(dead[:, None, None], 0.0, grad[:, None, None] * ends), None, None


def make_likelihood(alignment: Alignment, model: Substitution | None = None) -> Likelihood:
    """The likelihood of an alignment under a model; None for JC69."""
    return JukesCantor(alignment) if model is None or model.plain else Reversible(alignment, model)


class Pruning(torch.autograd.Function):
    """The compiled value with its analytic gradient; the gradient is made with the value when it is needed."""

    @staticmethod
    def forward(ctx: Saved, lengths: Tensor, nodes: Tensor, model: Likelihood) -> Tensor:
        """Values [K]."""
        wanted = ctx.needs_input_grad[0]
        values, slopes = model.evaluate(
            nodes.numpy(), lengths.detach().to(torch.float64).contiguous().numpy(), wanted
        )
        if wanted:
            ctx.save_for_backward(torch.from_numpy(slopes))
        return torch.from_numpy(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Saved, grad: Tensor) -> tuple[Tensor, None, None]:
        """Gradients in the lengths."""
        (slopes,) = ctx.saved_tensors
        return torch.where(grad[:, None] == 0, 0.0, grad[:, None] * slopes), None, None


def log_likelihood(alignment: Alignment, newick: str, model: Substitution | None = None) -> float:
    """log p(Y | tree), nats.

    Args:
        alignment: nucleotides.
        newick: a tree over exactly its taxa, with branch lengths in expected substitutions per site. The root may be
            anywhere and of any degree; nodes of higher degree are resolved with edges of length 0.
        model: of substitution; None for JC69.

    Raises:
        InputError: no Newick, other taxa than the alignment's (listed), or an edge without a length.

    Example:
        >>> alignment = Alignment.from_sequences({"a": "AC", "b": "AC", "c": "AT", "d": "AT"})
        >>> round(log_likelihood(alignment, "(a:.1,b:.1,(c:.1,d:.1):.1);"), 4)
        -7.053
    """
    tree = parse_newick(newick, taxon_numbers(alignment.names))
    if any(length != length for length in tree.values()):
        raise InputError("the tree has edges without a length: the likelihood needs one for every edge")
    topology, lengths = trees.lengths_of(trees.resolve(tree, alignment.num_taxa), alignment.num_taxa)
    nodes = trees.nodes(topology, alignment.num_taxa)[None]
    values, _ = make_likelihood(alignment, model).evaluate(nodes, lengths[None], gradient=False)
    return float(values[0])
