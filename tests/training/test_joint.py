"""Joint fine-tuning of encoders: gradient against the explicit formula, frozen decoder, a run that goes on."""

import math

import pytest
import runs
import small
import torch

from miselbo.protocols import fingerprint, latent_noise
from miselbo.runs import checkpoints
from miselbo.training import joint
from miselbo.training.joint import mixture_bound

MIXTURE = ["ensemble.objective=mixture", "ensemble.size=2", "ensemble.joint_epoch_share=0.5", "report=false"]


@pytest.mark.parametrize("make", [small.vae_ensemble, small.nvae_ensemble])
@pytest.mark.parametrize("estimator", ["all_to_all", "some_to_all", "some_to_some"])
def test_gradients_are_those_of_the_formula(make, estimator):
    ensemble = make(3)
    target, members, x = ensemble.target, list(ensemble.members), small.images(3)
    rows = torch.tensor([0, 1, 2] if estimator == "all_to_all" else [0, 2])
    columns = torch.arange(3) if estimator != "some_to_some" else rows
    step, index = torch.zeros(1, dtype=torch.int64), torch.arange(3)

    def noise(s):
        return latent_noise(target.latent_shapes, 0, index, s, step, x.dtype)

    value = mixture_bound(target, members, x, noise, estimator, rows, columns).sum()
    formula = 0.0
    for s in rows.tolist():
        draw = target.draw(x, members[s], members[s].encode(x), noise(s))
        density = sum(members[j].log_prob(members[j].encode(x), draw)[0].exp() for j in columns.tolist())
        formula = formula + (draw.log_p[0] - torch.log(density / len(columns))) / len(rows)
    formula = formula.sum()
    parameters = list(ensemble.members.parameters())
    assert float(value) == pytest.approx(float(formula), rel=1e-9)
    gradients = [torch.autograd.grad(v, parameters, allow_unused=True) for v in (value, formula)]
    size = 0.0
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert torch.allclose(one, other, rtol=1e-6, atol=1e-8 * float(other.abs().max()) + 1e-12)
            size += float(other.abs().sum())
    assert size > 0 and math.isfinite(size)


def test_a_run_is_fine_tuned_against_the_frozen_decoder(tmp_path, monkeypatch):
    runs.fit(tmp_path / "alone", "ensemble.size=2", "report=false")
    runs.fit(tmp_path / "run", *MIXTURE)
    for name in ("q1", "q2"):
        kept = torch.load(tmp_path / "run" / "members" / "independent" / f"{name}.ckpt", weights_only=True)[
            "state"
        ]
        assert runs.same_tensors(kept, runs.state(tmp_path / "alone", name))
        assert not runs.same_tensors(kept, runs.state(tmp_path / "run", name))
    assert runs.same_tensors(runs.state(tmp_path / "run", "target"), runs.state(tmp_path / "alone", "target"))
    content = checkpoints.read(checkpoints.member_path(tmp_path / "run", 1), "member")
    assert content["objective"] == "mixture" and content["trained_with"] == [1, 2]
    assert not list((tmp_path / "run" / "members").glob("*resume*"))
    assert "joint/miselbo" in (tmp_path / "run" / "metrics.csv").read_text()
    # the same command again trains nothing; a half-written result starts from the members trained one by one
    done = {name: runs.state(tmp_path / "run", name) for name in ("q1", "q2")}
    with monkeypatch.context() as patch:
        patch.setattr(joint, "_run", lambda *_: pytest.fail("trained again"))
        runs.fit(tmp_path / "run", *MIXTURE)
    members = tmp_path / "run" / "members"
    (members / "q2.ckpt").write_bytes((members / "independent" / "q2.ckpt").read_bytes())
    runs.fit(tmp_path / "run", *MIXTURE)
    for name, state in done.items():
        assert runs.same_tensors(state, runs.state(tmp_path / "run", name))


def test_the_target_and_batch_norm_stay():
    ensemble = small.nvae_ensemble(2)
    before = fingerprint(ensemble.target)
    module = joint.JointTraining(ensemble.target, list(ensemble.members), None, 0)
    module.train()
    assert not any(part.training for part in [*ensemble.target.modules(), *module.members.modules()])
    assert not any(p.requires_grad for p in module._target.parameters())
    assert all(p.requires_grad for p in module.members.parameters())
    assert fingerprint(ensemble.target) == before
