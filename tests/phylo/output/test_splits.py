import numpy as np
import pytest
from small_phylo import data, fitted

from miselbo.phylo.output.draws import draw_trees, resampled
from miselbo.phylo.output.splits import credible_set, interval, summarise_splits


def test_probabilities_and_errors_are_those_of_the_draws():
    draws = draw_trees(fitted(data(five=True), epochs=1, size=1, steps_per_epoch=20), 1, samples=300)
    weights = np.full(300, 1 / 300)
    found = summarise_splits(draws, weights)
    for split, one in found.items():
        has = np.array([split in draws.tree(row) for row in range(300)])
        assert one.probability == pytest.approx(has.mean())
        assert one.error == pytest.approx(np.sqrt(has.mean() * (1 - has.mean()) / 300))
        lengths = np.array([draws.tree(row)[split] for row in np.flatnonzero(has)])
        assert one.mean == pytest.approx(lengths.mean()) and one.low >= lengths.min()
    assert sum(one.probability for split, one in found.items() if split.bit_count() == 2) == pytest.approx(
        2, abs=1
    )


def test_the_shortest_interval_of_a_normal_sample():
    generator = np.random.default_rng(0)
    values = generator.normal(size=200_000)
    median, low, high = interval(values, np.ones(len(values)))
    assert (median, low, high) == pytest.approx((0, -1.96, 1.96), abs=0.05)
    x = generator.exponential(size=200_000)  # the density falls: the interval starts at 0
    assert interval(x, np.ones(len(x)))[1:] == pytest.approx((0, -np.log(0.05)), abs=0.05)
    tilted = np.exp(values)  # importance weights that move the mean to 1
    assert interval(values, tilted)[1:] == pytest.approx((-0.96, 2.96), abs=0.1)


def test_credible_set_and_resampling():
    assert credible_set([(1,)], np.ones(1)) == [((1,), 1.0)]
    weights = np.array([0.7, 0.2, 0.1])
    counts = np.bincount(resampled(weights, 1000, 3), minlength=3)
    assert np.abs(counts - 1000 * weights).max() <= 1
