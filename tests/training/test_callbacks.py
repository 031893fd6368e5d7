"""Resume points, validation scores of the ensemble, and the tidy file of curves."""

import csv
from types import SimpleNamespace

import pandas as pd
import pytest
import runs
import torch

from miselbo import bounds, pipeline
from miselbo.runs.building import build
from miselbo.runs.checkpoints import load_ensemble
from miselbo.runs.plan import build_ensemble
from miselbo.runs.tidy import TidyMetrics
from miselbo.training.callbacks import ResumePoint


@pytest.fixture(scope="module", params=["vae", "nvae"])
def trained(request, tmp_path_factory):
    """A run with two members, 16 validation images in batches of 7."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    cfg = runs.configure(
        folder,
        "ensemble.size=2",
        "dataset.evaluation_batch_size=7",
        "ensemble.monitor_samples=3",
        "trainer.check_val_every_n_epoch=1",
        model={"vae": runs.VAE, "nvae": runs.NVAE}[request.param],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "report", lambda folder: {})
        pipeline.run(cfg)
    return cfg, folder


@pytest.mark.parametrize("size", [1, 2])
def test_validation_scores_are_those_of_the_whole_split(trained, size):
    cfg, folder = trained
    data = build(cfg.dataset)
    target, members = build_ensemble(cfg, data.image, size)
    ensemble = load_ensemble(folder, target, members)
    batch = next(data.evaluation_batches("validation", 16))
    assert len(batch["index"]) == 16
    log_p, log_q = ensemble.score(batch["image"], 3, index=batch["index"])
    expected = {
        name: getattr(bounds, name)(log_p, log_q)
        for name in ("miselbo", "joint_bound", "average_elbo", "delta")
    }
    expected |= {"average_iwelbo": bounds.average_iwelbo(log_p, log_q), "jsd": bounds.jsd(log_q)}
    expected["elbo"] = bounds.average_elbo(log_p[:, -1:], log_q[:, -1:, :, -1:])  # the new member's own
    metrics = pd.read_csv(folder / "metrics.csv")
    rows = metrics[metrics["member"] == size]
    last = rows[rows["step"] == rows["step"].max()].set_index("metric")["value"]
    for name, values in expected.items():
        assert last[f"val/{name}"] == pytest.approx(float(values.mean()), abs=2e-5), name


def test_a_resume_point_is_written_whole_and_not_too_often(tmp_path):
    path = tmp_path / "q1.resume.ckpt"
    saved = []

    def save(place, **kwargs):
        saved.append(place)
        trainer.strategy.checkpoint_io.save_checkpoint({"state": len(saved)}, place)

    strategy = SimpleNamespace(broadcast=lambda value: value)
    trainer = SimpleNamespace(strategy=strategy, save_checkpoint=save, is_global_zero=True)
    point = ResumePoint(path, interval=1000)
    point.setup(trainer, None, "fit")
    point.on_train_epoch_end(trainer, None)
    assert not path.exists()
    point.interval = 0
    point.on_train_epoch_end(trainer, None)
    point.on_train_epoch_end(trainer, None)
    assert torch.load(path, weights_only=True) == {"state": 2}
    with pytest.raises(AttributeError):  # what cannot be written leaves the one before
        trainer.strategy.checkpoint_io.save_checkpoint({"state": lambda: 3}, path)
    assert torch.load(path, weights_only=True) == {"state": 2}
    assert list(tmp_path.iterdir()) == [path]


def rows(path) -> list[tuple[str, ...]]:
    with path.open(newline="") as file:
        return [tuple(row) for row in csv.reader(file)]


def test_tidy_metrics(tmp_path):
    path = tmp_path / "metrics.csv"
    one = TidyMetrics(path, 1)
    one.log_metrics({"train/elbo": -3.5, "epoch": 0}, 4)
    one.log_metrics({"val/elbo": torch.tensor(0.1)}, 4)
    TidyMetrics(path, 2).log_metrics({"train/elbo": -2.0}, None)
    assert rows(path) == [
        ("member", "step", "metric", "value"),
        ("1", "4", "train/elbo", "-3.5"),
        ("1", "4", "val/elbo", "0.10000000149011612"),
        ("2", "0", "train/elbo", "-2.0"),
    ]


def test_a_member_that_goes_on_drops_its_later_rows_alone(tmp_path):
    path = tmp_path / "metrics.csv"
    for member in (1, 2):
        logger = TidyMetrics(path, member)
        for step in (1, 3, 5):
            logger.log_metrics({"a": step}, step)
    with path.open("a") as file:
        file.write("2,7,a")  # a row cut short by a kill
    again = TidyMetrics(path, 2)
    again.log_metrics({"a": 30}, 3)
    again.log_metrics({"b": 31}, 3)
    again.log_metrics({"a": 50}, 5)
    assert rows(path)[1:] == [
        *[("1", str(step), "a", f"{step}.0") for step in (1, 3, 5)],
        ("2", "1", "a", "1.0"),
        ("2", "3", "a", "30.0"),
        ("2", "3", "b", "31.0"),
        ("2", "5", "a", "50.0"),
    ]
