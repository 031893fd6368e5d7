"""Progress lines: what is done, what is left, and silence when asked."""

from types import SimpleNamespace

import pytest

from miselbo.runtime import progress
from miselbo.runtime.progress import Meter
from miselbo.training.callbacks import EpochMeter


@pytest.fixture
def now(monkeypatch):
    """A clock the test sets."""
    clock = SimpleNamespace(time=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.time)
    return clock


def test_a_line_every_interval_with_the_time_left(now, capsys):
    meter = Meter("evaluate", total=10, interval=5)
    for done in range(1, 5):
        now.time += 3
        meter.update(done, "note")
    meter.close()
    assert capsys.readouterr().out == (
        "evaluate  2/10  elapsed 0:06  left 0:24  note\nevaluate  4/10  elapsed 0:12  left 0:18  note\n"
    )


def test_steps_of_an_earlier_process_do_not_count_for_speed(now, capsys):
    meter = Meter("train", total=100, interval=0)
    meter.skip(90)
    now.time += 4
    meter.update(92)
    assert capsys.readouterr().out.splitlines()[-1] == "train  92/100  elapsed 0:04  left 0:16"


def test_silence(now, capsys):
    meter = Meter("evaluate", total=2, enabled=False, interval=0)
    meter.update(1)
    meter.close()
    assert capsys.readouterr().out == ""


def test_a_bar_on_a_terminal_is_closed(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: True, raising=False)
    meter = Meter("evaluate", total=4, interval=0)
    meter.update(3, "note")
    assert meter._bar.tasks[0].completed == 3 and meter._bar.tasks[0].fields["note"] == "note"
    meter.close()
    assert not meter._bar.live.is_started


def test_epochs_of_a_member(now, capsys):
    trainer = SimpleNamespace(
        is_global_zero=True, max_epochs=4, callback_metrics={"train/elbo": -12.345}, current_epoch=0
    )
    callback = EpochMeter("q3")
    callback.on_train_start(trainer, None)
    now.time += 11
    callback.on_train_epoch_end(trainer, None)
    callback.on_exception(trainer, None, RuntimeError())
    callback.on_train_end(trainer, None)
    assert capsys.readouterr().out == "train q3 epoch  1/4  elapsed 0:11  left 0:33  ELBO -12.35 nats\n"
    trainer.is_global_zero = False
    callback.on_train_start(trainer, None)
    now.time += 11
    callback.on_train_epoch_end(trainer, None)
    assert capsys.readouterr().out == ""
