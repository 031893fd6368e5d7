import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miselbo.phylo.distances import asdsf, kl_inside, largest_split_difference, total_variation

TOPOLOGIES = [(3,), (5,), (6,)]


@given(*[st.lists(st.floats(0.01, 1), min_size=3, max_size=3) for _ in range(2)])
def test_total_variation_is_the_largest_difference_of_an_event(one, other):
    p, q = (np.array(values) / sum(values) for values in (one, other))
    events = [np.array([bool(mask >> i & 1) for i in range(3)]) for mask in range(8)]
    expected = max(abs(p[event].sum() - q[event].sum()) for event in events)
    given_p, given_q = (dict(zip(TOPOLOGIES, part, strict=True)) for part in (p, q))
    assert total_variation(given_p, given_q) == pytest.approx(expected, abs=1e-12)
    without = {topology: value for topology, value in given_q.items() if topology != TOPOLOGIES[2]}
    assert total_variation(without, given_p) == total_variation(given_p, without) >= expected - 1e-12
    kl, outside = kl_inside(p, np.log(q))
    assert outside == pytest.approx(0, abs=1e-12) and kl >= 2 * expected**2 - 1e-9  # Pinsker


def test_asdsf_leaves_rare_splits_out():
    common = {12: 0.8, 10: 0.2}
    assert asdsf([common, {12: 0.8, 10: 0.15, 6: 0.05}]) == pytest.approx(0.05 / np.sqrt(2) / 2)
    assert asdsf([{6: 0.05}, {6: 0.0}]) == 0
    assert largest_split_difference([common, {6: 1.0}]) == 1
