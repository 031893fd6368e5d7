"""Diagnostics: exact values, k-hat against arviz-stats, degenerate weights."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miselbo.bounds import diagnostics
from miselbo.errors import InputError

REFERENCE = json.loads((Path(__file__).parent / "pareto_k.json").read_text())["cases"]


def log_weights(kind: str, num_samples: int, k=0.0, scale=1.0, df=1.0, sd=1.0, offset=0.0) -> torch.Tensor:
    """The recipes behind pareto_k.json."""
    index = torch.arange(1, num_samples + 1, dtype=torch.float64)
    u = (0.5 + index * 0.6180339887498949) % 1.0
    z = torch.special.ndtri(u)
    return {
        "gaussian_ratio": -0.5 * (scale * z) ** 2 + 0.5 * z**2,  # p = N(0, 1), z ~ N(0, scale)
        "student_ratio": -(df + 1) / 2 * torch.log1p(z**2 / df) + 0.5 * z**2,  # Student-t over normal
        "uniform": u.log(),
        "pareto": -k * u.log(),
        "lognormal": offset + sd * z,
        "rounded": (10 * sd * z).round() / 10,
    }[kind]


@pytest.mark.parametrize("case", REFERENCE, ids=[case["name"] for case in REFERENCE])
def test_pareto_k_agrees_with_arviz_stats(case):
    log_w = log_weights(case["kind"], case["num_samples"], **case["parameters"])
    assert diagnostics.pareto_k(log_w).item() == pytest.approx(case["k"], abs=1e-6)


def test_pareto_k_is_vectorised():
    torch.manual_seed(0)
    log_w = 2 * torch.randn(3, 2, 300, dtype=torch.float64)
    k = diagnostics.pareto_k(log_w)
    assert k.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            assert k[i, j].item() == pytest.approx(diagnostics.pareto_k(log_w[i, j]).item(), abs=1e-12)


@pytest.mark.parametrize("k", [0.2, 0.6, 0.9])
def test_pareto_k_finds_the_shape_of_pareto_weights(k):
    torch.manual_seed(1)
    log_w = -k * torch.rand(20, 10_000, dtype=torch.float64).log()
    assert diagnostics.pareto_k(log_w).mean().item() == pytest.approx(k, abs=0.05)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(25, 400), st.floats(0.1, 5.0), st.floats(-1e4, 1e4))
def test_pareto_k_ignores_scale_and_order(seed, num_samples, spread, shift):
    generator = torch.Generator().manual_seed(seed)
    log_w = spread * torch.randn(num_samples, dtype=torch.float64, generator=generator)
    k = diagnostics.pareto_k(log_w).item()
    permuted = log_w[torch.randperm(num_samples, generator=generator)]
    assert math.isfinite(k)
    assert diagnostics.pareto_k(permuted).item() == pytest.approx(k, abs=1e-12)
    assert diagnostics.pareto_k(log_w + shift).item() == pytest.approx(k, abs=1e-6)
    # the tail is enough
    size = diagnostics.tail_length(num_samples) + 1
    assert diagnostics.pareto_k_from_tail(log_w.sort().values[-size:], num_samples).item() == k


def test_pareto_k_grows_without_bound_with_the_range_of_the_weights():
    z = log_weights("lognormal", 1000)
    k = [diagnostics.pareto_k(sd * z).item() for sd in (1.0, 10.0, 1e3, 1e6)]
    assert all(math.isfinite(value) for value in k)
    assert k == sorted(k)
    assert k[-1] > 1000  # the smaller excesses underflow in linear scale


def test_pareto_k_of_degenerate_weights():
    n, inf = 100, math.inf
    few = torch.zeros(24).double()
    assert diagnostics.pareto_k(few).isnan()
    assert diagnostics.pareto_k(few[:1]).isnan()
    assert diagnostics.pareto_k(torch.full((n,), -7000.0)).item() == -inf
    assert diagnostics.pareto_k(torch.full((n,), -inf)).isnan()
    log_w = torch.linspace(0, 5, n).double()
    capped = log_w.clamp(max=3.0)  # 40 equal weights at the top: no tail
    assert diagnostics.pareto_k(capped).item() == -inf
    with_nan, with_inf = log_w.clone(), log_w.clone()
    with_nan[7], with_inf[7] = math.nan, inf
    assert diagnostics.pareto_k(with_nan).isnan()
    assert diagnostics.pareto_k(with_inf).isnan()
    one = torch.full((n,), -inf)
    one[3] = 0.0
    assert diagnostics.pareto_k(one).isnan()  # the rest of the tail ties with the threshold
    zeros = log_w.clone()
    zeros[:70] = -inf  # zero weights below the tail do no harm
    assert diagnostics.pareto_k(zeros).item() == diagnostics.pareto_k(log_w).item()
    mixed = torch.stack([log_w, with_nan, capped])  # one bad row leaves the others alone
    assert diagnostics.pareto_k(mixed)[0].item() == diagnostics.pareto_k(log_w).item()


def test_tail_length_is_floor_of_the_smaller_rule():
    for n in range(1, 3000):
        assert diagnostics.tail_length(n) == math.floor(min(n / 5, 3 * math.sqrt(n)))


def test_effective_sample_size_and_largest_weight():
    w = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 9.0]], dtype=torch.float64)
    for shift in (-1e6, 0.0, 1e6):
        log_w = w.log() + shift
        size, largest = diagnostics.effective_sample_size(log_w), diagnostics.largest_weight(log_w)
        assert size.tolist() == pytest.approx([4.0, 100 / 30, 1.0], abs=1e-8)
        assert largest.tolist() == pytest.approx([0.25, 0.4, 1.0], abs=1e-8)
    nothing = torch.full((3,), -math.inf)
    assert diagnostics.effective_sample_size(nothing).isnan()
    assert diagnostics.largest_weight(nothing).isnan()


def test_standard_errors():
    values = torch.tensor([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]])
    expected = torch.tensor([math.sqrt(7.0 / 3.0), 0.0], dtype=torch.float64)
    torch.testing.assert_close(diagnostics.standard_error(values), expected)
    assert diagnostics.standard_error(values[:1]).isnan().all()
    torch.testing.assert_close(
        diagnostics.monte_carlo_error(torch.tensor([[1.0, 0.0], [8.0, 0.0]])),
        torch.tensor([1.5, 0.0], dtype=torch.float64),
    )
    assert diagnostics.standard_error(torch.tensor([1.0, math.nan])).isnan()


@pytest.mark.parametrize("function", ["effective_sample_size", "largest_weight", "pareto_k"])
def test_log_weight_errors(function):
    call = getattr(diagnostics, function)
    with pytest.raises(InputError, match="floating point"):
        call(torch.zeros(5, dtype=torch.int64))
    with pytest.raises(InputError, match="L >= 1"):
        call(torch.zeros(3, 0))
    assert call(torch.zeros(30, dtype=torch.bfloat16)).dtype == torch.float64


@pytest.mark.parametrize("function", ["standard_error", "monte_carlo_error"])
def test_per_example_errors(function):
    call = getattr(diagnostics, function)
    with pytest.raises(InputError, match="floating point"):
        call(torch.zeros(5, dtype=torch.int64))
    with pytest.raises(InputError, match="N >= 1"):
        call(torch.zeros(0, 3))


def test_short_tail_is_refused():
    with pytest.raises(InputError, match="21 largest of num_samples = 100"):
        diagnostics.pareto_k_from_tail(torch.zeros(20), 100)
