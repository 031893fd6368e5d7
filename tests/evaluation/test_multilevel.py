"""Multilevel evaluation: the full run's expectation, whatever the cut; kill, resume and a smaller goal; the folder."""

import math

import numpy as np
import pandas as pd
import pytest
import runs
import torch
from phylo_models import ensemble as trees
from torch.distributions import Independent, Normal

from miselbo import InputError, evaluate
from miselbo.evaluation import pieces
from miselbo.evaluation.pieces import Pieces

X = torch.linspace(-2, 2, 60)


def log_joint(x, z):
    return Normal(0.0, 1.0).log_prob(z[..., 0]) + Normal(z[..., 0], 1.0).log_prob(x)


def member(shift):
    return lambda x: Independent(Normal(x[:, None] / 2 + shift, 0.8), 1)


MEMBERS = [member(-0.4), member(0.5)]


def by_levels(num_samples=16, **more):
    return evaluate(log_joint, MEMBERS, X, num_samples, method="multilevel", **more)


def test_tables_are_those_of_the_full_run_within_their_errors():
    full = evaluate(log_joint, MEMBERS, X, 16, seed=1, grid=[1, 2, 4, 8, 16])
    found = by_levels(stop_at_se=0.02)
    assert set(full.bounds) == set(found.bounds) and set(full.tables) - {"worth.csv"} == set(found.tables)
    assert found.bounds[["S", "L"]].equals(full.bounds[["S", "L"]])
    for name in ("miselbo", "joint_bound", "average_iwelbo", "average_elbo", "delta", "jsd"):
        error = np.hypot(full.bounds[f"{name}_se_mc"].fillna(1.0), found.bounds[f"{name}_se_mc"])
        away = (full.bounds[name] - found.bounds[name]).abs()
        assert (away <= 3.5 * error + 1e-12).all(), (name, away, error)
    row, expected = found.bounds.iloc[-1], full.bounds.iloc[-1]
    assert row["miselbo_se"] == pytest.approx(expected["miselbo_se"], rel=0.25)
    assert row["miselbo_se_mc"] <= 0.02 and row["joint_bound_se_mc"] <= 0.02
    subset = found.subsets.set_index("members").loc["1+2"]
    assert subset["miselbo"] == pytest.approx(row["miselbo"], abs=1e-9)  # one estimate in all tables
    assert found.members.iloc[-1]["iwelbo"] == pytest.approx(
        found.subsets.set_index("members").loc["2", "average_iwelbo"], abs=1e-9
    )
    exact = float(Normal(0.0, math.sqrt(2)).log_prob(X).mean())
    assert row["joint_bound_debiased"] == pytest.approx(exact, abs=3 * row["joint_bound_se_mc"])
    assert row["joint_bound_bias"] == row["joint_bound"] - row["joint_bound_debiased"] < 0
    assert len(found.examples) == 60 and found.examples["L"].max() == 16


def test_nothing_depends_on_the_cut_and_auto_is_a_fifth_of_the_error_over_the_data():
    whole, cut = by_levels(), by_levels(batch_size=7, samples_per_pass=3)
    pd.testing.assert_frame_equal(
        whole.bounds.drop(columns="seconds"), cut.bounds.drop(columns="seconds"), atol=1e-5, rtol=1e-5
    )
    about = whole.summary["multilevel"]
    for name, goal in about["goals"].items():
        assert goal == pytest.approx(whole.summary["headline"][f"{name}_se"] / 5, rel=1e-9)
    assert about["passes"] == about["pilot_passes"] + sum(level["passes"] for level in about["levels"])


def test_an_interrupted_run_goes_on_and_a_smaller_goal_adds_to_a_larger_one(tmp_path, monkeypatch):
    plain = by_levels(stop_at_se=0.1)
    scored = []
    score = Pieces.score

    def counted(self, piece):
        if len(scored) == 5:
            raise KeyboardInterrupt
        scored.append(piece)
        score(self, piece)

    monkeypatch.setattr(pieces.Pieces, "score", counted)
    with pytest.raises(KeyboardInterrupt):
        by_levels(stop_at_se=0.1, folder=tmp_path)
    first = list(scored)
    scored[:] = [None] * 6  # never five again
    resumed = by_levels(stop_at_se=0.1, folder=tmp_path)
    assert not set(first) & set(scored[6:])
    pd.testing.assert_frame_equal(
        plain.bounds.drop(columns="seconds"), resumed.bounds.drop(columns="seconds")
    )
    del scored[6:]
    again = by_levels(stop_at_se=0.1, folder=tmp_path)
    assert len(scored) == 6 and again.bounds.equals(resumed.bounds)
    before = {path.name for path in (tmp_path / "results" / "shards").rglob("*.npz")}
    finer = by_levels(stop_at_se=0.03, folder=tmp_path)
    assert before < {path.name for path in (tmp_path / "results" / "shards").rglob("*.npz")}
    assert finer.summary["headline"]["miselbo_se_mc"] < again.summary["headline"]["miselbo_se_mc"]
    shard = sorted((tmp_path / "results" / "shards").rglob("level00*.npz"))[0]
    shard.write_bytes(b"no shard")
    with pytest.raises(InputError, match=f"{shard.name} cannot be read"):
        by_levels(stop_at_se=0.1, folder=tmp_path)


def test_a_goal_out_of_reach_stops_at_the_cost_of_the_full_run():
    about = by_levels(num_samples=64, stop_at_se=1e-5).summary["multilevel"]
    assert "does not pay" in about["sentence"] and about["passes"] <= 1.6 * about["full_passes"]


def test_a_density_is_one_example():
    normals = [Normal(-0.5, 1.0), Normal(0.5, 1.0)]
    with pytest.raises(InputError, match="auto is a part of the error over the data"):
        evaluate(lambda z: -z.square() / 2, normals, None, 64, method="multilevel")
    found = evaluate(lambda z: -z.square() / 2, normals, None, 64, method="multilevel", stop_at_se=0.02)
    headline = found.summary["headline"]
    assert headline["joint_bound"] == pytest.approx(
        0.5 * math.log(2 * math.pi), abs=4 * headline["joint_bound_se_mc"]
    )


def test_trees_by_levels_are_those_of_the_full_run():
    ensemble = trees("identity", 2)
    parts = ensemble.target, list(ensemble.members), torch.zeros(2, 0)
    full = evaluate(*parts, 16, grid=[1, 2, 4, 8, 16], seed=1).bounds
    found = evaluate(*parts, 16, method="multilevel", stop_at_se=60.0).bounds  # nothing is trained
    for name in ("miselbo", "joint_bound", "average_iwelbo", "average_elbo", "jsd"):
        error = np.hypot(full[f"{name}_se_mc"], found[f"{name}_se_mc"])
        assert ((full[name] - found[name]).abs() <= 4 * error + 1e-12).all(), name
    assert found["miselbo_se_mc"].iloc[-1] <= 60.0


@pytest.mark.parametrize(
    "more, text",
    [
        ({"num_samples": 11}, "prime factors are 2, 3, 5 and 7, got 11"),
        ({"grid": [3]}, "reports L' = 1, 2, 4, 8, 16; evaluation.grid also asks for 3"),
        ({"stop_at_se": 0}, "stop_at_se must be a positive number of nats, auto or null, got 0"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(more, text):
    with pytest.raises(InputError, match=text):
        by_levels(**more)


@pytest.mark.slow
def test_a_run_folder_by_levels_with_two_processes_as_with_one(tmp_path):
    levels = [
        "evaluation.method=multilevel",
        "evaluation.num_samples=8",
        "evaluation.stop_at_se=0.5",
        "report=true",
    ]
    runs.fit(tmp_path / "run", *levels, "ensemble.size=2")
    one = pd.read_csv(tmp_path / "run" / "results" / "bounds.csv")
    text = (tmp_path / "run" / "report.md").read_text()
    assert "## Multilevel" in text and "decoder passes" in text
    for path in (tmp_path / "run" / "results" / "shards").rglob("*.npz"):
        path.unlink()
    summary = runs.from_folder("evaluate", tmp_path / "run", "evaluation.workers=2", "report=false")
    two = pd.read_csv(tmp_path / "run" / "results" / "bounds.csv")
    pd.testing.assert_frame_equal(
        one.drop(columns="seconds"), two.drop(columns="seconds"), atol=1e-5, rtol=1e-5
    )
    assert summary["protocol"]["method"] == "multilevel"
