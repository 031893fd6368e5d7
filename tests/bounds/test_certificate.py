"""The certified limit: its formula, and Markov's inequality where it is tight."""

import math

import pytest
import torch

from miselbo.bounds.certificate import lower_limit, margin
from miselbo.errors import InputError


def test_by_hand():
    log_j = torch.tensor([[-80.0, -1.0], [-90.0, -math.inf]])
    limit = lower_limit(log_j, confidence=0.9)
    assert limit[0] == pytest.approx(-85 - math.log(10) / 2) and limit[1] == -math.inf
    assert lower_limit(log_j[:, 0], 0.9, 5) == pytest.approx(-85 - math.log(50) / 2)
    assert margin(10_000, 0.95) == pytest.approx(math.log(20) / 10_000)


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_violated_as_often_as_allowed_where_markov_is_tight(confidence):
    """J = p / d with probability d and 0 otherwise: one example, the limit is p exactly when J is not 0."""
    d = 1 - confidence
    largest = lower_limit(torch.tensor([-math.log(d)], dtype=torch.float64), confidence)
    assert largest == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1, "0.95", True, math.nan])
def test_no_probability(confidence):
    with pytest.raises(InputError, match="confidence must be a number above 0 and below 1"):
        lower_limit(torch.zeros(3), confidence)


def test_no_statement():
    with pytest.raises(InputError, match="statements must be"):
        lower_limit(torch.zeros(3), statements=0)
    with pytest.raises(InputError, match="with N >= 1"):
        lower_limit(torch.zeros(0))
