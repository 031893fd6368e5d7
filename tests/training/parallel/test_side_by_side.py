"""Members in worker processes and as jobs of their own: the same tensors and curves as one after another."""

import os
from types import SimpleNamespace

import pandas as pd
import pytest
import runs
import torch
from filelock import FileLock
from omegaconf import OmegaConf

from miselbo.errors import InputError, MembersFailedError
from miselbo.runs import checkpoints
from miselbo.runs.plan import rebuild, training_plan
from miselbo.runs.tidy import TidyMetrics
from miselbo.runtime import locks
from miselbo.training.parallel import side_by_side

SETTINGS = ["ensemble.size=3", "report=false", "evaluation.num_pictures=0"]


@pytest.fixture(scope="module")
def sequential(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequential") / "run"
    runs.fit(folder, *SETTINGS)
    return folder


def assert_same_run(folder, other):
    for name in ("target", "q1", "q2", "q3"):
        assert runs.same_tensors(runs.state(folder, name), runs.state(other, name)), name
    one, two = (pd.read_csv(path / "metrics.csv") for path in (folder, other))
    order = ["member", "step", "metric"]
    pd.testing.assert_frame_equal(*(frame.sort_values(order, ignore_index=True) for frame in (one, two)))
    one, two = (pd.read_parquet(path / "results" / "per_example.parquet") for path in (folder, other))
    pd.testing.assert_frame_equal(one, two)


def test_side_by_side_is_the_same_as_one_after_another(sequential, tmp_path, capsys):
    runs.fit(tmp_path / "run", *SETTINGS, "ensemble.workers=2", "trainer.enable_progress_bar=true")
    assert_same_run(tmp_path / "run", sequential)


def test_members_as_jobs_of_their_own(sequential, tmp_path, capsys):
    folder = tmp_path / "run"
    with pytest.raises(InputError, match=r"q2 needs the target, which is trained with q1: .*member=1"):
        runs.fit(folder, *SETTINGS, "task=fit_member", "member=2")
    assert not folder.exists()
    assert runs.fit(folder, *SETTINGS, "task=fit_member", "member=1") == {"member": 1, "missing": [2, 3]}
    assert runs.from_folder("fit_member", folder, "member=3")["missing"] == [2]
    before = runs.snapshot(folder / "members")
    with pytest.raises(InputError, match=r"q2 of 3 members are missing .*task=fit_member member=2 run_dir="):
        runs.from_folder("evaluate", folder)
    assert runs.from_folder("fit_member", folder, "member=2")["missing"] == []
    assert "all members are there: task=evaluate" in capsys.readouterr().out
    after = runs.snapshot(folder / "members")
    assert {name: after[name] for name in before} == before
    runs.from_folder("evaluate", folder)
    assert_same_run(folder, sequential)
    assert not (folder / "curves").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["task=fit_member"], r"needs member=<number from 1 to ensemble.size=3>, got member=None"),
        (["task=fit_member", "member=4"], "got member=4"),
        (["member=2"], "member=2 needs task=fit_member"),
        (["task=fit_member", "member=1", "ensemble.objective=mixture"], "trains all members together"),
        (["ensemble.workers=0"], "ensemble.workers must be 'auto' or a whole number"),
        (["ensemble.workers=2", "trainer.devices=2"], "asks for several per member: choose one"),
        (["ensemble.workers=2", "model=gaussian", "dataset=u2"], "trains all its members at once"),
        (["task=fit_member", "member=1", "model=gaussian", "dataset=u2"], "trains all its members at once"),
    ],
)
def test_what_cannot_be(tmp_path, given, message):
    classical = [] if "model=gaussian" in given else runs.VAE
    tiny = ["ensemble.size=3", f"run_dir={tmp_path / 'run'}", *given]
    from miselbo import pipeline
    from miselbo.runs import config

    with pytest.raises(InputError, match=message):
        pipeline.run(config.compose_config([*classical, *tiny]))
    assert not (tmp_path / "run").exists()


def test_workers_follow_devices_and_cores(monkeypatch):
    cfg = runs.configure("run", "ensemble.workers=auto", "trainer.accelerator=auto")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert side_by_side.number_of_workers(training_plan(cfg), 4) == 4
    assert side_by_side.number_of_workers(training_plan(cfg), 9) == 6
    cfg.num_threads = 4
    assert side_by_side.number_of_workers(training_plan(cfg), 4) == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert side_by_side.number_of_workers(training_plan(cfg), 4) == 3
    cfg.ensemble.workers = 5
    worker = side_by_side.Worker(training_plan(cfg), 4)
    assert worker.device == 1 and side_by_side.number_of_workers(training_plan(cfg), 9) == 5


def test_a_failing_member_does_not_stop_the_others(tmp_path, capfd):
    cfg = runs.configure(tmp_path)
    cfg.model.fit._target_ = "failing.fit"
    loggers = lambda s: [TidyMetrics(tmp_path / "metrics.csv", s)]  # noqa: E731
    with pytest.raises(MembersFailedError) as caught:
        side_by_side.fit_in_processes(training_plan(cfg), [2, 3, 4, 5], 2, loggers)
    message = str(caught.value)
    assert "q3: RuntimeError: no luck (trace above)" in message and "q5: no such file" in message
    assert message.endswith("Finished and kept: q2, q4. The same command trains what is missing.")
    tries = {s: len((tmp_path / f"tries{s}").read_text()) for s in (2, 3, 4, 5)}
    assert tries == {2: 1, 3: 2, 4: 2, 5: 1}
    err = capfd.readouterr().err
    assert "q4: its process was killed by signal 9 (out of memory?); once more" in err
    assert err.count("RuntimeError: no luck") >= 2
    curves = pd.read_csv(tmp_path / "metrics.csv")
    assert sorted(curves["member"]) == [2, 3, 4, 5] and set(curves["metric"]) == {"train/elbo"}


def test_two_commands_never_train_the_same_member(tmp_path, sequential):
    first = pytest.raises(InputError, match=f"process \\(number {os.getpid()} on ")
    with locks.hold(tmp_path, "q3"), first, locks.hold(tmp_path, "q3"):
        pass
    with locks.hold(tmp_path, "q3"):
        assert (tmp_path / ".locks" / "q3.json").exists()
    cfg = runs.configure(sequential, *SETTINGS)
    (tmp_path / ".locks").mkdir(exist_ok=True)
    held = FileLock(tmp_path / ".locks" / "q1.lock")
    with held, pytest.raises(InputError, match="q1 of .* is being trained by another process"):
        cfg.run_dir = str(tmp_path)
        run = rebuild(OmegaConf.to_yaml(cfg, resolve=True))
        run.fit(run.target, run.members, run.data, run.plan, tmp_path, lambda s: [])
    assert checkpoints.finished_members(tmp_path, 3) == []


def test_one_progress_line_per_member(capsys):
    board = side_by_side.Board(lambda s: [], show=True)
    for s in (2, 3):
        board.progress(s, "start", f"train q{s} epoch", 10)
        board.meters[s].interval = 0
    board.progress(2, "skip", 4)
    board.progress(3, "update", 1, "ELBO -3.00 nats")
    board.progress(2, "update", 5, "")
    board.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("train q3 epoch  1/10") and first.endswith("ELBO -3.00 nats")
    assert second.startswith("train q2 epoch  5/10")


def test_a_logger_hears_of_the_end(monkeypatch):
    heard = []
    logger = SimpleNamespace(
        log_metrics=lambda values, step: heard.append((values, step)),
        finalize=lambda status: heard.append(status),
    )
    board = side_by_side.Board(lambda s: [logger], show=False)
    board.curves(2, {"a": 1.0}, 3)
    board.end(2, "success")
    assert heard == [({"a": 1.0}, 3), "success"]
