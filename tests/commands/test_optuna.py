"""A tuning sweeper is told the joint bound of the validation split, and tuning on test data is refused."""

import json
import math

import pandas as pd
import pytest
import runs
from omegaconf import OmegaConf

from miselbo.commands import sweeps
from miselbo.errors import InputError
from miselbo.runs import checks
from miselbo.runs.config import compose_config

SMALL = [
    "model=vae", "ensemble.size=1", "trainer.max_epochs=1", "dataset.num_train=100", "dataset.num_validation=40",
    "dataset.num_test=20", "evaluation.num_samples=4", "report=false", "trainer.enable_progress_bar=false",
]  # fmt: skip


def test_optuna_finds_the_better_job_by_the_validation_split(call, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    sweep = tmp_path / "sweep"
    status, _, err = call(
        "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.direction=maximize", "model.objective.learning_rate=choice(0.0001,0.01)", *SMALL,
        f"hydra.sweep.dir={sweep}",
    )  # fmt: skip
    assert status == 0, err
    best = OmegaConf.load(sweep / "optimization_results.yaml")
    jobs = [json.loads(path.read_text()) for path in (sweep / "jobs").glob("*.json")]
    assert best.best_value == max(job["optimized"]["joint_bound"] for job in jobs)
    assert len(pd.read_csv(sweep / "sweep.csv")) == len(jobs)
    folder = sweep / jobs[0]["run_dir"]
    test_bound = json.loads((folder / "results" / "summary.json").read_text())["headline"]["joint_bound"]
    told = jobs[0]["optimized"]["joint_bound"]
    again = runs.from_folder("evaluate", folder, "evaluation.split=validation", "report=false")
    assert again["headline"]["joint_bound"] == pytest.approx(told, abs=1e-9) and test_bound != told


def test_a_job_that_fails_is_no_number(tmp_path):
    cfg = compose_config([*SMALL, "run_dir=x"])

    def broken(cfg):
        raise RuntimeError("no luck")

    for value, expected in ((None, None), (lambda cfg: 1.0, math.nan)):
        found = sweeps.run_job(cfg, tmp_path / "job", tmp_path, [], broken, value)
        assert found is expected or math.isnan(found)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test/joint_bound", "optimized_metric=joint_bound"),
        ("joint_bond", "did you mean 'joint_bound'"),
        ("seconds", "known are"),
    ],
)
def test_what_cannot_be_tuned(name, message):
    with pytest.raises(InputError, match=message):
        checks.check_values(compose_config(["run_dir=x", f"optimized_metric={name}"]))
