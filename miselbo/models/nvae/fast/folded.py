"""Both sides of an NVAE for evaluation alone: a decoder that asks for z, an encoder for the x-side parts."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miselbo.models.nvae.cells import Cell
from miselbo.models.nvae.convs import WeightNormConv2d
from miselbo.models.nvae.decoder import Decoder, DecoderCombiner
from miselbo.models.nvae.distributions import at_least_single
from miselbo.models.nvae.encoder import Encoder, EncoderCombiner
from miselbo.models.nvae.fast.folding import FoldedCell
from miselbo.models.nvae.fast.fused_conv import FusedConv2d
from miselbo.models.nvae.fast.heads import context_biases, context_heads, image, pixels, prior_head
from miselbo.models.nvae.fast.steps import Convolution, convolution
from miselbo.models.nvae.flow import Chain, FlowPair
from miselbo.models.nvae.network_input import network_input

Choose = Callable[[int, Tensor | None, Tensor | None], Tensor]

CACHED_BYTES = 2**21  # the widest activation of a run of cells on a CPU should not be much larger


class FoldedDecoder(nn.Module):
    """The function of a trained decoder; axes and memory layout as in :mod:`miselbo.models.nvae.fast.heads`.

    The deepest group's learned constant is a bias of its combiner.

    Args:
        decoder: as trained; not changed.
        dtype: of weights and features.
    """

    constant: Tensor

    def __init__(self, decoder: Decoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.image, self.network_size = decoder.image, decoder.network_size
        self.latent_shapes, self.dtype = decoder.latent_shapes, dtype
        self.tower = nn.ModuleList()
        self.heads = nn.ModuleList(prior_head(head, dtype) for head in decoder.heads)
        if decoder.topology.is_vanilla:
            first = convolution(decoder.stem)
            self.register_buffer("constant", torch.zeros((1, len(first.bias), 1, 1), dtype=dtype))
        else:
            combiner, *rest = decoder.tower
            assert isinstance(combiner, DecoderCombiner)
            width = len(decoder.first_feature)
            whole = convolution(combiner.conv)
            constant = F.conv2d(decoder.first_feature.detach().double()[None], whole.kernel[:, :width])
            self.register_buffer("constant", constant.to(dtype).contiguous(memory_format=torch.channels_last))
            first = Convolution(whole.kernel[:, width:], whole.bias)
            self.tower.extend(_folded(module, dtype) for module in rest)
        self.first = FusedConv2d(first, dtype)
        self.post = nn.ModuleList(_folded(cell, dtype) for cell in decoder.post)
        self.image_head = FusedConv2d(convolution(decoder.image_head), dtype)

    def forward(self, choose: Choose, with_prior: bool = True) -> Tensor:
        """Run top-down; ``choose(i, feature, prior_raw)`` gives z_i [N, P, Z]; logits [N, C, H, W].

        ``feature`` [N, C, h, w] and ``prior_raw`` [N, P, 2, 1, Z] are None for group 0; ``prior_raw`` is
        always None without prior, when z is given and only the logits are asked for.
        """
        groups = iter(enumerate(self.heads, 1))
        s = self.first(image(choose(0, None, None), self.latent_shapes[0][1:]).to(self.dtype)).add_(
            self.constant
        )
        for module in self.tower:
            if isinstance(module, FoldedCell):
                s = module(s)
            else:
                i, head = next(groups)
                raw = (
                    at_least_single(pixels(head(F.elu(s)))).unflatten(-1, (2, 1, -1)) if with_prior else None
                )
                z = image(choose(i, s, raw), self.latent_shapes[i][1:])
                s = module(torch.cat([s, z.to(self.dtype)], 1))
        return torch.cat([self._paint(part) for part in s.split(self._rows(s))])

    def _paint(self, s: Tensor) -> Tensor:
        for cell in self.post:
            s = cell(s)
        return self.image_head(F.elu(s, inplace=True))

    def _rows(self, s: Tensor) -> int:
        """Images that are painted at once: few on a CPU, so that features stay in its cache."""
        if s.device.type != "cpu":
            return len(s)
        return max(1, CACHED_BYTES // self.post_bytes)

    @property
    def post_bytes(self) -> int:
        """Bytes of the widest activation after the latent groups, per image."""
        height, width = self.network_size
        widest = 3 * self.image_head.in_channels
        return widest * height * width * self.image_head.weight.element_size()

    @property
    def row_bytes(self) -> int:
        """Bytes of a few of the widest activations in the tower, per (x, sample)."""
        sizes = [
            conv.out_channels * self.latent_shapes[-1][1] * self.latent_shapes[-1][2]
            for conv in self.tower.modules()
            if isinstance(conv, nn.Conv2d)
        ]
        return 4 * max(sizes, default=1) * self.image_head.weight.element_size()


def _folded(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    if isinstance(module, Cell):
        return FoldedCell(module, dtype)
    if isinstance(module, EncoderCombiner):  # part of the joint heads
        return nn.Identity()
    assert isinstance(module, DecoderCombiner)
    return FusedConv2d(convolution(module.conv), dtype)


class FoldedEncoder(nn.Module):
    """The x-side of a trained encoder: raw posterior parameters but for what depends on the sample.

    Args:
        encoder: as trained; not changed.
    """

    def __init__(self, encoder: Encoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.image, self.network_size = encoder.image, encoder.network_size
        self.res_dist, self.num_flows = encoder.res_dist, encoder.num_flows
        self.stem = FusedConv2d(convolution(encoder.stem), dtype)
        self.pre = nn.ModuleList(_folded(cell, dtype) for cell in encoder.pre)
        self.tower = nn.ModuleList(_folded(module, dtype) for module in encoder.tower)
        self.top = FusedConv2d(convolution(encoder.top), dtype)
        self.heads = context_heads(encoder, dtype)
        for i, bias in enumerate(context_biases(encoder, dtype)):
            self.register_buffer(f"bias{i}", bias)
        self.flows = nn.ModuleList(_folded_flow(flow) for flow in encoder.flows)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x [B, C, H, W] -> per group, deepest first, raw parameters times 2/5, [B, P, 2, Z]."""
        s = self.stem(2 * network_input(x, self.image, self.network_size).to(self.stem.weight.dtype) - 1)
        for cell in self.pre:
            s = cell(s)
        stored: list[Tensor] = []
        for module in self.tower:
            if isinstance(module, nn.Identity):
                stored.append(s)
            else:
                s = module(s)
        contexts = [F.elu(self.top(F.elu(s))), *reversed(stored)]
        out = []
        for i, (head, context) in enumerate(zip(self.heads, contexts, strict=True)):
            bias = getattr(self, f"bias{i}")
            raw = head(context if bias is None else context + bias)
            out.append(pixels(raw).unflatten(-1, (2, -1)))
        return out

    def flow(self, i: int) -> Chain | None:
        """The flow of group i, on [N, Z, h, w]."""
        flows = [self.flows[k] for k in range(i * self.num_flows, (i + 1) * self.num_flows)]
        return Chain(flows) if flows else None  # type: ignore[arg-type]


def _folded_flow(flow: nn.Module) -> nn.Module:
    assert isinstance(flow, FlowPair)
    result = copy.deepcopy(flow)
    for part in (result.first, result.second):
        for name, conv in list(part.named_children()):
            assert isinstance(conv, WeightNormConv2d)
            setattr(part, name, FusedConv2d(convolution(conv), conv.weight.dtype))
    return result.requires_grad_(False)
