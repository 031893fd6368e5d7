"""The log of the mean over replicates is the joint bound of all their draws, with an error that covers."""

import math

import numpy as np
import torch

from miselbo import bounds
from miselbo.bounds.running import RunningBounds
from miselbo.evaluation.replicates import log_of_mean


def values_of(log_p, log_q):
    running = RunningBounds(log_p.shape[1], [log_p.shape[2]])
    running.update(log_p, log_q)
    return {name: value.numpy() for name, value in running.result().items()}


def test_all_draws_of_all_replicates_are_in_one_bound():
    generator = torch.Generator().manual_seed(0)
    log_p, log_q = (torch.randn(30, 2, 6, *tail, generator=generator).double() for tail in ((), (2,)))
    found = log_of_mean(values_of(log_p, log_q))
    together = [scores.transpose(0, 1).flatten(1, 2)[None] for scores in (log_p, log_q)]  # [1, S, R L (, S)]
    assert math.isclose(found["joint_bound"], float(bounds.joint_bound(*together)))
    assert math.isclose(found["average_iwelbo"], float(bounds.average_iwelbo(*together)))
    assert [row["member"] for row in found["members"]] == [1, 2]
    own = bounds.iwelbo(*together)[0].tolist()
    assert np.allclose([row["iwelbo"] for row in found["members"]], own)
    assert found["joint_bound"] > found["joint_bound_mean_of_logs"]
    assert "Log of the mean over the 30 replicates" in found["sentence"]


def test_its_error_covers_log_p_and_its_bias_is_smaller():
    """log p(x) = 0, log-weights with standard deviation 1.5, 20 replicates of 10 draws, 400 times."""
    generator = torch.Generator().manual_seed(1)
    hits, bias, old_bias = 0, [], []
    log_w = 1.5 * torch.randn(400, 20, 1, 10, generator=generator).double() - 1.5**2 / 2
    for repetition in log_w:
        found = log_of_mean(values_of(repetition, torch.zeros(20, 1, 10, 1).double()))
        hits += abs(found["joint_bound"]) <= 1.96 * found["joint_bound_se"]
        bias.append(found["joint_bound"])
        old_bias.append(found["joint_bound_mean_of_logs"])
    assert hits / 400 > 0.9
    assert abs(np.mean(bias)) < 0.2 * abs(np.mean(old_bias))


def test_what_is_not_known_is_said_to_be():
    log_p = torch.zeros(3, 1, 2).double()
    found = log_of_mean(values_of(log_p, torch.zeros(3, 1, 2, 1).double()))
    assert found["joint_bound_k"] is None and "k-hat of the replicates unknown" in found["sentence"]
    assert log_of_mean(values_of(log_p[:1], torch.zeros(1, 1, 2, 1).double())) is None
    log_p[0] = -math.inf
    assert log_of_mean(values_of(log_p, torch.zeros(3, 1, 2, 1).double())) is None
