"""``task=compare`` by its command line: two evaluations of one model, and one of other pixels."""

import shutil

import pandas as pd
import pytest
import runs

from miselbo.commands import compare
from miselbo.errors import InputError


def test_two_evaluations_agree_and_another_binarisation_is_refused(tmp_path, capsys):
    runs.fit(tmp_path / "a", "ensemble.size=2", "report=false", "evaluation.num_samples=20")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    runs.from_folder("evaluate", tmp_path / "b", "report=false", "evaluation.seed=9")
    given = {"runs": [str(tmp_path / "a"), str(tmp_path / "b")], "run_dir": str(tmp_path / "out")}
    found = compare.compare(given)
    table = (
        pd.DataFrame(found["differences"])
        .set_index("quantity")
        .loc[["miselbo", "joint_bound", "average_elbo"]]
    )
    assert (table["difference"] != 0).all()
    assert (table["difference_low"] < 0).all() and (table["difference_high"] > 0).all()
    assert [row["key"] for row in found["protocols"]] == ["evaluation_seed"]
    assert "is not shown to differ from that of a" in capsys.readouterr().out

    runs.fit(tmp_path / "c", "dataset.binarisation_seed=1", "ensemble.size=2", "report=false",
             "evaluation.num_samples=20")  # fmt: skip
    with pytest.raises(InputError, match="cannot be compared.*binarisation_seed is 0 in a, 1 in c"):
        compare.compare(given | {"runs": [str(tmp_path / "a"), str(tmp_path / "c")]})
    with pytest.raises(InputError, match="run_dir=.* is a run folder"):
        compare.compare(given | {"run_dir": str(tmp_path / "a")})


def test_what_cannot_be_compared(tmp_path):
    for values, message in (
        ({}, "needs 'runs="),
        ({"runs": ["a"], "seed": 1}, "got seed"),
        ({"runs": [str(tmp_path), "b"]}, "neither a run with a result nor a sweep"),
    ):
        with pytest.raises(InputError, match=message):
            compare.compare(values)


def test_a_sweep_is_one_entry_for_each_configuration(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "seed_of", lambda place: int(place.name[-1]))
    jobs = [
        {"overrides": [f"seed={seed}", f"ensemble.size={size}", "model=vae"], "run_dir": f"S{size}-{seed}",
         "status": "failed" if (seed, size) == (1, 3) else "finished"}
        for size in (2, 3) for seed in (0, 1)
    ]  # fmt: skip
    monkeypatch.setattr(compare.sweeps, "read_jobs", lambda sweep: jobs)
    found = compare.of_sweep(tmp_path, "sweep")
    assert [(name, sorted(seeds)) for name, seeds in found] == [
        ("ensemble.size=2", [0, 1]),
        ("ensemble.size=3", [0]),
    ]
