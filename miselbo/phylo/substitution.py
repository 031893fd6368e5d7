"""Models of nucleotide substitution: JC69, HKY85 and GTR, with equal rates or a discrete gamma distribution of rates.

Their parameters are given, not inferred: they are part of the target p. States are in the order A, C, G, T.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammainc, gammaincinv

from miselbo.errors import InputError
from miselbo.phylo.alignment import MISSING, Alignment

MODELS = ("jc69", "hky", "gtr")
PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))  # AC AG AT CG CT GT, the order of the rates
BASES = "ACGT"


@dataclass(frozen=True)
class Substitution:
    """A reversible model with Q_ij = r_ij pi_j for i != j, scaled to one expected substitution per unit of length.

    Args:
        model: ``jc69``, all r and pi equal; ``hky``, r is ``kappa`` for transitions (A-G, C-T) and 1 for transversions;
            ``gtr``, six ``rates``.
        kappa: of ``hky``.
        rates: r of A-C, A-G, A-T, C-G, C-T, G-T for ``gtr``; only their ratios matter.
        frequencies: pi of A, C, G, T for ``hky`` and ``gtr``; None for those of the alignment.
        gamma_shape: alpha of gamma distributed rates over sites with mean 1; None for equal rates.
        num_categories: of the gamma distribution, equally probable, each with its mean rate (Yang 1994).

    Raises:
        InputError: an unknown model, a parameter that the model lacks or does not have, or a value that cannot be.

    Example:
        >>> Substitution("hky", kappa=2.0, frequencies=(0.1, 0.2, 0.3, 0.4)).describe()
        'HKY85 (kappa 2, frequencies 0.1 0.2 0.3 0.4)'
    """

    model: str = "jc69"
    kappa: float | None = None
    rates: Sequence[float] | None = None
    frequencies: Sequence[float] | None = None
    gamma_shape: float | None = None
    num_categories: int = 4

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise bad("model", f"one of {', '.join(MODELS)}", self.model)
        has = {"jc69": (), "hky": ("kappa", "frequencies"), "gtr": ("rates", "frequencies")}[self.model]
        for name, wanted in (
            ("kappa", "a positive number"),
            ("rates", "six positive numbers (AC AG AT CG CT GT)"),
        ):
            if name in has and getattr(self, name) is None:
                raise bad(name, f"{wanted} for model={self.model}", None)
        for name in ("kappa", "rates", "frequencies"):
            if name not in has and getattr(self, name) is not None:
                raise bad(
                    name, f"null for model={self.model}, which has no such parameter", getattr(self, name)
                )
        for name, size in (("kappa", None), ("gamma_shape", None), ("rates", 6), ("frequencies", 4)):
            check_positive(name, getattr(self, name), size)
        if self.frequencies is not None and abs(sum(self.frequencies) - 1) > 1e-6:
            raise bad("frequencies", "four numbers (A C G T) that sum to 1", self.frequencies)
        if (
            isinstance(self.num_categories, bool)
            or not isinstance(self.num_categories, int)
            or self.num_categories < 1
        ):
            raise bad("num_categories", "a whole number of at least 1", self.num_categories)

    @property
    def plain(self) -> bool:
        """Whether this is JC69 with equal rates, which has a kernel of its own."""
        return self.model == "jc69" and self.gamma_shape is None

    def pi(self, alignment: Alignment) -> np.ndarray:
        """Stationary frequencies [4]."""
        if self.model == "jc69":
            return np.full(4, 0.25)
        if self.frequencies is None:
            return empirical_frequencies(alignment)
        return np.array(self.frequencies, dtype=float) / sum(self.frequencies)

    def rate_matrix(self, pi: np.ndarray) -> np.ndarray:
        """Q [4, 4], one expected substitution per unit of length.

        Example:
            >>> Substitution().rate_matrix(np.full(4, 0.25))[0].round(3)
            array([-1.   ,  0.333,  0.333,  0.333])
        """
        rates = self.rates or [
            self.kappa if self.kappa and pair in ((0, 2), (1, 3)) else 1.0 for pair in PAIRS
        ]
        q = np.zeros((4, 4))
        for (i, j), rate in zip(PAIRS, rates, strict=True):
            q[i, j], q[j, i] = rate * pi[j], rate * pi[i]
        q -= np.diag(q.sum(1))
        return q / -(pi @ np.diag(q))

    def category_rates(self) -> np.ndarray:
        """Rates [C] of equally probable categories, with mean 1: the gamma density's mean between its quantiles.

        Example:
            >>> Substitution(gamma_shape=0.5).category_rates().round(4)
            array([0.0334, 0.2519, 0.8203, 2.8944])
        """
        if self.gamma_shape is None:
            return np.ones(1)
        alpha, count = self.gamma_shape, self.num_categories
        cuts = gammaincinv(alpha, np.arange(1, count) / count)
        below = np.concatenate([[0.0], gammainc(alpha + 1, cuts), [1.0]])
        return np.diff(below) * count

    def describe(self, pi: np.ndarray | None = None) -> str:
        """The model in words."""
        words = {"jc69": "JC69", "hky": "HKY85", "gtr": "GTR"}[self.model]
        parts = [f"kappa {self.kappa:g}"] if self.kappa is not None else []
        parts += [f"rates {' '.join(f'{rate:g}' for rate in self.rates)}"] if self.rates is not None else []
        if self.model != "jc69":
            shown = self.frequencies if pi is None else pi
            parts.append(
                "frequencies " + (" ".join(f"{x:.4g}" for x in shown) if shown is not None else "of the data")
            )
        if self.gamma_shape is not None:
            parts.append(f"gamma shape {self.gamma_shape:g}, {self.num_categories} categories")
        return f"{words} ({', '.join(parts)})" if parts else words


def empirical_frequencies(alignment: Alignment) -> np.ndarray:
    """Shares of A, C, G, T among the known characters, a set of states counting for each of them in equal parts.

    Raises:
        InputError: a base never occurs, so that its frequency would be 0.

    Example:
        >>> rows = {"a": "AACC", "b": "GGTT", "c": "ACGT", "d": "AR--"}
        >>> empirical_frequencies(Alignment.from_sequences(rows)).round(4)
        array([0.3214, 0.2143, 0.25  , 0.2143])
    """
    counts = np.bincount(alignment.codes.ravel(), minlength=16)
    counts[MISSING] = 0
    sets = np.arange(16)[:, None] >> np.arange(4) & 1
    shares = counts @ (sets / np.maximum(sets.sum(1, keepdims=True), 1))
    absent = [BASES[i] for i in range(4) if shares[i] == 0]
    if absent:
        raise InputError(
            f"{alignment.source} holds no {' '.join(absent)}: give model.target.substitution.frequencies=[A,C,G,T]"
        )
    return shares / shares.sum()


def check_positive(name: str, value: object, size: int | None) -> None:
    """InputError unless it is None, or positive numbers, as many as there must be."""
    wanted = "a positive number" if size is None else f"{size} positive numbers"
    values = [value] if size is None else value
    if value is None:
        return
    if (
        not isinstance(values, Sequence)
        or isinstance(values, str)
        or (size is not None and len(values) != size)
    ):
        raise bad(name, wanted, value)
    for one in values:
        if isinstance(one, bool) or not isinstance(one, int | float) or not 0 < one < float("inf"):
            raise bad(name, wanted, value)


def bad(name: str, wanted: str, got: object) -> InputError:
    """The error for a setting that cannot be."""
    return InputError(f"model.target.substitution.{name} must be {wanted}, got {got!r}")
