import math

import numpy as np
import pytest
import torch
from runs import from_folder, same_tensors, state
from small_phylo import data, fitted

from miselbo import bounds
from miselbo.errors import InputError, TrainingDivergedError
from miselbo.phylo import rounds
from miselbo.phylo.flows import Planar
from miselbo.phylo.member import Training
from miselbo.phylo.objective import Objective, bound, coefficients, learning_signals
from miselbo.phylo.vbpi import Posterior, Vbpi
from miselbo.pipeline import run
from miselbo.runs import checkpoints
from miselbo.runs.config import compose_config

QUICK = ["model=vbpi", "trainer.enable_progress_bar=false", "model.objective.steps_per_epoch=30", "ensemble.size=2",
         "evaluation.num_samples=20", "trainer.max_epochs=2", "dataset.support.replicates=1",
         "dataset.support.nj_trees=20", "dataset.replicates=3", "logger=csv"]  # fmt: skip


def configure(folder, *more):
    return compose_config([*QUICK, f"run_dir={folder}", *more])


def training(objective=None, epochs=2, seed=0, target=None):
    target = target or Posterior(data().spec)
    torch.manual_seed(seed)
    return Training(
        target, Vbpi(target, start=0.05), objective or Objective(steps_per_epoch=20), epochs, seed
    )


def test_coefficients_are_the_gradient_of_the_bound_and_vimco():
    """Against the definition, by autograd: T through f, plus sum_k stopgrad(T - T_k) log q(tau_k)."""
    generator = torch.Generator().manual_seed(0)
    rest, log_q = (3 * torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
    rest.requires_grad_(), log_q.requires_grad_()
    f = rest - log_q
    value = f.logsumexp(0) - math.log(6)
    signals = []
    for k in range(6):
        replaced = f.detach().clone()
        replaced[k] = (f.detach().sum() - f.detach()[k]) / 5
        signals.append(value.detach() - (replaced.logsumexp(0) - math.log(6)))
    (value + (torch.stack(signals) * log_q).sum()).backward()
    to_rest, to_tree = coefficients(f.detach().numpy())
    np.testing.assert_allclose(to_rest, rest.grad, atol=1e-12)
    np.testing.assert_allclose(to_tree, log_q.grad, atol=1e-12)
    np.testing.assert_allclose(learning_signals(f.detach().numpy()), torch.stack(signals), atol=1e-12)
    assert bound(f.detach().numpy()) == pytest.approx(value.item(), abs=1e-12)


def test_the_estimated_gradient_has_the_right_mean():
    """For K = 2 and a tree distribution of two atoms: the gradient of E T, enumerated."""
    logit = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    log_p = torch.tensor([1.0, -0.5], dtype=torch.float64)
    log_q = torch.stack((logit, torch.zeros_like(logit))).log_softmax(0)
    exact = torch.zeros((), dtype=torch.float64)
    estimate = 0.0
    for i in range(2):
        for j in range(2):
            pair = torch.tensor([i, j])
            f = log_p[pair] - log_q[pair]
            exact = exact + log_q[pair].sum().exp() * (f.logsumexp(0) - math.log(2))
            _, to_tree = coefficients(f.detach().numpy())
            (part,) = torch.autograd.grad(
                (torch.from_numpy(to_tree) * log_q[pair]).sum(), logit, retain_graph=True
            )
            estimate += log_q.detach()[pair].sum().exp().item() * part.item()
    (expected,) = torch.autograd.grad(exact, logit)
    assert estimate == pytest.approx(expected.item(), abs=1e-12)


def test_schedules():
    objective = Objective(anneal_portion=0.25, anneal_start=0.1, num_decays=4, decay=0.5)
    assert [objective.beta(step, 100) for step in (0, 10, 25, 99)] == [0.1, 0.5, 1.0, 1.0]
    assert [objective.rate(step, 100) for step in (0, 24, 25, 99)] == [1, 1, 0.5, 0.125]
    assert Objective(anneal_portion=0).beta(0, 10) == 1


def test_stages():
    objective = Objective(
        anneal_portion=0.5, num_decays=0, second_stage_tree=(1e-2, 1e-4), second_stage_branch=[1e-3, 1e-4]
    )
    assert objective.rates(0, 100) == objective.rates(49, 100) == (2e-3, 3e-3)
    assert objective.rates(50, 100) == (1e-2, 1e-3)
    assert objective.rates(75, 100) == pytest.approx((1e-3, math.sqrt(1e-7)))
    assert objective.rates(100, 100) == pytest.approx((1e-4, 1e-4))
    one = Objective(anneal_portion=0.5, num_decays=2, decay=0.5, second_stage_tree=(1e-2, 1e-4))
    assert one.rates(50, 100) == (1e-2, 1.5e-3)  # the other group decays as without stages


def gradients(dreg, noise, monkeypatch):
    """What one iteration at full temperature hands to the optimiser."""
    one = training(Objective(anneal_portion=0, dreg=dreg, num_particles=4), seed=3)
    monkeypatch.setattr(one, "draw", lambda count: noise)
    monkeypatch.setattr(one.optimiser, "step", lambda: None)
    one.iteration()
    return one, [parameter.grad.clone() for parameter in one.parameters]


def test_the_doubly_reparameterised_gradient_is_its_formula(monkeypatch):
    """sum_k v_k^2 (d f_k / d x_k) (d x_k / d phi), each factor by autograd of its own, and the trees' as without."""
    generator = torch.Generator().manual_seed(5)
    noise = (
        torch.rand(4, 7, dtype=torch.float64, generator=generator),
        torch.randn(4, 13, dtype=torch.float64, generator=generator),
    )
    one, (tree, table) = gradients(True, noise, monkeypatch)
    _, (plain_tree, _) = gradients(False, noise, monkeypatch)
    assert torch.equal(tree, plain_tree)
    sbn, branches, target = one.member.sbn, one.member.branches, one.target
    trees = sbn.sample(noise[0])
    mu, log_sigma = branches.table(branches.rows(trees)).unbind(-1)
    x = mu + log_sigma.exp() * noise[1] - 2
    at = x.detach().requires_grad_()
    z, scale = at + 2 - mu.detach(), log_sigma.detach()
    log_q = (-0.5 * (z / scale.exp()) ** 2 - scale - 0.5 * math.log(2 * math.pi)).sum(-1)
    f = target.log_likelihood(trees, at) + target.log_branch_prior(at) - sbn.log_prob(trees).detach() - log_q
    (slope,) = torch.autograd.grad(f.sum(), at)
    (expected,) = torch.autograd.grad(
        x, branches.table.weight, grad_outputs=(f.detach().softmax(0) ** 2)[:, None] * slope
    )
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(table, -expected, atol=1e-8, rtol=1e-8)


def test_a_flow_without_an_inverse_in_closed_form_is_refused_before_any_work():
    target = Posterior(data().spec)
    with pytest.raises(InputError, match="which Planar is not: give model.objective.dreg=false"):
        Training(target, Vbpi(target, Planar), Objective(dreg=True), 1, 0)


def test_training_raises_the_bound():
    values = []
    for epochs in (0, 2):
        trained = fitted(data(five=True), epochs=epochs, size=1, steps_per_epoch=200)
        values.append(bounds.average_elbo(*trained.score(torch.zeros(1, 0), 200)).item())
    assert values[1] > values[0] + 5


def test_seeds_decide_everything():
    one, same, other = training(seed=1), training(seed=1), training(seed=2)
    assert one.epoch() == same.epoch() != other.epoch()


def test_a_resume_point_goes_on_exactly():
    whole, first, second = training(), training(), training()
    expected = [whole.epoch(), whole.epoch()]
    found = first.epoch()
    second.load_state(first.state())
    assert [found, second.epoch()] == expected
    assert same_tensors(whole.member.state_dict(), second.member.state_dict())


def test_rounds_go_on_until_the_criterion_and_across_a_kill(monkeypatch):
    """Scripted checks, 10 epochs: annealing 2, rounds of 2; the third is enough. Rates restart; resumed exactly."""
    stages = {"second_stage_tree": (1e-2, 1e-4), "second_stage_branch": (1e-3, 1e-4), "num_decays": 0}
    objective = Objective(
        steps_per_epoch=3, num_particles=2, anneal_portion=0.2, rounds=4, enough_ess=0.5, **stages
    )
    script = iter([(-9.0, 0.1), (-8.0, 0.2), (-7.99, 0.6)] * 2)
    monkeypatch.setattr(rounds, "check", lambda log_weight: next(script))
    monkeypatch.setattr(rounds, "DRAWS", 1000)

    def go(one, stop=None):
        found = []
        while not one.finished and len(found) != stop:
            found.append(one.epoch())
        return found

    whole = training(objective, epochs=10)
    values = go(whole)
    assert len(values) == 8 and whole.step == 24 and len(whole.checks) == 3
    assert ["check/ess" in value for value in values] == [False] * 3 + [True, False] * 2 + [True]
    by_epoch = [value["learning_rate_branch"] for value in values]
    assert by_epoch[2:4] == pytest.approx(by_epoch[4:6]) and by_epoch[2:4] == pytest.approx(by_epoch[6:8])
    assert by_epoch[2] > 1.5 * by_epoch[3] > 0
    assert all(value["beta"] == 1 for value in values[2:])
    first, second = training(objective, epochs=10), training(objective, epochs=10)
    head = go(first, stop=5)
    second.load_state(first.state())
    assert head + go(second) == values and same_tensors(whole.member.state_dict(), second.member.state_dict())


def test_one_round_is_not_checked():
    one = training(Objective(steps_per_epoch=2), epochs=1)
    assert "check/ess" not in one.epoch() and one.finished and one.checks == []


def test_a_non_finite_step_changes_nothing_and_many_end_the_training(monkeypatch):
    one = training(Objective(steps_per_epoch=5, max_skipped_steps=2))
    one.iteration()
    before = {name: value.clone() for name, value in one.member.state_dict().items()}
    monkeypatch.setattr(one.target, "log_branch_prior", lambda x: (x * math.nan).sum(-1))
    assert math.isnan(one.iteration()) and one.skipped == 1
    assert same_tensors(before, one.member.state_dict())
    with pytest.raises(TrainingDivergedError, match="3 steps in a row"):
        one.epoch()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_particles", 1, "a whole number of at least 2, got 1"),
        ("learning_rate_tree", 0.0, "a positive number, got 0.0"),
        ("anneal_portion", 1.5, "a non-negative number up to 1, got 1.5"),
        ("decay", math.nan, "got nan"),
        ("max_skipped_steps", True, "got True"),
        ("rounds", 0, "a whole number of at least 1, got 0"),
        ("enough_ess", 6, "a positive number up to 1, got 6"),
        ("least_gain", -1.0, "a non-negative number, got -1.0"),
        ("dreg", 1, "true or false, got 1"),
        ("second_stage_tree", (0.01,), "null or two positive numbers"),
        ("second_stage_branch", (0.01, 0), "null or two positive numbers"),
    ],
)
def test_bad_objectives(key, value, message):
    with pytest.raises(
        InputError, match=f"model.objective.{key} must be {message}" if "must" in message else message
    ):
        Objective(**{key: value})


def test_a_run_and_its_folder(tmp_path):
    summary = run(configure(tmp_path / "a"))
    assert summary["protocol"]["dataset"] == "simulated" and summary["protocol"]["num_data"] == 3
    assert math.isfinite(summary["headline"]["miselbo"])
    assert summary["protocol"]["dtype"] == "float64"
    assert summary["protocol"]["substitution_model"].startswith(
        "JC69, iid exponential branch lengths of rate 10"
    )
    page = (tmp_path / "a" / "report.html").read_text()
    assert "Nothing of the target is trained." in page and "decoder" not in page
    again = from_folder("evaluate", tmp_path / "a", "evaluation.num_samples=30")
    assert again["headline"]["L"] == 30
    assert (tmp_path / "a" / "report.html").is_file()
    content = checkpoints.read(checkpoints.member_path(tmp_path / "a", 2), "member")
    assert (content["stage"], content["steps"], content["decoder_passes"]) == ("train q2", 60, 600)


def test_members_do_not_depend_on_the_ensemble_and_a_killed_run_goes_on(tmp_path, monkeypatch):
    run(configure(tmp_path / "whole", "report=false"))
    run(configure(tmp_path / "one", "report=false", "ensemble.size=1"))
    assert same_tensors(state(tmp_path / "whole", "q1"), state(tmp_path / "one", "q1"))
    cut = configure(tmp_path / "cut", "report=false", "ensemble.resume_interval=0")
    epoch, calls = Training.epoch, []

    def dies(self):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return epoch(self)

    monkeypatch.setattr(Training, "epoch", dies)
    with pytest.raises(KeyboardInterrupt):
        run(cut)
    monkeypatch.setattr(Training, "epoch", epoch)
    path = checkpoints.resume_path(tmp_path / "cut", 2)
    kept = torch.load(path, weights_only=True)
    for spoilt in (
        kept | {"seed": 1},
        kept | {"generator": 1},
        kept | {"member": {"a": kept["generator"]}},
        7,
    ):
        torch.save(spoilt, path)
        with pytest.raises(InputError, match="q2.resume.ckpt is no resume point of this"):
            run(cut)
    torch.save(kept, path)
    run(cut)
    for name in ("q1", "q2"):
        assert same_tensors(state(tmp_path / "whole", name), state(tmp_path / "cut", name))
    assert not checkpoints.resume_path(tmp_path / "cut", 2).exists()


def test_flows_train(tmp_path):
    for model in ("vbpi_planar", "vbpi_realnvp"):
        cfg = compose_config([*QUICK, f"model={model}", f"run_dir={tmp_path / model}", "report=false"])
        assert math.isfinite(run(cfg)["headline"]["miselbo"])


def test_the_papers_schedule():
    cfg = compose_config(["model=vbpi_paper", "run_dir=any"])
    objective = Objective(**cfg.model.objective)
    total = cfg.trainer.max_epochs * objective.steps_per_epoch
    assert total == 400_000 and objective.num_particles == 10
    assert objective.beta(0, total) == 1e-3 and objective.beta(50_000, total) == pytest.approx(0.501)
    assert objective.beta(100_000, total) == 1
    assert [objective.rate(step, total) for step in (19_999, 20_000, 40_000)] == [1, 0.75, 0.75**2]
    assert (
        not objective.dreg and objective.rates(150_000, total) == (objective.rate(150_000, total) * 1e-3,) * 2
    )
    assert cfg.model.approximation.largest_scale is None
    assert (
        cfg.model.approximation.start == pytest.approx(math.exp(-2))
        and objective.learning_rate_branch == 1e-3
    )
