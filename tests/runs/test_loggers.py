"""Dashboards on request: nothing asked, nothing on the network, the run folder holds everything."""

import json

import numpy as np
import pandas as pd
import pytest
import runs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from miselbo.errors import InputError, Stopped
from miselbo.runs import wandb_run
from miselbo.runs.loggers import Loggers
from miselbo.runs.plain import plain
from miselbo.runs.tidy import TidyMetrics
from miselbo.runs.wandb import keys, tidy_rows
from miselbo.runs.wandb_file import finished


def test_csv_is_all_there_is_by_default(tmp_path):
    with Loggers(plain(runs.configure(tmp_path)), tmp_path) as made:
        (only,) = made.of_member(2)
    assert isinstance(only, TidyMetrics) and only.member == 2
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_has_a_folder_for_every_member(tmp_path):
    runs.fit(tmp_path / "run", "ensemble.size=2", "logger=tensorboard")
    names = sorted(path.name for path in (tmp_path / "run" / "tensorboard").iterdir())
    assert names == ["ensemble", "q1", "q2"]
    for member in ("q1", "q2"):
        events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / member)).Reload()
        assert {"val/miselbo", "val/jsd", "train/elbo"} <= set(events.Tags()["scalars"])
    assert (tmp_path / "run" / "metrics.csv").exists()


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("{_target_: carrier.Pigeon}", "logger.mine: there is no carrier.Pigeon here"),
        (
            "{_target_: pytorch_lightning.loggers.CSVLogger, colour: red}",
            "logger.mine cannot be built.*colour",
        ),
    ],
)
def test_a_logger_that_cannot_be_built_is_named_before_any_training(tmp_path, node, message):
    cfg = runs.configure(tmp_path, f"+logger.mine={node}")
    with pytest.raises(InputError, match=message), Loggers(plain(cfg), tmp_path) as made:
        made.of_member(1)


def test_mlflow_and_csv_at_once_have_the_same_values(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    runs.fit(tmp_path / "run", "ensemble.size=2", "logger=[csv,mlflow]")
    client = mlflow.MlflowClient(f"file:{tmp_path}/run/mlruns")
    (experiment,) = client.search_experiments(filter_string="name = 'miselbo'")
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(found) == {"q1", "q2", "ensemble"}
    table = pd.read_csv(tmp_path / "run" / "metrics.csv")
    for member in (1, 2):
        history = client.get_metric_history(found[f"q{member}"].info.run_id, "val/miselbo")
        rows = table[(table["member"] == member) & (table["metric"] == "val/miselbo")]
        assert [m.step for m in history] == list(rows["step"])
        np.testing.assert_allclose([m.value for m in history], rows["value"])
    headline = json.loads((tmp_path / "run" / "results" / "summary.json").read_text())["headline"]
    assert found["ensemble"].data.metrics["miselbo"] == pytest.approx(headline["miselbo"])


def test_a_finished_run_is_sent_to_dashboards_later(tmp_path, capsys):
    folder = tmp_path / "run"
    runs.fit(folder, "ensemble.size=2")
    before = (folder / "metrics.csv").read_text()
    runs.from_folder("log", folder, "logger=[wandb,tensorboard]", "logger.mode=offline")
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    rows = finished(file).history
    sent = {(m, s, n): float(row[f"q{m}/{n}"]) for row in rows for m, s, n in keys(row)}
    assert sent == pytest.approx(tidy_rows(folder / "metrics.csv"))
    names = sorted(path.name for path in (folder / "tensorboard").iterdir())
    assert names == ["ensemble", "q1", "q2"] and (folder / "metrics.csv").read_text() == before
    assert "sent to wandb, tensorboard" in capsys.readouterr().out
    with pytest.raises(InputError, match="name some, as in logger=wandb"):
        runs.from_folder("log", folder)


def test_the_dashboard_is_closed_after_an_error(tmp_path, monkeypatch):
    codes = []

    class Run:
        offline, id = True, "abc"

        def finish(self, exit_code):
            codes.append(exit_code)

        def mark_preempting(self):
            codes.append("preempting")

    monkeypatch.setattr(wandb_run, "start", lambda folder, mode, **given: Run())
    cfg = runs.configure(tmp_path, "logger=wandb")
    with Loggers(plain(cfg), tmp_path):
        pass
    for end in (ZeroDivisionError, KeyboardInterrupt, SystemExit):
        with pytest.raises(end), Loggers(plain(cfg), tmp_path):
            raise end
    with pytest.raises(Stopped), Loggers(plain(cfg), tmp_path):
        raise Stopped("SIGTERM")
    assert codes == [0, 1, 1, 1, "preempting", 75]


def test_curves_of_members_own_jobs_reach_the_dashboard(tmp_path):
    """By the command that evaluates, and the same as those of one run."""
    more = ("logger=wandb", "logger.mode=offline", "ensemble.size=3", "evaluation.num_pictures=0")
    runs.fit(tmp_path / "whole", *more)
    for member in (1, 2, 3):
        runs.fit(tmp_path / "jobs", *more, "task=fit_member", f"member={member}")
    assert not (tmp_path / "jobs" / "wandb").exists()
    runs.from_folder("evaluate", tmp_path / "jobs")
    histories = []
    for name in ("whole", "jobs"):
        (file,) = (tmp_path / name / "wandb").glob("offline-run-*/run-*.wandb")
        rows = [row for row in finished(file).history if "bounds" not in row]
        histories.append(
            {(key, row["epoch"]): row[key] for row in rows for key in row if key.startswith("q")}
        )
    assert {key[0][:3] for key in histories[0]} == {"q1/", "q2/", "q3/"}
    assert histories[0] == histories[1]


def test_what_a_dashboard_would_show(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    more = (
        "report=true",
        "logger=wandb",
        "logger.mode=offline",
        "logger.group=my-sweep",
        "logger.checkpoints=true",
    )
    summary = runs.fit(folder, "ensemble.size=2", *more)
    (file,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    shown = finished(file)
    assert shown.exit_code == 0 and shown.run.run_group == "my-sweep"
    assert sorted(shown.run.tags) == ["S=2", "digits", "vae"]
    assert shown.config["model"]["target"]["num_latents"] == 2 and shown.config["seed"] == 0
    for name in ("miselbo", "average_elbo", "average_iwelbo", "joint_bound", "delta", "jsd"):
        assert shown.summary[name] == pytest.approx(summary["headline"][name])
    assert shown.metrics["q1/*"] == shown.metrics["q2/*"] == "epoch"
    curves = pd.read_csv(folder / "metrics.csv")
    for member in (1, 2):
        rows = [row for row in shown.history if f"q{member}/val/miselbo" in row]
        kept = curves[(curves["member"] == member) & (curves["metric"] == "val/miselbo")]
        assert [row[f"q{member}/val/miselbo"] for row in rows] == pytest.approx(list(kept["value"]))
        assert [row["epoch"] for row in rows] == list(range(len(rows))) and rows
    (last,) = (row for row in shown.history if "bounds" in row)
    assert last["bounds"]["_type"] == "table-file" and last["figures/bounds_vs_L"]["_type"] == "image-file"
    table = json.loads((file.parent / "files" / last["bounds"]["path"]).read_text())
    grid = pd.read_csv(folder / "results" / "bounds.csv")
    assert table["columns"] == list(grid.columns) and len(table["data"]) == len(grid)
    assert (file.parent / "files" / last["figures/bounds_vs_L"]["path"]).read_bytes()[1:4] == b"PNG"
    with np.load(folder / "results" / "images.npz") as images:
        assert images["samples"].shape == (4, 1, 8, 8)
    for name in ("originals", "prior", "q1", "q2"):
        shown_image = last[f"samples/{name}"]
        side = 1 if name != "prior" else 2  # 2 images beside each other, or 4 in a square; 8 times as large
        assert shown_image["_type"] == "image-file" and shown_image["width"] == 17 * 8
        assert shown_image["height"] == (9 * side - 1) * 8
    kinds = {artifact.type: artifact for artifact in shown.artifacts if artifact.type in ("report", "model")}
    listed = {kind: {entry.path for entry in item.manifest.contents} for kind, item in kinds.items()}
    assert listed == {"report": {"report.html"}, "model": {"target.ckpt", "q1.ckpt", "q2.ckpt"}}

    cfg = runs.configure(folder, "ensemble.size=2", *more)  # the same run goes on, and crashes
    with pytest.raises(ZeroDivisionError), Loggers(plain(cfg), folder):
        _ = 1 / 0
    files = sorted(
        (folder / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime
    )
    again = finished(files[-1])
    assert len(files) == 2 and again.run.run_id == shown.run.run_id and again.exit_code == 1
