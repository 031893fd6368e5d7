"""Bounds of every subset from one pass, the first samples kept, and forward selection."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miselbo import bounds
from miselbo.bounds.running import RunningBounds
from miselbo.bounds.subsets import (
    NAMES,
    FirstSamples,
    RunningSubsets,
    greedy_path,
    greedy_path_from_scores,
    list_subsets,
    num_kept,
    subset_bounds,
)
from miselbo.errors import InputError

INF = math.inf


def scores(batch, members, samples, seed=0, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    log_p = spread * torch.randn(batch, members, samples, generator=generator, dtype=torch.float64) - 5
    log_q = spread * torch.randn(batch, members, samples, members, generator=generator, dtype=torch.float64)
    return log_p, log_q


def run(log_p, log_q, cuts=()):
    running = RunningSubsets(log_p.shape[1], log_p.shape[2])
    edges = [0, *sorted(cuts), log_p.shape[2]]
    for start, stop in itertools.pairwise(edges):
        if stop > start:
            running.update(log_p[:, :, start:stop], log_q[:, :, start:stop])
    return running.result()


def assert_equal_to_bounds(values, log_p, log_q, tolerance=1e-10):
    for position, subset in enumerate(list_subsets(log_p.shape[1])):
        for name, expected in subset_bounds(log_p, log_q, subset).items():
            torch.testing.assert_close(
                values[f"subset_{name}"][:, position], expected, atol=tolerance, rtol=1e-10, equal_nan=True
            )


def test_every_subset_once_by_size():
    for size in range(1, 9):
        subsets = list_subsets(size)
        assert len(subsets) == len(set(subsets)) == 2**size - 1
        assert [len(subset) for subset in subsets] == sorted(len(subset) for subset in subsets)
        assert subsets[-1] == tuple(range(size))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_equal_to_bounds_of_every_subset_however_the_samples_are_cut(data):
    members, samples = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
    cuts = data.draw(st.lists(st.integers(0, samples), max_size=4))
    spread = data.draw(st.sampled_from([0.5, 3.0, 30.0, 3000.0]))
    log_p, log_q = scores(2, members, samples, data.draw(st.integers(0, 10**6)), spread)
    assert_equal_to_bounds(run(log_p, log_q, cuts), log_p, log_q)


def test_eight_members_and_agreement_with_the_nested_ensembles():
    log_p, log_q = scores(2, 8, 6)
    values = run(log_p, log_q, cuts=[2])
    assert_equal_to_bounds(values, log_p, log_q)
    running = RunningBounds(8, [6])
    running.update(log_p, log_q)
    nested = running.result()
    for s in range(1, 9):
        position = list_subsets(8).index(tuple(range(s)))
        for name in NAMES:
            torch.testing.assert_close(values[f"subset_{name}"][:, position], nested[name][:, s - 1, 0])


def test_a_subset_without_the_dominating_member_keeps_its_digits():
    """q_1 is e^3000 times the others at every sample: relative to it, they are nothing in float64."""
    log_p, log_q = scores(3, 3, 5)
    log_q[..., 0] += 3000
    values = run(log_p, log_q)
    assert_equal_to_bounds(values, log_p, log_q)
    position = list_subsets(3).index((1, 2))
    assert values["subset_miselbo"][:, position].abs().max() < 50


def test_zero_densities_and_broken_scores_stay_in_their_subsets():
    log_p, log_q = scores(4, 3, 4)
    log_p[0, 1, :2] = -INF
    log_q[0, 0, 1, 1] = log_q[0, 0, 1, 2] = -INF
    log_p[1, 2] = -INF
    log_p[2, 2, 1] = math.nan
    log_q[3, 0, 1, 2] = math.nan  # q_3 at a sample of q_1
    values = run(log_p, log_q, cuts=[1])
    assert_equal_to_bounds(values, log_p, log_q)
    without_third = [position for position, subset in enumerate(list_subsets(3)) if 2 not in subset]
    for name in NAMES:
        assert values[f"subset_{name}"][:, without_third].isfinite().all()


def test_errors_of_running_subsets():
    for members in (0, 9, 2.0):
        with pytest.raises(InputError, match="1 to 8 members"):
            RunningSubsets(members, 3)
    with pytest.raises(InputError, match="num_samples must be a whole number"):
        RunningSubsets(2, 0)
    running = RunningSubsets(2, 3)
    with pytest.raises(InputError, match="only 0 samples"):
        running.result()
    with pytest.raises(InputError, match="S = 2"):
        running.update(*scores(1, 3, 1))
    running.update(*scores(1, 2, 2))
    with pytest.raises(InputError, match="L = 3: after 2 samples got 2 more"):
        running.update(*scores(1, 2, 2))
    with pytest.raises(InputError, match="only 2 samples"):
        running.result()


# Kept samples -----------------------------------------------------------------------------------------------


def test_first_samples_are_the_first_samples():
    log_p, log_q = scores(2, 3, 50)
    kept = FirstSamples(3, 50)
    for start in range(0, 50, 20):
        kept.update(log_p[:, :, start : start + 20], log_q[:, :, start : start + 20])
    values = kept.result()
    assert values["kept_log_p"].dtype == values["kept_log_q"].dtype == torch.float32
    torch.testing.assert_close(values["kept_log_p"], log_p[:, :, :32].float())
    torch.testing.assert_close(values["kept_log_q"], log_q[:, :, :32].float())


def test_kept_samples_are_few_for_many_members():
    assert [num_kept(size, 1000) for size in (1, 10, 20, 40, 500)] == [32, 32, 8, 2, 2]
    assert num_kept(3, 1) == 1
    with pytest.raises(InputError, match="num_samples"):
        num_kept(3, 0)
    with pytest.raises(InputError, match="1 samples are still to come"):
        FirstSamples(2, 1).result()


# Forward selection ------------------------------------------------------------------------------------------


def test_greedy_takes_the_best_next_member_not_the_best_subset():
    """Alone 1 is best; 2 and 3 together are better than any pair with 1, which greedy cannot see."""
    value_of = {(0,): 3.0, (1,): 1.0, (2,): 2.0, (0, 1): 3.5, (0, 2): 3.2, (1, 2): 9.0, (0, 1, 2): 9.5}
    assert greedy_path(value_of) == [0, 1, 2]


def test_greedy_ties_and_unknown_values():
    assert greedy_path({subset: 0.0 for subset in list_subsets(3)}) == [0, 1, 2]
    assert greedy_path({(0,): math.nan, (1,): -5.0, (0, 1): math.nan}) == [1, 0]
    assert greedy_path({(0,): -INF, (1,): -INF, (0, 1): -INF}) == [0, 1]


@pytest.mark.parametrize("name", NAMES)
def test_greedy_from_scores_is_greedy_from_all_subsets(name):
    log_p, log_q = scores(5, 4, 6, seed=3)
    position = NAMES.index(name)
    value_of = {
        subset: float(list(subset_bounds(log_p, log_q, subset).values())[position].mean())
        for subset in list_subsets(4)
    }
    assert greedy_path_from_scores(log_p, log_q, name) == greedy_path(value_of)


def test_subset_bounds_of_all_members_are_the_bounds():
    log_p, log_q = scores(2, 3, 4)
    for name, value in subset_bounds(log_p, log_q, (0, 1, 2)).items():
        torch.testing.assert_close(value, getattr(bounds, name)(log_p, log_q))
