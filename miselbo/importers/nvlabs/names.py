"""Names of parameters and buffers: those of the published NVAE programs beside ours, by walking our modules.

One table serves both directions, import and export.
"""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from miselbo.models.nvae.cells import (
    BottleneckOperation,
    Cell,
    DoublingSkip,
    HalvingSkip,
    SimpleOperation,
    SqueezeExcitation,
)
from miselbo.models.nvae.convs import WeightNormConv2d
from miselbo.models.nvae.decoder import Decoder, DecoderCombiner
from miselbo.models.nvae.encoder import Encoder, EncoderCombiner
from miselbo.models.nvae.flow import FlowPair, ShiftFlow

DUPLICATE = "weight_normalized"  # the published programs store the kernels of plain convolutions twice
CONSTANT = "prior_ftr0"  # also stored, unused, by a model of one group


def official_names(module: nn.Module) -> dict[str, str]:
    """Every name of ``module.state_dict()`` under its official name: {official: ours}.

    Args:
        module: a decoder, an encoder, or a part of one; names are relative to it.

    Example:
        >>> names = official_names(SqueezeExcitation(4))
        >>> names["se.2.bias"], len(names)
        ('excite.bias', 4)
    """
    names = {"prior_ftr0": "first_feature"} if hasattr(module, "first_feature") else {}
    for official, ours, leaf in _leaves(module):
        for key in leaf.state_dict():
            names[_join(official, "log_weight_norm" if key == "log_gain" else key)] = _join(ours, key)
    return names


def duplicate_names(module: nn.Module) -> dict[str, str]:
    """The additional names under which the published programs store a plain convolution's kernel: {official: ours}."""
    return {
        _join(official, DUPLICATE): _join(ours, "weight")
        for official, ours, leaf in _leaves(module)
        if isinstance(leaf, nn.Conv2d) and not isinstance(leaf, WeightNormConv2d)
    }


def renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """The part of an official state dict that ``names`` lists, under our names."""
    return {ours: state[official] for official, ours in names.items() if official in state}


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name


def _leaves(module: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Official name, our name and the module itself of every convolution, normalisation and linear map."""
    pairs = list(_parts(module))
    if not pairs:
        yield "", "", module
    for official, ours in pairs:
        for below, below_ours, leaf in _leaves(module.get_submodule(ours)):
            yield _join(official, below), _join(ours, below_ours), leaf


def _parts(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Official and our names of a module's parts; nothing for a leaf."""
    if isinstance(module, Decoder):
        if module.topology.is_vanilla:
            yield "stem_decoder", "stem"
        yield from _numbered(module.tower, "dec_tower.{}", "tower.{}")
        yield from _numbered(module.heads, "dec_sampler.{}.1", "heads.{}")
        yield from _numbered(module.post, "post_process.{}", "post.{}")
        yield "image_conditional.1", "image_head"
    elif isinstance(module, Encoder):
        yield "stem", "stem"
        yield from _numbered(module.pre, "pre_process.{}", "pre.{}")
        yield from _numbered(module.tower, "enc_tower.{}", "tower.{}")
        yield "enc0.1", "top"
        yield from _numbered(module.heads, "enc_sampler.{}", "heads.{}")
        yield from _numbered(module.flows, "nf_cells.{}", "flows.{}")
    elif isinstance(module, Cell):
        yield from _numbered(module.ops, "_ops.{}", "ops.{}")
        yield from ((name, name) for name in ("se", "skip") if getattr(module, name) is not None)
    elif isinstance(module, EncoderCombiner | DecoderCombiner):
        yield "conv", "conv"
    elif isinstance(module, SimpleOperation):
        if module.norm is not None:
            yield "bn_act" if module.activation is F.silu else "bn.bn", "norm"
        yield "conv_0", "conv"
    elif isinstance(module, BottleneckOperation):
        yield from _bottleneck(int(module.up))  # doubling is a module of its own there, the first one
    elif isinstance(module, HalvingSkip):
        yield from ((f"conv_{k + 1}", f"convs.{k}") for k in range(len(module.convs)))
    elif isinstance(module, DoublingSkip):
        yield "1", "conv"
    elif isinstance(module, SqueezeExcitation):
        yield from (("se.0", "squeeze"), ("se.2", "excite"))
    elif isinstance(module, FlowPair):
        yield from (("cell1", "first"), ("cell2", "second"))
    elif isinstance(module, ShiftFlow):
        yield from (("conv.convz.0", "mix"), ("conv.convz.2", "spatial"), ("mu.conv_0", "shift"))


def _numbered(parts: nn.Module, official: str, ours: str) -> Iterator[tuple[str, str]]:
    for name, _ in parts.named_children():
        yield official.format(name), ours.format(name)


def _bottleneck(first: int) -> Iterator[tuple[str, str]]:
    yield f"conv.{first}.bn", "norm_in"
    yield f"conv.{first + 1}.conv.0", "widen"
    yield f"conv.{first + 1}.conv.1", "norm_wide"
    yield f"conv.{first + 2}.conv.0", "spatial"
    yield f"conv.{first + 2}.conv.1", "norm_spatial"
    yield f"conv.{first + 3}", "narrow"
    yield f"conv.{first + 4}.bn", "norm_out"
