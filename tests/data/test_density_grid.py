"""The grid of a density's figure holds the members, wherever they are."""

import pytest
import torch

from miselbo.data.density_grid import widened
from miselbo.ensemble import Ensemble

BOX = [[-4.0, 4.0], [-4.0, 4.0]]
RADIUS = 2.146  # of the circle that holds 90% of a standard normal in the plane


def ensemble(*means: tuple[float, float]) -> Ensemble:
    members = [
        torch.distributions.Independent(torch.distributions.Normal(torch.tensor(mean), torch.ones(2)), 1)
        for mean in means
    ]
    return Ensemble(lambda z: -0.5 * z.square().sum(-1), members)


def test_a_box_that_holds_the_members_stays():
    assert widened(ensemble((0.0, 0.0), (1.0, -1.0)), BOX) == BOX


def test_a_member_at_the_edge_moves_that_edge_alone():
    (left, right), upright = widened(ensemble((-4.0, 0.0), (1.0, 0.0)), BOX)
    assert left == pytest.approx(-4 - RADIUS, abs=0.2)
    assert right == 4 and upright == BOX[1]


def test_a_member_far_away_does_not_shrink_the_rest_to_a_point():
    (left, right), _ = widened(ensemble((100.0, 0.0)), BOX)
    assert left == -4 and 4 <= right <= 12
