"""Which members: tables of subsets and of added members, from per-example values alone."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from miselbo import bounds
from miselbo.bounds import subsets
from miselbo.bounds.diagnostics import half_width
from miselbo.bounds.running import RunningBounds
from miselbo.evaluation import subset_tables

N, L = 9, 12


def scored(size, samples=L, seed=0, level=0.0):
    """Scores, and the values that the scoring pass would give."""
    generator = torch.Generator().manual_seed(seed)
    log_p = torch.randn(N, size, samples, generator=generator).double() + level * torch.randn(
        N, 1, 1, generator=generator
    )
    log_q = torch.randn(N, size, samples, size, generator=generator).double()
    running = [RunningBounds(size, [1, samples] if samples > 1 else [1]), subsets.FirstSamples(size, samples)]
    if 2 <= size <= 8:
        running.append(subsets.RunningSubsets(size, samples))
    for each in running:
        each.update(log_p, log_q)
    return log_p, log_q, {name: value.numpy() for each in running for name, value in each.result().items()}


def chosen(members):
    return [int(member) - 1 for member in members.split("+")]


def test_every_subset_has_a_row_with_its_bounds():
    log_p, log_q, values = scored(4)
    table = subset_tables.subsets_table(values, L)
    assert len(table) == 15 and table["members"].is_unique and (table["L"] == L).all()
    for _, row in table.iterrows():
        of_subset = subsets.subset_bounds(log_p, log_q, chosen(row["members"]))
        delta = of_subset["miselbo"] - of_subset["average_iwelbo"]
        assert row["size"] == len(chosen(row["members"]))
        for name, value in {**of_subset, "delta": delta}.items():
            assert row[name] == pytest.approx(float(value.mean()), rel=1e-9, abs=1e-12)
            assert row[f"{name}_se"] == pytest.approx(float(value.std()) / math.sqrt(N), rel=1e-9, abs=1e-12)


def test_best_and_greedy_are_marked():
    _, _, values = scored(4, seed=1)
    table = subset_tables.subsets_table(values, L)
    for size, same in table.groupby("size"):
        best = same[same["best_of_size"]]
        assert len(best) == 1 and best["miselbo"].iloc[0] == same["miselbo"].max()
        assert best["to_best"].isna().all()
        others = same[~same["best_of_size"]]
        lead = best["miselbo"].iloc[0] - others["miselbo"]
        assert np.allclose(-others["to_best"], lead) and (others["to_best_low"] < others["to_best"]).all()
        assert same["greedy"].dropna().tolist() == [size]
    path = table.dropna(subset=["greedy"]).sort_values("greedy")["members"].map(chosen).map(set).tolist()
    value = {
        frozenset(chosen(members)): mean
        for members, mean in zip(table["members"], table["miselbo"], strict=True)
    }
    assert value[frozenset(path[0])] == max(value[frozenset([s])] for s in range(4))
    for before, after in zip(path[:-1], path[1:], strict=True):
        assert before < after
        assert value[frozenset(after)] == max(
            value[frozenset({*before, s})] for s in range(4) if s not in before
        )


def test_gains_of_added_members_are_paired_differences():
    log_p, log_q, values = scored(3, level=50.0)
    table = subset_tables.marginal_table(values, L)
    assert table["path"].tolist() == ["order"] * 3 + ["greedy"] * 3
    assert table.loc[table["path"] == "order", "members"].tolist() == ["1", "1+2", "1+2+3"]
    for path, rows in table.groupby("path"):
        rows = rows.sort_values("size")
        assert sorted(rows["member"]) == [1, 2, 3]
        before = None
        for _, row in rows.iterrows():
            now = subsets.subset_bounds(log_p, log_q, chosen(row["members"]))
            for name in ("miselbo", "joint_bound"):
                assert row[name] == pytest.approx(float(now[name].mean()), rel=1e-9)
                gain = row[f"{name}_gain"]
                if before is None:
                    assert math.isnan(gain) and math.isnan(row[f"{name}_gain_low"])
                    continue
                difference = now[name] - before[name]
                error = float(difference.std()) / math.sqrt(N)
                assert gain == pytest.approx(float(difference.mean()), rel=1e-9), path
                assert row[f"{name}_gain_se"] == pytest.approx(error, rel=1e-6)
                assert row[f"{name}_gain_high"] - gain == pytest.approx(half_width(len(difference)) * error)
                assert gain - row[f"{name}_gain_low"] == pytest.approx(half_width(len(difference)) * error)
                assert error < 2  # the level of the examples, 50 nats apart, is in no difference
            before = now


def test_gains_add_up_along_each_path():
    _, _, values = scored(5)
    table = subset_tables.marginal_table(values, L)
    for _, rows in table.groupby("path"):
        for name in ("miselbo", "joint_bound"):
            total = rows[f"{name}_gain"].sum()
            assert total == pytest.approx(rows[name].iloc[-1] - rows[name].iloc[0], rel=1e-9)
    ends = table[table["size"] == 5]
    assert ends["miselbo"].nunique() == 1 or np.ptp(ends["miselbo"]) < 1e-9


def test_more_than_eight_members_are_chosen_on_even_and_measured_on_odd_samples():
    log_p, log_q, values = scored(9)
    table = subset_tables.subsets_table(values, L)
    assert len(table) == 9 and (table["L"] == 6).all() and not table["best_of_size"].any()
    assert table["greedy"].tolist() == table["size"].tolist() == list(range(1, 10))
    single = bounds.iwelbo(log_p[:, :, ::2].float(), log_q[:, :, ::2].float()).mean(0)
    assert chosen(table["members"].iloc[0]) == [int(single.argmax())]
    odd = subsets.subset_bounds(log_p[:, :, 1::2], log_q[:, :, 1::2], chosen(table["members"].iloc[3]))
    assert table["miselbo"].iloc[3] == pytest.approx(float(odd["miselbo"].mean()), abs=1e-5)
    marginal = subset_tables.marginal_table(values, L).set_index(["path", "size"])
    assert marginal.loc[("order", 9), "L"] == L and marginal.loc[("greedy", 9), "L"] == 6
    assert marginal.loc[("order", 9), "miselbo"] == pytest.approx(float(bounds.miselbo(log_p, log_q).mean()))


def test_one_sample_of_many_members_leaves_nothing_to_choose_on():
    _, _, values = scored(9, samples=1)
    assert subset_tables.subsets_table(values, 1).empty
    assert set(subset_tables.marginal_table(values, 1)["path"]) == {"order"}


def test_unknown_values_are_neither_best_nor_first():
    _, _, values = scored(3)
    position = subsets.list_subsets(3).index((1,))
    values["subset_miselbo"][2, position] = math.nan
    table = subset_tables.subsets_table(values, L).set_index("members")
    assert math.isnan(table.loc["2", "miselbo"]) and not table.loc["2", "best_of_size"]
    assert math.isnan(table.loc["2", "greedy"])


@pytest.mark.parametrize("size", [2, 3, 9])
def test_every_ensemble_of_two_or_more_has_mixture_weights(size, tmp_path):
    _, _, values = scored(size)
    found = subset_tables.write(values, L, tmp_path)["mixture_weights"]
    assert len(found["weights"]) == size and sum(found["weights"]) == pytest.approx(1)


def test_files_are_written_and_those_of_another_run_removed(tmp_path):
    _, _, values = scored(3)
    content = subset_tables.write(values, L, tmp_path)
    assert content.keys() == {"mixture_weights"}
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "subsets.csv"),
        subset_tables.subsets_table(values, L),
        check_dtype=False,
        check_exact=False,
    )
    assert len(pd.read_csv(tmp_path / "marginal.csv")) == 6
    _, _, alone = scored(1)
    assert subset_tables.write(alone, L, tmp_path) == {}
    assert not list(tmp_path.iterdir())
    _, _, many = scored(9, samples=1)
    assert subset_tables.write(many, 1, tmp_path) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["marginal.csv"]
