"""SIGTERM and trainer.max_time: saved, one line, status 75, no process left, and the same command goes on exactly."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import runs

from miselbo import pipeline
from miselbo.errors import InputError, Stopped
from miselbo.evaluation import scoring as evaluation
from miselbo.phylo.member import Training
from miselbo.runs import checkpoints, config
from miselbo.runtime import stopping
from miselbo.training.member import MemberTraining

FOUR = ["trainer.max_epochs=4", "ensemble.size=2", "trainer.check_val_every_n_epoch=1", "report=false",
        "dataset.num_train=112", "evaluation.num_pictures=0"]  # fmt: skip
VBPI = ["model=vbpi", "trainer.enable_progress_bar=false", "model.objective.steps_per_epoch=10", "ensemble.size=2",
        "evaluation.num_samples=4", "trainer.max_epochs=2", "dataset.support.replicates=1",
        "dataset.support.nj_trees=20", "dataset.replicates=3", "report=false"]  # fmt: skip
LINE = "stopped: SIGTERM; what is done is saved, the same command goes on from here\n"


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def after(calls: int, method, do=terminate):
    """The method, doing something at the beginning of call number ``calls``."""
    count = iter(range(1, 10**9))

    def inner(*given):
        if next(count) == calls:
            do()
        return method(*given)

    return inner


def stop_in_step(monkeypatch, step: int, folder, *settings: str) -> None:
    """Train until SIGTERM arrives during training step number ``step``."""
    with monkeypatch.context() as patch:
        patch.setattr(MemberTraining, "training_step", after(step, MemberTraining.training_step))
        with pytest.raises(Stopped, match="SIGTERM"):
            runs.fit(folder, *settings)


def curves(folder) -> list[list]:
    table = pd.read_csv(folder / "metrics.csv").sort_values(["member", "step", "metric"])
    return table.values.tolist()


def assert_same_training(one, other) -> None:
    for name in ("target", "q1", "q2"):
        assert runs.same_tensors(runs.state(one, name), runs.state(other, name)), name
    assert curves(one) == curves(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    runs.fit(folder, *FOUR)
    return folder


# 4 batches an epoch, 4 epochs of q1, 2 of q2: inside an epoch, its last batch, its first, the last of q1, inside q2's
@pytest.mark.parametrize(("step", "workers"), [(6, 0), (8, 0), (9, 0), (16, 0), (19, 0), (24, 0), (7, 1)])
def test_a_stop_in_training_loses_nothing(whole, tmp_path, monkeypatch, step, workers):
    folder, settings = tmp_path / "run", [*FOUR, f"dataset.num_workers={workers}"]
    stop_in_step(monkeypatch, step, folder, *settings)
    trained = []
    with monkeypatch.context() as patch:
        step_of = MemberTraining.training_step
        patch.setattr(MemberTraining, "training_step", lambda *given: trained.append(1) or step_of(*given))
        runs.fit(folder, *settings)
    assert len(trained) == 24 - step
    assert_same_training(folder, whole)


def test_a_stop_waits_for_a_whole_accumulated_step(tmp_path, monkeypatch):
    settings = [*FOUR, "trainer.accumulate_grad_batches=2"]
    stop_in_step(monkeypatch, 5, tmp_path / "run", *settings)
    runs.fit(tmp_path / "run", *settings)
    runs.fit(tmp_path / "whole", *settings)
    assert_same_training(tmp_path / "run", tmp_path / "whole")


def test_max_time_is_that_of_the_whole_command(whole, tmp_path, monkeypatch):
    slow = MemberTraining.training_step
    folder, begun = tmp_path / "run", time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(MemberTraining, "training_step", lambda *given: time.sleep(0.3) or slow(*given))
        with pytest.raises(Stopped, match=r"trainer\.max_time is over"):
            runs.fit(folder, *FOUR, "trainer.max_time={seconds: 3}")
        assert 2.5 < time.monotonic() - begun < 6
        assert not (folder / "members" / "q2.ckpt").exists()
    assert (folder / "members" / "q1.resume.ckpt").exists()
    runs.fit(folder, *FOUR, "trainer.max_time=00:01:00:00")
    assert_same_training(folder, whole)


@pytest.mark.parametrize("given", ["12", "0:10", "00:00:00:00", "{weeks: x}", "{fortnights: 1}"])
def test_a_max_time_that_is_none(tmp_path, given):
    with pytest.raises(InputError, match=r"trainer\.max_time must be DD:HH:MM:SS"):
        runs.fit(tmp_path / "run", f"trainer.max_time={given}")
    assert not (tmp_path / "run").exists()


def test_a_stop_in_the_evaluation_keeps_what_is_scored(whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "results")
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "score_batch", after(3, evaluation.score_batch))
        with pytest.raises(Stopped):
            runs.from_folder("evaluate", folder)
    assert len(list((folder / "results" / "shards").glob("*/0*.npz"))) == 2
    runs.from_folder("evaluate", folder)
    one, other = (pd.read_parquet(path / "results" / "per_example.parquet") for path in (folder, whole))
    pd.testing.assert_frame_equal(one, other)


def test_a_stop_in_vbpi_training_loses_nothing(tmp_path, monkeypatch):
    def fit(name: str):
        return pipeline.run(config.compose_config([*VBPI, f"run_dir={tmp_path / name}"]))

    fit("whole")
    with monkeypatch.context() as patch:
        patch.setattr(Training, "iteration", after(17, Training.iteration))
        with pytest.raises(Stopped):
            fit("run")
    trained = []
    with monkeypatch.context() as patch:
        iteration = Training.iteration
        patch.setattr(Training, "iteration", lambda self: trained.append(1) or iteration(self))
        fit("run")
    assert len(trained) == 2 * 2 * 10 - 17
    assert_same_training(tmp_path / "run", tmp_path / "whole")


def test_a_stopped_job_is_recorded_and_ends_its_sweep(call, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "evaluate", lambda *given, **more: terminate())
    arguments = [argument for argument in runs.overrides(tmp_path) if not argument.startswith("run_dir=")]
    status, _, err = call("-m", "seed=0,1", "ensemble.size=1", "hydra.sweep.dir=sweep", *arguments)
    assert status == stopping.STATUS and err == LINE
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "sweep" / "jobs").glob("*.json"))
    assert record["status"] == "stopped" and record["error"] == "SIGTERM"


def children(pid: int) -> set[int]:
    """Process numbers of all descendants."""
    try:
        found = set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return set()
    return found.union(*map(children, found))


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(condition, process, seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_no_process_outlives_the_command(tmp_path, number):
    """Two members in training side by side, which would take minutes; both are saved, by SIGKILL of the command too."""
    settings = [*VBPI, "trainer.max_epochs=20000", "ensemble.resume_interval=0"]
    members = tmp_path / "run" / "members"
    process = runs.start(tmp_path, *settings, "ensemble.workers=2", f"run_dir={tmp_path / 'run'}")
    try:
        wait_for(lambda: all((members / f"q{s}.resume.ckpt").exists() for s in (1, 2)), process)
        others = children(process.pid)
        assert len(others) >= 2
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == (stopping.STATUS if number == signal.SIGTERM else -number)
    assert err == (LINE if number == signal.SIGTERM else "")
    deadline = time.monotonic() + 30
    while not all(map(gone, others)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not list(members.glob("q?.ckpt")) and len(list(members.glob("q?.resume.ckpt"))) == 2
    for s in (1, 2):
        assert checkpoints.load_file(members / f"q{s}.resume.ckpt")["counts"]["step"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("what", ["evaluation", "study", "sweep"])
def test_no_worker_outlives_its_command(tmp_path, what, number):
    """Evaluation workers, parts of a study, jobs of a sweep under joblib: processes that would run for hours."""
    hours = "evaluation.num_samples=100000000"
    if what == "evaluation":
        arguments = [*runs.overrides(tmp_path / "run", "ensemble.size=1"), hours, "evaluation.workers=2"]
        started = lambda: (tmp_path / "run" / "members" / "q1.ckpt").exists()  # noqa: E731
    elif what == "study":
        arguments = [
            "experiment=table2",
            "study.workers=2",
            "study.epochs=1000000",
            "trainer.accelerator=cpu",
        ]
        arguments += [f"study.results={tmp_path}/results", f"run_dir={tmp_path}/run"]
        started = lambda: len(list((tmp_path / "run").glob("*/.hydra/config.yaml"))) >= 2  # noqa: E731
    else:
        arguments = [word for word in runs.overrides(tmp_path) if not word.startswith("run_dir=")]
        arguments = ["-m", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *arguments, hours]
        started = lambda: len(list(tmp_path.glob("outputs/sweeps/*/*/members/q5.ckpt"))) == 2  # noqa: E731
    process = runs.start(tmp_path, *arguments)
    try:
        wait_for(lambda: started() and len(children(process.pid)) >= 2, process, 200)
        time.sleep(5)
        others = children(process.pid)
        process.send_signal(number)
        process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == (stopping.STATUS if number == signal.SIGTERM else -number)
    deadline = time.monotonic() + 90
    while not all(map(gone, others)):
        assert time.monotonic() < deadline, [Path(f"/proc/{pid}/cmdline").read_text() for pid in others]
        time.sleep(0.1)
