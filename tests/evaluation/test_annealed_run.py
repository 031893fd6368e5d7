"""An annealed evaluation of a run folder: beside the full run, resumable, refused for trees before any work."""

import math

import pandas as pd
import pytest
import runs
import torch
from torch.distributions import Independent, Normal

from miselbo import InputError, evaluate
from miselbo.evaluation.annealed import Plan

KEYS = [
    "evaluation.method=annealed",
    "evaluation.annealed.temperatures=4",
    "evaluation.annealed.chains=2",
    "evaluation.annealed.num_examples=6",
    "evaluation.num_samples=16",
    "evaluation.precision=0.5",
]


def test_annealed_and_precise_values_stand_beside_the_bounds(tmp_path):
    folder = tmp_path / "run"
    summary = runs.fit(folder, *KEYS, "ensemble.size=2", "evaluation.grid=[16]", "report=true")
    table = pd.read_csv(folder / "results" / "annealed.csv")
    examples = pd.read_parquet(folder / "results" / "per_example.parquet")
    assert len(table) == 6 and table["joint_bound"].tolist() == examples["joint_bound"][:6].tolist()
    about = summary["annealed"]
    assert about["annealed"] == pytest.approx(table["annealed"].mean())
    assert about["gain"] == pytest.approx((table["annealed"] - table["joint_bound"]).mean())
    assert about["passes"] == 2 * (3 * (1 + 3 * 4) + 16) and 0 < about["acceptance"] <= 1
    precise = pd.read_csv(folder / "results" / "precision.csv")
    assert (precise["reached"] == (precise["se_mc"] <= 0.5)).all() and len(precise) == 12
    text = (folder / "report.md").read_text()
    assert about["sentence"] in text and summary["precision"]["sentence"] in text
    shards = list((folder / "results" / "annealed").rglob("*.npz"))
    times = [shard.stat().st_mtime_ns for shard in shards]
    again = runs.from_folder("evaluate", folder, *KEYS, "evaluation.grid=[16]", "report=false")
    assert again["annealed"] == about and times == [shard.stat().st_mtime_ns for shard in shards]
    with pytest.raises(InputError, match="annealed.chains must be a whole number of at least 2, got 1"):
        runs.from_folder("evaluate", folder, "evaluation.annealed.chains=1")


def test_from_a_program_it_finds_what_poor_members_miss(tmp_path):
    x = torch.linspace(-2, 2, 8)

    def log_joint(x, z):
        return Normal(0.0, 1.0).log_prob(z[..., 0]) + Normal(z[..., 0], 1.0).log_prob(x)

    def member(shift):
        return lambda x: Independent(Normal(x[:, None] / 2 + shift, 0.15), 1)

    poor = [member(-1.0), member(1.2)]
    result = evaluate(log_joint, poor, x, 20, method="annealed", plan=Plan(20, 40), folder=tmp_path)
    about, exact = result.summary["annealed"], float(Normal(0.0, math.sqrt(2)).log_prob(x).mean())
    assert about["annealed"] == pytest.approx(exact, abs=3 * about["annealed_se_mc"])
    assert about["joint_bound"] < exact - 0.1 and about["gain_low"] > 0
    assert "the joint bound at L = 20 misses" in about["sentence"]
    assert len(result.tables["annealed.csv"]) == 8
