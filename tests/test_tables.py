"""Tables are means over examples with the right standard errors, from per-example arrays alone."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from miselbo import tables
from miselbo.streaming import RunningBounds

N, S, GRID = 7, 3, (1, 2, 4)


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
    for name in tables.BOUNDS:
        cell = values[name][:, 1, 2]
        assert row[name] == pytest.approx(cell.mean(), rel=1e-12)
        assert row[f"{name}_se"] == pytest.approx(cell.std(ddof=1) / math.sqrt(N), rel=1e-12)
    assert row["miselbo_se_mc"] == pytest.approx(
        math.sqrt(values["miselbo_var"][:, 1, 2].sum()) / N, rel=1e-12
    )
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


def test_example_table_and_headline_agree(values):
    examples, last = tables.example_table(values), tables.bounds_table(values, GRID, 1.0).iloc[-1]
    assert examples["index"].tolist() == list(range(N))
    for name in tables.BOUNDS:
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
    tables.write_csv(frame, tmp_path / "new" / "a.csv")
    tables.write_parquet(frame, tmp_path / "new" / "a.parquet")
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "new" / "a.csv"), frame, check_dtype=False, rtol=1e-15
    )
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "new" / "a.parquet"), frame)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.csv", "a.parquet"]


def examples(pareto_k: float = 0.1, non_finite: int = 0, ess: float = 50.0) -> pd.DataFrame:
    return pd.DataFrame({"pareto_k": [pareto_k] * 4, "non_finite": [non_finite] * 4, "ess": [ess] * 4})


@pytest.mark.parametrize(
    ("table", "headline", "words"),
    [
        (examples(), {"S": 3, "L": 10, "jsd": 0.3}, "No warning"),
        (examples(pareto_k=0.9), {"S": 3, "L": 10, "jsd": 0.3}, "100% of the examples have a Pareto k-hat"),
        (examples(non_finite=1), {"S": 3, "L": 10, "jsd": 0.3}, "4 examples have non-finite weights"),
        (examples(ess=2), {"S": 3, "L": 10, "jsd": 0.3}, "the median is 2.0 of 30"),
        (examples(), {"S": 3, "L": 10, "jsd": 0.001}, "collapsed"),
        (examples(), {"S": 3, "L": 10, "jsd": 1.09}, "hardly overlap"),
        (examples(ess=1), {"S": 1, "L": 1, "jsd": 0.0}, "No warning"),
    ],
)
def test_trust_says_what_speaks_against_the_numbers(table, headline, words):
    sentences = tables.trust(table, headline)["sentences"]
    assert len(sentences) == 1 and words in sentences[0]
