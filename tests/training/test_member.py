"""One member's training: what it changes, what it must not, bad steps, and going on after a stop."""

import pytest
import pytorch_lightning as pl
import small
import torch
from pytorch_lightning.plugins import MixedPrecision
from trainings import fit

from miselbo.errors import InputError, TrainingDivergedError
from miselbo.protocols import Frozen, fingerprint
from miselbo.training.callbacks import ResumePoint
from miselbo.training.member import MemberTraining, Objective
from miselbo.training.trainer import check_resume

SETTINGS = Objective(warmup_epochs=0, max_skipped_steps=3)


class Stopped(Exception):
    """What ends a training half way in these tests."""


class Poison(pl.Callback):
    """Spoils the images of some steps; remembers the state before and after each step."""

    def __init__(self, *steps: int):
        self.steps = steps
        self.before: list[dict[str, torch.Tensor]] = []
        self.after: list[dict[str, torch.Tensor]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step in self.steps:
            batch["image"].fill_(float("nan"))
        self.before.append(state(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.after.append(state(pl_module))


class StopAfter(pl.Callback):
    def __init__(self, epoch: int):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise Stopped


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and statistics, without the regulariser's vectors and batch norm's unused counter."""
    kept = {name: v for name, v in module.state_dict().items() if not name.startswith("spectral")}
    return {name: v.clone() for name, v in kept.items() if not name.endswith("num_batches_tracked")}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def make(size: int, make_ensemble=small.nvae_ensemble, settings: Objective = SETTINGS) -> MemberTraining:
    ensemble = make_ensemble(size, torch.float32)
    return MemberTraining(ensemble.target, list(ensemble.members), settings, seed=7).train()


def test_the_first_member_trains_the_target_too():
    module = make(1)
    before = fingerprint(module.target), fingerprint(module.encoder)
    fit(module)
    assert fingerprint(module.target) != before[0] and fingerprint(module.encoder) != before[1]
    assert module.examples_seen == 2 * 20 and module.skipped == 0


@pytest.mark.parametrize("make_ensemble", [small.nvae_ensemble, small.vae_ensemble])
def test_later_members_leave_target_and_earlier_members_as_they_are(make_ensemble):
    module = make(3, make_ensemble)
    frozen = [module.target, *(part.module for part in module.earlier)]
    before = [fingerprint(part) for part in frozen]
    own = fingerprint(module.encoder)
    fit(module)
    assert [fingerprint(part) for part in frozen] == before
    assert fingerprint(module.encoder) != own
    assert all(parameter.grad is None for part in frozen for parameter in part.parameters())
    module._target.verify()


def test_train_mode_reaches_the_encoder_alone():
    module = make(3)
    for part in (module.target, *(earlier.module for earlier in module.earlier)):
        assert not any(inner.training for inner in part.modules())
        assert not any(parameter.requires_grad for parameter in part.parameters())
    assert all(inner.training for inner in module.encoder.modules())
    optimised = module.encoder.parameters()
    assert {id(p) for p in module.parameters() if p.requires_grad} == {id(p) for p in optimised}


def test_a_change_of_a_frozen_module_is_found():
    module = make(2)
    frozen = module._target
    assert isinstance(frozen, Frozen)
    norm = next(part for part in module.target.modules() if isinstance(part, torch.nn.BatchNorm2d))
    norm.running_mean += 1e-6
    with pytest.raises(RuntimeError, match="a frozen module changed during training"):
        frozen.verify()


@pytest.mark.parametrize("size", [1, 2])
def test_a_non_finite_step_is_no_step(size):
    module, poison = make(size), Poison(1, 2)
    fit(module, poison, epochs=3)
    for step in range(6):
        changed = not same(poison.before[step], poison.after[step])
        assert changed == (step not in (1, 2)), step
    assert module.skipped == 2
    assert all(bool(tensor.isfinite().all()) for tensor in module.state_dict().values())
    statistics = [name for name in poison.before[0] if name.startswith("encoder") and "running_mean" in name]
    assert statistics and not torch.equal(poison.before[0][statistics[0]], poison.after[0][statistics[0]])


def test_too_many_non_finite_steps_in_a_row_stop_the_run():
    module = make(1)
    with pytest.raises(TrainingDivergedError) as caught:
        fit(module, Poison(0, 2, 3, 4), epochs=4)
    assert "training q1 stopped: 3 steps in a row had a non-finite loss or gradient" in str(caught.value)
    assert "layer group 'target." in str(caught.value)
    assert "model.objective.learning_rate=0.003 (now 0.01)" in str(caught.value)
    assert "at step 4" in str(caught.value)
    assert module.skipped == 4


def test_the_layer_group_of_a_broken_parameter_is_named():
    module = make(2)
    name, parameter = [pair for pair in module.encoder.named_parameters() if pair[1].ndim == 4][3]
    parameter.data.flatten()[0] = float("nan")
    group = ".".join(f"encoder.{name}".split(".")[:3])
    with pytest.raises(TrainingDivergedError, match=f"training q2 stopped.*layer group '{group}'"):
        fit(module)


def test_the_result_does_not_depend_on_the_global_generator():
    torch.manual_seed(0)
    one = make(2)
    fit(one)
    other = make(2)
    torch.manual_seed(123)
    fit(other)
    assert same(one.state_dict(), other.state_dict())


@pytest.mark.parametrize("size", [1, 2])
def test_going_on_after_a_stop_is_exact(tmp_path, size):
    whole = make(size)
    fit(whole, epochs=4)
    path = tmp_path / "q.resume.ckpt"
    with pytest.raises(Stopped):
        fit(make(size), ResumePoint(path, interval=0), StopAfter(2), epochs=4)
    rest, steps = make(size), Poison()
    trainer = fit(rest, steps, epochs=4, resume=path)
    assert len(steps.before) == 4  # of eight: the first two epochs are not trained again
    assert trainer.global_step == 8 and rest.examples_seen == whole.examples_seen == 80
    assert same(rest.state_dict(), whole.state_dict())  # u and v of the spectral regulariser too
    assert any(name.startswith("spectral.u_") for name in rest.state_dict())


def test_a_bad_first_step_after_a_stop_is_undone(tmp_path):
    path = tmp_path / "q.resume.ckpt"
    with pytest.raises(Stopped):
        fit(make(1), ResumePoint(path, interval=0), StopAfter(2), epochs=4)
    stored = torch.load(path, weights_only=True)["state_dict"]
    module, poison = make(1), Poison(4)
    fit(module, poison, epochs=4, resume=path)
    assert same(poison.after[0], {name: stored[name] for name in poison.after[0]})
    assert module.skipped == 1


def test_counts_survive_a_stop(tmp_path):
    path = tmp_path / "q.resume.ckpt"
    with pytest.raises(Stopped):
        fit(make(1), ResumePoint(path, interval=0), StopAfter(2), Poison(1), epochs=4)
    module = make(1)
    fit(module, epochs=4, resume=path)
    assert (module.skipped, module.examples_seen) == (1, 80)


SPOILT = {
    "no dictionary": lambda found: [1],
    "has no loops": lambda found: {name: value for name, value in found.items() if name != "loops"},
    "has no counts": lambda found: found | {"counts": 3},
    "of another member": lambda found: found | {"seed": 99},
    "of another model": lambda found: found | {"state_dict": dict(list(found["state_dict"].items())[1:])},
    "do not fit": lambda found: (
        found | {"state_dict": {name: value[..., None] for name, value in found["state_dict"].items()}}
    ),
    "optimiser is damaged": lambda found: found | {"optimizer_states": [{}]},
}


def test_a_damaged_resume_point_is_refused_by_name(tmp_path):
    path = tmp_path / "q.resume.ckpt"
    with pytest.raises(Stopped):
        fit(make(1), ResumePoint(path, interval=0), StopAfter(2), epochs=4)
    whole = torch.load(path, weights_only=True)
    check_resume(path, make(1))
    for said, spoil in SPOILT.items():
        torch.save(spoil(whole), path)
        words = "it holds list" if said == "no dictionary" else said
        with pytest.raises(
            InputError, match=rf"q.resume.ckpt is no resume point of this training \(.*{words}"
        ):
            check_resume(path, make(1))


def test_a_rate_that_would_rise_is_refused():
    with pytest.raises(InputError, match="learning_rate_min=0.1 is above model.objective.learning_rate=0.01"):
        Objective(learning_rate=0.01, learning_rate_min=0.1)


def test_regularisers_see_what_is_trained_alone():
    joint, later = make(1), make(2)
    kernels = [len(list(part.conv_kernels())) for part in (joint.target, joint.encoder)]
    assert sum(len(members) for members in joint.spectral.groups.values()) == sum(kernels)
    assert sum(len(members) for members in later.spectral.groups.values()) == kernels[1]
    total = later.regulariser()
    total.backward()
    assert all(parameter.grad is None for parameter in later.target.parameters())
    assert any(parameter.grad is not None for parameter in later.encoder.parameters())


def test_loss_is_the_negative_elbo_without_warm_up_and_regulariser():
    module = make(1, small.vae_ensemble, Objective(kl_anneal_portion=0, regulariser=0))
    module._total_steps = 1
    logged = {}
    module.log_dict = lambda values, **kwargs: logged.update(values)
    batch = {"image": small.images(4, dtype=torch.float32), "index": torch.arange(4)}
    module._trainer = type("Trainer", (), {"global_step": 0})()
    loss = module.training_step(batch, 0).item()
    assert loss == pytest.approx(-logged["train/elbo"].item(), rel=1e-6)
    assert loss == pytest.approx((logged["train/reconstruction"] + logged["train/kl"]).item(), rel=1e-6)


def test_accumulated_gradients_are_those_of_the_large_batch():
    plain = Objective(kl_anneal_portion=0, regulariser=0, warmup_epochs=0, learning_rate=1e-3)
    whole, parts = (make(1, small.vae_ensemble, plain) for _ in range(2))
    fit(whole)
    fit(parts, batch_size=5, accumulate_grad_batches=2)
    assert whole.examples_seen == parts.examples_seen == 40
    for (name, one), other in zip(state(whole).items(), state(parts).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5, msg=name)


def test_bfloat16_trains_near_float32_with_float32_parameters():
    whole, mixed = make(1), make(1)
    fit(whole)
    fit(mixed, precision="bf16-mixed")
    assert mixed.skipped == 0
    before = state(make(1))
    for (name, one), other in zip(state(whole).items(), state(mixed).values(), strict=True):
        assert one.dtype == other.dtype
        moved = (one - before[name]).abs().max()
        assert (one - other).abs().max() <= 0.5 * moved + 1e-3, name


def test_float16_scales_its_loss_and_a_step_that_overflows_is_no_step():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**32, growth_interval=1000)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    module, poison = make(1, settings=Objective(warmup_epochs=0, max_skipped_steps=40)), Poison()
    fit(module, poison, epochs=20, plugins=[plugin])
    overflowed = [same(one, other) for one, other in zip(poison.before, poison.after, strict=True)]
    assert overflowed[0] and not overflowed[-1]
    assert module.skipped == sum(overflowed)
    assert scaler.get_scale() == 2.0 ** (32 - module.skipped)
    assert all(value.isfinite().all() for value in state(module).values())


def test_synchronised_batch_norms_are_the_ones_watched():
    module = make(1)
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)
    fit(converted, epochs=1)
    assert module.norms and all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in module.norms)
    assert all(norm.running_mean.abs().sum() > 0 for norm in module.norms)
