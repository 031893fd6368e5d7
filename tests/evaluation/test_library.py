"""evaluate, evaluate_scores, Result: any callables, the plain formula, whatever the cut."""

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from small import images, vae_ensemble
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from miselbo import InputError, Result, evaluate, evaluate_scores


def stranger(size=4):
    """Encoders and a decoder of somebody else: plain torch modules."""
    torch.manual_seed(0)
    encoders = [torch.nn.Linear(6, 4) for _ in range(size)]
    decoder = torch.nn.Linear(2, 6)

    def log_joint(x, z):
        return Normal(0.0, 1.0).log_prob(z).sum(-1) + Normal(decoder(z), 0.5).log_prob(x).sum(-1)

    def member(net):
        return lambda x: Independent(Normal(net(x)[:, :2], 0.1 + net(x)[:, 2:].exp()), 1)

    return log_joint, [member(net) for net in encoders], torch.randn(7, 6)


def plain(log_p, log_q):
    """The bounds by their formulas in numpy, means over the examples."""
    own = np.stack([log_q[:, s, :, s] for s in range(log_q.shape[1])], 1)
    mixture = np.log(np.exp(log_q).mean(-1))
    draws = log_p.shape[2]

    def mean_exp(a, axis):
        top = a.max(axis, keepdims=True)
        return (np.log(np.exp(a - top).mean(axis, keepdims=True)) + top).squeeze(axis)

    return {
        "miselbo": mean_exp(log_p - mixture, 2).mean(),
        "average_iwelbo": mean_exp(log_p - own, 2).mean(),
        "joint_bound": mean_exp((log_p - mixture).reshape(len(log_p), -1), 1).mean(),
        "jsd": (own - mixture).mean(),
        "average_elbo": (log_p - own).sum((1, 2)).mean() / (draws * log_p.shape[1]),
    }


def test_callables_give_what_numpy_gives_from_their_scores(tmp_path):
    from miselbo import Ensemble
    from miselbo.models.conditional import adopt

    log_joint, members, x = stranger()
    result = evaluate(log_joint, members, x, 30, seed=3)
    with torch.no_grad():
        scores = Ensemble(*adopt(log_joint, members, True)).score(x, 30, seed=3)
    expected = plain(*(part.double().numpy() for part in scores))
    row = result.bounds.query("S == 4 and L == 30").iloc[0]
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, abs=1e-6), name
    again = evaluate_scores(*scores)
    pd.testing.assert_series_equal(
        again.bounds.iloc[-1][list(expected)], row[list(expected)], rtol=1e-9, check_names=False
    )


@pytest.mark.parametrize("batch_size, samples_per_pass", [(1, 1), (3, 7), (100, 30)])
def test_values_do_not_depend_on_the_cut(batch_size, samples_per_pass):
    log_joint, members, x = stranger(2)
    whole = evaluate(log_joint, members, x, 30)
    cut = evaluate(log_joint, members, x, 30, batch_size=batch_size, samples_per_pass=samples_per_pass)
    names = ["miselbo", "joint_bound", "delta"]
    np.testing.assert_allclose(cut.examples[names], whole.examples[names], atol=2e-5)


def test_members_without_a_transform_of_normal_noise_are_drawn_example_by_example():
    def member(x):
        mixture = Categorical(torch.ones(len(x), 2))
        parts = Independent(Normal(torch.stack([x - 1, x + 1], 1)[..., None], 1.0), 1)
        return MixtureSameFamily(mixture, parts)

    def log_joint(x, z):  # the posterior is the member, log p(x) = 2
        return member(x).log_prob(z) + 2.0

    x = torch.linspace(-2, 2, 5)
    whole = evaluate(log_joint, [member, member], x, 10)
    assert np.allclose(whole.examples["joint_bound"], 2.0, atol=1e-5)
    shifted = [lambda x: Independent(Normal(x[:, None] * 2, 2.0), 1), member]
    one, other = (evaluate(log_joint, shifted, x, 10, batch_size=b).examples["miselbo"] for b in (2, 5))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_density_takes_distributions_and_functions_of_one_or_two_arguments():
    members = [Independent(Normal(torch.zeros(2) + shift, 1.0), 1) for shift in (-0.3, 0.3)]
    log_z = math.log(2 * math.pi)
    two = evaluate(lambda x, z: -0.5 * z.square().sum(-1), members, None, 400)
    one = evaluate(lambda z: -0.5 * z.square().sum(-1), [lambda x, m=m: m for m in members], None, 400)
    assert two.bounds.equals(one.bounds.assign(seconds=two.bounds["seconds"]))
    assert two.summary["headline"]["joint_bound"] == pytest.approx(log_z, abs=0.05)


def test_own_targets_are_scored_in_their_faster_form_unless_told_otherwise():
    ensemble = vae_ensemble(2, torch.float32)
    x = images(3, dtype=torch.float32)
    fast = evaluate(ensemble.target, list(ensemble.members), x, 5)
    plainly = evaluate(ensemble.target, list(ensemble.members), x, 5, exact_modules=True)
    np.testing.assert_allclose(fast.bounds["miselbo"], plainly.bounds["miselbo"], atol=1e-4)


def test_result_keeps_its_tables_reports_and_goes_on(tmp_path):
    log_joint, members, x = stranger(2)
    result = evaluate(log_joint, members, x, 8)
    page = result.report(tmp_path / "mine")
    assert page.name == "report.html" and page.is_file()
    read = Result.read(tmp_path / "mine")
    for name, table in result.tables.items():
        pd.testing.assert_frame_equal(read.tables[name], table)
    assert read.trust == result.trust and r"\bottomrule" in read.to_latex()
    kept = evaluate(log_joint, members, x, 8, folder=tmp_path / "kept")
    shards = sorted((tmp_path / "kept" / "results" / "shards").rglob("*.npz"))
    before = [path.stat().st_mtime_ns for path in shards]
    again = evaluate(log_joint, members, x, 8, folder=tmp_path / "kept")
    assert [path.stat().st_mtime_ns for path in shards] == before and shards
    assert again.bounds.equals(kept.bounds)


def test_weights_of_the_mixture():
    generator = np.random.default_rng(0)
    log_p, log_q = generator.normal(size=(5, 2, 10)), generator.normal(size=(5, 2, 10, 2))
    equal = evaluate_scores(log_p, log_q, weights=[0.5, 0.5])
    for name in ("miselbo", "joint_bound", "delta", "jsd"):
        assert equal.summary["weighted"][name] == pytest.approx(equal.bounds.iloc[-1][name], abs=1e-9)
    alone = evaluate_scores(log_p, log_q, weights=[1.0, 0.0]).summary["weighted"]
    assert alone["miselbo"] == pytest.approx(
        equal.bounds.query("S == 1 and L == 10")["miselbo"].item(), abs=1e-9
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"x": torch.zeros(0, 6)}, "at least one example"),
        ({"num_samples": 0}, "num_samples must be a whole number"),
        ({"target": 3}, "a target is a Target or a callable"),
        ({"target": lambda x, z: z}, "one number per sample and example"),
        ({"members": [lambda x: x]}, "expected a torch.distributions.Distribution"),
        ({"members": [lambda x: Normal(x, 1.0)]}, "put the latent axes into the event"),
        ({"members": [Normal(0.0, 1.0)]}, "with x=None distributions themselves are members"),
        ({"members": []}, "at least one member"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    log_joint, members, x = stranger(2)
    given = {"target": log_joint, "members": members, "x": x, "num_samples": 4} | change
    with pytest.raises(InputError, match=words):
        evaluate(**given)


def test_the_face_is_light_and_names_everything():
    code = (
        "import sys, miselbo; from miselbo import Ensemble; "
        "slow = {'pytorch_lightning', 'matplotlib', 'scipy', 'pandas', 'hydra'} & set(sys.modules); "
        "assert not slow, slow; assert all(hasattr(miselbo, name) for name in dir(miselbo))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_certificate_is_that_of_the_joint_bound_and_of_the_best_member():
    generator = np.random.default_rng(0)
    log_p, log_q = generator.normal(size=(5, 2, 10)), np.zeros((5, 2, 10, 2))
    log_p[:, 0] += 1
    result = evaluate_scores(log_p, log_q, confidence=0.8)
    found, head = result.summary["certificate"], result.summary["headline"]
    assert (found["confidence"], found["num_data"], found["member"]) == (0.8, 5, 1)
    assert found["joint_bound"] == pytest.approx(head["joint_bound"] - math.log(5) / 5)
    best = result.members[result.members["L"] == 10]["iwelbo"].max()
    assert found["best_member"] == pytest.approx(best - math.log(2 * 5) / 5)
    assert f">= {found['joint_bound']:.4f} with probability 80%" in found["sentence"]
    log_p[0] = -np.inf
    broken = evaluate_scores(log_p, log_q).summary["certificate"]
    assert (
        broken["joint_bound"] is None and broken["best_member"] is None and "not finite" in broken["sentence"]
    )
    with pytest.raises(InputError, match="confidence"):
        evaluate_scores(log_p, log_q, confidence=95)
