"""Layers and distributions against the recorded numbers of the published program (float64)."""

import re

import numpy as np
import pytest
import torch
from golden_nvae import load_arrays, load_tables, needs_golden, renamed

from miselbo.data.spec import ImageSpec
from miselbo.models.hierarchical import normal_kl
from miselbo.models.nvae.cells import UP, Cell, DoublingSkip, HalvingSkip, SqueezeExcitation, operation
from miselbo.models.nvae.convs import WeightNormConv2d, autoregressive_mask
from miselbo.models.nvae.decoder import DecoderCombiner
from miselbo.models.nvae.distributions import (
    clamped_normal,
    image_log_prob,
    image_mean,
    logistic_mixture_log_prob,
    quantise,
)
from miselbo.models.nvae.encoder import EncoderCombiner
from miselbo.models.nvae.flow import FlowPair
from miselbo.models.nvae.topology import groups_per_scale

pytestmark = needs_golden

LAYERS = {
    "conv_wn": lambda: WeightNormConv2d(4, 6, 3),
    "conv_nown": lambda: torch.nn.Conv2d(4, 6, 1, bias=False),
    "fact_reduce": lambda: HalvingSkip(4, 8),
    "skip_up": lambda: DoublingSkip(4, 2),
    "se": lambda: SqueezeExcitation(4),
    "se80": lambda: SqueezeExcitation(80),
    "enc_comb": lambda: EncoderCombiner(6, 4),
    "dec_comb": lambda: DecoderCombiner(6, 3),
    "cell_normal_enc": lambda: Cell(4, ("bnswish", "bnswish"), 1, True),
    "cell_down_enc": lambda: Cell(4, ("bnswish", "bnswish"), 2, True),
    "cell_down_pre": lambda: Cell(4, ("bnswish", "bnswish"), 2, True),
    "cell_normal_dec": lambda: Cell(4, ("e6k5g0",), 1, True),
    "cell_up_dec": lambda: Cell(4, ("e6k5g0",), UP, True),
    "cell_normal_post": lambda: Cell(4, ("e3k5g0",), 1, True),
    "cell_up_post": lambda: Cell(4, ("e3k5g0",), UP, True),
    "paired_ar": lambda: FlowPair(2),
}
OPERATIONS = ["elu", "bnelu", "bnswish", "bnswish5", "e6k5g0", "e3k5g0", "e6k11g0"]
RESIDUAL = ("elu", "bnelu", "bnswish", "bnswish5")
for kind in OPERATIONS:
    for stride, out in ((1, 4), (2, 8), (UP, 2)):
        official = f"op_{'res' if kind in RESIDUAL else 'mconv'}_{kind}_s{stride}"
        LAYERS[official] = lambda kind=kind, stride=stride, out=out: operation(kind, 4, out, stride)


@pytest.fixture(scope="module")
def units():
    return load_arrays("units")


def state_of(units, layer, part, module):
    """Recorded tensors of a layer under our names."""
    prefix = f"{layer}/{part}/"
    stored = {
        key.removeprefix(prefix).removeprefix("c."): units[key] for key in units if key.startswith(prefix)
    }
    return renamed({key: torch.from_numpy(value) for key, value in stored.items()}, module)


def test_every_recorded_layer_is_checked(units):
    layers = {key.split("/")[0] for key in units if "/in0" in key}
    assert layers == set(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_layer(units, name):
    layer = LAYERS[name]().double()
    layer.load_state_dict(state_of(units, name, "sd", layer))
    inputs = [torch.from_numpy(units[key]) for key in (f"{name}/in0", f"{name}/in1") if key in units]
    for mode in ("eval", "train"):
        if f"{name}/out_{mode}" in units:
            got = layer.train(mode == "train")(*inputs).detach()
            recorded = torch.from_numpy(units[f"{name}/out_{mode}"])
            torch.testing.assert_close(got, recorded, rtol=1e-9, atol=1e-10)
    for key, value in state_of(units, name, "sd_after", layer).items():
        torch.testing.assert_close(layer.get_buffer(key), value, rtol=1e-10, atol=1e-12)


def test_masks(units):
    names = [key for key in units if key.startswith("mask_")]
    assert names
    for name in names:
        numbers = map(int, re.fullmatch(r"mask_in(\d+)_out(\d+)_g(\d+)_k(\d+)_zd(\d)_mir(\d)", name).groups())
        inputs, outputs, groups, size, strict, mirror = numbers
        mask = autoregressive_mask(inputs, outputs, groups, size, strict=bool(strict), mirror=bool(mirror))
        np.testing.assert_array_equal(mask.numpy(), units[name], err_msg=name)


def test_groups_per_scale():
    for case in load_tables()["groups_per_scale"]:
        arguments = (case["num_scales"], case["num_groups"], case["adaptive"], case["minimum"])
        assert groups_per_scale(*arguments) == case["out"]


@pytest.mark.parametrize("bits", [8, 5])
def test_logistic_mixture(units, bits):
    logits, x = (torch.from_numpy(units[f"dml{bits}_{part}"]) for part in ("param", "x"))
    got = logistic_mixture_log_prob(logits, x, bits)
    torch.testing.assert_close(got, torch.from_numpy(units[f"dml{bits}_logp"]), rtol=1e-9, atol=1e-9)
    image = ImageSpec(3, 4, 4, "logistic_mixture", bits)
    total = torch.from_numpy(units[f"dml{bits}_recon"])
    torch.testing.assert_close(-image_log_prob(logits, x, image), total, rtol=1e-9, atol=1e-9)
    mean = torch.from_numpy(units[f"dml{bits}_mean"])
    torch.testing.assert_close(image_mean(logits, image), mean, rtol=1e-9, atol=1e-9)


def test_normal_image_likelihood(units):
    logits, x = (torch.from_numpy(units[f"normdec_{part}"]) for part in ("param", "x"))
    got = clamped_normal(logits, -3).log_prob(2 * x - 1)
    torch.testing.assert_close(got, torch.from_numpy(units["normdec_logp"]), rtol=1e-9, atol=1e-9)
    total = image_log_prob(logits, x, ImageSpec(3, 4, 4, "normal"))
    torch.testing.assert_close(-total, torch.from_numpy(units["normdec_recon"]), rtol=1e-9, atol=1e-9)


def test_clamped_normal(units):
    names = [key for key in units if key.startswith("normal_")]
    recorded = {key.removeprefix("normal_"): torch.from_numpy(units[key]) for key in names}
    p = clamped_normal(torch.cat([recorded["mu_raw"], recorded["logsig_raw"]], 1))
    swapped = clamped_normal(torch.cat([recorded["logsig_raw"], recorded["mu_raw"]], 1))
    close = torch.testing.assert_close
    close(p.loc, recorded["mu"])
    close(p.scale, recorded["sigma"])
    close(0.7 * p.scale, recorded["sigma_temp0.7"])
    close(p.log_prob(recorded["z"]), recorded["logp"])
    close(normal_kl(p, swapped), recorded["kl_to_swapped"])


@pytest.mark.parametrize("bits", range(1, 9))
def test_quantise(units, bits):
    x = torch.arange(256, dtype=torch.float32) / 255
    np.testing.assert_array_equal(quantise(x, bits).numpy(), units[f"prep_bits{bits}"])
