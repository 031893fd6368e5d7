"""The running bounds: equal to miselbo.bounds on every nested ensemble, however the samples arrive."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal

from miselbo import bounds
from miselbo.bounds import diagnostics
from miselbo.bounds.jackknife import BUFFER, ORDER
from miselbo.bounds.running import RunningBounds
from miselbo.errors import InputError

INF = math.inf
VALUES = ["miselbo", "joint_bound", "average_iwelbo", "average_elbo", "delta", "slack"]
CELLS = [*VALUES, "jsd"]


def scores(batch: int, members: int, samples: int, seed: int = 0, spread: float = 2.0):
    normal = Normal(torch.zeros((), dtype=torch.float64), spread)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shape = (batch, members, samples)
        return normal.sample(shape) - 5, normal.sample((*shape, members))


def assert_same(value, expected, name, atol=1e-10, rtol=1e-10):
    torch.testing.assert_close(
        value, expected, atol=atol, rtol=rtol, equal_nan=True, msg=lambda message: f"{name}: {message}"
    )


def run(log_p, log_q, grid, cuts=()):
    running = RunningBounds(log_p.shape[1], grid)
    edges = [0, *sorted(cuts), log_p.shape[2]]
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        if stop > start:
            running.update(log_p[:, :, start:stop], log_q[:, :, start:stop])
    return running.result()


def nested(log_p, log_q, members, samples):
    return log_p[:, :members, :samples], log_q[:, :members, :samples, :members]


def blocks(log_p, log_q, length):
    """All whole blocks of so many samples."""
    starts = range(0, log_p.shape[2] // length * length, length)
    return [(log_p[:, :, i : i + length], log_q[:, :, i : i + length]) for i in starts]


def expected_values(log_p, log_q, grid):
    """The same dictionary (without variances) from bounds and diagnostics, cell by cell."""
    batch, size, total = log_p.shape
    names = (*CELLS, "ess", "max_weight", "pareto_k", "non_finite")
    out = {name: torch.empty(batch, size, len(grid)).double() for name in names}
    for n in range(1, size + 1):
        for g, samples in enumerate(grid):
            p, q = nested(log_p, log_q, n, samples)
            out["slack"][:, n - 1, g] = bounds.slack(p, q)
            parts = blocks(log_p[:, :n], log_q[:, :n, :, :n], samples)
            for name in set(VALUES) - {"slack"}:
                out[name][:, n - 1, g] = sum(getattr(bounds, name)(*part) for part in parts) / len(parts)
            out["jsd"][:, n - 1, g] = sum(bounds.jsd(part[1]) for part in parts) / len(parts)
            log_w = (p - q.logsumexp(-1)).flatten(1)
            out["ess"][:, n - 1, g] = diagnostics.effective_sample_size(log_w)
            out["max_weight"][:, n - 1, g] = diagnostics.largest_weight(log_w)
            out["pareto_k"][:, n - 1, g] = diagnostics.pareto_k(log_w)
            own = bounds.own_density(q)
            bad = p.isnan() | (p == INF) | (own == -INF) | (q.isnan() | (q == INF)).any(-1)
            out["non_finite"][:, n - 1, g] = bad.sum((1, 2))
    own = log_p - bounds.own_density(log_q)
    for name in ("iwelbo", "elbo"):
        found = [[getattr(bounds, name)(*part) for part in blocks(log_p, log_q, g)] for g in grid]
        out[f"member_{name}"] = torch.stack([sum(values) / len(values) for values in found], -1)
    out["member_ess"] = torch.stack([diagnostics.effective_sample_size(own[..., :g]) for g in grid], -1)
    out["member_max_weight"] = torch.stack([diagnostics.largest_weight(own[..., :g]) for g in grid], -1)
    out["member_pareto_k"] = torch.stack([diagnostics.pareto_k(own[..., :g]) for g in grid], -1)
    out["responsibility"] = torch.zeros(batch, size, size).double()
    for n in range(1, size + 1):
        p, q = nested(log_p, log_q, n, total)
        out["responsibility"][:, n - 1, :n] = bounds.responsibilities(p, q)
    out["pairwise_jsd"] = bounds.pairwise_jsd(log_q)
    return out


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_equal_to_bounds_however_the_samples_are_cut(data):
    members, batch = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    grid = sorted(data.draw(st.sets(st.integers(1, 40), min_size=1, max_size=4)))
    cuts = data.draw(st.lists(st.integers(0, grid[-1]), max_size=6))
    spread = data.draw(st.sampled_from([0.5, 3.0, 30.0]))
    log_p, log_q = scores(batch, members, grid[-1], data.draw(st.integers(0, 10**6)), spread)
    values = run(log_p, log_q, grid, cuts)
    for name, expected in expected_values(log_p, log_q, grid).items():
        assert_same(values[name], expected, name)
    whole = run(log_p, log_q, grid)
    for name, value in whole.items():
        # a variance is a difference of two sums of squares: fewer digits
        atol = 1e-8 if name.endswith("_var") else 1e-10
        assert_same(values[name], value, name, atol=atol, rtol=1e-8)
        assert value.dtype == torch.float64


def test_shapes_and_names():
    values = run(*scores(2, 3, 10), grid=[1, 2, 10])
    members = ("iwelbo", "elbo", "iwelbo_var", "elbo_var", "ess", "max_weight", "pareto_k")
    shapes = {name: (2, 3, 3) for name in (*CELLS, *(f"{name}_var" for name in CELLS), "ess", "max_weight")}
    shapes |= {"pareto_k": (2, 3, 3), "non_finite": (2, 3, 3)}
    shapes |= {f"member_{name}": (2, 3, 3) for name in members}
    shapes |= {"responsibility": (2, 3, 3), "pairwise_jsd": (2, 3, 3)}
    with_bias = ("miselbo", "joint_bound", "average_iwelbo", "delta", "member_iwelbo")
    shapes |= {f"{name}_bias": (2, 3) for name in with_bias}
    assert {name: tuple(value.shape) for name, value in values.items()} == shapes


def test_batches_concatenate():
    log_p, log_q = scores(5, 3, 30)
    whole = run(log_p, log_q, [5, 30])
    parts = [run(log_p[i], log_q[i], [5, 30]) for i in (slice(0, 3), slice(3, 5))]
    for name, value in whole.items():
        both = torch.cat([part[name] for part in parts])
        assert_same(both, value, name)


@pytest.mark.parametrize("shift", [-1e6, 1e6])
def test_log_weights_of_any_size(shift):
    log_p, log_q = scores(3, 3, 50)
    values, moved = run(log_p, log_q, [1, 50]), run(log_p + shift, log_q, [1, 50], cuts=[10])
    levels = ("miselbo", "joint_bound", "average_iwelbo", "average_elbo", "member_iwelbo", "member_elbo")
    for name, value in values.items():
        if name.endswith(("_var", "_bias")):
            continue  # differences of large numbers; test_jackknife has them
        back = moved[name] - (shift if name in levels else 0.0)
        assert_same(back, value, name, atol=1e-6, rtol=1e-6)
    wild_p, wild_q = 1e4 * log_p, 1e4 * log_q
    for name, expected in expected_values(wild_p, wild_q, [1, 50]).items():
        value = run(wild_p, wild_q, [1, 50], cuts=[7, 20])[name]
        assert_same(value, expected, name, atol=1e-9, rtol=1e-9)


def test_low_precision_input():
    log_p, log_q = (value.bfloat16() for value in scores(2, 2, 30))
    torch.testing.assert_close(
        run(log_p, log_q, [30])["miselbo"][:, 1, 0], bounds.miselbo(log_p, log_q), atol=1e-10, rtol=0
    )


# Monte Carlo variances --------------------------------------------------------------------------------------


def gaussian_scores(runs: int, samples: int):
    """Three normals beside a standard normal target, wide enough for weights of finite variance."""
    target = Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
    members = [Normal(target.loc + mean, 1.2) for mean in (-0.5, 0.0, 1.0)]
    z = torch.stack([q.sample((runs, samples)) for q in members], 1)
    return target.log_prob(z), torch.stack([q.log_prob(z) for q in members], -1)


def test_variances_are_those_of_repeated_runs():
    """4000 independent runs: their empirical variance against the mean of the estimated variance."""
    torch.manual_seed(0)
    values = run(*gaussian_scores(4000, 200), grid=[200])
    names = [*CELLS, "member_iwelbo", "member_elbo"]
    for name in names:
        empirical, estimated = values[name].var(0), values[f"{name}_var"].mean(0)
        small = 1e-10  # delta, jsd and slack of one member are 0 exactly, and so are their variances
        assert ((empirical < small) == (estimated < small)).all(), name
        assert_same(estimated, empirical, name, rtol=0.12, atol=small)


def test_variances_by_formula():
    """Those of plain means and of slack; test_jackknife has the others."""
    log_p, log_q = scores(1, 2, 7)
    values = run(log_p, log_q, [1, 7])
    own = (log_p - bounds.own_density(log_q))[0].exp()
    mixture = (log_p - log_q.logsumexp(-1) + math.log(2))[0].exp()
    divergence = (bounds.own_density(log_q) - log_q.logsumexp(-1))[0]
    expected = {
        "average_elbo": (own.log().var(-1) / 7).sum() / 4,
        "jsd": (divergence.var(-1) / 7).sum() / 4,
    }
    share = (log_q - log_q.logsumexp(-1, keepdim=True))[0].exp()
    r = (mixture[..., None] * share).sum((0, 1)) / mixture.sum()
    influence = (mixture / mixture.mean())[..., None] * share * (1 - 0.5 / r)
    expected["slack"] = (influence.sum(-1).var(-1) / 7).sum() / 4
    for name, value in expected.items():
        assert values[f"{name}_var"][0, 1, 1].item() == pytest.approx(value.item(), rel=1e-9), name
    torch.testing.assert_close(values["member_elbo_var"][0, :, 1], own.log().var(-1) / 7)


def test_variance_is_unknown_from_one_draw():
    one, values = run(*scores(2, 3, 1), grid=[1]), run(*scores(2, 3, 4), grid=[1, 4])
    for name in (*CELLS, "member_iwelbo", "member_elbo"):
        assert one[f"{name}_var"].isnan().all() and one[name].isfinite().all()
        assert values[f"{name}_var"][..., 1].isfinite().all()
        known = name != "slack"  # the others have four blocks of one draw
        assert (values[f"{name}_var"][..., 0].isfinite() == known).all()


def test_variances_below_l_are_those_of_the_mean_over_blocks():
    log_p, log_q = scores(2, 2, 45)
    values = run(log_p, log_q, [1, 4, 20, 45], cuts=[7, 30])
    for g, length in ((0, 1), (1, 4)):  # 45 and 11 blocks: their spread
        found = torch.stack([bounds.miselbo(*part) for part in blocks(log_p, log_q, length)])
        assert_same(values["miselbo_var"][:, 1, g], found.var(0) / len(found), f"L' = {length}")
    halves = [run(*part, [20]) for part in blocks(log_p, log_q, 20)]  # the jackknife within
    for name in ("miselbo", "joint_bound", "delta", "member_iwelbo"):
        expected = (halves[0][f"{name}_var"] + halves[1][f"{name}_var"]) / 4
        assert_same(values[f"{name}_var"][..., 2], expected[..., 0], name)


def test_delta_is_jsd_at_one_sample_and_the_joint_bound_is_never_below():
    values = run(*scores(3, 3, 21), grid=[1, 2, 5, 21], cuts=[4])
    assert_same(values["delta"][..., 0], values["jsd"][..., 0], "L' = 1")
    assert (values["joint_bound"] >= values["miselbo"] - 1e-12).all()


# Zero densities and broken scores ---------------------------------------------------------------------------


def test_zero_densities_agree_with_bounds():
    log_p, log_q = scores(3, 3, 12)
    log_p[0, 0, :3] = log_p[0, 2, 5] = -INF
    log_q[0, 0, 2, 1] = log_q[0, 1, 3, 0] = log_q[0, 2, 4, 0] = log_q[0, 2, 4, 1] = -INF
    log_p[1, 1] = -INF  # no sample of this member counts
    log_p[2] = -INF
    for cuts in ((), (1, 2, 6)):
        values = run(log_p, log_q, [1, 4, 12], cuts)
        for name, expected in expected_values(log_p, log_q, [1, 4, 12]).items():
            assert_same(values[name], expected, name)
        assert (values["non_finite"] == 0).all()
        assert values["joint_bound_var"][:2, :, 2].isfinite().all()
        assert (values["joint_bound"][2] == -INF).all()


def test_non_finite_scores_are_counted_and_stay_where_they_are():
    clean_p, clean_q = scores(4, 3, 8)
    log_p, log_q = clean_p.clone(), clean_q.clone()
    log_p[0, 2, 4] = log_q[0, 2, 5, 0] = math.nan
    log_q[1, 1, 3, 1] = -INF  # under its own member
    log_q[1, 1, 5, 1] = math.nan
    log_p[1, 0, 0] = INF
    log_q[2, 0, 2, 2] = math.nan  # of another member: spoils S' = 3
    values, clean = run(log_p, log_q, [2, 8], cuts=[3]), run(clean_p, clean_q, [2, 8])
    # per S', at L' = 2 and 8: member 3's two draws; members 1 and 2; a draw of member 1 under member 3; none
    assert values["non_finite"][:, :, 0].tolist() == [[0, 0, 0], [1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert values["non_finite"][:, :, 1].tolist() == [[0, 0, 2], [1, 3, 3], [0, 0, 1], [0, 0, 0]]
    for name in ("non_finite", "pareto_k"):
        assert_same(values[name], expected_values(log_p, log_q, [2, 8])[name], name)
    for name in (*CELLS, "ess", *(f"{name}_var" for name in CELLS)):
        same = values[name].isclose(clean[name], equal_nan=True)
        assert same[3].all(), name
        assert same[0, :2].all(), name  # before member 3
        if name in ("ess", "slack"):  # of the first L' samples, before sample 5
            assert same[0, :, 0].all(), name
        assert same[2, :2].all(), name
    for name in ("miselbo", "joint_bound", "slack", "delta"):
        assert values[name][0, 2, 1].isnan() and values[name][2, 2, 1].isnan(), name


def test_pareto_k_of_every_cell_comes_from_its_own_draws():
    """Member 1 has a heavy tail, member 2 a light one; the tail kept for the end serves the earlier cells."""
    u = torch.rand(1, 2, 2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_w = torch.stack([-0.9 * u[:, 0].log(), 0.1 * u[:, 1]], 1)
    values = run(log_w, torch.zeros(1, 2, 2000, 2), [20, 25, 100, 2000], cuts=[90, 700])
    assert values["pareto_k"][0].isnan().tolist() == [[True, False, False, False], [False] * 4]
    for g, samples in enumerate([20, 25, 100, 2000]):
        for n in (1, 2):
            expected = diagnostics.pareto_k(log_w[:, :n, :samples].flatten(1))
            assert_same(values["pareto_k"][:, n - 1, g], expected, f"cell {n}, {samples}")
    assert values["pareto_k"][0, 0, 3] == pytest.approx(0.9, abs=0.1)


# Errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [[], [0, 1], [2, 1], [1, 1], [1.0, 2.0], [True], [-1]])
def test_grids_that_cannot_be(grid):
    with pytest.raises(InputError, match="grid must list increasing whole numbers"):
        RunningBounds(2, grid)


@pytest.mark.parametrize("members", [0, 1.5, "2"])
def test_number_of_members_that_cannot_be(members):
    with pytest.raises(InputError, match="num_members must be a whole number"):
        RunningBounds(members, [1])


def test_too_few_and_too_many_samples():
    log_p, log_q = scores(2, 3, 4)
    running = RunningBounds(3, [1, 6])
    with pytest.raises(InputError, match="L = 6 but only 0 samples"):
        running.result()
    running.update(log_p, log_q)
    with pytest.raises(InputError, match="L = 6 but only 4 samples"):
        running.result()
    with pytest.raises(InputError, match="ends at L = 6: after 4 samples got 4 more"):
        running.update(log_p, log_q)
    running.update(log_p[:, :, :2], log_q[:, :, :2])  # the refused ones left no trace
    expected = bounds.miselbo(torch.cat([log_p, log_p[:, :, :2]], 2), torch.cat([log_q, log_q[:, :, :2]], 2))
    torch.testing.assert_close(running.result()["miselbo"][:, 2, 1], expected)


def test_scores_that_do_not_fit():
    log_p, log_q = scores(2, 3, 4)
    running = RunningBounds(3, [8])
    with pytest.raises(InputError, match=r"\[B, S, l\] with S = 3"):
        running.update(*scores(2, 2, 4))
    with pytest.raises(InputError, match=r"\[B, S, l\] with S = 3"):
        running.update(log_p[0], log_q[0])
    with pytest.raises(InputError, match=r"axis L \(samples\)"):
        running.update(log_p[:, :, :2], log_q)
    running.update(log_p, log_q)
    with pytest.raises(InputError, match="began with B = 2 examples, got 1"):
        running.update(log_p[:1], log_q[:1])


def test_state_does_not_grow_with_the_number_of_samples():
    log_p, log_q = scores(2, 3, 50)
    running = RunningBounds(3, [100_000])
    sizes = []
    for _ in range(60):
        running.update(log_p, log_q)
        state = running._state
        jackknife = state.blocks[-1]._jackknife
        parts = [state, state.own, state.mixture, state.elbo, state.divergence, state.shares, jackknife]
        tensors = [*state.tail.pieces, *(value for part in parts for value in vars(part).values())]
        tensors += [tensor for pair in jackknife.pieces for tensor in pair]
        sizes.append(sum(t.numel() for t in tensors if isinstance(t, torch.Tensor)))
    rows = 2 * 3 * (BUFFER + (ORDER + 1) ** 2)  # with 2 weights a draw in each of 6 rows
    limit = 2 * (3 * (4 * state.tail.size + 150) + 2 * rows) + 1000
    assert max(sizes) < limit
