"""At equal cost: the bounds of the paper on the first draws, and a best member chosen on other examples."""

import numpy as np
import pytest
import torch

from miselbo import bounds, evaluate_scores
from miselbo.bounds.diagnostics import half_width
from miselbo.bounds.worth import RunningWorth, against_best, shares
from miselbo.errors import InputError


def scores(means, count=200, samples=40, seed=0):
    """Members N(mean, 1) of the posterior N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    members = [torch.distributions.Normal(torch.tensor(mean, dtype=torch.float64), 1.0) for mean in means]
    noise = torch.randn(count, len(means), samples, generator=generator, dtype=torch.float64)
    z = noise + torch.tensor(means, dtype=torch.float64)[:, None]
    log_p = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0).log_prob(z)
    return log_p, torch.stack([q.log_prob(z) for q in members], -1)


def test_every_number_of_passes_has_the_bounds_of_its_first_draws():
    log_p, log_q = scores((0.0, 1.0, -0.5), count=3, samples=31)
    running = RunningWorth(3, 31)
    for start in (0, 4, 17):
        stop = {0: 4, 4: 17, 17: 31}[start]
        running.update(log_p[:, :, start:stop], log_q[:, :, start:stop])
    values = running.result()
    assert shares(3, 31) == [1, 2, 5, 10]
    for k, share in enumerate(shares(3, 31)):
        p, q = log_p[:, :, :share], log_q[:, :, :share]
        assert torch.allclose(values["worth_joint"][:, k], bounds.joint_bound(p, q))
        assert torch.allclose(values["worth_miselbo"][:, k], bounds.miselbo(p, q))
        p, q = log_p[:, :, : 3 * share], log_q[:, :, : 3 * share]
        assert torch.allclose(values["worth_iwelbo"][:, :, k], bounds.iwelbo(p, q))


def test_the_best_member_is_chosen_on_the_examples_it_is_not_compared_on():
    iwelbo = np.array([[0.0, -1.0], [-5.0, 0.0]] * 10)  # even rows favour q1, odd rows q2
    found = against_best(np.ones(20), np.zeros(20), iwelbo)
    difference = np.where(np.arange(20) % 2 == 0, 1 - iwelbo[:, 1], 1 - iwelbo[:, 0])
    assert found["best"] == [1, 2] and found["joint_gain"] == pytest.approx(difference.mean())
    error = difference.std(ddof=1) / np.sqrt(20)
    assert found["joint_gain_se"] == pytest.approx(error)
    assert found["joint_gain_low"] == pytest.approx(difference.mean() - half_width(20) * error)
    infinite = np.where(np.arange(20) == 3, -np.inf, 1.0)
    assert against_best(infinite, np.zeros(20), iwelbo)["num_data"] == 19
    assert against_best(np.ones(3), np.zeros(3), iwelbo[:3]) is None


@pytest.mark.parametrize(
    ("means", "samples", "claim"),
    [
        ((0.0, 1.5), 40, "Two members do not beat the best one"),
        ((-2.0, 2.0), 4, "Two members beat the best one"),
    ],
)
def test_the_verdict_is_the_interval(means, samples, claim):
    result = evaluate_scores(*scores(means, samples=samples))
    worth = result.summary["worth"]
    assert worth["sentence"].startswith(claim) and f"{samples} decoder passes" in worth["sentence"]
    row = worth["rows"][-1]
    assert (row["joint_gain_low"] > 0) == claim.startswith("Two members beat")
    assert (row["passes"], row["L"]) == (samples, samples // 2)
    assert len(result.tables["worth.csv"]) == len(worth["rows"])


def test_nothing_is_said_where_nothing_can_be_compared():
    assert "worth" not in evaluate_scores(*scores((0.0,), samples=4)).summary
    assert "worth" not in evaluate_scores(*scores((0.0, 1.0, 2.0), samples=2)).summary


@pytest.mark.parametrize(("members", "samples"), [(1, 5), (2, 0)])
def test_one_member_or_no_draw_is_refused(members, samples):
    with pytest.raises(InputError, match=f"got {members} members and {samples} samples"):
        RunningWorth(members, samples)


def test_a_result_needs_all_samples():
    running = RunningWorth(2, 5)
    with pytest.raises(InputError, match="only 0 samples"):
        running.result()
    running.update(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4, 2))
    with pytest.raises(InputError, match="only 4 samples"):
        running.result()


def test_one_draw_of_each_member_cannot_be_compared():
    running = RunningWorth(2, 1)
    running.update(torch.zeros(3, 2, 1), torch.zeros(3, 2, 1, 2))
    assert {name: tuple(value.shape) for name, value in running.result().items()} == {
        "worth_joint": (3, 0),
        "worth_miselbo": (3, 0),
        "worth_iwelbo": (3, 2, 0),
    }
