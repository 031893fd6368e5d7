"""Paired differences against plain arithmetic, and every difference of protocol that changes a number's meaning."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic
from scipy import stats

from miselbo.errors import InputError
from miselbo.report import compare
from miselbo.report.compare.protocols import DECIDES, NEVER

GRID = (1, 5, 20)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs: the same model, draws of their own, the second 0.5 nats better at every example but uneven ones."""
    places = []
    for name, seed in (("a", 0), ("b", 1)):
        place = synthetic.make(tmp_path_factory.mktemp("runs") / name, size=2, num_data=40, grid=GRID, seed=0)
        path = place / "results" / "per_example.parquet"
        frame = pd.read_parquet(path).assign(data_hash=np.arange(40))
        if seed:
            shift = 0.5 + 0.1 * np.sin(np.arange(40))
            for column in ("miselbo", "joint_bound"):
                frame[column] += shift
            frame = frame.sample(frac=1, random_state=0)  # matched by index, not by place
        frame.to_parquet(path)
        places.append(place)
    return places


def change(place: Path, target: Path, protocol: dict | None = None, **frame: object) -> Path:
    """A copy of a run with other entries in its protocol, or columns in its table of examples."""
    import shutil

    shutil.copytree(place, target)
    path = target / "results" / "summary.json"
    summary = json.loads(path.read_text())
    summary["protocol"] |= protocol or {}
    path.write_text(json.dumps(summary))
    if frame:
        path = target / "results" / "per_example.parquet"
        pd.read_parquet(path).assign(**frame).to_parquet(path)
    return target


def test_differences_are_students_over_the_common_examples(made, tmp_path):
    found = compare.write([(place.name, {0: place}) for place in made], tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "compare.csv").set_index("quantity")
    expected = 0.5 + 0.1 * np.sin(np.arange(40))
    low, high = stats.t.interval(0.95, 39, loc=expected.mean(), scale=stats.sem(expected))
    row = table.loc["joint_bound"]
    assert np.allclose(
        row[["difference", "difference_low", "difference_high"]].tolist(), [expected.mean(), low, high]
    )
    assert math.isclose(row["other"] - row["first"], row["difference"], rel_tol=1e-9)
    assert table.loc["average_elbo", "difference"] == 0 and (table["num"] == 40).all()
    assert "Joint bound of b is 0.50" in found["verdicts"][1] and " above " in found["verdicts"][1]
    assert "b & Joint bound & " in (tmp_path / "out" / "compare.tex").read_text()
    page = (tmp_path / "out" / "compare.html").read_text()
    assert found["verdicts"][0].split(" nats")[0] in page.replace("\u00a0", " ")
    assert (tmp_path / "out" / "figures" / "compare.png").stat().st_size > 5000


def test_examples_are_matched_by_number_and_infinite_ones_are_told(made, tmp_path):
    values = pd.read_parquet(made[1] / "results" / "per_example.parquet")["joint_bound"].to_numpy().copy()
    values[3] = -math.inf
    other = change(made[1], tmp_path / "c", joint_bound=values)
    path = other / "results" / "per_example.parquet"
    pd.read_parquet(path).iloc[:30].to_parquet(path)
    compare.write([("a", {0: made[0]}), ("c", {0: other})], tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "compare.csv").set_index("quantity")
    assert table.loc["joint_bound", ["num", "left_out"]].tolist() == [29, 1] and table.loc["jsd", "num"] == 30


@pytest.mark.parametrize("key", [key for key in DECIDES if key not in ("L", "data")])
def test_what_changes_the_meaning_is_refused_by_name(made, tmp_path, key):
    one = change(made[0], tmp_path / "one", {key: "drawn once from seed 0"})
    two = change(made[1], tmp_path / "two", {key: "threshold at one half"})
    entries = [("one", {0: one}), ("two", {0: two})]
    message = rf"{re.escape(key)} is drawn once from seed 0 in one, threshold at one half in two"
    with pytest.raises(InputError, match=message):
        compare.write(entries, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    if key in NEVER:
        with pytest.raises(InputError, match=f"allow={key}: "):
            compare.write(entries, tmp_path / "out", [key])
    else:
        assert compare.write(entries, tmp_path / "out", [key])["protocols"][0]["key"] == key


def test_other_bits_and_another_number_of_draws_are_refused(made, tmp_path):
    hashes = np.where(np.arange(40) < 2, -1, np.arange(40))
    other = change(made[0], tmp_path / "bits", data_hash=hashes)
    with pytest.raises(
        InputError, match="data is as it is in a, 2 examples of the same number differ in bits"
    ):
        compare.write([("a", {0: made[0]}), ("bits", {0: other})], tmp_path / "out")
    fewer = synthetic.make(tmp_path / "fewer", size=2, num_data=40, grid=(1, 5))
    with pytest.raises(InputError, match="L is 20 in a, 5 in fewer"):
        compare.write([("a", {0: made[0]}), ("fewer", {0: fewer})], tmp_path / "out")


def test_a_multilevel_evaluation_has_nothing_to_pair(made, tmp_path):
    other = change(made[1], tmp_path / "m", {"method": "multilevel"})
    with pytest.raises(InputError, match="evaluation.method=multilevel.*cannot be paired"):
        compare.write([("a", {0: made[0]}), ("m", {0: other})], tmp_path / "out")


def test_what_does_not_change_the_meaning_is_named(made, tmp_path):
    other = change(made[1], tmp_path / "b", {"dtype": "bfloat16", "fingerprint": "f" * 64})
    found = compare.write([("a", {0: made[0]}), ("b", {0: other})], tmp_path / "out")
    assert {"dtype", "fingerprint"} <= {row["key"] for row in found["protocols"]}
    assert "bfloat16" in (tmp_path / "out" / "compare.md").read_text()


def test_sweeps_are_paired_by_seed(made, tmp_path):
    gains = {0: 0.3, 1: 0.5, 2: 0.1}
    runs: dict[str, dict[int, Path]] = {"first": {}, "second": {}}
    for seed, gain in gains.items():
        base = 3.0 * seed  # seeds differ far more than the configurations
        values = pd.read_parquet(made[0] / "results" / "per_example.parquet")["miselbo"]
        for name, more in (("first", 0.0), ("second", gain)):
            place = change(made[0], tmp_path / f"{name}{seed}", {"seed": seed}, miselbo=values + base + more)
            runs[name][seed] = place
    del runs["second"][1]
    compare.write(list(runs.items()), tmp_path / "out")
    row = pd.read_csv(tmp_path / "out" / "compare.csv").set_index("quantity").loc["miselbo"]
    low, high = stats.t.interval(0.95, 1, loc=0.2, scale=stats.sem([0.3, 0.1]))
    assert row["over"] == "seeds" and row["num"] == 2
    assert np.allclose(
        row[["difference", "difference_low", "difference_high"]].astype(float), [0.2, low, high]
    )
    del runs["second"][2]
    with pytest.raises(InputError, match="paired by seed, which needs two seeds that both have"):
        compare.write(list(runs.items()), tmp_path / "out")


def test_bayes_factors_of_trees_have_both_errors(made, tmp_path):
    entries = []
    for name, value, error, ess in (("jc", -2062.0, 0.3, 400.0), ("gtr", -2058.5, 0.4, 50.0)):
        place = change(made[0], tmp_path / name, {"substitution_model": name})
        path = place / "results" / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sections": ["trees"]}))
        trees = {
            "log_marginal": value,
            "log_marginal_se": error,
            "draws": 1000,
            "ess": ess,
            "names": [],
            "consensus": "",
        }
        (place / "results" / "trees.json").write_text(json.dumps(trees))
        (place / "results" / "splits.csv").write_text("split,q,weighted\n")
        entries.append((name, {0: place}))
    (row,) = compare.write(entries, tmp_path / "out")["bayes_factors"]
    assert math.isclose(row["log_bayes_factor"], 3.5) and math.isclose(row["log_bayes_factor_se"], 0.5)
    assert math.isclose(row["log_bayes_factor_low"], 3.5 - 0.98) and not row["trusted"]
    assert "few effective draws" in (tmp_path / "out" / "compare.md").read_text()
