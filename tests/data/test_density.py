"""The data module of a density."""

import math

import pytest
import torch

from miselbo.data import densities
from miselbo.data.density import DensityData
from miselbo.errors import InputError
from miselbo.runs import config
from miselbo.runs.building import build

NAMES = [
    *("u1", "u2", "u3", "u4", "ring", "bimodal", "trimodal", "sixmodal", "hierarchical"),
    *("coln", "coln_quad", "coln_bi", "linear_gaussian", "unequal"),
]


def dataset(name):
    return build(config.compose_config([f"dataset={name}", "model=gaussian", "run_dir=x"]).dataset)


@pytest.mark.parametrize("name", NAMES)
def test_every_density_has_a_normaliser_and_says_where(name):
    data = dataset(name)
    protocol = data.protocol()
    assert math.isfinite(protocol["log_normaliser"])
    unbounded = name in ("u2", "u3", "u4")
    assert ("no normaliser on R^2" in protocol["normaliser_rule"]) == unbounded
    assert bool(data.cautions) == unbounded
    assert data.density(torch.zeros(3, 4, data.dim)).shape == (3, 4)


def test_known_normalisers():
    for name in ("bimodal", "trimodal", "sixmodal", "hierarchical", "unequal"):
        assert dataset(name).log_normaliser == pytest.approx(0.0, abs=2e-6), name
    data = dataset("linear_gaussian")
    assert data.normaliser_rule == "exact" and data.log_normaliser == data.density.log_normaliser


def make(**more):
    arguments = {"name": "ring", "dim": 2, "box": [[-4, 4], [-4, 4]], **more}
    return DensityData(arguments.pop("density", densities.ring), **arguments)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"dim": 0}, "dataset.dim"),
        ({"dim": 3}, "dataset.box"),
        ({"normaliser": "some"}, "space, box"),
        ({"density": 3}, "callable"),
        ({"replicates": 0}, "replicates"),
    ],
)
def test_bad_arguments(more, match):
    with pytest.raises(InputError, match=match):
        make(**more)


def test_without_a_box_the_normaliser_is_unknown():
    data = make(box=None)
    assert data.log_normaliser is None and data.normaliser_rule.startswith("unknown")
