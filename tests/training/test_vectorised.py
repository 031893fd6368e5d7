"""All members at once: the same as one by one; joint training; resuming; what cannot be trained."""

import warnings

import pytest
import torch

from miselbo.errors import InputError, TrainingDivergedError
from miselbo.runs import checkpoints
from miselbo.runs.building import build
from miselbo.runs.config import compose_config
from miselbo.runs.plan import build_ensemble, training_plan
from miselbo.training import vectorised
from miselbo.training.vectorised import Objective, Training, fit_together, warn_of_copies

QUICK = [
    "model=gaussian",
    "dataset=u1",
    "trainer.max_epochs=3",
    "trainer.enable_progress_bar=false",
    "model.objective.steps_per_epoch=10",
    "model.objective.num_samples=20",
    "run_dir=x",
]


def configure(*more):
    return compose_config([*QUICK, "ensemble.size=3", *more])


def prepare(cfg):
    data = build(cfg.dataset)
    data.setup()
    target, members = build_ensemble(cfg, data.spec, cfg.ensemble.size)
    return data, target, members


def train(cfg, target, members, numbers, tmp_path):
    training = Training(target, members, numbers, Objective(**cfg.model.objective), training_plan(cfg))
    training.run(tmp_path, [[] for _ in numbers])
    return training


def fit(cfg, folder):
    data, target, members = prepare(cfg)
    return fit_together(target, members, data, training_plan(cfg), folder, lambda member: [])


FAMILIES = [
    [],
    ["model.approximation.fixed={scale: 0.8}"],
    ["model.approximation.family=Laplace"],
    ["model.approximation.family=MultivariateNormal"],
    ["model.approximation.family=StudentT", "model.approximation.fixed={df: 5}"],
    ["model.members=[{family: Laplace},{},{family: Laplace}]"],
]


@pytest.mark.parametrize("more", FAMILIES, ids=lambda more: more[-1].split("=", 1)[1] if more else "Normal")
def test_together_equals_one_by_one(more, tmp_path):
    cfg = configure(*more)
    _, target, together = prepare(cfg)
    train(cfg, target, together, [1, 2, 3], tmp_path)
    _, target, alone = prepare(cfg)
    before = [{n: v.clone() for n, v in member.state_dict().items()} for member in alone]
    for s in (1, 2, 3):
        train(cfg, target, [alone[s - 1]], [s], tmp_path)
    for one, other, start in zip(together, alone, before, strict=True):
        for name, value in one.state_dict().items():
            assert torch.allclose(value, other.state_dict()[name], rtol=1e-4, atol=1e-5), name
        assert any(
            not torch.allclose(value, start[n]) for n, value in one.free.state_dict(prefix="free.").items()
        )


def test_training_raises_the_elbo(tmp_path):
    cfg = configure("trainer.max_epochs=40", "dataset=linear_gaussian", "model.objective.learning_rate=6e-2")
    data, target, members = prepare(cfg)
    train(cfg, target, members, [1, 2, 3], tmp_path)
    posterior = data.density.posterior
    mean = torch.stack([member.distribution.mean for member in members])
    assert bool(((mean - posterior.mean).abs() < 0.25).all())


def test_going_on_after_a_stop_is_exact(tmp_path, monkeypatch):
    cfg = configure("ensemble.resume_interval=0")
    whole = fit(cfg, tmp_path / "whole")
    real, calls = Training._advance, []

    def stops(self):
        calls.append(self.step)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(Training, "_advance", stops)
    with pytest.raises(KeyboardInterrupt):
        fit(cfg, tmp_path / "cut")
    path = checkpoints.resume_path(tmp_path / "cut", 1)
    kept = torch.load(path, weights_only=True)
    wider = [value[..., None] for value in kept["parameters"]]
    for spoilt in (kept | {"counts": 1}, kept | {"parameters": wider}, kept | {"optimiser": {}}):
        torch.save(spoilt, path)
        with pytest.raises(InputError, match="q1.resume.ckpt is no resume point of this training"):
            fit(cfg, tmp_path / "cut")
    torch.save(kept, path)
    cut = fit(cfg, tmp_path / "cut")
    assert calls[25] == 20
    for one, other in zip(whole.members, cut.members, strict=True):
        assert all(torch.equal(v, other.state_dict()[n]) for n, v in one.state_dict().items())
    assert not checkpoints.resume_path(tmp_path / "cut", 1).exists()


def test_a_larger_ensemble_keeps_its_members(tmp_path):
    fit(configure("ensemble.size=2"), tmp_path)
    before = checkpoints.member_path(tmp_path, 1).read_bytes()
    larger = fit(configure("ensemble.size=3"), tmp_path)
    assert checkpoints.member_path(tmp_path, 1).read_bytes() == before and len(larger.members) == 3
    whole = fit(configure("ensemble.size=3"), tmp_path / "other")
    for one, other in zip(larger.members, whole.members, strict=True):
        assert torch.allclose(one.free["loc"], other.free["loc"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("estimator", ["all_to_all", "some_to_all", "some_to_some"])
def test_joint_training_keeps_components_apart(estimator, tmp_path):
    cfg = configure(
        "ensemble.objective=mixture",
        f"ensemble.estimator={estimator}",
        "ensemble.sampled=2",
        "dataset=coln",
        "trainer.max_epochs=25",
        "model.objective.learning_rate=5e-2",
    )
    _, target, members = prepare(cfg)
    train(cfg, target, members, [1, 2, 3], tmp_path)
    mean = torch.stack([member.distribution.mean for member in members])
    assert float(torch.cdist(mean, mean).max()) > 1.0


def test_a_mixture_cannot_be_extended(tmp_path):
    fit(configure("ensemble.objective=mixture", "ensemble.size=2"), tmp_path)
    with pytest.raises(InputError, match="another run_dir"):
        fit(configure("ensemble.objective=mixture", "ensemble.size=3"), tmp_path)
    again = fit(configure("ensemble.objective=mixture", "ensemble.size=2"), tmp_path)
    assert len(again.members) == 2


def test_a_mixture_needs_one_family(tmp_path):
    with pytest.raises(InputError, match="one family"):
        fit(configure("ensemble.objective=mixture", "model.members=[{family: Laplace},{},{}]"), tmp_path)


def test_copies_are_warned_of():
    same = configure("model.members=[{seed: 1,initial: {loc: 0}},{seed: 1,initial: {loc: 0}},{}]")
    _, _, members = prepare(same)
    with pytest.warns(UserWarning, match="q1 and q2 have the same seed"):
        warn_of_copies([1, 2, 3], members)
    _, _, members = prepare(configure())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_copies([1, 2, 3], members)


def test_a_target_without_mass_there(tmp_path):
    with pytest.raises(TrainingDivergedError, match="bounded support"):
        cfg = configure()
        _, target, members = prepare(cfg)
        target.log_density = lambda z: torch.where(z[..., 0] > 0, 0.0, -torch.inf)
        train(cfg, target, members, [1, 2, 3], tmp_path)


def test_a_target_that_gives_nan(tmp_path):
    cfg = configure()
    _, target, members = prepare(cfg)
    target.log_density = lambda z: z[..., 0].sqrt()
    with pytest.raises(InputError, match="nan"):
        train(cfg, target, members, [1, 2, 3], tmp_path)


@pytest.mark.parametrize("key", ["steps_per_epoch", "num_samples", "learning_rate"])
def test_bad_settings(key):
    with pytest.raises(InputError, match=key):
        vectorised.Objective(**{key: 0})


def test_nothing_to_train(tmp_path):
    ensemble = fit(configure("model.approximation.fixed={loc: 1, scale: 2}"), tmp_path)
    assert ensemble.members[0].distribution.mean.tolist() == [1, 1]
