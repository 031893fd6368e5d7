"""Trainable families: parameters, initial points, bad values."""

import pytest
import torch

from miselbo.errors import InputError
from miselbo.models.classical import DensityTarget
from miselbo.models.gaussian import Gaussian
from miselbo.protocols import fingerprint
from miselbo.runs.building import seeded

TARGET = DensityTarget(lambda z: -z.square().sum(-1), shape=(3,))


def test_mean_only_and_mean_and_scale():
    assert list(Gaussian(TARGET, fixed={"scale": 0.8}).free) == ["loc"]
    both = Gaussian(TARGET, initial={"loc": [1, 2, 3]})
    assert sorted(both.free) == ["loc", "scale"]
    assert both.distribution.mean.tolist() == [1, 2, 3] and both.distribution.stddev.tolist() == [1, 1, 1]


def test_each_seed_its_initial_point():
    made = []
    for seed in (0, 0, 1):
        with seeded(seed):
            made.append(Gaussian(TARGET))
    assert fingerprint(made[0]) == fingerprint(made[1]) != fingerprint(made[2])
    assert made[0].seed == made[1].seed != made[2].seed


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("Laplace", {}),
        ("StudentT", {"fixed": {"df": 5}}),
        ("MultivariateNormal", {}),
        ("Gamma", {}),
        ("Beta", {}),
        ("LogNormal", {}),
        ("Gumbel", {}),
    ],
)
def test_other_families(family, more):
    member = Gaussian(TARGET, family=family, **more)
    assert member.distribution.rsample().shape == (3,)
    assert len(member.free) >= 2


def test_full_covariance_from_a_number():
    member = Gaussian(TARGET, family="MultivariateNormal", fixed={"scale_tril": 0.5})
    assert torch.equal(member.distribution.covariance_matrix, 0.25 * torch.eye(3))


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"fixed": {"scale": -1}}, "out of range"),
        ({"fixed": {"scale": [1, 2]}}, r"shape \[3\]"),
        ({"initial": {"loc": float("nan")}}, "out of range"),
        ({"initial": {"loc": "here"}}, "number"),
        ({"fixed": {"mean": 1}}, "no parameter mean"),
        ({"fixed": {"loc": 1}, "initial": {"loc": 1}}, "either fixed"),
        ({"family": "Poisson"}, "not reparameterised"),
    ],
)
def test_bad_arguments(more, match):
    with pytest.raises(InputError, match=match):
        Gaussian(TARGET, **more)
