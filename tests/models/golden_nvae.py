"""Test-only reader of the golden NVAE checkpoints: official key names -> ours, official arguments -> ours."""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from miselbo.data.spec import ImageSpec
from miselbo.models.nvae import Decoder, Encoder

GOLDEN = Path(__file__).resolve().parents[2] / "../shared/golden/nvae"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason=f"no golden data at {GOLDEN}")

SIDES = [  # pattern of the official name, side, ours
    (r"prior_ftr0$", "decoder", "first_feature"),
    (r"dec_tower\.", "decoder", "tower."),
    (r"dec_sampler\.(\d+)\.1\.", "decoder", r"heads.\1."),
    (r"post_process\.", "decoder", "post."),
    (r"image_conditional\.1\.", "decoder", "image_head."),
    (r"stem_decoder\.", "decoder", "stem."),
    (r"stem\.", "encoder", "stem."),
    (r"pre_process\.", "encoder", "pre."),
    (r"enc_tower\.", "encoder", "tower."),
    (r"enc0\.1\.", "encoder", "top."),
    (r"enc_sampler\.", "encoder", "heads."),
    (r"nf_cells\.(\d+)\.cell1\.", "encoder", r"flows.\1.first."),
    (r"nf_cells\.(\d+)\.cell2\.", "encoder", r"flows.\1.second."),
]
INSIDE = [
    (r"(^|\.)_ops\.", r"\1ops."),
    (r"(^|\.)(bn_act|bn\.bn)\.", r"\1norm."),
    (r"(^|\.)skip\.conv_(\d)\.", lambda m: f"{m[1]}skip.convs.{int(m[2]) - 1}."),
    (r"(^|\.)skip\.1\.", r"\1skip.conv."),
    (r"(^|\.)se\.se\.0\.", r"\1se.squeeze."),
    (r"(^|\.)se\.se\.2\.", r"\1se.excite."),
    (r"(^|\.)conv\.convz\.0\.", r"\1mix."),
    (r"(^|\.)conv\.convz\.2\.", r"\1spatial."),
    (r"(^|\.)mu\.conv_0\.", r"\1shift."),
    (r"(^|\.)conv_0\.", r"\1conv."),
    (r"log_weight_norm$", "log_gain"),
]
BOTTLENECK = ["0.bn", "1.conv.0", "1.conv.1", "2.conv.0", "2.conv.1", "3", "4.bn"]
OURS = ["norm_in", "widen", "norm_wide", "spatial", "norm_spatial", "narrow", "norm_out"]


def rename_inside(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names below a top-level part: operations, skips, squeeze and excitation, flows."""
    renamed = {}
    for key, value in state.items():
        if key.endswith("weight_normalized"):
            continue
        match = re.fullmatch(r"((?:.*?\.)??)conv\.(\d)\.(bn\.\w+|conv\.\d\.\w+|weight)", key)
        if match:
            prefix = f"{match[1]}conv.0.bn."
            shift = 0 if any(name.startswith(prefix) for name in state) else 1  # doubling comes first
            place, _, last = f"{int(match[2]) - shift}.{match[3]}".rpartition(".")
            key = f"{match[1]}{OURS[BOTTLENECK.index(place)]}.{last}"
        for pattern, replacement in INSIDE:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def split_state(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The official state_dict as {"decoder": ..., "encoder": ...} under our names."""
    sides: dict[str, dict[str, Tensor]] = {"decoder": {}, "encoder": {}}
    for key, value in rename_inside(state).items():
        for pattern, side, replacement in SIDES:
            if re.match(pattern, key):
                sides[side][re.sub("^" + pattern, replacement, key)] = value.clone()
                break
        else:
            raise KeyError(key)
    if "stem.weight" in sides["decoder"]:  # one group: the constant is stored but never used
        sides["decoder"].pop("first_feature")
    return sides


def build(args: argparse.Namespace) -> tuple[Decoder, Encoder]:
    """Our model for the official arguments."""
    if args.dataset == "mnist":
        image = ImageSpec(1, 28, 28, "bernoulli")
    else:
        image = ImageSpec(3, 32, 32, "logistic_mixture", args.num_x_bits)
    decoder = Decoder(
        image,
        num_latent_scales=args.num_latent_scales,
        num_groups_per_scale=args.num_groups_per_scale,
        num_latent_per_group=args.num_latent_per_group,
        ada_groups=args.ada_groups,
        min_groups_per_scale=args.min_groups_per_scale,
        num_channels=args.num_channels_dec,
        num_preprocess_blocks=args.num_preprocess_blocks,
        num_postprocess_cells=args.num_postprocess_cells,
        num_cells_per_group=args.num_cell_per_cond_dec,
        arch=args.arch_instance,
        use_se=args.use_se,
    )
    encoder = Encoder(
        decoder,
        num_channels=args.num_channels_enc,
        num_preprocess_cells=args.num_preprocess_cells,
        num_cells_per_group=args.num_cell_per_cond_enc,
        arch=args.arch_instance,
        use_se=args.use_se,
        res_dist=args.res_dist,
        num_flows=args.num_nf,
    )
    return decoder, encoder


def load_members(name: str) -> tuple[list[Decoder], list[Encoder]]:
    """All members of golden model ``name`` in float64 and eval mode, loaded strictly."""
    decoders, encoders = [], []
    for path in sorted((GOLDEN / name).glob("p_and_q*.pt")):
        with torch.serialization.safe_globals([argparse.Namespace]):
            stored = torch.load(path, weights_only=True, map_location="cpu")
        decoder, encoder = build(stored["args"])
        sides = split_state(stored["state_dict"])
        decoder.load_state_dict(sides["decoder"])
        encoder.load_state_dict(sides["encoder"])
        decoders.append(decoder.double().eval())
        encoders.append(encoder.double().eval())
    return decoders, encoders


def load_arrays(name: str) -> dict[str, np.ndarray]:
    """Recorded numbers of golden model ``name``, or ``units``."""
    file = GOLDEN / name / ("units.npz" if name == "units" else "golden.npz")
    with np.load(file) as arrays:
        return dict(arrays)


def load_tables() -> dict:
    """Recorded tables (units.json)."""
    return json.loads((GOLDEN / "units/units.json").read_text())
