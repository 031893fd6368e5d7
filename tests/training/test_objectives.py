"""The losses of a member: each one's gradient is autograd's of the formula, written out on the linear-Gaussian VAE."""

import copy
import math

import linear
import pytest
import small
import torch
from linear import log_joint
from torch import Tensor

from miselbo import pipeline
from miselbo.errors import InputError
from miselbo.models.hierarchical import HierarchicalEncoder
from miselbo.runs import checkpoints
from miselbo.runs.config import compose_config
from miselbo.runs.plan import TrainingPlan, training_plan
from miselbo.training import objectives
from miselbo.training.member import MemberTraining, Objective
from miselbo.training.objectives import Terms

EXACT = {"rtol": 1e-8, "atol": 1e-8}


def noise_of(shapes, count: int, batch: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, batch, *shape, generator=generator, dtype=torch.float64) for shape in shapes]


def terms_of(decoder, members, x: Tensor, count: int, seed: int = 1) -> Terms:
    """Of the last member, the others being the earlier ones."""
    *earlier, member = members

    def noise(number: int) -> list[Tensor]:
        return noise_of(decoder.latent_shapes, count, len(x), 100 * seed + number)

    context = member.encode(x)
    draw = decoder.draw(x, member, context, noise(len(members)))
    return Terms(x, decoder, member, context, draw, noise, earlier)


def gradients(loss: Tensor, module: torch.nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss.sum(), list(module.parameters()), retain_graph=True))


def scores(decoder, member, x: Tensor, count: int, number: int = 1, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Samples [K, B, D] of a member and their log p, by the formulas alone."""
    (eps,) = noise_of(decoder.latent_shapes, count, len(x), 100 * seed + number)
    q = member.of(x)
    z = q.loc + q.scale * eps.flatten(2)
    return z, log_joint(decoder, x, z)


def constant(member: HierarchicalEncoder) -> HierarchicalEncoder:
    return copy.deepcopy(member).requires_grad_(False)


def formula(name: str, decoder, member, x: Tensor, count: int) -> Tensor:
    """What is differentiated, [B]: the bound, or the surrogate whose gradient in phi the estimator is."""
    z, log_p = scores(decoder, member, x, count)
    log_q = member.of(x).log_prob(z).sum(-1)
    if name == "iwae":
        return math.log(count) - (log_p - log_q).logsumexp(0)
    given = constant(member).of(x).log_prob(z).sum(-1)  # phi moves the samples alone
    weight = (
        (log_p - log_q).detach().softmax(0).square()
        if name == "dreg"
        else torch.tensor(1 / count, dtype=torch.float64)
    )
    return -(weight * (log_p - given)).sum(0)


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("name", ["iwae", "dreg", "stl"])
def test_gradient_is_that_of_the_formula(name, count):
    decoder, (member,), x = linear.make(1)
    decoder.requires_grad_(False)
    found = getattr(objectives, name)(terms_of(decoder, [member], x, count), 0, 1)
    for got, expected in zip(
        gradients(found, member), gradients(formula(name, decoder, member, x, count), member), strict=True
    ):
        torch.testing.assert_close(got, expected, **EXACT)


@pytest.mark.parametrize("name", ["iwae", "dreg", "stl"])
def test_value_is_the_bound_and_theta_follows_it(name):
    decoder, (member,), x = linear.make(1)
    found = getattr(objectives, name)(terms_of(decoder, [member], x, 7), 0, 1)
    z, log_p = scores(decoder, member, x, 7)
    log_w = log_p - member.of(x).log_prob(z).sum(-1)
    bound = log_w.mean(0) if name == "stl" else log_w.logsumexp(0) - math.log(7)
    torch.testing.assert_close(found, -bound, **EXACT)
    for got, expected in zip(gradients(found, decoder), gradients(-bound, decoder), strict=True):
        torch.testing.assert_close(got, expected, **EXACT)


@pytest.mark.parametrize("flows", [0, 1])
@pytest.mark.parametrize("name", ["dreg", "stl"])
def test_through_a_hierarchy(name, flows):
    """Groups move the groups after them; here phi of the density is a copy, and autograd goes through the samples."""
    ensemble, x, count = small.nvae_ensemble(1, num_flows=flows), small.images(2), 3
    decoder, member = ensemble.target.requires_grad_(False), ensemble.members[0]
    terms = terms_of(decoder, [member], x, count)
    found = getattr(objectives, name)(terms, 0, 1)
    again = decoder.at(x, [part.unflatten(0, (count, -1)) for part in terms.draw.z])
    fixed = constant(member)
    log_w = again.log_p - fixed.log_prob(fixed.encode(x), again)
    weight = (
        terms.log_w.detach().softmax(0).square()
        if name == "dreg"
        else torch.tensor(1 / count, dtype=torch.float64)
    )
    for got, expected in zip(
        gradients(found, member), gradients(-(weight * log_w).sum(0), member), strict=True
    ):
        torch.testing.assert_close(got, expected, **EXACT)


@pytest.mark.parametrize("count", [1, 4])
def test_boosted_is_the_gradient_of_miselbo(count):
    decoder, members, x = linear.make(3)
    decoder.requires_grad_(False)
    found = objectives.boosted(terms_of(decoder, members, x, count), 0, 1)
    bound = torch.zeros(len(x), dtype=torch.float64)
    for number, member in enumerate(members, 1):
        z, log_p = scores(decoder, member, x, count, number)
        if number < 3:
            z, log_p = z.detach(), log_p.detach()
        log_q = torch.stack(
            [(q if q is members[-1] else constant(q)).of(x).log_prob(z).sum(-1) for q in members]
        )
        ratio = log_p - (log_q.logsumexp(0) - math.log(3))
        bound = bound + (ratio.logsumexp(0) - math.log(count)) / 3
    torch.testing.assert_close(found, -bound, **EXACT)
    for got, expected in zip(gradients(found, members[-1]), gradients(-bound, members[-1]), strict=True):
        torch.testing.assert_close(got, expected, **EXACT)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_dreg_has_the_mean_of_the_plain_gradient_and_a_quarter_of_its_variance(seed):
    """Near the best diagonal normal; far from it (0.4 in place of 0.01) the variance is up to four times as large."""
    decoder, (member,), x = linear.make(1, seed)
    decoder.requires_grad_(False)
    linear.near(decoder, member, away=0.01)
    found = []
    for name in ("iwae", "dreg"):
        losses = (
            getattr(objectives, name)(terms_of(decoder, [member], x, 64, repeat), 0, 1)
            for repeat in range(100)
        )
        found.append(
            torch.stack([torch.cat([p.flatten() for p in gradients(loss, member)]) for loss in losses])
        )
    plain, double = found
    assert double.var(0).sum() <= plain.var(0).sum() / 4
    error = ((plain.var(0) + double.var(0)) / len(plain)).sqrt()
    assert ((plain.mean(0) - double.mean(0)).abs() < 5 * error).all()


def test_nvae_is_the_default():
    ensemble, x = small.nvae_ensemble(1), small.images(3)
    terms = terms_of(ensemble.target, list(ensemble.members), x, 1)
    expected = -(terms.draw.log_px[0] - terms.draw.kl()[0].sum(-1))
    torch.testing.assert_close(objectives.nvae(terms, 5, 10), expected)
    weights = {"kl_constant_portion": 0.0, "kl_anneal_portion": 1.0, "kl_weight_min": 1e-4}
    module = MemberTraining(
        ensemble.target, list(ensemble.members), Objective(kl_anneal_portion=1.0, kl_constant_portion=0.0), 0
    )
    torch.testing.assert_close(module._objective(terms, 5, 10), objectives.nvae(terms, 5, 10, **weights))
    assert (objectives.nvae(terms, 5, 10, **weights) != expected).all()


def test_statistics_of_batch_norms_move_once():
    ensemble, x = small.nvae_ensemble(1), small.images(3)
    decoder, member = ensemble.target.train(), ensemble.members[0].train()
    terms = terms_of(decoder, [member], x, 1)
    before = [
        value.clone()
        for module in (decoder, member)
        for value in module.buffers()
        if value.is_floating_point()
    ]
    objectives.stl(terms, 0, 1)
    after = [value for module in (decoder, member) for value in module.buffers() if value.is_floating_point()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ["iwae", "dreg", "stl", "boosted"])
def test_a_run_with_each(name, tmp_path):
    small_run = [
        "model=vae",
        "model.target.num_channels=4",
        "model.approximation.num_channels=4",
        "ensemble.size=3",
    ]
    budget = [
        "dataset.num_train=40",
        "dataset.num_test=6",
        "evaluation.num_samples=4",
        "trainer.max_epochs=1",
    ]
    quiet = [
        "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false",
        "report=false",
        "model.objective.num_samples=2",
    ]
    cfg = compose_config([f"objective={name}", *small_run, *budget, *quiet, f"run_dir={tmp_path / 'run'}"])
    assert training_plan(cfg).objective["loss"].func is getattr(objectives, name)
    summary = pipeline.run(cfg)
    assert math.isfinite(summary["headline"]["miselbo"])
    spent = [
        checkpoints.read(checkpoints.member_path(tmp_path / "run", s), "member")["decoder_passes"]
        for s in (1, 3)
    ]
    times = {"iwae": (1, 1), "dreg": (2, 2), "stl": (2, 2), "boosted": (1, 3)}[name]
    assert spent == [2 * times[0] * 40, 2 * times[1] * 40]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model=gaussian", "dataset=ring", "objective=dreg"],
            "model.objective.loss .* is for images: model=gaussian",
        ),
        (
            ["model=vae", "objective=boosted", "ensemble.workers=2"],
            "a boosted member is trained against all earlier",
        ),
        (
            ["model=vae", "objective=boosted", "task=fit_member", "member=2"],
            "a boosted member is trained against all",
        ),
        (
            ["model=vae", "model.objective.num_samples=0"],
            "model.objective.num_samples must be a whole number",
        ),
    ],
)
def test_what_cannot_be(overrides, message, tmp_path):
    cfg = compose_config([*overrides, "trainer.accelerator=cpu", f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(InputError, match=message):
        pipeline.run(cfg)
    assert not (tmp_path / "run").exists()


def test_bad_objectives_of_a_program():
    with pytest.raises(InputError, match="num_samples must be a whole number of at least 1, got 0"):
        Objective(num_samples=0)
    with pytest.raises(InputError, match="must be a function .terms, step, total."):
        Objective(loss="dreg")  # type: ignore[arg-type]
    assert TrainingPlan(objective={"loss": objectives.stl}).objective["loss"] is objectives.stl
