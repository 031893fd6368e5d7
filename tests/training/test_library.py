"""``miselbo.fit``: in memory and in a folder the same, a killed one goes on, families and refusals."""

import pytest
import small
import torch

import miselbo
from miselbo import InputError, TrainingPlan, fit
from miselbo.data.densities import ring
from miselbo.data.density import DensitySpec
from miselbo.models.classical import DensityTarget
from miselbo.models.gaussian import Gaussian
from miselbo.protocols import fingerprint

PLAN = TrainingPlan(epochs=2, member_epoch_share=0.5, objective={"learning_rate": 1e-3}, seed=3)


def parts(size=2):
    torch.manual_seed(0)
    ensemble = small.vae_ensemble(size, torch.float32)
    return ensemble.target, list(ensemble.members)


def images(n=40):
    return torch.rand(n, *small.images(1).shape[1:], generator=torch.Generator().manual_seed(1))


def test_a_folder_changes_nothing_and_is_gone_on_with(tmp_path):
    in_memory = fit(*parts(), images(), PLAN)
    kept = fit(*parts(), images(), PLAN, folder=tmp_path)
    assert fingerprint(in_memory) == fingerprint(kept)
    (tmp_path / "members" / "q2.ckpt").unlink()
    again = fit(*parts(), images(), PLAN, folder=tmp_path)
    assert fingerprint(again) == fingerprint(kept)
    larger = fit(*parts(3), images(), PLAN, folder=tmp_path)
    assert fingerprint(larger.target) == fingerprint(kept.target)
    result = miselbo.evaluate(larger.target, list(larger.members), images()[:3].round(), num_samples=4)
    assert result.bounds["miselbo"].notna().all()


def test_the_target_is_trained_with_q_1_alone():
    target, members = parts(2)
    fresh = fingerprint(target)
    alone = fit(target, members[:1], images(), PLAN)
    trained = fingerprint(alone.target)
    assert trained != fresh
    both = fit(*parts(2), images(), PLAN)
    assert fingerprint(both.target) == trained


def test_a_density():
    target = DensityTarget(DensitySpec(ring, 2))
    members = [Gaussian(target, seed=s) for s in range(2)]
    objective = {"steps_per_epoch": 20, "num_samples": 20}
    x, origin = torch.zeros(1, 0), target.at(torch.zeros(1, 0), [torch.zeros(1, 1, 2)])

    def densities(members):
        with torch.no_grad():
            return [float(q.log_prob(q.encode(x), origin)) for q in members]

    before = densities(members)
    trained = fit(target, members, plan=TrainingPlan(epochs=2, objective=objective))
    after = densities(trained.members)
    assert all(one != other for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": images() * 2}, r"images must lie in \[0, 1\]"),
        ({"data": images()[0]}, r"images must be \[N, C, H, W\]"),
        ({"data": [1, 2]}, "a data module or images"),
        ({"members": []}, "at least one member"),
        ({"target": torch.nn.Linear(2, 2)}, "the loop yourself"),
    ],
)
def test_what_cannot_be_trained(change, message):
    target, members = parts()
    given = {"target": target, "members": members, "data": images(), **change}
    with pytest.raises(InputError, match=message):
        fit(**given)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"epochs": True}, {"member_epoch_share": 0}])
def test_a_plan_that_cannot_be(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        TrainingPlan(**wrong)
