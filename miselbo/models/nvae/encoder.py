"""NVAE's encoder side (phi): one pass over x, one posterior head per group, optional flows."""

from typing import TypedDict

from torch import Tensor, nn
from torch.nn import functional as F

from miselbo.errors import InputError
from miselbo.models.hierarchical import HierarchicalEncoder, Posterior
from miselbo.models.nvae.cells import Cell, architecture
from miselbo.models.nvae.convs import WeightNormConv2d, conv_kernels
from miselbo.models.nvae.decoder import Decoder
from miselbo.models.nvae.distributions import clamped_normal
from miselbo.models.nvae.flow import Chain, FlowPair
from miselbo.models.nvae.network_input import network_input
from miselbo.models.nvae.topology import require_positive


class EncoderCombiner(nn.Module):
    """Add the decoder's feature, brought to the encoder's width by a 1x1 convolution, to the encoder's."""

    def __init__(self, decoder_channels: int, encoder_channels: int) -> None:
        super().__init__()
        self.conv = WeightNormConv2d(decoder_channels, encoder_channels, 1)

    def forward(self, context: Tensor, feature: Tensor) -> Tensor:
        """[N, C_e, h, w], [N, C_d, h, w] -> [N, C_e, h, w]."""
        return context + self.conv(feature)


class EncoderArguments(TypedDict):
    """What an encoder was made with, besides the decoder."""

    num_channels: int
    num_preprocess_cells: int
    num_cells_per_group: int
    arch: str
    use_se: bool
    res_dist: bool
    num_flows: int


class Encoder(HierarchicalEncoder):
    """Inference side of NVAE for a given :class:`Decoder`, which gives the topology and is not kept.

    Args:
        decoder: the generative side.
        num_channels: width after the first convolution.
        num_preprocess_cells: cells per halving before the first scale.
        num_cells_per_group: cells before each group.
        arch: row of :data:`miselbo.models.nvae.cells.ARCHITECTURES`.
        use_se: squeeze and excitation in every cell.
        res_dist: raw posterior parameters are offsets to the raw prior parameters (groups i > 0).
        num_flows: pairs of auto-regressive flows per group.

    Raises:
        InputError: an argument out of range, or a decoder without towers and of another width.

    Example:
        >>> import torch
        >>> from miselbo.data.spec import ImageSpec
        >>> decoder = Decoder(
        ...     ImageSpec(1, 8, 8, "bernoulli"), num_latent_scales=1, num_groups_per_scale=2,
        ...     num_latent_per_group=2, num_channels=4)
        >>> encoder = Encoder(decoder, num_channels=4)
        >>> noise = [torch.randn(3, 5, *shape) for shape in decoder.latent_shapes]
        >>> draw = decoder.draw(torch.zeros(5, 1, 8, 8), encoder, None, noise)
        >>> draw.log_p.shape, draw.kl().shape
        (torch.Size([3, 5]), torch.Size([3, 5, 2]))
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        num_channels: int,
        num_preprocess_cells: int = 2,
        num_cells_per_group: int = 1,
        arch: str = "res_mbconv",
        use_se: bool = True,
        res_dist: bool = True,
        num_flows: int = 0,
    ) -> None:
        super().__init__()
        require_positive(
            num_channels=num_channels,
            num_preprocess_cells=num_preprocess_cells,
            num_cells_per_group=num_cells_per_group,
        )
        if num_flows < 0:
            raise InputError(f"num_flows is {num_flows}; expected a whole number >= 0.")
        kinds = architecture(arch)
        topology = decoder.topology
        if topology.is_vanilla and num_channels != decoder.num_channels:
            raise InputError(
                f"num_channels is {num_channels} here and {decoder.num_channels} in the decoder; a model of"
                " one group needs the same width on both sides."
            )
        self.image, self.network_size = topology.image, topology.network_size
        self.res_dist, self.num_flows = res_dist, num_flows
        latent = topology.num_latent
        self.arguments: EncoderArguments = {
            "num_channels": num_channels,
            "num_preprocess_cells": num_preprocess_cells,
            "num_cells_per_group": num_cells_per_group,
            "arch": arch,
            "use_se": use_se,
            "res_dist": res_dist,
            "num_flows": num_flows,
        }

        width = num_channels
        self.stem = WeightNormConv2d(topology.image.channels, width, 3)
        self.pre = nn.ModuleList()
        for _ in range(topology.num_blocks):
            self.pre.extend(Cell(width, kinds["pre"], 1, use_se) for _ in range(num_preprocess_cells - 1))
            self.pre.append(Cell(width, kinds["pre"], 2, use_se))
            width *= 2
        self.tower = nn.ModuleList()
        last = len(topology.groups) - 1
        if not topology.is_vanilla:
            for scale, groups in enumerate(topology.groups):
                for group in range(groups):
                    for _ in range(num_cells_per_group):
                        self.tower.append(Cell(width, kinds["enc"], 1, use_se))
                    if scale < last or group < groups - 1:
                        factor = 2 ** (topology.num_blocks + scale)
                        self.tower.append(EncoderCombiner(decoder.num_channels * factor, width))
                if scale < last:
                    self.tower.append(Cell(width, kinds["enc"], 2, use_se))
                    width *= 2
        self.top = WeightNormConv2d(width, width, 1)
        self.heads = nn.ModuleList(
            WeightNormConv2d(num_channels * factor, 2 * latent, 3) for factor in topology.group_factors
        )
        self.flows = nn.ModuleList(FlowPair(latent) for _ in range(num_flows * len(self.heads)))
        self._combiner_index = [k for k, m in enumerate(self.tower) if isinstance(m, EncoderCombiner)][::-1]

    def encode(self, x: Tensor) -> list[Tensor]:
        """x-side feature of each group, deepest first, each [B, c, h, w]; x [B, C, H, W] padded or not."""
        s = self.stem(2 * network_input(x, self.image, self.network_size).to(self.stem.weight.dtype) - 1)
        for cell in self.pre:
            s = cell(s)
        stored: list[Tensor] = []
        for module in self.tower:
            if isinstance(module, EncoderCombiner):
                stored.append(s)
            else:
                s = module(s)
        return [F.elu(self.top(F.elu(s))), *reversed(stored)]

    def posterior(
        self, context: Tensor, i: int, feature: Tensor | None, prior_raw: Tensor | None
    ) -> Posterior:
        """q(z_i given z_{<i}, x) from group i's feature on the x-side and in the decoder (one batch axis)."""
        if feature is not None:
            context = self.tower[self._combiner_index[i - 1]](context, feature)
        raw = self.heads[i](context)
        if prior_raw is not None and self.res_dist:
            raw = raw + prior_raw
        flows = [self.flows[k] for k in range(i * self.num_flows, (i + 1) * self.num_flows)]
        return Posterior(clamped_normal(raw), Chain(flows) if flows else None)  # type: ignore[arg-type]

    def conv_kernels(self) -> list[Tensor]:
        """Effective kernels, for the spectral regulariser."""
        return conv_kernels(self)
