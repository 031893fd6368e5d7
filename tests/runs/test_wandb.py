"""Curves on W&B after kills: every value once, whatever the killed process could still write."""

from types import SimpleNamespace

import pandas as pd
import pytest
import runs

from miselbo import pipeline
from miselbo.runs.tidy import TidyMetrics
from miselbo.runs.wandb import WandbCurves, catch_up, keys, on_dashboard, tidy_rows
from miselbo.runs.wandb_file import finished

OFFLINE = ["logger=wandb", "logger.mode=offline"]
FAMILIES = {
    "gaussian": ["model=gaussian", "dataset=u2", "dataset.replicates=4", "model.objective.steps_per_epoch=3"],
    "vbpi": ["model=vbpi", "dataset.replicates=4", "model.objective.steps_per_epoch=3", "dataset.support.method=nj",
             "dataset.support.replicates=2", "dataset.support.nj_trees=5"],
    "nvae": [*runs.NVAE, "dataset.num_train=64", "dataset.num_validation=16", "dataset.num_test=8"],
}  # fmt: skip


class Run:
    """Takes rows as W&B does."""

    id, offline, resumed, summary = "abc", False, False, {}

    def __init__(self):
        self.rows = []

    def define_metric(self, *args, **kwargs):
        pass

    def log(self, row):
        self.rows.append(row)


def files(folder):
    found = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    return sorted(found, key=lambda path: path.parent.name)


def values(rows):
    """(member, step, metric) to value, of history rows; each must be there once."""
    found = {}
    for row in rows:
        for key in keys(row):
            assert key not in found, key
            found[key] = row[f"q{key[0]}/{key[2]}"]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_curves_and_its_headline(tmp_path, family):
    summary = pipeline.run(runs.config.compose_config([
        *FAMILIES[family], *OFFLINE, f"run_dir={tmp_path / 'run'}", "ensemble.size=2", "trainer.max_epochs=2",
        "report=false", "trainer.enable_progress_bar=false", "trainer.accelerator=cpu",
        "evaluation.num_samples=3",
    ]))  # fmt: skip
    (file,) = files(tmp_path / "run")
    shown = finished(file)
    assert shown.exit_code == 0 and {"S=2", shown.config["model"]["name"]} < set(shown.run.tags)
    for name in ("miselbo", "average_elbo", "average_iwelbo", "joint_bound", "delta", "jsd"):
        assert shown.summary[name] == pytest.approx(summary["headline"][name])
    assert values(shown.history) == pytest.approx(tidy_rows(tmp_path / "run" / "metrics.csv"))
    assert {row["epoch"] for row in shown.history if "q1/step" in row} == {0, 1}
    assert any("bounds" in row for row in shown.history)


@pytest.mark.parametrize("before", ["csv", "wandb"])
def test_a_killed_run_shows_every_value_once(tmp_path, monkeypatch, before):
    folder = tmp_path / "run"
    more = [
        "ensemble.size=2",
        "trainer.max_epochs=4",
        "model.member_epoch_share=1",
        "ensemble.resume_interval=0",
    ]
    more += ["trainer.check_val_every_n_epoch=1", "evaluation.num_pictures=0", "report=false"]
    log = TidyMetrics.log_metrics

    def kill(self, metrics, step=None):
        log(self, metrics, step)
        if self.member == 2 and step == 5 and "train/elbo" in metrics:
            raise MemoryError("killed")

    monkeypatch.setattr(TidyMetrics, "log_metrics", kill)
    with pytest.raises(MemoryError):
        runs.fit(folder, *more, *(OFFLINE if before == "wandb" else []))
    monkeypatch.setattr(TidyMetrics, "log_metrics", log)
    if before == "wandb":
        (first,) = files(folder)
        assert finished(first).exit_code == 1
        whole = first.read_bytes()
        first.write_bytes(whole[: int(0.8 * len(whole))])  # W&B writes its file a block at a time
        assert finished(first, seconds=0).exit_code is None
    runs.fit(folder, *more, *OFFLINE)
    shown = [finished(file, seconds=5) for file in files(folder)]
    assert len(shown) == (2 if before == "wandb" else 1) and len({each.run.run_id for each in shown}) == 1
    assert shown[-1].exit_code == 0 and shown[-1].run.resume
    history = [row for each in shown for row in each.history]
    assert values(history) == pytest.approx(tidy_rows(folder / "metrics.csv"), rel=1e-6)
    for row in history:
        for member, step, _ in keys(row):
            assert row["epoch"] == (step + 1) // 2 - 1, (member, step)  # 64 images in batches of 32
    if before == "wandb":  # part of it was in the first file, and what the kill took along came later
        assert 0 < len(values(shown[0].history)) < len(values(history)) - 14


def test_a_run_that_the_server_has_gets_the_rest(tmp_path):
    rows = [(1, step, "train/elbo", float(step)) for step in (9, 19, 29)]
    rows += [(1, 19, "val/elbo", 9.0), (2, 9, "train/elbo", 5.0)]  # the first of them was not yet sent
    path = tmp_path / "metrics.csv"
    pd.DataFrame(rows, columns=["member", "step", "metric", "value"]).to_csv(path, index=False)
    with path.open("a") as file:
        file.write("2,19,train/elbo,0.1")  # cut short by a kill
    run = Run()
    run.resumed, run.summary = True, {"q1/step": 19, "q1/train/elbo": 19.0, "q1/val/elbo": 8.0}
    known = on_dashboard(run, tmp_path)
    assert known == {(1, 9, "train/elbo"), (1, 19, "train/elbo")}
    catch_up(run, path, known)
    assert run.rows == [
        {"q1/val/elbo": 9.0, "epoch": 1, "q1/step": 19},
        {"q1/train/elbo": 29.0, "epoch": 2, "q1/step": 29},
        {"q2/train/elbo": 5.0, "epoch": 0, "q2/step": 9},
    ]
    curves = WandbCurves(run, 2, known=known)
    for step in (9, 19):
        curves.log_metrics({"train/elbo": 7.0, "epoch": step // 10}, step)
    assert run.rows[3:] == [{"q2/train/elbo": 7.0, "epoch": 1, "q2/step": 19}]
    catch_up(run, path, known)
    assert len(run.rows) == 4
    assert on_dashboard(SimpleNamespace(offline=False, resumed=False), tmp_path) == set()


def test_the_epoch_of_a_trainer_that_logs_steps_alone():
    run = Run()
    curves = WandbCurves(run, 3, steps_per_epoch=100)
    for step in (99, 100, 199, 200):
        curves.log_metrics({"train/elbo": 1.0}, step)
    assert [row["epoch"] for row in run.rows] == [0, 0, 1, 1] and run.rows[0]["q3/train/elbo"] == 1.0
