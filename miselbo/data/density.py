"""The data module of a density: what a classical target is, its normaliser, and replicates as examples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor

from miselbo.data.interface import Scoring
from miselbo.data.quadrature import log_integral
from miselbo.data.replicates import WORDS, Replicates
from miselbo.errors import InputError
from miselbo.protocols import EnsembleForm

NORMALISERS = ("space", "box")


def plain_partial(density: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Python's own partial in place of Hydra's, which checks its target at every call; anything else as it is."""
    function, given = getattr(density, "func", None), getattr(density, "keywords", None)
    if function is None or given is None:
        return density
    keywords = OmegaConf.to_container(OmegaConf.create(dict(given)))
    return partial(function, *getattr(density, "args", ()), **keywords)  # type: ignore[arg-type]


@dataclass(frozen=True)
class DensitySpec:
    """What a classical model must know: z [..., dim] -> log p(z) [...]."""

    log_density: Callable[[Tensor], Tensor]
    dim: int


class DensityData(Replicates):
    """A target density, scored R times.

    Args:
        density: z [..., dim] -> log p(z) [...], nats, normalised or not.
        name: of the density.
        dim: of z.
        box: per axis its ends: where the normaliser is computed and the figure is drawn; needed for neither when None.
        normaliser: "space" when (nearly) all mass is inside the box, "box" when there is none on R^d.
        replicates: R.
        fixed: read by ``conf/model/gaussian.yaml`` alone: what its members do not train on this density by default.

    Raises:
        InputError: an argument out of range, or values of the density that cannot be (shape, NaN, +inf).

    Example:
        >>> from miselbo.data.densities import ring
        >>> data = DensityData(ring, name="ring", dim=2, box=[[-4, 4], [-4, 4]], replicates=3)
        >>> round(data.log_normaliser, 3)
        2.534
    """

    words = {**WORDS, "log p(x)": "log Z", "posterior": "target"}
    sections = ("density",)

    def __init__(
        self,
        density: Callable[[Tensor], Tensor],
        *,
        name: str,
        dim: int,
        box: Sequence[Sequence[float]] | None = None,
        normaliser: str = "space",
        replicates: int = 100,
        fixed: Mapping[str, object] | None = None,
    ):
        super().__init__(name, replicates)
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise InputError(f"dataset.dim must be a whole number of at least 1, got {dim!r}")
        if normaliser not in NORMALISERS:
            raise InputError(
                f"dataset.normaliser must be one of {', '.join(NORMALISERS)}, got {normaliser!r}"
            )
        if box is not None and len(box) != dim:
            raise InputError(f"dataset.box must give [low, high] of every axis: dim = {dim}, got {list(box)}")
        if not callable(density):
            raise InputError(f"dataset.density must be callable, z -> log p(z); got {density!r}")
        self.density = plain_partial(density)
        self.dim = self.pass_dims = dim
        self.box = None if box is None else [[float(end) for end in axis] for axis in box]
        self.normaliser = normaliser

    @property
    def spec(self) -> DensitySpec:
        """The density and its dimension."""
        return DensitySpec(self.density, self.dim)

    @cached_property
    def log_normaliser(self) -> float | None:
        """log Z: the density's own exact one, else by quadrature on the box; None without either."""
        exact = getattr(self.density, "log_normaliser", None)
        if exact is not None:
            return float(exact)
        if self.box is None or self.dim > 2:
            return None
        return log_integral(self.density, self.box)

    @property
    def normaliser_rule(self) -> str:
        """How :attr:`log_normaliser` came about, in words."""
        if getattr(self.density, "log_normaliser", None) is not None:
            return "exact"
        if self.log_normaliser is None:
            return "unknown: no box was given, or more than two dimensions"
        axes = " x ".join(f"[{low:g}, {high:g}]" for low, high in self.box or [])
        if self.normaliser == "space":
            return f"quadrature on {axes}"
        return f"quadrature on {axes}; the density does not decay everywhere: no normaliser on R^{self.dim}"

    @property
    def cautions(self) -> list[str]:
        """What a reader of the numbers must know."""
        if self.normaliser == "space":
            return []
        return [
            f"No normaliser: {self.name} does not decay everywhere, so log Z on R^{self.dim} is infinite: a bound may "
            "pass log Z of the box, a scale that is trained grows without end, and values compare only between members "
            "of one fixed scale."
        ]

    def protocol(self, split: str = "test") -> dict[str, object]:
        """Replicates, dimension and normaliser."""
        return {
            **super().protocol(split),
            "dim": self.dim,
            "log_normaliser": self.log_normaliser,
            "normaliser_rule": self.normaliser_rule,
        }

    def save_extras(self, ensemble: EnsembleForm, settings: Scoring, count: int, results: Path) -> None:
        """The density and the members on a grid, for the figure; nothing without a box."""
        if self.box is None or self.dim > 2:
            return
        from miselbo.data.density_grid import save_grid

        with torch.no_grad():
            save_grid(ensemble, self.box, self.log_normaliser, results / "density.npz")
