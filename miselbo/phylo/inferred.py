"""Parameters of a substitution model that are inferred: their priors, and the coordinates in which they are unbounded.

    part            parameters                          coordinates             prior (MrBayes' default)
    K80, HKY85      kappa                               log kappa               kappa / (1 + kappa) ~ Beta(1, 1)
    GTR             six rates, shares of their sum      log of each over GT's   Dirichlet(1, ..., 1)
    HKY85, GTR      frequencies of A, C, G, T           log of each over T's    Dirichlet(1, 1, 1, 1)
    +G              shape alpha of the gamma rates      log alpha               Exponential(1)
    +I              share pinv of invariable sites      log(pinv / (1 - pinv))  Uniform(0, 1)

Densities are in the coordinates, so every prior carries its Jacobian. With +I a site does not change with probability
pinv; the other categories' rates are divided by 1 - pinv, so that the mean rate stays 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import gammainc, gammaincinv, gammaln
from torch import Tensor

from miselbo.errors import InputError
from miselbo.phylo.alignment import Alignment
from miselbo.phylo.substitution import Substitution, check_positive, empirical_frequencies
from miselbo.phylo.transitions import reversible
from miselbo.protocols import Saved

MODELS = {"jc69": (), "k80": ("kappa",), "hky": ("kappa", "frequencies"), "gtr": ("rates", "frequencies")}
SIZES = {"kappa": 1, "rates": 5, "frequencies": 3, "gamma_shape": 1, "invariable": 1}
LABELS = {
    "kappa": ("kappa",),
    "rates": tuple(f"r({pair[0]}<->{pair[1]})" for pair in ("AC", "AG", "AT", "CG", "CT", "GT")),
    "frequencies": tuple(f"pi({base})" for base in "ACGT"),
    "gamma_shape": ("alpha",),
    "invariable": ("pinvar",),
}  # MrBayes' names in a .p file


@dataclass(frozen=True)
class Values:
    """A model of substitution for each of K trees.

    Attributes:
        rates: [K, 6], which sum to 1.
        frequencies: [K, 4].
        category_rates: [K, C].
        category_weights: [K, C], which sum to 1.
    """

    rates: Tensor
    frequencies: Tensor
    category_rates: Tensor
    category_weights: Tensor

    @property
    def rate_matrix(self) -> Tensor:
        """Q [K, 4, 4]."""
        return reversible(self.rates, self.frequencies)


@dataclass(frozen=True)
class Inferred:
    """Which parameters are inferred.

    Args:
        model: ``jc69``, ``k80``, ``hky`` or ``gtr``.
        frequencies: given ones (such as the alignment's) instead of inferred ones, for ``hky`` and ``gtr``.
        gamma: whether rates over sites are gamma distributed.
        num_categories: of the gamma distribution, equally probable, each with its mean rate.
        invariable: whether there is a share of invariable sites.

    Raises:
        InputError: an unknown model, or settings that cannot be.

    Example:
        >>> hky = Inferred("hky", gamma=True)
        >>> hky.labels, hky.size
        (('kappa', 'pi(A)', 'pi(C)', 'pi(G)', 'pi(T)', 'alpha'), 5)
        >>> hky.natural(torch.zeros(1, 5, dtype=torch.float64)).tolist()
        [[1.0, 0.25, 0.25, 0.25, 0.25, 1.0]]
    """

    model: str
    frequencies: Sequence[float] | None = None
    gamma: bool = False
    num_categories: int = 4
    invariable: bool = False

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise InputError(
                f"model.target.inferred.model must be one of {', '.join(MODELS)}, got {self.model!r}"
            )
        if type(self.num_categories) is not int or self.num_categories < 1:
            raise InputError(
                "model.target.inferred.num_categories must be a whole number of at least 1, got "
                f"{self.num_categories!r}"
            )
        for name in ("gamma", "invariable"):
            if not isinstance(value := getattr(self, name), bool):
                raise InputError(
                    f"model.target.inferred.{name} must be true or false (its value is inferred), got {value!r}"
                )
        if self.frequencies is not None:
            check_positive("frequencies", list(self.frequencies), 4)
            if abs(sum(self.frequencies) - 1) > 1e-6 or "frequencies" not in MODELS[self.model]:
                raise InputError(
                    "model.target.inferred.frequencies must be four numbers (A C G T) that sum to 1, for hky and gtr; "
                    f"got {list(self.frequencies)}"
                )

    @property
    def parts(self) -> tuple[str, ...]:
        """The inferred parts in the order of the coordinates."""
        found = [part for part in MODELS[self.model] if part != "frequencies" or self.frequencies is None]
        return (*found, *["gamma_shape"] * self.gamma, *["invariable"] * self.invariable)

    @property
    def size(self) -> int:
        """Number of coordinates, D."""
        return sum(SIZES[part] for part in self.parts)

    @property
    def labels(self) -> tuple[str, ...]:
        """MrBayes' names of the parameters."""
        return tuple(label for part in self.parts for label in LABELS[part])

    def start(self, alignment: Alignment) -> Tensor:
        """Coordinates [D] to begin with: the alignment's frequencies, and moderate values of the rest."""
        known = bool((np.bincount(alignment.codes.ravel(), minlength=16)[[1, 2, 4, 8]] > 0).all())
        shares = (
            torch.from_numpy(empirical_frequencies(alignment))
            if known
            else torch.ones(4, dtype=torch.float64)
        )
        starts = {
            "kappa": [math.log(2.0)], "rates": [0.0, 0.7, 0.0, 0.0, 0.7],
            "frequencies": (shares[:3] / shares[3]).log().tolist(), "gamma_shape": [math.log(0.5)],
            "invariable": [-1.5],
        }  # fmt: skip
        return torch.tensor([value for part in self.parts for value in starts[part]], dtype=torch.float64)

    def log_jacobian(self, theta: Tensor) -> Tensor:
        """log |d parameters / d coordinates| [K], the shares of kappa and 1 standing for kappa."""
        total = theta.new_zeros(len(theta))
        for part, value in self.split(theta).items():
            if part in ("rates", "frequencies"):
                total = total + torch.log_softmax(padded(value), -1).sum(-1)
            elif part == "gamma_shape":
                total = total + value[:, 0]
            else:
                total = total + torch.nn.functional.logsigmoid(torch.cat((value, -value), -1)).sum(-1)
        return total

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """Coordinates [K, D] by part."""
        return dict(zip(self.parts, theta.split([SIZES[part] for part in self.parts], -1), strict=True))

    def natural(self, theta: Tensor) -> Tensor:
        """The parameters, in the order of :attr:`labels`."""
        found = [
            torch.softmax(padded(value), -1) if part in ("rates", "frequencies") else
            value.sigmoid() if part == "invariable" else value.exp()
            for part, value in self.split(theta).items()
        ]  # fmt: skip
        return torch.cat([theta[..., :0], *found], -1)

    def values(self, theta: Tensor) -> Values:
        """The models of coordinates [K, D], float64."""
        part, count = self.split(theta), len(theta)
        ones = torch.ones(count, 1, dtype=theta.dtype)
        if "kappa" in part:
            kappa = part["kappa"].exp()
            rates = torch.cat((ones, kappa, ones, ones, kappa, ones), -1) / (4 + 2 * kappa)
        else:
            rates = torch.softmax(padded(part.get("rates", ones.expand(-1, 5) * 0)), -1)
        if self.frequencies is not None:
            pi = torch.as_tensor(self.frequencies, dtype=theta.dtype).expand(count, 4)
        else:
            pi = torch.softmax(padded(part.get("frequencies", ones.expand(-1, 3) * 0)), -1)
        speeds, weights = ones, ones
        if "gamma_shape" in part:
            speeds = CategoryRates.apply(part["gamma_shape"][:, 0].exp(), self.num_categories)
            weights = torch.full_like(speeds, 1 / self.num_categories)
        if "invariable" in part:
            varying = (-part["invariable"]).sigmoid()  # 1 - pinv
            speeds = torch.cat((ones * 0, speeds / varying), -1)
            weights = torch.cat((part["invariable"].sigmoid(), weights * varying), -1)
        return Values(rates, pi, speeds, weights)

    def log_prior(self, theta: Tensor) -> Tensor:
        """log p of coordinates [K, D]: [K], nats; with the Jacobian."""
        total = self.log_jacobian(theta)
        for part, value in self.split(theta).items():
            if part in ("rates", "frequencies"):
                total = total + float(gammaln(SIZES[part] + 1))  # of Dirichlet(1, ..., 1)
            elif part == "gamma_shape":
                total = total - value[:, 0].exp()
        return total

    def describe(self) -> str:
        """The model and its priors in words."""
        words = {"jc69": "JC69", "k80": "K80", "hky": "HKY85", "gtr": "GTR"}[self.model]
        words += f"+G{self.num_categories}" * self.gamma + "+I" * self.invariable
        priors = {
            "kappa": "kappa/(1+kappa) ~ Beta(1, 1)", "rates": "rates ~ Dirichlet(1, 1, 1, 1, 1, 1)",
            "frequencies": "frequencies ~ Dirichlet(1, 1, 1, 1)", "gamma_shape": "alpha ~ Exponential(1)",
            "invariable": "pinvar ~ Uniform(0, 1)",
        }  # fmt: skip
        given = [] if self.frequencies is None or "frequencies" not in MODELS[self.model] else [
            "frequencies " + " ".join(f"{x:.4g}" for x in self.frequencies)
        ]  # fmt: skip
        return f"{words} ({', '.join([*given, *(priors[part] for part in self.parts)])})"


def make_inferred(
    alignment: Alignment, options: Mapping[str, object] | None, given: Substitution
) -> Inferred | None:
    """The model whose parameters are inferred; None where they are given.

    Args:
        alignment: of which the ``empirical`` frequencies are.
        options: arguments of :class:`Inferred`; ``model: None`` for none.
        given: the model beside it.

    Raises:
        InputError: a model is given as well, or settings that cannot be.
    """
    settings = dict(options or {})
    if settings.get("model") is None:
        return None
    if not given.plain:
        raise InputError(
            "model.target.inferred.model and model.target.substitution are both given: leave one of them out"
        )
    frequencies = settings.get("frequencies")
    if frequencies == "empirical":
        settings["frequencies"] = empirical_frequencies(alignment).tolist()
    elif isinstance(frequencies, str):
        raise InputError(
            f"model.target.inferred.frequencies must be null (inferred), empirical or four numbers, got {frequencies!r}"
        )
    try:
        found = Inferred(**settings)  # type: ignore[arg-type]
    except TypeError as error:
        raise InputError(f"model.target.inferred: {error}") from None
    if not found.size:
        raise InputError(
            f"model.target.inferred.model={found.model} has no parameter to infer: give gamma=true, invariable=true, "
            "or model.target.substitution instead"
        )
    return found


def padded(value: Tensor) -> Tensor:
    """Coordinates with a 0 for the last share."""
    return torch.cat((value, torch.zeros_like(value[..., :1])), -1)


def gamma_rates(alpha: np.ndarray, count: int) -> np.ndarray:
    """Mean rates [..., C] of equally probable categories of the gamma distribution of mean 1 and shape alpha [...].

    Example:
        >>> gamma_rates(np.array([0.5]), 4).round(4)
        array([[0.0334, 0.2519, 0.8203, 2.8944]])
    """
    cuts = gammaincinv(alpha[..., None], np.arange(1, count) / count)
    below = gammainc(alpha[..., None] + 1, cuts)
    ends = np.zeros((*alpha.shape, 1))
    return np.diff(np.concatenate([ends, below, ends + 1], -1), axis=-1) * count


class CategoryRates(torch.autograd.Function):
    """Rates [K, C] of shapes alpha [K]; the derivative by central differences in log alpha, to a relative 1e-9."""

    STEP = 1e-3

    @staticmethod
    def forward(ctx: Saved, alpha: Tensor, count: int) -> Tensor:
        """Rates."""
        value, step = alpha.detach().numpy(), CategoryRates.STEP
        far = [gamma_rates(value * np.exp(shift * step), count) for shift in (-2, -1, 1, 2)]
        slope = (far[0] - 8 * far[1] + 8 * far[2] - far[3]) / (12 * step)  # in log alpha, error O(step^4)
        ctx.save_for_backward(torch.from_numpy(slope / value[..., None]))
        return torch.from_numpy(gamma_rates(value, count))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Saved, grad: Tensor) -> tuple[Tensor, None]:
        """Gradient in alpha."""
        (slope,) = ctx.saved_tensors
        return (grad * slope).sum(-1), None
