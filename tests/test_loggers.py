"""Dashboards on request: nothing asked, nothing on the network, the run folder holds everything."""

import json

import matplotlib
import pytest
import runs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from miselbo import loggers, pipeline
from miselbo.errors import InputError
from miselbo.loggers import Loggers
from miselbo.training.callbacks import TidyMetrics


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr(pipeline, "report", lambda folder: {})


def test_csv_is_all_there_is_by_default(tmp_path):
    with Loggers(runs.configure(tmp_path), tmp_path) as made:
        (only,) = made.of_member(2)
    assert isinstance(only, TidyMetrics) and only.member == 2
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_has_a_folder_for_every_member(tmp_path, no_report):
    runs.fit(tmp_path / "run", "ensemble.size=2", "logger=tensorboard")
    assert sorted(path.name for path in (tmp_path / "run" / "tensorboard").iterdir()) == ["q1", "q2"]
    for member in ("q1", "q2"):
        events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / member)).Reload()
        assert {"val/miselbo", "val/jsd", "train/elbo"} <= set(events.Tags()["scalars"])
    assert (tmp_path / "run" / "metrics.csv").exists()


def test_unknown_logger(tmp_path):
    cfg = runs.configure(tmp_path, "logger.name=carrierpigeon")
    with pytest.raises(
        InputError, match="unknown logger.name=carrierpigeon; known are csv, tensorboard, wandb"
    ):
        Loggers(cfg, tmp_path)


def test_a_missing_package_names_the_command():
    with pytest.raises(
        InputError, match=r"logger=no_such_package needs .*: pip install '\.\[no_such_package\]'"
    ):
        loggers.require("no_such_package")


def test_the_dashboard_is_closed_after_an_error(tmp_path, monkeypatch):
    codes = []

    class Run:
        def finish(self, exit_code):
            codes.append(exit_code)

    monkeypatch.setattr(loggers, "start_wandb", lambda cfg, folder: Run())
    cfg = runs.configure(tmp_path, "logger=wandb")
    with Loggers(cfg, tmp_path):
        pass
    with pytest.raises(ZeroDivisionError), Loggers(cfg, tmp_path):
        _ = 1 / 0
    assert codes == [0, 1]


def test_wandb_without_a_key_is_offline_and_asks_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    monkeypatch.delenv("WANDB_MODE", raising=False)
    environment = {"WANDB_API_KEY": "", "HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    environment["MPLCONFIGDIR"] = matplotlib.get_configdir()  # its list of fonts takes seconds to make
    arguments = runs.overrides(folder, "logger=wandb", "ensemble.size=2", "evaluation.num_pictures=0")
    status, out, err = runs.command(tmp_path, *arguments, **environment)
    assert status == 0, err
    (offline,) = (folder / "wandb").glob("offline-run-*")
    assert list(offline.glob("run-*.wandb"))
    assert (folder / "wandb_run_id").read_text().strip() in offline.name
    assert f"wandb sync {folder}/wandb/offline-run-*" in out + err
    assert "deprecated" not in out + err
    assert json.loads((folder / "results" / "summary.json").read_text())["headline"]["S"] == 2
    assert (folder / "metrics.csv").exists()
