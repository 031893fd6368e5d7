"""A card that holds is confirmed; a card with one field changed is refused by that field's name."""

import json
import shutil

import pandas as pd
import pytest
import runs

from miselbo.errors import InputError
from miselbo.evaluation import card, data_hash
from miselbo.evaluation.finished import load_run

TAMPERED = {
    "dataset": "mnist", "split": "validation", "split_rule": "the last 60", "binarisation": "threshold at one half",
    "binarisation_seed": 1, "likelihood": "normal", "data_sha256": "0" * 64, "num_data": 61, "model": "nvae",
    "fingerprint": "1" * 64, "target_fingerprint": "2" * 64, "S": 3, "L": 40, "grid": [1, 5, 30], "seed": 1,
    "evaluation_seed": 5, "dtype": "float64", "estimator": "IWELBO", "versions": {"torch": "9.9"}, "commit": "a" * 40,
    "miselbo": -40.0, "joint_bound": -40.0, "delta": 0.2, "miselbo_se": 0.001, "jsd_se_mc": 0.0, "certificate": -40.0,
    "confidence": 0.99, "share_pareto_k_above_0.7": 0.0, "k_unknown": 0.5, "decoder_passes": 1, "seconds": 0.001,
    "per_example_sha256": "3" * 64, "non_finite": 3.0, "device": "cuda", "card": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    runs.fit(folder, "ensemble.size=2", "report=false", "evaluation.num_samples=30", "dataset.num_test=60")
    return folder


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copy")


def tamper(folder, name, **changes):
    path = folder / "results" / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_card_that_holds_is_confirmed(made):
    found = runs.from_folder("check", made)
    assert found["confirmed"] and found["num_scored"] == 60 and found["largest"] < 1e-6
    assert found["verdict"].startswith("confirmed to 1e-6") and found["seconds"] < 60


def test_the_card_covers_every_field_that_is_tampered_with_here(made):
    said = json.loads((made / "results" / "card.json").read_text())
    assert len(TAMPERED) >= 20 and TAMPERED.keys() <= said.keys()
    assert all(said[name] != value for name, value in TAMPERED.items())


@pytest.mark.parametrize("field", TAMPERED)
def test_a_tampered_field_is_named(copy, field):
    tamper(copy, "card.json", **{field: TAMPERED[field]})
    found = runs.from_folder("check", copy)
    assert not found["confirmed"] and [one["field"] for one in found["failed"]] == [field]
    assert found["verdict"].startswith(f"does not hold: {field} (the card says {TAMPERED[field]!r}")


def test_a_table_that_is_tampered_with_everywhere_fails_when_it_is_scored_again(copy):
    path = copy / "results" / "per_example.parquet"
    frame = pd.read_parquet(path)
    frame["joint_bound"] += 1e-3
    frame.to_parquet(path, index=False)
    card.write(copy, json.loads((copy / "results" / "summary.json").read_text()))
    found = runs.from_folder("check", copy)
    assert [one["field"] for one in found["failed"]] == ["joint_bound"] and "of example" in found["verdict"]


def test_a_seed_of_the_draws_that_is_changed_everywhere_fails_too(copy):
    summary = json.loads((copy / "results" / "summary.json").read_text())
    summary["protocol"]["evaluation_seed"] = 5
    tamper(copy, "summary.json", **summary)
    tamper(copy, "card.json", evaluation_seed=5)
    found = runs.from_folder("check", copy)
    assert "miselbo" in [one["field"] for one in found["failed"]]


def test_other_weights_are_named(copy, tmp_path):
    runs.fit(tmp_path / "other", "ensemble.size=2", "report=false", "evaluation.num_samples=4", "seed=1")
    for name in ("target", "q1", "q2"):
        shutil.copy(tmp_path / "other" / "members" / f"{name}.ckpt", copy / "members")
    found = runs.from_folder("check", copy)
    assert {one["field"] for one in found["failed"]} == {"fingerprint", "target_fingerprint"}


def test_refined_members_are_refined_again(copy):
    runs.from_folder("evaluate", copy, "evaluation.refine_steps=3", "evaluation.num_examples=20")
    found = runs.from_folder("check", copy)
    assert found["confirmed"] and found["num_scored"] == 20
    tamper(copy, "card.json", refine_steps=4)
    assert [one["field"] for one in runs.from_folder("check", copy)["failed"]] == ["refine_steps"]


def test_without_a_card_it_says_what_to_do(copy):
    (copy / "results" / "card.json").unlink()
    with pytest.raises(InputError, match="card.json does not exist.*task=evaluate run_dir="):
        runs.from_folder("check", copy)


def test_a_multilevel_evaluation_leaves_no_card_of_an_earlier_one(copy):
    runs.from_folder("evaluate", copy, "report=false", "evaluation.method=multilevel")
    assert not (copy / "results" / "card.json").exists()
    with pytest.raises(InputError, match="needs evaluation.method=full"):
        runs.from_folder("check", copy)


def test_hashes_are_of_the_bits_that_are_scored(made):
    data = load_run(made).data()
    hashes, whole = data_hash.hash_examples(data, "test")
    assert hashes.tolist() == pd.read_parquet(made / "results" / "per_example.parquet")["data_hash"].tolist()
    some, part = data_hash.hash_examples(data, "test", 7)
    assert some.tolist() == hashes[:7].tolist() and part != whole
    assert len({*hashes.tolist()}) == len({row["image"].numpy().tobytes() for row in rows(data)})


def rows(data):
    for batch in data.evaluation_batches("test", 1):
        yield {"image": batch[data.input_key]}
