"""Normalising flows over the branch lengths of a tree, and their exact or safeguarded inverses, float64.

Every weight is addressed by the embedding rows of an edge (its split and the two primary subsplit pairs), summed: a
flow belongs to no tree and no numbering of inner nodes enters a value. Zhang, "Improved variational Bayesian
phylogenetic inference with normalizing flows" (NeurIPS 2020). Planar flows: Rezende and Mohamed (2015);
RealNVP: Dinh et al. (2017).

A flow has ``forward(z, rows)`` and ``inverse(x, rows)``, for z, x [K, B] and rows [K, B, 3] (``num_rows`` where an edge
has none); both return the other end and log |det dF/dz| [K] of the forward map. Far outside a flow's own mass the
inverse may overflow: it then returns non-finite numbers, and whoever asks maps them to log q = -inf.
``differentiable_inverse`` says whether autograd may go through ``inverse`` (not through an iteration).
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from miselbo.errors import InputError


class Table(nn.Module):
    """An embedding table whose rows are summed over what an edge has; the last row stands for "none" and stays 0.

    Args:
        num_rows: E.
        width: numbers per row.
        bound: initial values are uniform in (-bound, bound), or normal with standard deviation ``sd``.
    """

    def __init__(self, num_rows: int, width: int, bound: float = 0.0, sd: float = 0.0):
        super().__init__()
        values = torch.empty(num_rows + 1, width, dtype=torch.float64).uniform_(-bound, bound)
        values = values + sd * torch.randn(num_rows + 1, width, dtype=torch.float64)
        values[-1] = 0.0
        self.weight = nn.Parameter(values)

    def forward(self, rows: Tensor) -> Tensor:
        """[..., 3] row numbers to [..., width]."""
        none = len(self.weight) - 1
        flat = functional.embedding_bag(rows.flatten(0, -2), self.weight, mode="sum", padding_idx=none)
        return flat.unflatten(0, rows.shape[:-1])


class Flow(Protocol):
    """An invertible map of a tree's log branch lengths, edge by edge."""

    @property
    def differentiable_inverse(self) -> bool:
        """Whether autograd may go through :meth:`inverse`."""

    def __call__(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """x [K, B] and log |det dx/dz| [K]."""

    def inverse(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """z [K, B] and the same log determinant [K], at z."""


MakeFlow = Callable[[int, int], Flow]  # of the numbers of taxa and of embedding rows


class Identity(nn.Module):
    """F(z) = z."""

    differentiable_inverse = True

    def __init__(self, num_taxa: int, num_rows: int):
        super().__init__()

    def forward(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """z itself."""
        return z, z.new_zeros(len(z))

    def inverse(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """x itself."""
        return x, x.new_zeros(len(x))


class RealNvp(nn.Module):
    """Affine couplings that change the pendant edges given the inner ones and the other way round, in turn.

    With a the edges to change and c the others: h = ELU(c W1 + b1), per edge of a (s, t) = h W2 + b2, and
    a' = sigmoid(s + 2) a + t.

    Args:
        num_taxa: n.
        num_rows: E.
        layers: number of couplings.
        hidden: width of h.
    """

    differentiable_inverse = True

    def __init__(self, num_taxa: int, num_rows: int, layers: int = 5, hidden: int = 100):
        super().__init__()
        positive(layers=layers, hidden=hidden)
        self.num_taxa, self.hidden = num_taxa, hidden
        bound, last = 1 / math.sqrt(num_rows), 1 / math.sqrt(hidden)  # torch's Linear(E, H) and Linear(H, 2E)
        self.first = nn.ModuleList([Table(num_rows, hidden, bound) for _ in range(layers)])
        self.shift = nn.ParameterList(
            [torch.empty(hidden, dtype=torch.float64).uniform_(-bound, bound) for _ in range(layers)]
        )
        self.second = nn.ModuleList([Table(num_rows, 2 * hidden, last) for _ in range(layers)])
        self.bias = nn.ModuleList([Table(num_rows, 2, last) for _ in range(layers)])

    def coefficients(self, layer: int, c: Tensor, rows_c: Tensor, rows_a: Tensor) -> tuple[Tensor, Tensor]:
        """log scale and shift of the edges of a: two of [K, a]."""
        hidden = functional.elu(torch.einsum("kc,kch->kh", c, self.first[layer](rows_c)) + self.shift[layer])
        weight = self.second[layer](rows_a).unflatten(-1, (2, self.hidden))
        both = torch.einsum("kh,kaih->kai", hidden, weight) + self.bias[layer](rows_a)
        return functional.logsigmoid(both[..., 0] + 2), both[..., 1]

    def forward(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """All couplings."""
        parts, where = self.parts(z), self.parts(rows)
        log_det = z.new_zeros(len(z))
        for layer in range(len(self.first)):
            i = layer % 2
            log_scale, shift = self.coefficients(layer, parts[1 - i], where[1 - i], where[i])
            parts[i] = log_scale.exp() * parts[i] + shift
            log_det = log_det + log_scale.sum(-1)
        return torch.cat(parts, -1), log_det

    def inverse(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The couplings undone in reverse, in closed form."""
        parts, where = self.parts(x), self.parts(rows)
        log_det = x.new_zeros(len(x))
        for layer in reversed(range(len(self.first))):
            i = layer % 2
            log_scale, shift = self.coefficients(layer, parts[1 - i], where[1 - i], where[i])
            parts[i] = (parts[i] - shift) * (-log_scale).exp()
            log_det = log_det + log_scale.sum(-1)
        return torch.cat(parts, -1), log_det

    def parts(self, x: Tensor) -> list[Tensor]:
        """Pendant and inner edges."""
        return [x[:, : self.num_taxa], x[:, self.num_taxa :]]


class Planar(nn.Module):
    """z' = z + g^ tanh(w . z + b) per layer, with g^ such that w . g^ > -1: a one-to-one map without a closed inverse.

    Args:
        num_taxa: n.
        num_rows: E.
        layers: number of layers.
    """

    differentiable_inverse = False

    def __init__(self, num_taxa: int, num_rows: int, layers: int = 16):
        super().__init__()
        positive(layers=layers)
        self.w = Table(num_rows, layers, sd=0.01)
        self.g = Table(num_rows, layers, sd=0.01)
        self.b = nn.Parameter(torch.zeros(layers, dtype=torch.float64))

    def layers(self, rows: Tensor) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Per layer w and g^ [K, B], c = w . g^ > -1 [K], and b."""
        w, g = self.w(rows), self.g(rows)
        product = (w * g).sum(1)
        c = functional.softplus(product) - 1
        norm = (w * w).sum(1).clamp_min(1e-300)
        g = g + ((c - product) / norm)[:, None] * w
        return list(zip(w.unbind(-1), g.unbind(-1), c.unbind(-1), self.b.unbind(), strict=True))

    def forward(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """All layers."""
        log_det = z.new_zeros(len(z))
        for w, g, c, b in self.layers(rows):
            h = ((w * z).sum(-1) + b).tanh()
            z = z + g * h[:, None]
            log_det = log_det + torch.log1p((1 - h * h) * c)
        return z, log_det

    def inverse(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Per layer the root of alpha + c tanh(alpha + b) = w . x, then x - g^ tanh(alpha + b)."""
        log_det = x.new_zeros(len(x))
        for w, g, c, b in reversed(self.layers(rows)):
            h = (solve((w * x).sum(-1), c, b) + b).tanh()
            x = x - g * h[:, None]
            log_det = log_det + torch.log1p((1 - h * h) * c)
        return x, log_det


def solve(y: Tensor, c: Tensor, b: Tensor, steps: int = 200) -> Tensor:
    """The root alpha of alpha + c tanh(alpha + b) = y for c > -1, by Newton steps inside a shrinking bracket.

    The left side grows with alpha, and the root is within |c| of y.

    Example:
        >>> alpha = solve(torch.tensor([0.3, 50.0]), torch.tensor([-0.999, 20.0]), torch.tensor(0.1))
        >>> (alpha + torch.tensor([-0.999, 20.0]) * (alpha + 0.1).tanh()).round(decimals=4)
        tensor([ 0.3000, 50.0000])
    """
    low, high = y - c.abs(), y + c.abs()
    alpha = y.clone()
    for _ in range(steps):
        h = (alpha + b).tanh()
        error = alpha + c * h - y
        low, high = torch.where(error < 0, alpha, low), torch.where(error > 0, alpha, high)
        newton = alpha - error / (1 + c * (1 - h * h))
        step = torch.where((newton > low) & (newton < high), newton, (low + high) / 2)
        step = torch.where(error == 0, alpha, step)
        if not ((step - alpha).abs() > 1e-16 * alpha.abs()).any():
            break
        alpha = step
    return alpha


def positive(**sizes: int) -> None:
    """InputError unless all are whole numbers of at least 1."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(
                f"model.approximation.flow.{name} must be a whole number of at least 1, got {value!r}"
            )
