"""Sweeps: tables at the end, failures that stop nothing, nothing done twice."""

import json
import math
import re
import time

import numpy as np
import pandas as pd
import pytest
import runs
from hydra import compose, initialize_config_dir
from scipy import stats

from miselbo import pipeline
from miselbo.commands import sweeps
from miselbo.errors import InputError
from miselbo.report import sweep as report
from miselbo.runs import config
from miselbo.runtime import locks

SMALL = [
    "model=gaussian", "dataset=u2", "model.objective.steps_per_epoch=2", "trainer.max_epochs=2", "dataset.replicates=4",
    "evaluation.num_samples=2", "trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "report=false",
]  # fmt: skip


def the_sweep(folder):
    (found,) = (folder / "outputs" / "sweeps").iterdir()
    return found


def test_tables_figure_and_report_after_a_sweep_and_nothing_twice(call, tmp_path, monkeypatch):
    status, out, err = call("-m", "seed=0,1,2", "ensemble.size=2,3", *SMALL)
    assert status == 0, err
    sweep = the_sweep(tmp_path)
    jobs, summary = pd.read_csv(sweep / "sweep.csv"), pd.read_csv(sweep / "summary.csv")
    assert len(jobs) == 6 and (jobs["status"] == "finished").all() and jobs["error"].isna().all()
    assert set(zip(jobs["seed"], jobs["ensemble.size"], strict=True)) == {
        (i, s) for i in (0, 1, 2) for s in (2, 3)
    }
    for _, row in jobs.iterrows():
        bounds = pd.read_csv(sweep / row["run_dir"] / "results" / "bounds.csv").iloc[-1]
        assert row["miselbo"] == pytest.approx(bounds["miselbo"]) and row["S"] == row["ensemble.size"]
        assert f"seed={row['seed']}" in row["overrides"].split()
    assert list(summary["configuration"]) == ["ensemble.size=2", "ensemble.size=3"]
    for size, (_, row) in zip((2, 3), summary.iterrows(), strict=True):
        values = jobs.loc[jobs["ensemble.size"] == size, "miselbo"]
        low, high = stats.t.interval(0.95, 2, values.mean(), values.std() / math.sqrt(3))
        assert row["miselbo_mean"] == pytest.approx(values.mean())
        assert row["miselbo_sd"] == pytest.approx(values.std())
        assert (row["miselbo_low"], row["miselbo_high"]) == (pytest.approx(low), pytest.approx(high))
    page = (sweep / "report.html").read_text()
    assert "/report.html" not in page and "data:image/png;base64" in page and "ensemble.size=3" in page
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", line) for line in page.splitlines()]
    for _, row in summary.iterrows():
        (shown,) = (found for found in rows if found[:2] == ["MISELBO", row["configuration"]])
        for key, cell in zip(("mean", "sd", "low", "high"), shown[2:], strict=True):
            assert float(cell) == pytest.approx(row[f"miselbo_{key}"], abs=0.051 * row["miselbo_sd"])
    assert (sweep / "figures" / "sweep.png").exists() and "6 of 6 jobs finished" in out

    monkeypatch.setattr(pipeline, "run", lambda cfg: pytest.fail("a finished job ran again"))
    before = runs.snapshot(sweep / jobs["run_dir"][0])
    (sweep / "sweep.csv").unlink()
    # neither threads nor a progress bar make it another sweep
    status, out, err = call("-m", "seed=0,1,2", "ensemble.size=2,3", *SMALL, "num_threads=1")
    assert status == 0 and out.count("finished before: ") == 6, err
    assert len(pd.read_csv(sweep / "sweep.csv")) == 6 and runs.snapshot(sweep / jobs["run_dir"][0]) == before
    page = (sweep / "report.html").read_text()
    (sweep / "report.html").unlink()
    status, out, err = call("task=sweep_report", f"sweep_dir={sweep}")
    assert status == 0 and (sweep / "report.html").read_text() == page, err
    link = f"{jobs['run_dir'][4]}/report.html"
    (sweep / link).write_text("a job's own report")
    assert call("task=sweep_report", f"sweep_dir={sweep}")[0] == 0
    assert f'<a href="{link}">' in (sweep / "report.html").read_text()


def test_more_seeds_go_on_in_the_same_folder(call, tmp_path):
    assert call("-m", "seed=0,1", *SMALL)[0] == 0
    status, out, err = call("-m", "seed=1,2", *SMALL)
    assert status == 0 and out.count("finished before: ") == 1, err
    summary = pd.read_csv(the_sweep(tmp_path) / "summary.csv")
    assert list(summary["num_finished"]) == [3]


def test_a_failed_job_hides_and_stops_nothing_and_runs_again(call, tmp_path, monkeypatch):
    run = pipeline.run

    def sometimes(cfg):
        if cfg.seed == 1:
            raise RuntimeError("disk on fire\nsecond line")
        return run(cfg)

    monkeypatch.setattr(pipeline, "run", sometimes)
    status, out, err = call("-m", "ensemble.size=0,2", "seed=0,1,2", *SMALL)
    assert status == 1
    sweep = the_sweep(tmp_path)
    jobs = pd.read_csv(sweep / "sweep.csv").set_index(["ensemble.size", "seed"])
    assert dict(jobs["status"].value_counts()) == {"failed": 4, "finished": 2}
    assert jobs.loc[(2, 1), "error"] == "RuntimeError: disk on fire"
    assert jobs.loc[(0, 2), "error"] == "ensemble.size must be a whole number of at least 1, got 0"
    assert np.isnan(jobs.loc[(2, 1), "miselbo"]) and np.isfinite(jobs.loc[(2, 2), "miselbo"])
    page = (sweep / "report.html").read_text()
    assert "RuntimeError: disk on fire" in page and "2 of 6 jobs finished, 4 failed" in page
    record = f"jobs/{jobs.loc[(2, 1), 'run_dir']}.json"
    assert f'<a href="{record}">' in page and (sweep / record).is_file()
    assert "failed: ensemble.size=2 seed=1" in err and "disk on fire" in out
    record = next(r for r in sweeps.read_jobs(sweep) if r.get("error", "").startswith("RuntimeError"))
    assert "second line" in record["traceback"]
    summary = pd.read_csv(sweep / "summary.csv").set_index("configuration")
    assert summary.loc["ensemble.size=2", ["num_jobs", "num_finished"]].tolist() == [3, 2]
    assert summary.loc["ensemble.size=0", "num_finished"] == 0

    monkeypatch.setattr(
        pipeline, "run", run
    )  # put out; with other values the failures of the last command are gone
    status, out, err = call("-m", "ensemble.size=2", "seed=0,1,2", *SMALL, f"hydra.sweep.dir={sweep}")
    assert status == 0 and out.count("finished before: ") == 2, err
    jobs = pd.read_csv(sweep / "sweep.csv")
    assert len(jobs) == 3 and (jobs["status"] == "finished").all()


def test_swept_settings_of_the_evaluation_do_not_share_a_folder(call, tmp_path):
    status, _, err = call("-m", "evaluation.num_samples=2,3", *(o for o in SMALL if "num_samples" not in o))
    assert status == 0, err
    jobs = pd.read_csv(the_sweep(tmp_path) / "sweep.csv")
    assert jobs["run_dir"].nunique() == 2 and list(jobs["L"]) == [2, 3]


def test_jobs_that_were_killed_or_never_started_are_listed(tmp_path):
    plan = sweeps.plan(["seed=0,1"])
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": plan}))
    (tmp_path / "jobs").mkdir()
    record = {"overrides": plan[0], "run_dir": "a", "status": "running", "configuration": "c"}
    (tmp_path / "jobs" / "a.json").write_text(json.dumps(record))
    (tmp_path / "jobs" / "b.json").write_text("{ torn")
    assert not sweeps.conclude(tmp_path)
    jobs = pd.read_csv(tmp_path / "sweep.csv")
    assert list(jobs["status"]) == ["unfinished", "not started"]


def test_tables_of_a_sweep_are_written_by_one_command_at_a_time(tmp_path):
    (tmp_path / "sweep.json").write_text('{"overrides": ["seed=0"], "jobs": [["seed=0"]]}')
    with (
        locks.hold(tmp_path, locks.WHOLE, "having its tables written"),
        pytest.raises(InputError, match="is having its tables written by another process"),
    ):
        sweeps.conclude(tmp_path)
    assert not list(tmp_path.glob("*.csv"))
    assert not sweeps.conclude(tmp_path)
    assert (tmp_path / "sweep.csv").is_file()


def test_a_folder_that_is_no_sweep(call, tmp_path):
    with pytest.raises(InputError, match="is no folder of a sweep"):
        sweeps.conclude(tmp_path)
    assert "needs sweep_dir=" in call("task=sweep_report")[2]


def test_what_makes_another_sweep():
    def folder(*overrides):
        return sweeps.folder_overrides(config.parse(list(overrides)))[0]

    same = folder("seed=0,1", "model=vae")
    assert same == folder("model=vae", "seed=0,1,2", "logger=wandb", "hydra/launcher=joblib")
    others = [
        folder("seed=0,1", "model=nvae"),
        folder("seed=0,1", "model=vae", "ensemble.size=3"),
        folder("seed=0,1"),
    ]
    assert len({same, *others}) == 4
    assert folder("model=vae,nvae").startswith("hydra.sweep.dir=outputs/sweeps/model-")
    assert sweeps.folder_overrides(config.parse(["seed=0,1", "hydra.sweep.dir=x"])) == []


def test_one_seed_has_no_interval():
    values = report.spread(np.array([1.0]))
    assert values["mean"] == 1.0 and all(math.isnan(values[key]) for key in ("sd", "low", "high"))
    assert math.isnan(report.spread(np.array([]))["mean"])


SEEDS = ["-m", "seed=0,1", *runs.TINY, "trainer.max_epochs=1", "ensemble.size=2"]


def check_two_seeds(folder, launcher):
    """Two seeds of the default model on the default dataset, each job in its folder and in no other."""
    status, out, err = runs.command(folder, *SEEDS, f"hydra/launcher={launcher}")
    assert status == 0, out + err
    sweep = the_sweep(folder)
    jobs = pd.read_csv(sweep / "sweep.csv")
    assert list(jobs["status"]) == ["finished"] * 2 and list(jobs["seed"]) == [0, 1]
    assert sorted(path.name for path in sweep.glob("nvae-digits-*")) == sorted(jobs["run_dir"])
    assert jobs["miselbo"].nunique() == 2 and (jobs["num_data"] == 12).all()
    return sweep


@pytest.mark.slow
def test_the_second_command_of_a_finished_sweep_is_quick_and_trains_nothing(tmp_path):
    sweep = check_two_seeds(tmp_path, "basic")
    before = runs.snapshot(sweep)
    started = time.monotonic()
    status, out, err = runs.command(tmp_path, *SEEDS)
    assert status == 0 and out.count("finished before: ") == 2 and "nothing new in" in out, err
    assert time.monotonic() - started < 15
    after = runs.snapshot(sweep)
    assert {name for name in after if after[name] != before.get(name)} <= {"multirun.yaml"}  # Hydra's own


@pytest.mark.parametrize("launcher", ["joblib", pytest.param("submitit_local", marks=pytest.mark.slow)])
def test_launchers_run_the_jobs_in_processes(tmp_path, launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher")
    check_two_seeds(tmp_path, launcher)


@pytest.mark.slow  # ray takes 20 seconds to start
def test_ray_runs_the_jobs(tmp_path):
    pytest.importorskip("ray", reason="pip install '.[sweep]'")
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    check_two_seeds(tmp_path, "ray")


def test_slurm_through_submitit_composes():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    sizes = ["hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=4", "hydra.launcher.gpus_per_node=4"]
    chosen = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", *sizes]
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        cfg = compose("config", ["trainer=slurm", *chosen], return_hydra_config=True)
    launcher = cfg.hydra.launcher
    assert launcher._target_.endswith(".SlurmLauncher")
    assert (launcher.partition, launcher.nodes, launcher.tasks_per_node) == ("gpu", 2, 4)
    assert cfg.trainer.plugins.auto_requeue is False and cfg.trainer.strategy == "ddp"


def test_a_job_on_the_dashboard_is_in_the_group_of_its_sweep(tmp_path):
    seen = []
    for more in ([], ["logger.group=mine"]):
        cfg = config.compose_config(["logger=wandb", *more])
        sweeps.run_job(cfg, tmp_path / "sweep" / "a", tmp_path / "sweep", ["seed=0"], seen.append)
    assert [cfg.logger.group for cfg in seen] == ["sweep", "mine"]
    assert seen[0].run_dir == str(tmp_path / "sweep" / "a")


def test_a_request_to_stop_ends_the_sweep(tmp_path):
    def stop(cfg):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweeps.run_job(config.compose_config([]), tmp_path / "a", tmp_path, ["seed=0"], stop)
    (record,) = (tmp_path / "jobs").glob("*.json")
    assert sweeps.read_record(record)["status"] == "running"
