"""Jackknife variances from a stream: equal to leaving every draw out in a loop."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from miselbo.bounds.jackknife import BUFFER, joint_jackknife
from miselbo.bounds.running import RunningBounds

NAMES = ("miselbo", "joint_bound", "average_iwelbo", "delta")


def log_mean(log_w: NDArray) -> float:
    return float(np.logaddexp.reduce(log_w) - math.log(len(log_w)))


def scatter(loo: list[float]) -> float:
    return float(np.square(np.array(loo) - np.mean(loo)).sum())


def explicit(log_p: NDArray, log_q: NDArray) -> dict[str, float]:
    """log_p [S, L], log_q [S, L, S] of one example, all S members."""
    size, samples = log_p.shape
    mixture = log_p - np.logaddexp.reduce(log_q, -1) + math.log(size)
    own = log_p - np.stack([log_q[s, :, s] for s in range(size)])
    means = [log_mean(row) for row in mixture]
    sums = dict.fromkeys(NAMES, 0.0)
    for s in range(size):
        loo: dict[str, list[float]] = {name: [] for name in NAMES}
        for left_out in range(samples):
            of_mixture = log_mean(np.delete(mixture[s], left_out))
            of_own = log_mean(np.delete(own[s], left_out))
            loo["miselbo"].append(of_mixture)
            loo["average_iwelbo"].append(of_own)
            loo["delta"].append(of_mixture - of_own)
            loo["joint_bound"].append(log_mean(np.array([*means[:s], of_mixture, *means[s + 1 :]])))
        whole = {
            "miselbo": means[s],
            "average_iwelbo": log_mean(own[s]),
            "delta": means[s] - log_mean(own[s]),
            "joint_bound": log_mean(np.array(means)),
        }
        for name in NAMES:
            joint = name == "joint_bound"
            sums[name] += scatter(loo[name]) / (1 if joint else size**2)
            bias = (samples - 1) * (np.mean(loo[name]) - whole[name])
            sums[f"{name}_bias"] = sums.get(f"{name}_bias", 0.0) + bias / (1 if joint else size)
    return sums


def scores(size: int, samples: int, spread: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    log_p = spread * rng.standard_normal((2, size, samples))
    log_q = spread * rng.standard_normal((2, size, samples, size))
    return torch.from_numpy(log_p), torch.from_numpy(log_q)


def run(log_p: torch.Tensor, log_q: torch.Tensor, piece: int) -> dict[str, torch.Tensor]:
    running = RunningBounds(log_p.shape[1], [log_p.shape[2]])
    for start in range(0, log_p.shape[2], piece):
        running.update(log_p[:, :, start : start + piece], log_q[:, :, start : start + piece])
    return running.result()


@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0, 30.0])
@pytest.mark.parametrize(("samples", "pieces"), [(2, (1,)), (9, (4, 9)), (400, (70, 400))])
@pytest.mark.parametrize("size", [1, 3])
def test_equal_to_an_explicit_loop(size, samples, pieces, spread):
    log_p, log_q = scores(size, samples, spread)
    expected = [explicit(p, q) for p, q in zip(log_p.numpy(), log_q.numpy(), strict=True)]
    for piece in pieces:
        for shift in (0.0, 1e4, -1e4):
            values = run(log_p + shift, log_q, piece)
            for b, name in ((b, name) for b in range(2) for name in NAMES):
                value = values[f"{name}_var"][b, -1, 0].item()
                assert value == pytest.approx(expected[b][name], rel=1e-6, abs=1e-15), (name, piece, shift)
                bias = values[f"{name}_bias"][b, -1].item()
                assert bias == pytest.approx(expected[b][f"{name}_bias"], rel=1e-6, abs=1e-9), (name, piece)


def test_members_alone_and_smaller_ensembles():
    log_p, log_q = scores(3, 400, 3.0)
    values = run(log_p, log_q, 50)
    for s in range(3):
        alone = explicit(log_p[0, s : s + 1].numpy(), log_q[0, s : s + 1, :, s : s + 1].numpy())
        assert values["member_iwelbo_var"][0, s, 0].item() == pytest.approx(alone["miselbo"], rel=1e-8)
    two = explicit(log_p[0, :2].numpy(), log_q[0, :2, :, :2].numpy())
    for name in NAMES:
        assert values[f"{name}_var"][0, 1, 0].item() == pytest.approx(two[name], rel=1e-8), name


@pytest.mark.parametrize("shape", [0.3, 0.7, 1.5, 4.0])
def test_heavy_tails_whose_largest_weights_come_late_or_early(shape):
    u = np.random.default_rng(1).random((1, 2, 1000))
    for log_w in (
        -shape * np.log(u),
        np.sort(-shape * np.log(u)),
        np.sort(-shape * np.log(u))[..., ::-1].copy(),
    ):
        log_p = torch.from_numpy(log_w)
        log_q = torch.from_numpy(0.5 * np.random.default_rng(2).standard_normal((1, 2, 1000, 2)))
        expected = explicit(log_p[0].numpy(), log_q[0].numpy())
        for piece in (30, 1000):
            values = run(log_p, log_q, piece)
            for name in NAMES:
                assert values[f"{name}_var"][0, 1, 0].item() == pytest.approx(expected[name], rel=1e-8), name


def test_errors_above_one_nat():
    log_p = torch.zeros(1, 1, 10, dtype=torch.float64)
    log_p[..., 3] = 50.0  # one draw is the sum: the delta method says 1
    value = run(log_p, torch.zeros(1, 1, 10, 1), 10)["member_iwelbo_var"].item()
    assert value == pytest.approx(0.9 * (50 - math.log(9)) ** 2, rel=0.01)


@pytest.mark.parametrize("samples", [10, 3 * BUFFER])
def test_equal_weights_have_no_error_and_unknown_ones_no_number(samples):
    log_p, log_q = torch.full((4, 2, samples), 3.0).double(), torch.full((4, 2, samples, 2), -1.0).double()
    log_p[1] = -math.inf
    log_p[2, 0, 4] = math.nan
    log_p[3, 0, 1:] = -math.inf  # one weight is the sum of its member
    values = run(log_p, log_q, 100)
    for name in NAMES:
        value = values[f"{name}_var"][..., 0]
        assert value[0].tolist() == pytest.approx([0, 0], abs=1e-17), name
        assert value[1:3].isnan().all(), name
    assert values["member_iwelbo_var"][3, 0].isnan() and values["miselbo_var"][3].isnan().all()
    assert values["joint_bound_var"][3, 1].isfinite().all()
    assert values["member_iwelbo_var"][2, 1] == pytest.approx(0, abs=1e-17)
    one = run(log_p[:, :, :1], log_q[:, :, :1], 1)
    assert all(one[f"{name}_var"].isnan().all() for name in NAMES)


def test_the_joint_bound_of_draws_at_hand_is_that_of_the_stream_and_leaves_out_one_by_one():
    generator = torch.Generator().manual_seed(0)
    log_w = 2 * torch.randn(4, 3, 30, generator=generator, dtype=torch.float64)
    value, variance, debiased = joint_jackknife(log_w)
    plain = torch.empty(4, 3, 30, dtype=torch.float64)
    means = log_w.exp().mean(-1)
    for s in range(3):
        for l in range(30):  # noqa: E741
            left = torch.cat([log_w[:, s, :l], log_w[:, s, l + 1 :]], -1).exp().mean(-1)
            plain[:, s, l] = ((means.sum(1) - means[:, s] + left) / 3).log()
    torch.testing.assert_close(value, (means.sum(1) / 3).log())
    away = plain - plain.mean(-1, keepdim=True)
    torch.testing.assert_close(variance, away.square().sum((1, 2)))
    torch.testing.assert_close(debiased, value + 29 * (value[:, None] - plain.mean(-1)).sum(1))
