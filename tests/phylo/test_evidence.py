import math

import numpy as np
import pytest
import torch
from small_phylo import data, fitted, posterior_samples

from miselbo.errors import InputError
from miselbo.phylo.evidence import bridge, bridge_error, lower, two_sided, upper


def gaussians(seed, replicates, samples):
    """p = 3 N(0, 1), q = N(0.5, 1.5^2): log Z = log 3; log weights of q's draws and of the posterior's."""
    generator = np.random.default_rng(seed)
    from_q, from_p = (
        generator.normal(0.5, 1.5, (replicates, samples)),
        generator.normal(0, 1, (replicates, samples)),
    )
    return tuple(
        math.log(3) - 0.5 * x**2 + 0.5 * ((x - 0.5) / 1.5) ** 2 + math.log(1.5) for x in (from_q, from_p)
    )


def test_both_sides_hold_and_the_bridge_lies_between():
    wrong, values, errors = 0, [], []
    for seed in range(60):
        from_q, from_p = gaussians(seed, 4, 100)
        low, high = lower(from_q, 0.025), upper(list(from_p), 0.025)
        value, error = bridge(from_q.ravel(), from_p.ravel()), bridge_error(from_q, list(from_p))
        assert low < value < high and high - low < 2.1  # 2 log(40) / 4 = 1.84
        wrong += not low < math.log(3) < high
        values.append(value), errors.append(error)
    assert wrong <= 3
    assert np.mean(values) == pytest.approx(math.log(3), abs=0.01)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.4)


def test_no_chain_and_wrong_shapes():
    ensemble = fitted(data(five=True), 0, 1)
    with pytest.raises(InputError, match="at least one chain"):
        two_sided(ensemble, [], 0)
    with pytest.raises(InputError, match=r"needs log branch lengths of shape \(1, 7\), got \(1, 5\)"):
        two_sided(ensemble, [([(3 << 1, 3 << 3)], torch.zeros(1, 5))], 0)


def test_two_sides_around_the_truth_of_five_taxa():
    ensemble = fitted(data(five=True), epochs=1, size=2, steps_per_epoch=300)
    truth, topologies, x = posterior_samples(ensemble, 20_000, 3000, 0)
    chains = [(topologies[c::5], x[c::5]) for c in range(5)]
    found = two_sided(ensemble, chains, 0)
    assert found["q_outside"] == 0
    assert found["lower"] < truth < found["upper"] < found["lower"] + 4
    assert found["bridge"] == pytest.approx(truth, abs=4 * found["bridge_se"])
    assert found["bridge_se"] < 0.06


@pytest.mark.slow
def test_seven_taxa_by_enumeration_of_945_topologies():
    staged = {
        "dreg": True,
        "anneal_portion": 0.5,
        "steps_per_epoch": 500,
        "second_stage_branch": [5e-3, 5e-4],
    }
    ensemble = fitted(data(seven=True), epochs=8, size=2, num_decays=0, **staged)
    truth, topologies, x = posterior_samples(ensemble, 30_000, 100_000, 0)
    again, *_ = posterior_samples(ensemble, 30_000, 1, 1)
    assert truth == pytest.approx(again, abs=0.01)
    chains = [(topologies[c::20], x[c::20]) for c in range(20)]
    found = two_sided(ensemble, chains, 0, replicates=20, samples=2500)
    assert found["bridge"] == pytest.approx(truth, abs=0.01) and found["bridge_se"] < 0.005
    assert truth - 0.5 < found["lower"] < truth < found["upper"] < truth + 0.5
