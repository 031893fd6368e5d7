"""Sizes of an NVAE: groups of latent variables per scale, widths and resolutions."""

from dataclasses import dataclass

from miselbo.data.spec import ImageSpec
from miselbo.errors import InputError


def groups_per_scale(num_scales: int, num_groups: int, adaptive: bool, minimum: int = 1) -> list[int]:
    """Groups of each scale, the highest resolution first; ``adaptive`` halves them from scale to scale.

    The minimum holds from the second scale on.

    Example:
        >>> groups_per_scale(5, 16, True, 4), groups_per_scale(3, 5, False)
        ([16, 8, 4, 4, 4], [5, 5, 5])
    """
    groups = [num_groups]
    for _ in range(num_scales - 1):
        groups.append(max(minimum, groups[-1] // 2) if adaptive else num_groups)
    return groups


def require_positive(**values: int) -> None:
    """Raise InputError for any argument that is not a whole number >= 1.

    Example:
        >>> require_positive(num_channels=8)
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}; expected a whole number >= 1.")


@dataclass(frozen=True)
class Topology:
    """What encoder and decoder must agree on.

    Args:
        image: the images as the data module gives them.
        groups: groups per scale, the highest resolution first.
        num_latent: latent channels Z of each group.
        num_blocks: P, how often the resolution is halved before the first scale (and doubled after it).

    Example:
        >>> mnist = Topology(ImageSpec(1, 28, 28, "bernoulli"), (2, 1), 20, 2)
        >>> mnist.network_size, mnist.latent_shapes
        ((32, 32), [(20, 4, 4), (20, 8, 8), (20, 8, 8)])
    """

    image: ImageSpec
    groups: tuple[int, ...]
    num_latent: int
    num_blocks: int

    @property
    def reduction(self) -> int:
        """Image size over coarsest latent size, 2^(P + K - 1); the width grows by the same factor."""
        return 2 ** (self.num_blocks + len(self.groups) - 1)

    @property
    def network_size(self) -> tuple[int, int]:
        """The image's size, padded to the next multiple of max(8, reduction)."""
        step = max(8, self.reduction)
        return -(-self.image.height // step) * step, -(-self.image.width // step) * step

    @property
    def group_factors(self) -> list[int]:
        """Per group, deepest first: the factor by which width grows and resolution shrinks."""
        scales = [scale for scale, groups in enumerate(self.groups) for _ in range(groups)]
        return [2 ** (self.num_blocks + scale) for scale in reversed(scales)]

    @property
    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """(Z, h, w) of each group, deepest first."""
        height, width = self.network_size
        return [(self.num_latent, height // factor, width // factor) for factor in self.group_factors]

    @property
    def is_vanilla(self) -> bool:
        """One group: a plain VAE, without towers."""
        return sum(self.groups) == 1


def build_topology(
    image: ImageSpec,
    num_scales: int,
    num_groups: int,
    num_latent: int,
    adaptive: bool,
    minimum: int,
    num_blocks: int | str,
) -> Topology:
    """Check the arguments and resolve ``num_blocks="auto"``: the smallest P >= 1 with a coarsest size <= 4.

    The resolution may be divided by no more than the smaller side, rounded up to a multiple of 8.

    Raises:
        InputError: a count below one, or more halvings than the image has.

    Example:
        >>> build_topology(ImageSpec(1, 8, 8, "bernoulli"), 2, 2, 4, True, 1, "auto").num_blocks
        1
    """
    require_positive(
        num_latent_scales=num_scales,
        num_groups_per_scale=num_groups,
        num_latent_per_group=num_latent,
        min_groups_per_scale=minimum,
    )
    groups = tuple(groups_per_scale(num_scales, num_groups, adaptive, minimum))
    available = -(-min(image.height, image.width) // 8) * 8
    if num_blocks == "auto":
        blocks = 1
        while True:
            topology = Topology(image, groups, num_latent, blocks)
            if max(topology.latent_shapes[0][1:]) <= 4 or 2 * topology.reduction > available:
                break
            blocks += 1
    else:
        require_positive(num_preprocess_blocks=num_blocks)  # type: ignore[arg-type]
        blocks = int(num_blocks)
    topology = Topology(image, groups, num_latent, blocks)
    if topology.reduction > available:
        raise InputError(
            f"{num_scales} latent scales and {blocks} pre-processing blocks divide the resolution by"
            f" {topology.reduction}, more than the {image.height}x{image.width} image has: use fewer"
            " num_latent_scales or num_preprocess_blocks."
        )
    return topology
