"""Each verdict speaks where it must and only there, through the scores of simulated members."""

import math

import numpy as np
import pytest
import torch

from miselbo import bounds, evaluate_scores
from miselbo.data.density import DensityData
from miselbo.evaluation import tables, trust, verdicts
from miselbo.evaluation.evidence import Evidence, heavy
from miselbo.evaluation.scoring import accumulators
from miselbo.evaluation.settings import Settings
from miselbo.importers.arrays import WORDS
from miselbo.phylo.data import AlignmentData
from miselbo.runtime.words import reword

Normal, StudentT = torch.distributions.Normal, torch.distributions.StudentT
NOTHING = "No warning"


def normals(means, sds):
    one = torch.ones((), dtype=torch.float64)
    return [Normal(mean * one, sd * one) for mean, sd in zip(means, sds, strict=True)]


def scores(means=(-1.2, 1.2), sds=(1.0, 1.0), count=50, samples=200, members=None, target=None, seed=1):
    """Scores of members under the posterior N(0, 1), or another target."""
    target = target or normals((0.0,), (1.0,))[0]
    members = members or normals(means, sds)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        z = torch.stack([q.sample((count, samples)) for q in members], 1)
    return target.log_prob(z), torch.stack([q.log_prob(z) for q in members], -1)


def good():
    return scores(count=200, samples=20)


def zero_mass():
    log_p, log_q = scores()
    log_p[7] = -math.inf
    return log_p, log_q


def zero_mass_of_one_member():
    log_p, log_q = scores()
    log_p[[3, 11], 1] = -math.inf
    return log_p, log_q


def zero_at_some_draws():
    log_p, log_q = scores()
    log_p[9, 0, :5] = -math.inf
    return log_p, log_q


def narrow_member():
    """q2 is far too narrow: its own weights have no variance, the mixture covers the posterior."""
    return scores((0.0, 0.0), (1.1, 0.4), samples=1000)


def heavy_pooled():
    return scores((-0.5, 0.5), (0.35, 0.35), samples=500)


def swapped_posteriors():
    """Member s holds the examples of parity s, so on average both hold one half."""
    one = torch.ones((), dtype=torch.float64)
    first, second = (scores((-2.0, 2.0), target=Normal(mean * one, one)) for mean in (-2.0, 2.0))
    return tuple(torch.cat([a[:25], b[25:]]) for a, b in zip(first, second, strict=True))


def left_tail():
    """In one draw of 200 the posterior density is nearly zero."""
    log_p, log_q = scores()
    log_p[:, :, ::150] -= 400.0
    return log_p, log_q


def student_member():
    """A member with tails so heavy that its ELBO barely exists; its weights are bounded."""
    one = torch.ones((), dtype=torch.float64)
    return scores(members=[StudentT(2 * one)])


def wide_member():
    return scores((0.0,), (1.4,))


def axes_swapped():
    """log_q as [N, j, L, s] of members that differ in width."""
    log_p, log_q = scores((0.0, 0.3), (1.0, 0.5))
    return log_p, log_q.transpose(1, 3).contiguous()


def scaled(nats, **options):
    """The density of q2 without its normaliser."""

    def make():
        log_p, log_q = scores(**options)
        log_q[..., 1] += nats
        return log_p, log_q

    return make


def another_x():
    """q2's density at another x than that at which it drew."""
    log_p, log_q = scores((0.0, 0.0), (1.2, 1.2))
    z_under_other = scores((0.0, 0.8), (1.2, 1.2))
    return log_p, torch.stack([log_q[..., 0], z_under_other[1][..., 1]], -1)


def terrible_examples():
    log_p, log_q = scores((-0.1, 0.1), (1.1, 1.1))
    with torch.random.fork_rng():
        torch.manual_seed(2)
        log_p[[4, 17]] += 8 * torch.randn(2, 2, 200, dtype=torch.float64)
    return log_p, log_q


def exact(size, samples, level=-80.0):
    def make():
        one = torch.zeros((), dtype=torch.float64)
        log_p, log_q = scores(members=[Normal(one, one + 1)] * size, samples=samples)
        return log_p + level, log_q

    return make


def identical():
    one = torch.ones((), dtype=torch.float64)
    return scores(members=[Normal(0.3 * one, 1.2 * one)] * 3)


def tiny(samples, size=2):
    return lambda: scores((-1.2, 1.2, 0.0)[:size], (1.0,) * size, 200, samples)


def rare(samples):
    """Light weights: log-normal with log-sd 1, of one member."""

    def make():
        with torch.random.fork_rng():
            torch.manual_seed(3)
            log_p = torch.randn(50, 1, samples, dtype=torch.float64)
        return log_p, torch.zeros(50, 1, samples, 1, dtype=torch.float64)

    return make


CASES = [  # scores, words that must be said, words that must not be
    (good, [NOTHING], []),
    (zero_mass, ["index 7 (1 of 50)", "other 49 examples the mean MISELBO is 0.00"], [NOTHING]),
    (zero_mass_of_one_member, ["index 3, 11 (2 of 50)", "draws of q2", "other 48"], [NOTHING, "index 7"]),
    (zero_at_some_draws, ["ELBO of -inf: example index 9 (1 of 50)"], [NOTHING, "Non-finite bound"]),
    (narrow_member, ["Heavy tail of a single member: q2"], [NOTHING, "Heavy tails", "q1 ("]),
    (heavy_pooled, ["Heavy tails: "], [NOTHING, "single member"]),
    (swapped_posteriors, ["Large slack", "joint bound has no slack"], [NOTHING, "dominates"]),
    (left_tail, ["Long left tail of the ELBO"], [NOTHING, "Heavy"]),
    (student_member, ["Long left tail of the ELBO"], [NOTHING, "Heavy"]),
    (wide_member, [NOTHING], []),
    (axes_swapped, ["log_q cannot be"], [NOTHING, "collapsed"]),
    (scaled(3.0), ["Impossible densities"], [NOTHING]),
    (scaled(0.2), ["Impossible densities"], [NOTHING]),
    (scaled(-0.2), ["Impossible densities"], [NOTHING]),
    (scaled(2.0, count=400, samples=1), ["Impossible densities"], [NOTHING]),
    (another_x, ["log_q cannot be"], [NOTHING]),
    (terrible_examples, ["hold most of the Monte Carlo variance: index 4, 17 (2 of 50)"], [NOTHING]),
    (exact(1, 5), [NOTHING], ["rests on a few", "raise"]),
    (exact(1, 200), [NOTHING], ["Heavy", "variance"]),
    (exact(3, 5), [NOTHING], ["sign is open", "collapsed", "rests on a few"]),
    (exact(3, 200), [NOTHING], ["sign is open", "Impossible", "collapsed", "differ"]),
    (identical, ["collapsed"], [NOTHING, "sign is open", "Impossible", "Heavy", "slack"]),
    (tiny(1), [NOTHING, "k-hat needs 25"], ["samples enough"]),
    (tiny(1, 3), [NOTHING], []),
    (tiny(2), [], ["Impossible", "slack", "left tail", "hold most", "Heavy"]),
    (tiny(5), [NOTHING], []),
    (tiny(12), [NOTHING], []),
    (tiny(30), [NOTHING], []),
    (rare(5), [], ["Heavy", "left tail", "hold most"]),
    (rare(30), [], ["Heavy", "left tail", "hold most"]),
    (rare(100), [NOTHING], []),
    (rare(400), [NOTHING], []),
    (lambda: scores((-4.0, 4.0), (1.2, 1.2)), ["hardly overlap", "log S = 0.693"], ["Impossible", "slack"]),
    (lambda: scores((0.0, 3.6), (1.2, 1.0)), ["One member dominates: q1 holds 9"], ["Large slack", NOTHING]),
    (lambda: scores((0.0, 0.15), (1.2, 1.2), samples=8, count=2), ["even its sign is open"], [NOTHING]),
    (lambda: scores((-2.2, 2.2), (1.0, 1.0), samples=4), ["rests on a few"], [NOTHING]),
]  # fmt: skip


@pytest.mark.parametrize(("make", "must", "must_not"), CASES)
def test_verdicts(make, must, must_not):
    said = " ".join(trust.trust(*judged(*make()))["sentences"])
    assert all(word in said for word in must) and not any(word in said for word in must_not), said


@pytest.mark.parametrize("make", [zero_mass, heavy_pooled, tiny(4), axes_swapped])
def test_of_given_scores_the_same_is_said_without_keys_of_a_run(make):
    said = evaluate_scores(*make()).trust
    assert said == [reword(line, WORDS) for line in trust.trust(*judged(*make()))["sentences"]]
    assert "evaluation." not in " ".join(said)


def test_replicates_are_asked_for_by_their_own_key():
    said = " ".join(trust.trust(*judged(*scores((0.0, 0.15), (1.2, 1.2), 2, 8)))["sentences"])
    assert "evaluation.num_examples" in said
    for data in (DensityData, AlignmentData):
        reworded = reword(said, data.words)
        assert "dataset.replicates" in reworded and "num_examples" not in reworded


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("samples", [1, 3, 10, 100])
def test_honest_scores_break_no_identity(seed, samples):
    """Narrow, wide and far members, few draws and few examples: what is rare is not impossible."""
    means, sds = (0.0, 0.1, 2.0, -6.0), (1.0, 0.05, 3.0, 0.5)
    for count in (1, 3, 40):
        said = " ".join(trust.trust(*judged(*scores(means, sds, count, samples, seed=seed)))["sentences"])
        assert "Impossible" not in said, said


@pytest.mark.parametrize("name", ["miselbo", "joint_bound", "average_iwelbo", "average_elbo"])
@pytest.mark.parametrize("value", [-math.inf, math.nan, None])
def test_no_headline_that_is_not_finite_stands_beside_no_warning(name, value):
    values, headline = judged(*good())
    assert NOTHING in trust.trust(values, headline)["sentences"][0]
    assert NOTHING not in " ".join(trust.trust(values, headline | {name: value})["sentences"])


def judged(log_p, log_q):
    """Values and headline of scores that an import refuses (NaN), as a network may give them."""
    samples = log_p.shape[2]
    settings = Settings("test", samples, (samples,), 100, samples, None, 0)
    running = accumulators(log_p.shape[1], settings)
    for sums in running:
        sums.update(log_p, log_q)
    values = {name: value.numpy() for sums in running for name, value in sums.result().items()}
    values |= {"index": np.arange(len(log_p))}
    return values, tables.bounds_table(values, (samples,), 1.0).iloc[-1].to_dict()


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([(2, math.nan), (5, math.inf)], ["Non-finite weights: 2 examples", "index 2, 5)"]),
        ([(slice(None), math.nan)], ["Non-finite weights: 200 examples", ", 19, ...)"]),
    ],
)
def test_broken_weights_are_named(places, words):
    log_p, log_q = good()
    for place, value in places:
        log_p[place, 0, 0] = value
    found = trust.trust(*judged(log_p, log_q))
    said = " ".join(found["sentences"])
    assert all(word in said for word in words) and NOTHING not in said, said
    assert found["non_finite_index"][:2] in ([2, 5], [0, 1])


def test_shares_are_those_of_the_examples():
    values, headline = judged(*good())
    found = trust.trust(values, headline)
    assert found["largest_responsibility"] == pytest.approx(0.5, abs=0.1)
    assert found["non_finite_index"] == [] == found["bound_non_finite_index"]
    assert found["median_ess"] == pytest.approx(np.median(values["ess"][:, -1, -1]))
    one = trust.trust(*judged(*tiny(1)()))
    assert one["share_pareto_k_above_0.7"] is None and one["k_unknown"] == 200


def test_checks_are_the_sums_of_their_formulas():
    log_p, log_q = scores((0.0, 0.5, -1.0), (1.0, 0.7, 2.0), count=4, samples=150)
    values, _ = judged(log_p, log_q)
    ratio = (log_q - log_q.logsumexp(-1, keepdim=True)).exp() * 3
    assert np.allclose(values["density_ratio"], ratio.mean((1, 2)))
    assert np.allclose(values["density_ratio_var"], ratio.var(2).sum(1) / 150 / 9)
    own = bounds.own_density(log_q)
    pair = (log_q - own[..., None]).exp().mean(2).log()
    assert np.allclose(values["log_pair_ratio"], pair)
    log_w = log_p - own
    worst = log_w.sort(-1).values[..., :2]
    assert np.allclose(values["left_worst"], worst.mean(-1))
    assert np.allclose(values["left_squares"], (worst - log_w.mean(-1, keepdim=True)).square().sum(-1))


@pytest.mark.parametrize(
    ("samples", "spread", "fires"), [(100, 1.0, False), (100, 4.0, True), (1000, 3.0, True)]
)
def test_k_hat_is_judged_by_the_number_of_draws(samples, spread, fires):
    generator = torch.Generator().manual_seed(0)
    log_w = spread * torch.randn(100, samples, generator=generator, dtype=torch.float64)
    assert heavy(bounds.diagnostics.pareto_k(log_w).numpy(), samples) == fires


def test_a_few_examples_with_most_of_a_negligible_variance_are_not_worth_a_word():
    variance = np.full((50, 1, 1), 1e-16)
    for largest, said in ((1e-9, False), (1.0, True)):
        variance[7] = largest
        zero = np.zeros((50, 1, 1))
        values = {"miselbo": zero, "joint_bound": zero, "average_elbo": zero, "non_finite": zero}
        values |= {"miselbo_var": variance, "joint_bound_var": variance, "index": np.arange(50)}
        found = verdicts.terrible_examples(Evidence(values, {"S": 1, "L": 10, "miselbo": -1.0}))
        assert (found is not None) == said
