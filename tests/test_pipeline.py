"""A run from the first step to the report, and what is left when it is stopped, extended, or measured again."""

import json
import shutil
import signal
import time

import numpy as np
import pandas as pd
import pytest
import runs

from miselbo import evaluate_scores, pipeline
from miselbo.bounds.quantities import names
from miselbo.errors import InputError
from miselbo.runs.folder import claim_folder, load_folder

MODELS = {"vae": runs.VAE, "nvae": runs.NVAE}
KEY = ["member", "step", "metric"]


@pytest.fixture(scope="module", params=sorted(MODELS))
def finished(request, tmp_path_factory):
    """A finished run with three members, its summary, and the overrides that chose the model."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    summary = runs.fit(folder, "ensemble.size=3", model=MODELS[request.param])
    runs.from_folder("report", folder)
    return folder, summary, MODELS[request.param]


def bounds(folder) -> pd.DataFrame:
    return pd.read_csv(folder / "results" / "bounds.csv").set_index(["S", "L"])


def assert_same_bounds(one: pd.DataFrame, other: pd.DataFrame, atol: float) -> None:
    columns = [f"{name}{tail}" for name in names() for tail in ("", "_se", "_se_mc")]
    pd.testing.assert_frame_equal(one[columns], other[columns], rtol=0, atol=atol)


def test_a_run_leaves_all_its_files(finished):
    folder, summary, _ = finished
    expected = [".hydra/config.yaml", "metrics.csv", "report.html", "report.md"]
    expected += [f"members/{name}.ckpt" for name in ("target", "q1", "q2", "q3")]
    expected += [
        f"results/{name}" for name in ("bounds.csv", "per_member.csv", "per_example.parquet", "summary.json")
    ]
    expected += ["results/subsets.csv", "results/marginal.csv", "results/pairwise_jsd.csv"]
    for name in expected:
        assert (folder / name).stat().st_size > 0, name
    assert list((folder / "figures").glob("*.png"))
    left = [str(path) for path in folder.rglob("*") if path.name.endswith(".tmp") or "resume" in path.name]
    assert left == []
    assert json.loads((folder / "results" / "summary.json").read_text()) == summary


def test_bounds_of_every_cell(finished):
    table = bounds(finished[0])
    assert list(table.index) == [(s, length) for s in (1, 2, 3) for length in (1, 2, 4)]
    for name in names():
        assert np.isfinite(table[name]).all() and np.isfinite(table[f"{name}_se"]).all(), name
    assert (table["joint_bound"] >= table["miselbo"] - 1e-12).all()
    assert (table["num_data"] == 12).all() and (table["seconds"] > 0).all()
    at_one = table.xs(1, level="L")
    assert np.abs(at_one["miselbo"] - at_one["average_elbo"] - at_one["jsd"]).max() < 1e-10
    assert np.abs(at_one["delta"] - at_one["jsd"]).max() < 1e-10
    alone = table.xs(1, level="S")
    assert (alone["miselbo"] == alone["average_iwelbo"]).all() and (alone["jsd"] == 0).all()
    assert (table.xs(3, level="S")["jsd"].abs() > 1e-6).any()


def test_summary_is_the_last_row_with_its_protocol(finished):
    folder, summary, _ = finished
    last = bounds(folder).reset_index().iloc[-1]
    headline = summary["headline"]
    assert (headline["S"], headline["L"], headline["num_data"]) == (3, 4, 12)
    assert all(type(headline[name]) is int for name in ("S", "L", "num_data"))
    for name, value in headline.items():
        assert np.isnan(last[name]) if value is None else value == pytest.approx(last[name], rel=1e-12), name
    protocol = summary["protocol"]
    assert (protocol["dataset"], protocol["split"], protocol["S"], protocol["L"]) == ("digits", "test", 3, 4)
    assert (protocol["seed"], protocol["evaluation_seed"], protocol["dtype"]) == (0, 0, "float32")
    assert protocol["grid"] == [1, 2, 4] and protocol["num_data"] == 12
    assert "binarised once from seed 0" in protocol["binarisation"]
    assert len(protocol["fingerprint"]) == len(protocol["target_fingerprint"]) == 64
    assert {"miselbo", "torch", "pytorch-lightning", "numpy", "python"} <= protocol["versions"].keys()
    assert [row["stage"] for row in summary["cost"]] == ["train p and q1", "train q2", "train q3", "evaluate"]
    assert summary["cost"][0]["decoder_passes"] == 2 * 64
    assert summary["cost"][-1]["decoder_passes"] == 12 * 3 * 4


def test_every_example_once(finished):
    folder, summary, _ = finished
    examples = pd.read_parquet(folder / "results" / "per_example.parquet")
    assert sorted(examples["index"]) == list(range(12))
    assert {"pareto_k", "ess", *names()} <= set(examples)
    for name in names():
        assert examples[name].mean() == pytest.approx(summary["headline"][name], rel=1e-12)
    members = pd.read_csv(folder / "results" / "per_member.csv")
    assert list(zip(members["member"], members["L"], strict=True)) == [
        (s, n) for s in (1, 2, 3) for n in (1, 2, 4)
    ]
    iwelbo = members[members["L"] == 4]["iwelbo"]
    assert iwelbo.mean() == pytest.approx(summary["headline"]["average_iwelbo"], rel=1e-12)


def test_which_members(finished):
    folder, summary, _ = finished
    subsets = pd.read_csv(folder / "results" / "subsets.csv", index_col="members")
    marginal = pd.read_csv(folder / "results" / "marginal.csv")
    assert len(subsets) == 7 and set(marginal["path"]) == {"order", "greedy"}
    for members, size in (("1", 1), ("1+2", 2), ("1+2+3", 3)):
        cell = bounds(folder).loc[(size, 4)]
        for name in ("miselbo", "joint_bound", "average_iwelbo", "delta", "miselbo_se", "delta_se"):
            assert subsets.loc[members, name] == pytest.approx(cell[name], rel=1e-9, abs=1e-12)
        row = marginal[(marginal["path"] == "order") & (marginal["size"] == size)].iloc[0]
        assert row["miselbo"] == pytest.approx(cell["miselbo"], rel=1e-12)
    found = summary["mixture_weights"]
    assert sum(found["weights"]) == pytest.approx(1) and len(found["weights"]) == 3
    assert found["fitted_on"] == "even samples of the first 4" and found["num_data"] == 12


def test_metrics_are_tidy(finished):
    metrics = pd.read_csv(finished[0] / "metrics.csv")
    assert list(metrics.columns) == [*KEY, "value"]
    assert not metrics.duplicated(KEY).any()
    assert np.isfinite(metrics["value"]).all()
    for member in (1, 2, 3):
        names = set(metrics[metrics["member"] == member]["metric"])
        assert {"val/miselbo", "val/average_elbo", "val/delta", "val/jsd", "val/elbo"} <= names
        assert {
            "train/elbo",
            "train/kl",
            "train/kl_weight",
            "train/learning_rate",
            "train/skipped_steps",
        } <= names
    assert set(metrics["member"]) == {1, 2, 3}


def test_a_larger_ensemble_extends_a_smaller_one(finished, tmp_path):
    folder, _, model = finished
    small = tmp_path / "run"
    runs.fit(small, "ensemble.size=1", model=model)
    alone = bounds(small)
    assert_same_bounds(alone, bounds(folder).loc[[1]], atol=1e-6)
    before = runs.snapshot(small / "members")
    assert set(before) == {"target.ckpt", "q1.ckpt"}
    runs.fit(small, "ensemble.size=3", model=model)
    after = runs.snapshot(small / "members")
    assert {
        name: after[name] for name in before
    } == before  # bytes and time: theta is frozen, q1 not trained again
    for name in ("target", "q1", "q2", "q3"):
        assert runs.same_tensors(runs.state(small, name), runs.state(folder, name)), name
    assert_same_bounds(bounds(small), bounds(folder), atol=1e-6)


def test_another_seed_is_another_ensemble(finished, tmp_path):
    folder, summary, model = finished
    other = runs.fit(tmp_path / "run", "ensemble.size=1", "seed=1", model=model)
    assert other["protocol"]["target_fingerprint"] != summary["protocol"]["target_fingerprint"]


def test_members_differ_and_were_trained(finished):
    folder, _, model = finished
    from miselbo.data import ImageSpec
    from miselbo.runs.plan import build_ensemble

    _, fresh = build_ensemble(runs.configure(folder, model=model), ImageSpec(1, 8, 8, "bernoulli"), 3)
    for s in (1, 2, 3):
        trained = runs.state(folder, f"q{s}")
        assert not runs.same_tensors(trained, fresh[s - 1].state_dict())
        for other in range(1, s):
            assert not runs.same_tensors(trained, runs.state(folder, f"q{other}"))


def test_the_same_command_again_does_nothing_again(finished, tmp_path):
    folder, _, model = finished
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "results" / "bounds.csv").unlink()
    before = runs.snapshot(tmp_path / "run" / "members") | runs.snapshot(
        tmp_path / "run" / "results" / "shards"
    )
    metrics = (tmp_path / "run" / "metrics.csv").read_bytes()
    runs.fit(tmp_path / "run", "ensemble.size=3", model=model)
    after = runs.snapshot(tmp_path / "run" / "members") | runs.snapshot(
        tmp_path / "run" / "results" / "shards"
    )
    assert after == before
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == metrics
    assert_same_bounds(bounds(tmp_path / "run"), bounds(folder), atol=0)


def test_an_evaluation_killed_half_way_goes_on(finished, tmp_path):
    folder, _, model = finished
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    shards = sorted((again / "results" / "shards").glob("*/*.npz"))
    assert len(shards) == 3  # 12 examples in batches of 5
    shards[1].unlink()
    (shards[1].parent / f".{shards[1].name}.1.tmp").write_bytes(b"half a shard")
    for name in ("summary.json", "bounds.csv", "per_member.csv", "per_example.parquet", "images.npz"):
        (again / "results" / name).unlink()
    kept = [(path.stat().st_mtime_ns, path.read_bytes()) for path in (shards[0], shards[2])]
    runs.fit(again, "ensemble.size=3", model=model)
    assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in (shards[0], shards[2])] == kept
    assert shards[1].exists()
    assert_same_bounds(bounds(again), bounds(folder), atol=0)


@pytest.mark.parametrize("cut", [("12", "3"), ("1", "1"), ("7", "4")])
def test_measured_again_from_the_folder_alone(finished, tmp_path, cut):
    folder, summary, _ = finished
    again = tmp_path / "moved"
    shutil.copytree(folder, again)
    settings = [f"evaluation.batch_size={cut[0]}", f"evaluation.samples_per_pass={cut[1]}"]
    other = runs.from_folder("evaluate", again, *settings)
    assert_same_bounds(bounds(again), bounds(folder), atol=1e-4)
    assert other["protocol"]["fingerprint"] == summary["protocol"]["fingerprint"]
    one, two = (pd.read_parquet(path / "results" / "per_example.parquet") for path in (folder, again))
    assert one["index"].tolist() == two["index"].tolist()
    assert np.abs(one["miselbo"] - two["miselbo"]).max() < 1e-4


def test_more_samples_extend_fewer(finished, tmp_path):
    """The draws of L = 4 are the first of L = 9; rows below L are means over blocks of all of them."""
    folder, *_ = finished
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    runs.from_folder(
        "evaluate",
        again,
        "evaluation.num_samples=9",
        "evaluation.grid=[1,2,4]",
        "evaluation.save_scores=true",
    )
    more = bounds(again)
    assert list(more.index) == [(s, length) for s in (1, 2, 3) for length in (1, 2, 4, 9)]
    log_p, log_q = (np.load(again / "results" / "scores" / f"{name}.npy") for name in ("log_p", "log_q"))
    first = evaluate_scores(log_p[:, :, :4], log_q[:, :, :4], grid=[1, 2, 4]).bounds.set_index(["S", "L"])
    assert_same_bounds(first, bounds(folder), atol=1e-4)
    whole = evaluate_scores(log_p, log_q, grid=[1, 2, 4]).bounds.set_index(["S", "L"])
    assert_same_bounds(more, whole, atol=1e-6)


def test_a_goal_goes_on_from_the_draws_at_hand(finished, tmp_path):
    folder, *_ = finished
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    goal = ("evaluation.num_samples=20", "evaluation.stop_at_se=1e-9", "evaluation.save_scores=true")
    summary = runs.from_folder("evaluate", again, *goal)
    assert summary["protocol"]["notes"][0].startswith("L = 20 is where doublings from 16 ended")
    assert summary["cost"][-1]["decoder_passes"] == 12 * 3 * 20
    log_p, log_q = (np.load(again / "results" / "scores" / f"{name}.npy") for name in ("log_p", "log_q"))
    whole = evaluate_scores(log_p, log_q, grid=[1, 2, 5, 10]).bounds.set_index(["S", "L"])
    assert_same_bounds(bounds(again), whole, atol=1e-6)
    runs.from_folder("evaluate", again, "evaluation.num_samples=20")
    assert_same_bounds(bounds(again), whole, atol=1e-4)


def test_fewer_members_examples_and_the_other_split(finished, tmp_path):
    folder, summary, _ = finished
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    runs.from_folder("evaluate", again, "ensemble.size=2", "evaluation.num_examples=7")
    examples = pd.read_parquet(again / "results" / "per_example.parquet")
    assert examples["index"].tolist() == list(range(7)) and set(bounds(again).reset_index()["S"]) == {1, 2}
    first = pd.read_parquet(folder / "results" / "per_example.parquet").iloc[:7]
    assert np.abs(examples["iwelbo_2"] - first["iwelbo_2"]).max() < 1e-4
    other = runs.from_folder("evaluate", again, "evaluation.split=validation")
    assert other["protocol"]["split"] == "validation" and other["protocol"]["num_data"] == 16
    assert other["headline"]["miselbo"] != summary["headline"]["miselbo"]


def test_the_report_is_rebuilt_from_the_folder(finished, tmp_path):
    folder, summary, _ = finished
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    shutil.rmtree(again / "figures")
    (again / "report.html").unlink()
    shutil.rmtree(again / "members")  # the report needs results alone
    assert runs.from_folder("report", again) == summary
    assert (again / "report.html").read_bytes() == (folder / "report.html").read_bytes()
    assert list((again / "figures").glob("*.png"))


def test_a_report_without_results_says_what_to_do(tmp_path):

    claim_folder(runs.configure(tmp_path), tmp_path)
    with pytest.raises(InputError, match="task=evaluate"):
        runs.from_folder("report", tmp_path)


@pytest.mark.parametrize("override", ["model.target.num_preprocess_blocks=4", "evaluation.num_samples=0"])
def test_nothing_is_written_for_what_cannot_be(tmp_path, override):
    with pytest.raises(InputError):
        runs.fit(tmp_path / "run", override, model=runs.NVAE)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_kill_in_the_middle_of_a_members_training(tmp_path):
    settings = [
        "trainer.max_epochs=12",
        "model.member_epoch_share=1.0",
        "ensemble.size=3",
        "ensemble.resume_interval=0",
    ]
    settings += ["evaluation.num_pictures=0", "trainer.check_val_every_n_epoch=1"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = runs.start(tmp_path, *runs.overrides(killed, *settings, model=runs.NVAE))
    members = killed / "members"
    try:
        deadline = time.monotonic() + 120
        while not (members / "q2.resume.ckpt").exists():
            assert time.monotonic() < deadline and process.poll() is None, process.communicate()
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (members / "q2.ckpt").exists()
    finished = {
        name: value for name, value in runs.snapshot(members).items() if name in ("q1.ckpt", "target.ckpt")
    }
    assert len(finished) == 2
    runs.fit(killed, *settings, model=runs.NVAE)
    runs.fit(whole, *settings, model=runs.NVAE)
    after = runs.snapshot(members)
    assert {name: after[name] for name in finished} == finished
    assert set(after) == {"target.ckpt", "q1.ckpt", "q2.ckpt", "q3.ckpt"}
    for name in ("target", "q1", "q2", "q3"):
        assert runs.same_tensors(runs.state(killed, name), runs.state(whole, name)), name
    assert_same_bounds(bounds(killed), bounds(whole), atol=1e-6)
    one, two = (pd.read_csv(folder / "metrics.csv").sort_values(KEY) for folder in (killed, whole))
    assert not one.duplicated(KEY).any()
    assert one[KEY].values.tolist() == two[KEY].values.tolist()
    np.testing.assert_allclose(one["value"], two["value"], rtol=1e-6)


def test_two_processes_count_every_example_once(tmp_path):
    """63 examples in batches of 5 over 2 real processes equal one process."""
    cfg = runs.configure(tmp_path / "run", "dataset.num_test=63", "evaluation.batch_size=5")
    pipeline.run(cfg)
    one = pd.read_parquet(tmp_path / "run" / "results" / "per_example.parquet")
    shutil.rmtree(tmp_path / "run" / "results")
    pipeline.run(load_folder(tmp_path / "run", ["task=evaluate", "evaluation.workers=2", "num_threads=1"]))
    two = pd.read_parquet(tmp_path / "run" / "results" / "per_example.parquet")
    assert two["index"].tolist() == list(range(63))
    pd.testing.assert_frame_equal(one, two, rtol=0, atol=1e-5)
