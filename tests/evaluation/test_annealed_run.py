"""An annealed evaluation of a run folder: beside the full run, resumable, refused for trees before any work."""

import pandas as pd
import pytest
import runs

from miselbo import InputError

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
    summary = runs.fit(folder, *KEYS, "ensemble.size=2", "evaluation.grid=[16]")
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
