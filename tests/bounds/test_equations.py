"""The bounds: against a plain-loop reference, exact models, the paper's anchors, and their algebra."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from miselbo import bounds
from miselbo.errors import InputError

INF = math.inf
MEMBERWISE = ["iwelbo", "elbo"]
WITH_WEIGHTS = ["average_iwelbo", "average_elbo", "miselbo", "joint_bound"]
LEVELS = [*MEMBERWISE, *WITH_WEIGHTS]  # these move with log_p
WITH_WEIGHTS += ["delta", "slack", "responsibilities"]
BOUNDS = [*MEMBERWISE, *WITH_WEIGHTS]


def scores(*lead: int, members: int, samples: int, seed: int = 0, spread: float = 2.0):
    normal = Normal(torch.zeros((), dtype=torch.float64), spread)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shape = (*lead, members, samples)
        return normal.sample(shape) - 5, normal.sample((*shape, members))


def random_weights(members: int, seed: int) -> torch.Tensor:
    return torch.rand(members, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(0)


def draw(log_target, members, samples: int, runs: int = 1):
    """Scores [runs, S, L] and [runs, S, L, S] of the members' own samples."""
    z = [q.sample((runs, samples)) for q in members]
    log_p = torch.stack([log_target(value) for value in z], 1)
    log_q = torch.stack([torch.stack([q.log_prob(value) for q in members], -1) for value in z], 1)
    return log_p, log_q


# A reference in plain loops ---------------------------------------------------------------------------------


def reference(log_p, log_q, weights):
    """Every quantity of one example from its formula, exponentials and logarithms of Python floats."""
    p, q, w = log_p.exp().tolist(), log_q.exp().tolist(), weights.tolist()
    members, samples = range(len(p)), range(len(p[0]))
    mix = [[sum(w[j] * q[s][i][j] for j in members) for i in samples] for s in members]
    own_mean = [sum(p[s][i] / q[s][i][s] for i in samples) / len(samples) for s in members]
    mix_mean = [sum(p[s][i] / mix[s][i] for i in samples) / len(samples) for s in members]
    total = sum(w[s] * p[s][i] / mix[s][i] for s in members for i in samples)
    draws = [(s, i) for s in members for i in samples]
    r = [sum(w[s] * p[s][i] / total * w[j] * q[s][i][j] / mix[s][i] ** 2 for s, i in draws) for j in members]
    out = {
        "iwelbo": [math.log(m) for m in own_mean],
        "elbo": [sum(math.log(p[s][i] / q[s][i][s]) for i in samples) / len(samples) for s in members],
        "miselbo": sum(w[s] * math.log(mix_mean[s]) for s in members),
        "joint_bound": math.log(sum(w[s] * mix_mean[s] for s in members)),
        "jsd": sum(w[s] * math.log(q[s][i][s] / mix[s][i]) / len(samples) for s in members for i in samples),
        "responsibilities": r,
        "slack": sum(w[s] * math.log(w[s] / r[s]) for s in members),
    }
    out["average_iwelbo"] = sum(w[s] * out["iwelbo"][s] for s in members)
    out["average_elbo"] = sum(w[s] * out["elbo"][s] for s in members)
    out["delta"] = out["miselbo"] - out["average_iwelbo"]
    return out


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_agrees_with_plain_loops(seed, members, samples, uniform):
    log_p, log_q = scores(2, 3, members=members, samples=samples, seed=seed)
    weights = log_p.new_full((members,), 1 / members) if uniform else random_weights(members, seed)
    given_weights = None if uniform else weights
    values = {name: getattr(bounds, name)(log_p, log_q) for name in MEMBERWISE}
    values |= {name: getattr(bounds, name)(log_p, log_q, given_weights) for name in WITH_WEIGHTS}
    values["jsd"] = bounds.jsd(log_q, given_weights)
    for i in range(2):
        for k in range(3):
            for name, expected in reference(log_p[i, k], log_q[i, k], weights).items():
                assert values[name][i, k].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9), name


def test_pairwise_jsd_is_the_jsd_of_each_pair():
    _, log_q = scores(2, members=4, samples=6)
    pairs = bounds.pairwise_jsd(log_q)
    assert pairs.shape == (2, 4, 4)
    assert (pairs.diagonal(dim1=-2, dim2=-1) == 0).all()
    for i in range(4):
        for j in range(4):
            if i != j:
                pair = torch.tensor([i, j])
                torch.testing.assert_close(pairs[:, i, j], bounds.jsd(log_q[:, pair][..., pair]))


# Exact models -----------------------------------------------------------------------------------------------


def linear_gaussian():
    """z ~ N(0, I_2), x | z ~ N(W z + b, s^2 I_3): log p(x) and p(z | x) in closed form."""
    mapping = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.4, -1.0]], dtype=torch.float64)
    bias, noise = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64), 0.7
    x = torch.tensor([0.9, -0.5, 1.2], dtype=torch.float64)
    eye2, eye3 = torch.eye(2).double(), torch.eye(3).double()
    evidence = MultivariateNormal(bias, mapping @ mapping.mT + noise**2 * eye3).log_prob(x)
    covariance = torch.linalg.inv(eye2 + mapping.mT @ mapping / noise**2)
    mean = covariance @ mapping.mT @ (x - bias) / noise**2
    prior = Independent(Normal(torch.zeros(2).double(), 1.0), 1)

    def log_joint(z):
        return prior.log_prob(z) + Independent(Normal(z @ mapping.mT + bias, noise), 1).log_prob(x)

    return log_joint, evidence.item(), MultivariateNormal(mean, covariance)


def gaussian_members(posterior, offsets, scale=1.0):
    """Diagonal Gaussians beside the posterior's mean, ``scale`` times its marginal deviations wide."""
    deviation = scale * posterior.covariance_matrix.diagonal().sqrt()
    return [Independent(Normal(posterior.mean + torch.tensor(o).double(), deviation), 1) for o in offsets]


def test_the_exact_posterior_gives_the_evidence_from_every_sample():
    log_joint, evidence, posterior = linear_gaussian()
    torch.manual_seed(0)
    log_p, log_q = draw(log_joint, [posterior, posterior], samples=3, runs=4)
    for name in LEVELS:
        values = getattr(bounds, name)(log_p, log_q)
        torch.testing.assert_close(values, torch.full_like(values, evidence))


def test_bounds_lie_below_the_evidence_and_approach_it_as_predicted():
    log_joint, evidence, posterior = linear_gaussian()
    members = gaussian_members(posterior, [(-0.3, 0.2), (0.4, -0.1), (0.1, 0.3)], scale=1.3)
    torch.manual_seed(0)
    for samples in (1, 10, 100):
        log_p, log_q = draw(log_joint, members, samples, runs=100_000 // samples)
        for name in ("average_elbo", "average_iwelbo", "miselbo", "joint_bound"):
            values = getattr(bounds, name)(log_p, log_q)
            error = values.std() / math.sqrt(len(values))
            assert values.mean() - evidence < 4 * error, name
    # L = 100: the gap is half the relative variance of the mean weight (delta method); the mean weight, whose
    # expectation is exact, serves as control variate
    relative_variance = (log_p - bounds.own_density(log_q) - evidence).exp().var((0, 2)) / 100
    relative_mean = (bounds.iwelbo(log_p, log_q) - evidence).exp()
    gap = (evidence - bounds.iwelbo(log_p, log_q) + relative_mean - 1).mean(0)
    torch.testing.assert_close(gap, relative_variance / 2, rtol=0.15, atol=1e-5)
    # and MISELBO's gap is the slack, with r from exact posterior samples; members further off make it visible
    members = gaussian_members(posterior, [(0.0, 0.0), (0.8, -0.4), (0.6, 0.6)], scale=1.3)
    z = posterior.sample((200_000,))
    r = torch.stack([q.log_prob(z) for q in members], -1).softmax(-1).mean(0)
    slack = -(3 * r).log().mean()
    assert slack > 0.05
    log_p, log_q = draw(log_joint, members, 100_000, runs=1)
    assert bounds.miselbo(log_p, log_q).item() == pytest.approx(evidence - slack.item(), abs=5e-3)
    assert bounds.slack(log_p, log_q).item() == pytest.approx(slack.item(), abs=5e-3)
    torch.testing.assert_close(bounds.responsibilities(log_p, log_q)[0], r, atol=5e-3, rtol=0)
    assert bounds.joint_bound(log_p, log_q).item() == pytest.approx(evidence, abs=5e-3)
    assert bounds.average_iwelbo(log_p, log_q).item() == pytest.approx(evidence, abs=1e-2)


def test_delta_method_of_the_relative_variance_is_for_finite_variance_only():
    """The members above are wider than the posterior; without that the prediction would not hold."""
    _, _, posterior = linear_gaussian()
    deviation = 1.3 * posterior.covariance_matrix.diagonal().sqrt()
    # p^2/q is integrable iff 2 inv(posterior) - inv(q) is positive definite
    precision = 2 * torch.linalg.inv(posterior.covariance_matrix) - torch.diag(deviation**-2)
    assert torch.linalg.eigvalsh(precision).min() > 0


# Anchors ----------------------------------------------------------------------------------------------------


def mixture(weights, means, deviation):
    return MixtureSameFamily(
        Categorical(torch.tensor(weights).double()), Normal(torch.tensor(means).double(), deviation)
    )


def normals(means, deviation):
    return [Normal(torch.tensor(mean).double(), deviation) for mean in means]


@pytest.mark.parametrize("samples, miselbo, average", [(1, -0.549, -1.242), (1000, -0.5104, -1.178)])
def test_far_modes_with_unequal_mass(samples, miselbo, average):
    torch.manual_seed(0)
    target, members = mixture([0.9, 0.1], [-4.0, 4.0], 1.0), normals([-4.0, 4.0], 1.2)
    log_p, log_q = draw(target.log_prob, members, samples, runs=200_000 // samples)
    assert bounds.miselbo(log_p, log_q).mean().item() == pytest.approx(miselbo, abs=0.01)
    assert bounds.average_iwelbo(log_p, log_q).mean().item() == pytest.approx(average, abs=0.03)
    if samples == 1:
        assert bounds.delta(log_p, log_q).mean().item() == pytest.approx(0.691, abs=0.01)
        assert bounds.joint_bound(log_p, log_q).mean().item() == pytest.approx(-0.029, abs=0.01)
    else:  # KL((1/2, 1/2) || (0.9, 0.1)) up to the overlap of the members
        assert bounds.slack(log_p, log_q).mean().item() == pytest.approx(0.5108, abs=2e-3)
        assert bounds.joint_bound(log_p, log_q).mean().item() == pytest.approx(0.0, abs=2e-3)


@pytest.mark.parametrize(
    "samples, miselbo, average, joint, delta",
    [
        (1, -5.085, -5.161, -1.358, 0.0763),
        (10, -0.189, -0.188, -0.077, -0.0013),
        (1000, -0.0210, -0.0031, -0.0023, -0.018),
    ],
)
def test_wide_members_where_miselbo_falls_behind(samples, miselbo, average, joint, delta):
    torch.manual_seed(0)
    target, members = mixture([0.9, 0.1], [-1.5, 1.5], 0.5), normals([-1.0, 1.0], 2.5)
    runs = 100_000 if samples < 100 else 1000
    log_p, log_q = draw(target.log_prob, members, samples, runs)
    expected = {"miselbo": miselbo, "average_iwelbo": average, "joint_bound": joint, "delta": delta}
    for name, value in expected.items():
        values = getattr(bounds, name)(log_p, log_q)
        error = values.std().item() / math.sqrt(runs)
        assert values.mean().item() == pytest.approx(value, abs=4 * error + 1e-3), name
    if samples == 1000:
        assert bounds.slack(log_p, log_q).mean().item() == pytest.approx(0.0180, abs=1e-3)


JSD_OF_SHIFT = {1: 0.0303, 2: 0.1114, 3: 0.2212, 5: 0.4417, 8: 0.6327, 10: 0.6759, 15: 0.6929, 20: 0.6931}


@pytest.mark.parametrize("mean, expected", JSD_OF_SHIFT.items())
def test_jsd_of_two_normals(mean, expected):
    first, second = normals([float(mean), 0.0], 2.0)
    z = torch.linspace(-30, 50, 20_001, dtype=torch.float64)
    p, q = first.log_prob(z), second.log_prob(z)
    m = torch.logaddexp(p, q) - math.log(2)
    quadrature = 0.5 * torch.trapezoid(p.exp() * (p - m) + q.exp() * (q - m), z).item()
    assert quadrature == pytest.approx(expected, abs=1e-3)
    torch.manual_seed(mean)
    _, log_q = draw(first.log_prob, [first, second], samples=100_000)
    assert bounds.jsd(log_q).item() == pytest.approx(quadrature, abs=6e-3)
    assert bounds.pairwise_jsd(log_q)[0, 0, 1].item() == pytest.approx(quadrature, abs=6e-3)


BIMODAL_DELTA = {  # at L = 1, 10, 100, 1000
    5: (0.441, 0.298, 0.190, 0.151),
    10: (0.676, 0.624, 0.544, 0.452),
    15: (0.693, 0.691, 0.673, 0.614),
}


@pytest.mark.parametrize("mean", BIMODAL_DELTA)
def test_delta_shrinks_with_samples_on_the_bimodal_target(mean):
    target = MixtureSameFamily(
        Categorical(torch.tensor([0.5, 0.5]).double()),
        Normal(torch.tensor([0.0, 10.0]).double(), torch.tensor([2.0, 4.0]).double()),
    )
    torch.manual_seed(mean)
    for samples, expected in zip((1, 10, 100, 1000), BIMODAL_DELTA[mean], strict=True):
        runs = {1: 50_000, 10: 20_000, 100: 4000, 1000: 1000}[samples]
        log_p, log_q = draw(target.log_prob, normals([float(mean), 0.0], 2.0), samples, runs)
        values = bounds.delta(log_p, log_q)
        error = values.std().item() / math.sqrt(runs)  # the anchors' own standard error is up to 0.006
        assert values.mean().item() == pytest.approx(expected, abs=4 * error + 0.018)


# Algebra ----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 6), st.floats(0.1, 50.0))
def test_joint_bound_is_never_below_miselbo(seed, members, samples, spread):
    log_p, log_q = scores(3, members=members, samples=samples, seed=seed, spread=spread)
    weights = random_weights(members, seed)
    assert (bounds.joint_bound(log_p, log_q, weights) - bounds.miselbo(log_p, log_q, weights) >= -1e-9).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.floats(0.1, 50.0))
def test_delta_is_jsd_sample_by_sample_with_one_sample(seed, members, spread):
    log_p, log_q = scores(3, members=members, samples=1, seed=seed, spread=spread)
    weights = random_weights(members, seed)
    for w in (weights, None):
        torch.testing.assert_close(bounds.delta(log_p, log_q, w), bounds.jsd(log_q, w), atol=1e-9, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 6))
def test_permuting_members_with_their_weights_changes_nothing(seed, members, samples):
    log_p, log_q = scores(2, members=members, samples=samples, seed=seed)
    weights = random_weights(members, seed)
    order = torch.randperm(members, generator=torch.Generator().manual_seed(seed))
    moved = log_p[:, order], log_q[:, order][..., order], weights[order]
    for name in WITH_WEIGHTS:
        expected = getattr(bounds, name)(log_p, log_q, weights)
        expected = expected[..., order] if name == "responsibilities" else expected
        torch.testing.assert_close(getattr(bounds, name)(*moved), expected)
    torch.testing.assert_close(bounds.jsd(moved[1], moved[2]), bounds.jsd(log_q, weights))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 6))
def test_identical_members_score_as_one(seed, copies, samples):
    log_p, log_q = scores(2, members=1, samples=samples, seed=seed)
    many_p, many_q = log_p.expand(2, copies, samples), log_q.expand(2, copies, samples, copies)
    weights = random_weights(copies, seed)
    one = bounds.iwelbo(log_p, log_q)[:, 0]
    for name in ("miselbo", "joint_bound", "average_iwelbo"):
        torch.testing.assert_close(getattr(bounds, name)(log_p, log_q), one)  # S = 1
        torch.testing.assert_close(getattr(bounds, name)(many_p, many_q, weights), one)
    for value in (bounds.jsd(many_q, weights), bounds.delta(many_p, many_q), bounds.slack(many_p, many_q)):
        torch.testing.assert_close(value, torch.zeros(2).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(bounds.responsibilities(many_p, many_q, weights), weights.expand(2, -1))


@pytest.mark.parametrize("shift", [1e6, -1e6])
def test_a_shift_of_log_p_shifts_the_bounds_and_nothing_else(shift):
    log_p, log_q = scores(4, members=3, samples=5)
    for name in BOUNDS:
        before, after = (getattr(bounds, name)(value, log_q) for value in (log_p, log_p + shift))
        moved = shift if name in LEVELS else 0.0
        torch.testing.assert_close(after - moved, before, atol=2e-9, rtol=0)


def test_a_weight_of_zero_leaves_the_member_out():
    log_p, log_q = scores(2, members=3, samples=4)
    log_q[:, 1, :, 0] = log_q[:, 1, :, 2] = -INF  # where member 1 draws, the others have no density
    weights = torch.tensor([0.3, 0.0, 0.7], dtype=torch.float64)
    kept = torch.tensor([0, 2])
    rest = log_p[:, kept], log_q[:, kept][..., kept], weights[kept]
    for name in WITH_WEIGHTS:
        value = getattr(bounds, name)(log_p, log_q, weights)
        if name == "responsibilities":
            assert (value[:, 1] == 0).all()
            value = value[:, kept]
        torch.testing.assert_close(value, getattr(bounds, name)(*rest))
    torch.testing.assert_close(bounds.jsd(log_q, weights), bounds.jsd(rest[1], rest[2]))
    log_q.requires_grad_(True)
    bounds.miselbo(log_p, log_q, weights).sum().backward()
    assert log_q.grad.isfinite().all() and (log_q.grad[:, 1] == 0).all()


def test_leading_axes_and_sequence_weights():
    log_p, log_q = scores(2, 3, members=2, samples=4)
    for name in WITH_WEIGHTS:
        value = getattr(bounds, name)(log_p, log_q, [0.25, 0.75])
        assert value.shape == ((2, 3, 2) if name == "responsibilities" else (2, 3))
        torch.testing.assert_close(value[1, 2], getattr(bounds, name)(log_p[1, 2], log_q[1, 2], [0.25, 0.75]))
    assert bounds.iwelbo(log_p, log_q).shape == bounds.elbo(log_p, log_q).shape == (2, 3, 2)
    assert bounds.pairwise_jsd(log_q).shape == (2, 3, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_input_is_accumulated_in_float64(dtype):
    log_p, log_q = scores(2, members=3, samples=400)
    log_p, log_q = log_p.to(dtype), log_q.to(dtype)
    for name in BOUNDS:
        value = getattr(bounds, name)(log_p, log_q)
        assert value.dtype == torch.float64
        assert torch.equal(value, getattr(bounds, name)(log_p.double(), log_q.double()))
    assert bounds.jsd(log_q).dtype == bounds.pairwise_jsd(log_q).dtype == torch.float64


# Infinities, NaN, gradients ---------------------------------------------------------------------------------


def test_gradients():
    log_p, log_q = scores(2, members=3, samples=2)
    log_p.requires_grad_(True)
    log_q.requires_grad_(True)
    weights = random_weights(3, 0)
    for name in MEMBERWISE:
        assert torch.autograd.gradcheck(getattr(bounds, name), (log_p, log_q))
    for name in WITH_WEIGHTS:
        function = getattr(bounds, name)
        assert torch.autograd.gradcheck(lambda p, q, f=function: f(p, q, weights), (log_p, log_q)), name
    assert torch.autograd.gradcheck(lambda q: bounds.jsd(q, weights), (log_q,))
    assert torch.autograd.gradcheck(bounds.pairwise_jsd, (log_q,))


def test_zero_densities_give_no_nan():
    log_p, log_q = scores(members=3, samples=4)
    log_p[0, 1] = log_p[2, 3] = -INF
    log_q[0, 0, 1] = log_q[0, 1, 2] = log_q[2, 1, 0] = log_q[2, 1, 1] = -INF
    for name in BOUNDS:
        p, q = log_p.clone().requires_grad_(True), log_q.clone().requires_grad_(True)
        value = getattr(bounds, name)(p, q)
        assert not value.isnan().any(), name
        if name in ("elbo", "average_elbo"):
            assert (value == -INF).any()
        else:
            assert value.isfinite().all(), name
        value.sum().backward()
        assert p.grad.isfinite().all() and q.grad.isfinite().all(), name
    for function in (bounds.jsd, bounds.pairwise_jsd):
        q = log_q.clone().requires_grad_(True)
        value = function(q)
        assert value.isfinite().all()
        value.sum().backward()
        assert q.grad.isfinite().all()


def test_a_member_whose_samples_all_have_zero_density():
    log_p, log_q = scores(members=3, samples=4)
    log_p[1] = -INF
    for name in ("miselbo", "average_iwelbo", "joint_bound", "slack"):
        p, q = log_p.clone().requires_grad_(True), log_q.clone().requires_grad_(True)
        value = getattr(bounds, name)(p, q)
        assert value.isfinite() if name in ("joint_bound", "slack") else value.item() == -INF
        value.backward()
        assert p.grad.isfinite().all() and q.grad.isfinite().all(), name
    assert bounds.responsibilities(log_p, log_q).sum().item() == pytest.approx(1)
    assert bounds.delta(log_p, log_q).isnan()  # -inf minus -inf
    assert bounds.joint_bound(torch.full((3, 4), -INF), log_q).item() == -INF


def test_disjoint_supports():
    mass = torch.tensor([0.8, 0.2, 0.0], dtype=torch.float64)
    log_p = mass.log()[:, None]
    log_q = torch.full((3, 1, 3), -INF, dtype=torch.float64)
    log_q[:, 0] = torch.full((3, 3), -INF).fill_diagonal_(0.0)
    assert bounds.jsd(log_q).item() == pytest.approx(math.log(3))
    torch.testing.assert_close(bounds.responsibilities(log_p, log_q), mass)
    assert bounds.slack(log_p, log_q).item() == INF  # member 3 covers none of p
    assert bounds.joint_bound(log_p, log_q).item() == pytest.approx(0, abs=1e-12)
    pairs = bounds.pairwise_jsd(log_q)
    torch.testing.assert_close(pairs, math.log(2) * (1 - torch.eye(3)).double())


def test_nan_propagates_to_its_own_example_alone():
    log_p, log_q = scores(3, members=2, samples=4)
    log_p[0, 1, 2] = math.nan
    log_q[1, 0, 3, 1] = math.nan
    for name in ("miselbo", "joint_bound", "slack", "delta"):
        assert getattr(bounds, name)(log_p, log_q).isnan().tolist() == [True, True, False], name
    assert bounds.average_iwelbo(log_p, log_q).isnan().tolist() == [True, False, False]
    assert bounds.jsd(log_q).isnan().tolist() == [False, True, False]
    assert bounds.pairwise_jsd(log_q).isnan().any((1, 2)).tolist() == [False, True, False]


@pytest.mark.parametrize("size", [1e4, 1e6])
def test_weights_beyond_the_range_of_the_exponential(size):
    log_p, log_q = scores(2, members=3, samples=4)
    for name in BOUNDS:
        assert getattr(bounds, name)(size * log_p, size * log_q).isfinite().all(), name
    assert bounds.pairwise_jsd(size * log_q).isfinite().all()


# Errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "log_p, log_q, message",
    [
        (torch.zeros(2, 3).long(), torch.zeros(2, 3, 2), "log_p must be floating-point .* torch.int64"),
        (torch.zeros(2, 3), torch.zeros(2, 3, 2, dtype=torch.int32), "log_q must be floating-point"),
        (torch.zeros(2, 3), torch.zeros(2, 3, 2, dtype=torch.complex64), "log_q must be floating-point"),
        (torch.zeros(3), torch.zeros(2, 3, 2), r"log_p must be \[..., S, L\], at least 2 axes"),
        (torch.zeros(2, 3), torch.zeros(3, 2), r"log_q must be \[..., S, L, S\], at least 3 axes"),
        (torch.zeros(4, 2, 3), torch.zeros(2, 3, 2), "one axis more than log_p"),
        (torch.zeros(2, 5), torch.zeros(2, 3, 2), r"axis L \(samples\): 5 in log_p .*, 3 in log_q"),
        (torch.zeros(4, 3), torch.zeros(2, 3, 2), r"axis S \(members\): 4 in log_p"),
        (torch.zeros(7, 2, 3), torch.zeros(6, 2, 3, 2), r"axis 0 \(leading\): 7 in log_p"),
        (torch.zeros(2, 3), torch.zeros(2, 3, 4), "S = 2 on the third axis .* last axis has 4"),
        (torch.zeros(2, 0), torch.zeros(2, 0, 2), "L >= 1, got S = 2, L = 0"),
        (torch.zeros(0, 3), torch.zeros(0, 3, 0), "got S = 0"),
    ],
)
def test_arrays_that_do_not_fit(log_p, log_q, message):
    for name in BOUNDS:
        with pytest.raises(InputError, match=message):
            getattr(bounds, name)(log_p, log_q)


@pytest.mark.parametrize("function", [bounds.jsd, bounds.pairwise_jsd])
def test_densities_that_do_not_fit(function):
    with pytest.raises(InputError, match="last axis has 4"):
        function(torch.zeros(2, 3, 4))
    with pytest.raises(InputError, match="floating-point"):
        function(torch.zeros(2, 3, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    "weights, message",
    [
        ([0.5, 0.6], "must sum to 1 within 1e-06, got 1.1"),
        ([0.5, 0.5 + 2e-6], "must sum to 1"),
        ([-0.5, 1.5], "must not be negative"),
        ([math.nan, 1.0], "must sum to 1"),
        ([1.0], r"must be \[S\] = \[2\]"),
        ([[0.5, 0.5]], r"must be \[S\] = \[2\]"),
    ],
)
def test_weights_that_do_not_fit(weights, message):
    log_p, log_q = scores(members=2, samples=3)
    for name in WITH_WEIGHTS:
        with pytest.raises(InputError, match=message):
            getattr(bounds, name)(log_p, log_q, torch.tensor(weights))
    with pytest.raises(InputError, match=message):
        bounds.jsd(log_q, torch.tensor(weights, dtype=torch.float64))
