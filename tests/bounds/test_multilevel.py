"""Multilevel: the algebra is that of the full run, its expectation and its errors are right on exact Gaussians."""

import exact_levels
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miselbo import InputError
from miselbo.bounds import levels, multilevel
from miselbo.bounds.running import RunningBounds


def scores(seed, batch=4, size=3, n=16):
    generator = torch.Generator().manual_seed(seed)
    log_p = 3 * torch.randn(batch, size, n, generator=generator)
    return log_p, torch.randn(batch, size, n, size, generator=generator)


def test_values_are_those_of_the_running_bounds():
    log_p, log_q = scores(0)
    running = RunningBounds(3, [16])
    running.update(log_p, log_q)
    expected = running.result()
    found = multilevel.values(log_p, log_q)
    shared = set(found) & set(expected)
    assert len(shared) == 11
    for name in shared:
        wanted = expected[name]
        wanted = wanted if name in ("responsibility", "pairwise_jsd") else wanted[..., 0]
        torch.testing.assert_close(found[name], wanted.double(), equal_nan=True, msg=name)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99), num_samples=st.sampled_from([1, 8, 12, 20, 100]))
def test_levels_on_the_same_draws_add_up_to_the_full_run(seed, num_samples):
    """With every example on every level and each level's draws those of the top, the sum is f_L to round-off."""
    log_p, log_q = scores(seed, 2, 2, num_samples)
    draws = multilevel.chain(num_samples)
    total = {}
    for k, n in enumerate(draws):
        blocks = num_samples // n
        p = log_p.unflatten(2, (blocks, n)).transpose(1, 2).flatten(0, 1)
        q = log_q.unflatten(2, (blocks, n)).transpose(1, 2).flatten(0, 1)
        ratio = n // draws[k - 1] if k else 0
        for name, value in multilevel.corrections(p, q, ratio).items():
            total[name] = total.get(name, 0) + value[1].unflatten(0, (2, blocks)).mean(1)
    for name, value in multilevel.values(log_p, log_q).items():
        torch.testing.assert_close(total[name], value, atol=1e-9, rtol=1e-9, msg=name)


def test_error_of_a_level_is_that_of_sampling_without_replacement():
    """Population and noise known: the printed variance has the true one as its mean, with and without pairs."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(40, generator=generator, dtype=torch.float64)
    found, printed = [], []
    for _ in range(3000):
        chosen = torch.randperm(40, generator=generator)[:30]
        index = torch.cat([chosen, chosen[:10]])
        y = means[index] + 0.5 * torch.randn(40, generator=generator, dtype=torch.float64)
        one = levels.level(index, y[:, None], 40)
        found.append(one.mean - means.mean())
        printed.append(one.error2)
    assert float(torch.stack(printed).mean()) == pytest.approx(
        float(torch.stack(found).square().mean()), rel=0.06
    )


def test_allocation_follows_variance_over_cost_and_meets_the_goal():
    one = torch.ones(1, dtype=torch.float64)
    parts = [
        levels.Level(1000, 10_000, one, 0 * one, v * one, 1.0, 999, 0 * one, 0 * one)
        for v in (1.0, 0.04, 0.0025)
    ]
    draws = [1, 7, 31]
    units = levels.allocate(parts, draws, 0.02 * one, [10, 10, 10])
    variance = sum(float(p.within) / n for p, n in zip(parts, units, strict=True))
    assert variance == pytest.approx(0.02**2, rel=0.02)
    best = [(float(p.within) / (n + 1)) ** 0.5 for p, n in zip(parts, draws, strict=True)]
    ratios = torch.tensor(units) / torch.tensor(best)
    assert float(ratios.max() / ratios.min()) < 1.02
    assert levels.allocate(parts, draws, 0.005 * one, units)[0] % 10_000 == 0  # above N every example again


def test_samples_that_cannot_be_halved_are_refused():
    with pytest.raises(InputError, match="prime factors are 2, 3, 5 and 7, got 1007 .*take 1024"):
        multilevel.chain(1007)
    with pytest.raises(InputError, match="10 draws cannot be cut into 4 blocks"):
        multilevel.corrections(*scores(0, n=10), 4)


@pytest.mark.slow
@pytest.mark.parametrize("model, goal", [(exact_levels.light, 0.01), (exact_levels.heavy, 0.03)])
def test_intervals_cover_the_expectation_over_200_seeds(model, goal):
    exact = model(num_examples=300, draws=64)
    truth, error = exact.truth(60)
    runs = [exact.run(seed, goal)[1:] for seed in range(200)]
    means, errors = (torch.stack([run[part][-1] for run in runs]) for part in range(2))
    away = means - truth
    covered = (away.abs() <= 1.96 * (errors.square() + error.square()).sqrt()).double().mean(0)
    bias = away.mean(0) / (means.var(0) / len(runs) + error.square()).sqrt()
    print(dict(zip(exact.columns(), zip(covered.tolist(), bias.tolist(), strict=True), strict=True)))
    moving = means.std(0) > 1e-9
    assert bias[moving].abs().max() < 3.5
    assert float(covered[moving].min()) >= 0.92 and float(covered[moving].mean()) <= 0.985
