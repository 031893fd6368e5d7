import json
import time

import pytest
import torch
from small_phylo import data, fitted

from miselbo.evaluation.settings import make_settings
from miselbo.phylo import cost as costs
from miselbo.phylo.comparison import DRAWS
from miselbo.phylo.member import Training
from miselbo.phylo.objective import Objective
from miselbo.phylo.output.draws import SAMPLES
from miselbo.phylo.vbpi import Posterior, Vbpi
from miselbo.pipeline import run
from miselbo.protocols import fingerprint
from miselbo.runs.config import compose_config
from miselbo.runs.plan import training_plan


def settings(cfg):
    return make_settings(cfg.evaluation, cfg.seed, 104)


def configure(*more):
    return compose_config(["model=vbpi", "run_dir=none", "ensemble.size=3", "trainer.max_epochs=4",
                           "model.objective.steps_per_epoch=50", "evaluation.num_samples=40", *more])  # fmt: skip


def test_counts_and_nothing_changes():
    cfg, ensemble = configure(), fitted(data(), 0, 3)
    before, members = fingerprint(ensemble), list(ensemble.members)
    result = costs.predict(training_plan(cfg), data(), ensemble.target, members, settings(cfg), seconds=0.05)
    assert fingerprint(ensemble) == before
    assert json.loads(json.dumps(result)) == result
    assert result["training"]["iterations"] == 200
    assert result["training"]["likelihoods"] == 4 * (50 * 10 + 100)
    assert result["evaluation"]["likelihoods"] == 3 * 3 * 40 + 3 * (SAMPLES + DRAWS)
    weights = sum(p.nbytes for p in ensemble.members[0].parameters())
    assert result["bytes"]["member"] == weights and result["bytes"]["resume_point"] == 3 * weights
    whole = 3 * result["training"]["minutes"] + result["evaluation"]["minutes"]
    assert result["minutes"] == pytest.approx(whole) and whole > 0
    text = costs.cost_text(result)
    assert "train all 3" in text and "7,200" in text and "200 iterations" in text


def test_the_training_forecast_is_near_the_real_time(monkeypatch):
    """On a clock of the process's own time, so that other programs do not matter."""
    monkeypatch.setattr(costs.time, "perf_counter", time.process_time)
    cfg, target = configure("ensemble.size=1"), Posterior(data().spec)
    torch.manual_seed(0)
    member = Vbpi(target)
    result = costs.predict(training_plan(cfg), data(), target, [member], settings(cfg), seconds=0.5)
    training = Training(target, member, Objective(steps_per_epoch=50), 4, 0)
    start = time.process_time()
    for _ in range(4):
        training.epoch()
    spent = time.process_time() - start
    assert result["training"]["minutes"] * 60 == pytest.approx(spent, rel=0.5)


def test_the_task_prints_and_runs_nothing(tmp_path, capsys):
    folder = tmp_path / "run"
    run(
        configure(
            "task=cost", f"run_dir={folder}", "dataset.support.replicates=1", "dataset.support.nj_trees=5"
        )
    )
    out = capsys.readouterr().out
    assert "likelihoods" in out and "minutes" in out and not folder.exists()
