import json
import math

import numpy as np
import pytest
import torch

from miselbo.training import objective


@pytest.fixture(scope="module")
def units(golden):
    return json.loads((golden / "nvae" / "units" / "units.json").read_text())


@pytest.fixture(scope="module")
def arrays(golden):
    return np.load(golden / "nvae" / "units" / "units.npz")


def shapes(groups: list[int]) -> list[tuple[int, int, int]]:
    """Latent shapes for groups per scale, highest resolution first."""
    return [(2, 2 * 2**i, 2 * 2**i) for i, count in enumerate(reversed(groups)) for _ in range(count)]


@pytest.mark.parametrize(("beta", "expected"), [(0.0, 1.0), (0.5, 0.1), (1.0, 0.01)])
def test_the_regulariser_goes_to_its_end_on_a_log_scale(beta, expected):
    assert objective.regulariser_weight(beta, 0.01, 1.0) == pytest.approx(expected)
    # from another start than 1, whose logarithm hides one half of the formula
    assert objective.regulariser_weight(beta, 0.01, 10.0) == pytest.approx(10 ** (1 - 3 * beta))
    assert objective.regulariser_weight(beta, 0.01, None) == 0.01
    assert objective.regulariser_weight(beta, 0.0, 1.0) == 0.0


def test_group_scale(units):
    for case in units["alpha_square"]:
        assert objective.group_scale(shapes(case["groups"])).tolist() == pytest.approx(case["out"], rel=1e-7)


def test_kl_weight(units):
    for case in units["kl_coeff"]:  # in steps: anneal*N and const*N, here with N = 1
        got = objective.kl_weight(case["step"], 1, case["const"], case["anneal"], case["minc"])
        assert got == pytest.approx(case["out"], rel=1e-12)


@pytest.mark.parametrize("beta", ["0.3", "0.9999", "1.0"])
def test_balance(arrays, beta):
    kl, alpha = torch.tensor(arrays["klb_in"]), torch.tensor(arrays["klb_alpha"])
    coefficients = objective.balance(kl, alpha, float(beta))
    expected = torch.tensor(arrays[f"klb_{beta}_kl"])
    torch.testing.assert_close((kl * coefficients).sum(-1), expected, rtol=1e-6, atol=1e-8)


def test_learning_rate(units):
    case = units["lr_schedule"]
    steps = case["epochs"] * case["iters_per_epoch"]
    got = [
        objective.learning_rate(
            step, case["iters_per_epoch"], case["epochs"], case["warmup_epochs"], case["lr"], case["lr_min"]
        )
        for step in range(steps)
    ]
    assert got == pytest.approx(case["lrs"][:steps], rel=1e-9)


def test_learning_rate_without_warmup_starts_at_its_peak():
    rates = [objective.learning_rate(step, 5, 3, 0, 0.1, 0.001) for step in range(15)]
    assert rates[0] == 0.1
    assert rates[-1] == pytest.approx(0.001)
    assert all(math.isfinite(rate) for rate in rates)


@pytest.mark.parametrize("kind", ["fast", "torch"])
def test_adamax_is_the_published_optimiser(arrays, kind):
    count = sum(key.startswith("adamax/p0_") for key in arrays.files)
    parameters = [torch.nn.Parameter(torch.tensor(arrays[f"adamax/p0_{i}"]).double()) for i in range(count)]
    optimizer = torch.optim.Adamax(parameters, lr=1e-2, eps=1e-3, weight_decay=3e-4, foreach=True)
    for step in range(1, 7):
        for i, parameter in enumerate(parameters):
            parameter.grad = torch.tensor(arrays[f"adamax/grad{step}_{i}"]).double()
        optimizer.step()
        for i, parameter in enumerate(parameters):
            expected = torch.tensor(arrays[f"adamax_{kind}/step{step}/p{i}"])
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-10, atol=1e-12)
