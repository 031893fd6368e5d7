"""NVAE's decoder side (theta): prior over the groups and likelihood of the image."""

from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from miselbo.data.spec import ImageSpec
from miselbo.models.hierarchical import Choose, HierarchicalDecoder, Trace, crop_image
from miselbo.models.nvae.cells import UP, Cell, architecture
from miselbo.models.nvae.convs import WeightNormConv2d, conv_kernels
from miselbo.models.nvae.distributions import (
    at_least_single,
    check_image,
    clamped_normal,
    image_log_prob,
    image_mean,
    num_image_parameters,
    sample_image,
)
from miselbo.models.nvae.network_input import network_input
from miselbo.models.nvae.topology import build_topology, require_positive
from miselbo.protocols import EnsembleForm

if TYPE_CHECKING:
    from miselbo.models.nvae.fast.ensemble import InferenceEnsemble

DEEPEST_PRIOR_SCALE = 1.01  # of a raw log-scale of zero: exp(0) + 0.01


class DecoderCombiner(nn.Module):
    """Mix a group of latent variables into the decoder's feature by a 1x1 convolution."""

    def __init__(self, channels: int, num_latent: int) -> None:
        super().__init__()
        self.conv = WeightNormConv2d(channels + num_latent, channels, 1)

    def forward(self, s: Tensor, z: Tensor) -> Tensor:
        """[N, C, h, w], [N, Z, h, w] -> [N, C, h, w]."""
        if s.is_contiguous(memory_format=torch.channels_last):
            z = z.contiguous(memory_format=torch.channels_last)
        return self.conv(torch.cat([s, z], 1))


class DecoderArguments(TypedDict):
    """What a decoder was made with, besides the image."""

    num_latent_scales: int
    num_groups_per_scale: int
    num_latent_per_group: int
    num_channels: int
    num_postprocess_cells: int
    num_cells_per_group: int
    ada_groups: bool
    min_groups_per_scale: int
    arch: str
    use_se: bool
    num_mixtures: int


class Decoder(HierarchicalDecoder):
    r"""Vahdat and Kautz, "NVAE: a deep hierarchical variational autoencoder" (2020), generative side.

    A learned constant of the coarsest resolution passes K scales of residual cells; each group of latent
    variables is drawn from a normal whose parameters are read off the feature at that point, and mixed in.

    Args:
        image: size, channels and likelihood of the images.
        num_latent_scales: K, resolutions that carry latent variables.
        num_groups_per_scale: groups at the highest of these resolutions.
        num_latent_per_group: Z, channels of each group.
        num_channels: width before the image; it doubles with each halving of the resolution.
        num_preprocess_blocks: P, halvings between image and first scale; "auto": coarsest latent size <= 4.
        num_postprocess_cells: cells per doubling after the last scale.
        num_cells_per_group: cells before each group but the deepest.
        ada_groups: halve the number of groups from scale to scale.
        min_groups_per_scale: least groups from the second scale on.
        arch: row of :data:`miselbo.models.nvae.cells.ARCHITECTURES`.
        use_se: squeeze and excitation in every cell.
        num_mixtures: components of the ``logistic_mixture`` likelihood.

    Raises:
        InputError: an argument out of range, or more halvings than the image has.

    Example:
        >>> decoder = Decoder(
        ...     ImageSpec(1, 8, 8, "bernoulli"), num_latent_scales=2, num_groups_per_scale=1,
        ...     num_latent_per_group=2, num_channels=4)
        >>> decoder.latent_shapes
        [(2, 2, 2), (2, 4, 4)]
        >>> decoder.eval().sample_prior([torch.randn(3, *shape) for shape in decoder.latent_shapes]).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        image: ImageSpec,
        *,
        num_latent_scales: int,
        num_groups_per_scale: int,
        num_latent_per_group: int,
        num_channels: int,
        num_preprocess_blocks: int | str = "auto",
        num_postprocess_cells: int = 2,
        num_cells_per_group: int = 1,
        ada_groups: bool = False,
        min_groups_per_scale: int = 1,
        arch: str = "res_mbconv",
        use_se: bool = True,
        num_mixtures: int = 10,
    ) -> None:
        super().__init__()
        check_image(image)
        require_positive(
            num_channels=num_channels,
            num_postprocess_cells=num_postprocess_cells,
            num_cells_per_group=num_cells_per_group,
            num_mixtures=num_mixtures,
        )
        kinds = architecture(arch)
        self.image = image
        self.num_channels = num_channels
        self.topology = topology = build_topology(
            image,
            num_latent_scales,
            num_groups_per_scale,
            num_latent_per_group,
            ada_groups,
            min_groups_per_scale,
            num_preprocess_blocks,
        )
        self.network_size = topology.network_size
        self.latent_shapes = topology.latent_shapes
        self.arguments: DecoderArguments = {  # what the image does not decide
            "num_latent_scales": num_latent_scales,
            "num_groups_per_scale": num_groups_per_scale,
            "num_latent_per_group": num_latent_per_group,
            "num_channels": num_channels,
            "num_postprocess_cells": num_postprocess_cells,
            "num_cells_per_group": num_cells_per_group,
            "ada_groups": ada_groups,
            "min_groups_per_scale": min_groups_per_scale,
            "arch": arch,
            "use_se": use_se,
            "num_mixtures": num_mixtures,
        }

        latent = num_latent_per_group
        width = num_channels * topology.reduction
        self.tower = nn.ModuleList()
        self.heads = nn.ModuleList()
        if topology.is_vanilla:
            self.stem = WeightNormConv2d(latent, width, 1)
        else:
            self.first_feature = nn.Parameter(torch.rand(width, *self.latent_shapes[0][1:]))
            for scale, groups in enumerate(reversed(topology.groups)):
                if scale > 0:
                    self.tower.append(Cell(width, kinds["dec"], UP, use_se))
                    width //= 2
                for group in range(groups):
                    if scale > 0 or group > 0:
                        for _ in range(num_cells_per_group):
                            self.tower.append(Cell(width, kinds["dec"], 1, use_se))
                        self.heads.append(WeightNormConv2d(width, 2 * latent, 1))
                    self.tower.append(DecoderCombiner(width, latent))
        self.post = nn.ModuleList()
        for _ in range(topology.num_blocks):
            self.post.append(Cell(width, kinds["post"], UP, use_se))
            width //= 2
            self.post.extend(Cell(width, kinds["post"], 1, use_se) for _ in range(num_postprocess_cells - 1))
        self.image_head = WeightNormConv2d(width, num_image_parameters(image, num_mixtures), 3)

    def generate(self, choose: Choose, batch: int) -> Trace:
        """Run top-down for N images; ``choose(i, feature, prior_raw, prior)`` gives z_i [N, Z, h, w]."""
        z: list[Tensor] = []
        features: list[Tensor | None] = []
        raws: list[Tensor | None] = []
        priors: list[Normal] = []

        def group(feature: Tensor | None) -> Tensor:
            i = len(z)
            raw = None if feature is None else self.heads[i - 1](F.elu(feature))
            prior = self._deepest_prior(batch) if raw is None else clamped_normal(raw)
            features.append(feature)
            raws.append(raw)
            priors.append(prior)
            z.append(choose(i, feature, raw, prior))
            return z[-1]

        if self.topology.is_vanilla:
            s = self.stem(group(None))
        else:
            s = self.first_feature.expand(batch, -1, -1, -1)
            for module in self.tower:
                if isinstance(module, DecoderCombiner):
                    s = module(s, group(s if z else None))
                else:
                    s = module(s)
        for cell in self.post:
            s = cell(s)
        return Trace(z, features, raws, priors, self.image_head(F.elu(s)))

    def pad(self, x: Tensor) -> Tensor:
        """Image size -> network size, with ``image.num_bits`` bits per colour."""
        return network_input(x, self.image, self.network_size)

    def log_likelihood(self, logits: Tensor, x: Tensor) -> Tensor:
        """log p(x given z) over the original height x width, in float64.

        Logits [L * B, P, H, W] or [*lead, B, P, H, W] and x [B, C, height, width], padded or not, give [L, B]
        or [*lead, B].
        """
        logits = at_least_single(crop_image(logits, self.image))
        x = crop_image(self.pad(x), self.image).to(logits.dtype)
        if logits.ndim == 4:
            logits = logits.unflatten(0, (-1, len(x)))
        return image_log_prob(logits, x, self.image)

    def image_mean(self, logits: Tensor) -> Tensor:
        """Mean image in [0, 1] on the original size, for pictures."""
        return image_mean(at_least_single(crop_image(logits, self.image)), self.image)

    def sample_image(self, logits: Tensor, u: Tensor) -> Tensor:
        """Images ~ p(x given z), on the levels of the data."""
        return sample_image(at_least_single(crop_image(logits, self.image)), u, self.image)

    def inference_form(
        self, ensemble: EnsembleForm, dtype: torch.dtype | None = None, compiled: bool = False
    ) -> "InferenceEnsemble":
        """The same ensemble in a faster form for evaluation alone."""
        from miselbo.models.nvae.fast.ensemble import inference_form

        return inference_form(ensemble, dtype, compiled=compiled)

    def conv_kernels(self) -> list[Tensor]:
        """Effective kernels, for the spectral regulariser."""
        return conv_kernels(self)

    def _deepest_prior(self, batch: int) -> Normal:
        weight = self.image_head.weight
        loc = weight.new_zeros(()).expand(batch, *self.latent_shapes[0])
        return Normal(loc, weight.new_full((), DEEPEST_PRIOR_SCALE).expand_as(loc), validate_args=False)
