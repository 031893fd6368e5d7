"""Tables are means over examples with the right standard errors, from per-example arrays alone."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from miselbo.bounds.diagnostics import paired
from miselbo.bounds.quantities import names
from miselbo.bounds.running import RunningBounds
from miselbo.evaluation import tables
from miselbo.runtime import files

N, S, GRID = 7, 3, (1, 2, 4)
TO_BEST = ("iwelbo_to_best", "iwelbo_to_best_se", "iwelbo_to_best_low", "iwelbo_to_best_high")


@pytest.fixture(scope="module")
def values():
    generator = torch.Generator().manual_seed(0)
    log_p = torch.randn(N, S, 4, generator=generator, dtype=torch.float64)
    log_q = torch.randn(N, S, 4, S, generator=generator, dtype=torch.float64)
    running = RunningBounds(S, GRID)
    running.update(log_p, log_q)
    return {name: value.numpy() for name, value in running.result().items()} | {"index": np.arange(N)}


def test_bounds_table_has_every_cell_once(values):
    table = tables.bounds_table(values, GRID, seconds=12.0)
    assert list(zip(table["S"], table["L"], strict=True)) == [
        (s, length) for s in (1, 2, 3) for length in GRID
    ]
    row = table[(table["S"] == 2) & (table["L"] == 4)].iloc[0]
    for name in names():
        cell = values[name][:, 1, 2]
        assert row[name] == pytest.approx(cell.mean(), rel=1e-12)
        assert row[f"{name}_se"] == pytest.approx(cell.std(ddof=1) / math.sqrt(N), rel=1e-12)
    for name in ("miselbo", "jsd"):
        variances = values[f"{name}_var"][:, 1, 2]
        freedom = max(2 * variances.sum() ** 2 / (N * variances.var(ddof=1)), N - 1)
        student = scipy.stats.t.ppf(0.975, freedom) / scipy.stats.norm.ppf(0.975) if name == "miselbo" else 1
        assert row[f"{name}_se_mc"] == pytest.approx(student * math.sqrt(variances.sum()) / N, rel=1e-12)
    assert (table["num_data"] == N).all()
    assert row["seconds"] == pytest.approx(12 * 8 / 12)
    assert table["seconds"].iloc[-1] == 12


def test_member_table(values):
    table = tables.member_table(values, GRID)
    assert list(zip(table["member"], table["L"], strict=True)) == [
        (s, length) for s in (1, 2, 3) for length in GRID
    ]
    row = table[(table["member"] == 3) & (table["L"] == 2)].iloc[0]
    assert row["iwelbo"] == pytest.approx(values["member_iwelbo"][:, 2, 1].mean())
    assert row["elbo"] == pytest.approx(values["member_elbo"][:, 2, 1].mean())
    assert row["elbo_se"] == pytest.approx(values["member_elbo"][:, 2, 1].std(ddof=1) / math.sqrt(N))
    assert row["ess"] == pytest.approx(values["member_ess"][:, 2, 1].mean())
    at_one = table[table["L"] == 1]
    assert at_one["iwelbo"].tolist() == pytest.approx(at_one["elbo"].tolist())
    assert np.allclose(at_one["ess"], 1)
    at_two = table[table["L"] == 2].set_index("member")
    best = at_two["iwelbo"].idxmax()
    for s in range(1, S + 1):
        differences = values["member_iwelbo"][:, s - 1, 1] - values["member_iwelbo"][:, best - 1, 1]
        expected = paired("iwelbo_to_best", differences) if s != best else dict.fromkeys(TO_BEST, math.nan)
        assert at_two.loc[s, list(TO_BEST)].tolist() == pytest.approx(list(expected.values()), nan_ok=True)


def test_example_table_and_headline_agree(values):
    examples, last = tables.example_table(values), tables.bounds_table(values, GRID, 1.0).iloc[-1]
    assert examples["index"].tolist() == list(range(N))
    for name in names():
        assert examples[name].mean() == pytest.approx(last[name], rel=1e-12)
    responsibilities = examples[[f"responsibility_{s}" for s in (1, 2, 3)]]
    assert np.allclose(responsibilities.sum(axis=1), 1)


def test_pairwise_table(values):
    table = tables.pairwise_table(values).set_index(["member_i", "member_j"])["jsd"]
    assert len(table) == S * S
    for i in range(1, S + 1):
        assert table[i, i] == pytest.approx(0, abs=1e-12)
        for j in range(1, S + 1):
            assert table[i, j] == pytest.approx(table[j, i])


def test_written_tables_come_back_whole(tmp_path, values):
    frame = tables.example_table(values)
    files.write_csv(frame, tmp_path / "new" / "a.csv")
    files.write_parquet(frame, tmp_path / "new" / "a.parquet")
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "new" / "a.csv"), frame, check_dtype=False, rtol=1e-15
    )
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "new" / "a.parquet"), frame)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.csv", "a.parquet"]


def scored(log_p, log_q, grid):
    running = RunningBounds(log_p.shape[1], grid)
    running.update(log_p, log_q)
    return {name: value.numpy() for name, value in running.result().items()} | {
        "index": np.arange(len(log_p))
    }


def test_intervals_are_those_of_the_paired_differences(values):
    table = tables.bounds_table(values, GRID, 1.0)
    row = table[(table["S"] == 3) & (table["L"] == 2)].iloc[0]
    for name, difference in {
        "delta": values["delta"][:, 2, 1],
        "joint_gain": values["joint_bound"][:, 2, 1] - values["miselbo"][:, 2, 1],
    }.items():
        error = difference.std(ddof=1) / math.sqrt(N)
        assert row[name] == pytest.approx(difference.mean(), rel=1e-12)
        assert row[f"{name}_se"] == pytest.approx(error, rel=1e-12)
        student = 2.4469  # 97.5% of Student's t with N - 1 = 6 degrees of freedom
        assert row[f"{name}_low"] == pytest.approx(difference.mean() - student * error, abs=1e-4 * error)
        assert row[f"{name}_high"] == pytest.approx(difference.mean() + student * error, abs=1e-4 * error)
    assert (table["joint_gain"] >= -1e-12).all()
    assert (table.loc[table["S"] == 1, ["delta", "joint_gain"]].abs() < 1e-12).all(axis=None)


def test_the_interval_of_delta_is_paired():
    """A common level of the examples, 100 times the gain, is in the error of the bound and not of the gain."""
    generator = torch.Generator().manual_seed(0)
    log_p = torch.randn(50, 2, 1, generator=generator, dtype=torch.float64)
    log_q = torch.randn(50, 2, 1, 2, generator=generator, dtype=torch.float64)
    level = 100 * torch.randn(50, 1, 1, generator=generator, dtype=torch.float64)
    row = tables.bounds_table(scored(log_p + level, log_q, [1]), (1,), 1.0).iloc[-1]
    assert row["miselbo_se"] > 10
    assert row["delta_high"] - row["delta_low"] < 1


def test_shares_of_heavy_tails_leave_out_the_unknown(values):
    changed = {
        **values,
        "pareto_k": np.full((N, S, len(GRID)), 0.1),
        "non_finite": np.zeros((N, S, len(GRID))),
    }
    changed["pareto_k"][:, 1, 2] = [math.nan, math.nan, math.inf, 0.71, 0.7, -math.inf, 0.2]
    changed["pareto_k"][:, 0, 0] = math.nan
    changed["non_finite"][:, 1, 2] = [0, 3, 0, 0, 0, 1, 0]
    table = tables.bounds_table(changed, GRID, 1.0).set_index(["S", "L"])
    row = table.loc[(2, 4)]
    assert row["share_k_above_0.7"] == pytest.approx(2 / 5)
    assert row["share_heavy"] == pytest.approx(3 / 5) and row["k_threshold"] == 0.5  # of 8 draws
    assert row["k_unknown"] == 2 and row["non_finite"] == 4
    assert math.isnan(table.loc[(1, 1), "share_k_above_0.7"]) and table.loc[(1, 1), "k_unknown"] == N
    assert table.loc[(3, 4), "share_k_above_0.7"] == 0
