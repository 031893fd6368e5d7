"""SIGTERM and trainer.max_time: saved, one line, status 75, no process left, and the same command goes on exactly."""

import json
import os
import signal
import time

import pandas as pd
import pytest
import runs

from miselbo import config, evaluation, pipeline, stopping
from miselbo.errors import InputError, Stopped
from miselbo.phylo.training import Training
from miselbo.training.module import MemberTraining

EPOCHS = ["trainer.max_epochs=4", "ensemble.size=2", "trainer.check_val_every_n_epoch=1", "report=false"]


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def after(calls: int, method, do=terminate):
    """The method, doing something at the beginning of call number ``calls``."""
    count = iter(range(1, 10**9))

    def inner(*arguments):
        if next(count) == calls:
            do()
        return method(*arguments)

    return inner


def curves(folder) -> list[list]:
    table = pd.read_csv(folder / "metrics.csv").sort_values(["member", "step", "metric"])
    return table.values.tolist()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    runs.fit(folder, *EPOCHS, "dataset.num_train=112", "evaluation.num_pictures=0")
    return folder


# 4 batches an epoch, 4 epochs of q1, 2 of q2: inside an epoch, its last batch, its first, the very last of q1, inside q2
@pytest.mark.parametrize("step", [6, 8, 9, 16, 19, 24])
def test_a_stop_in_training_loses_nothing(whole, tmp_path, monkeypatch, step):
    folder = tmp_path / "run"
    settings = [*EPOCHS, "dataset.num_train=112", "evaluation.num_pictures=0"]
    with monkeypatch.context() as patch:
        patch.setattr(MemberTraining, "training_step", after(step, MemberTraining.training_step))
        with pytest.raises(Stopped, match="SIGTERM"):
            runs.fit(folder, *settings)
    trained = []
    with monkeypatch.context() as patch:
        step_of = MemberTraining.training_step
        patch.setattr(MemberTraining, "training_step", lambda *given: trained.append(1) or step_of(*given))
        runs.fit(folder, *settings)
    assert len(trained) == 24 - step
    for name in ("target", "q1", "q2"):
        assert runs.same_tensors(runs.state(folder, name), runs.state(whole, name)), name
    assert curves(folder) == curves(whole)
