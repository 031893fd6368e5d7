"""Every example to a given error: within it of the truth as often as it says, fewer draws, the unreachable named."""

import math

import pytest
import torch

from miselbo import InputError
from miselbo.evaluation.precision import to_precision


class Weights:
    """p / q_mix is log-normal with its own spread per example, mean 1: log p(x) = 0."""

    def __init__(self, spreads, repeat=1):
        self.spreads = torch.tensor(spreads).repeat_interleave(repeat)
        self.num_members, self.num_data = 2, len(self.spreads)

    def at(self, positions, num_samples, seed):
        generator = torch.Generator().manual_seed(seed % 2**63)
        eps = torch.randn(self.num_data, 2, num_samples, generator=generator)[positions]
        sd = self.spreads[positions, None, None]
        log_p = sd * eps - sd.square() / 2
        return positions, log_p, torch.zeros(*log_p.shape, 2)


def test_errors_are_reached_and_true_with_fewer_draws_than_one_length_for_all():
    found = to_precision(Weights([0.1, 0.5, 1.0], repeat=100), 0.05, 4096, seed=1)
    table = found.table
    assert table["reached"].all() and (table["se_mc"] <= 0.05).all()
    covered = (table["log_p_bound"].abs() <= 1.96 * table["se_mc"]).mean()
    assert 0.88 <= covered <= 0.99
    lengths = table["L"].to_numpy().reshape(3, 100).mean(1)
    assert (lengths[1:] > lengths[:-1]).all() and found.passes < 0.5 * found.uniform_passes
    assert abs(table["debiased"].mean()) < abs(table["log_p_bound"].mean())


def test_nothing_depends_on_the_batch_and_what_cannot_be_reached_is_named():
    source = Weights([0.1, 3.0, 0.2])
    whole, cut = (to_precision(source, 0.05, 64, batch_size=size) for size in (100, 1))
    assert whole.table.equals(cut.table)
    assert whole.table["L"].tolist() == [16, 64, 16] and not whole.table["reached"][1]
    assert "Not reached with 64 draws per member: 1 examples (index 1)." in whole.sentence
    with pytest.raises(
        InputError, match="evaluation.precision begins with 16 draws per member: num_samples=4 is fewer"
    ):
        to_precision(source, 0.05, 4)


def test_a_single_member_is_its_iwelbo():
    source = Weights([0.5])
    source.num_members = 1
    at = source.at
    source.at = lambda *a: (a[0], at(*a)[1][:, :1], torch.zeros(1, 1, a[1], 1))
    row = to_precision(source, 1.0, 16).table.iloc[0]
    assert math.isfinite(row["se_mc"]) and row["L"] == 16
    assert abs(row["log_p_bound"]) < 4 * row["se_mc"]
