"""Every experiment of several runs, with a budget of seconds; a study goes on where it was stopped."""

import numpy as np
import pandas as pd
import pytest

from miselbo import pipeline
from miselbo.commands import study
from miselbo.errors import InputError
from miselbo.runs import config
from miselbo.runs.plan import study_of

QUICK = ["trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "study.workers=1"]
TABLE2 = [
    "study.epochs=1",
    "study.steps_per_epoch=20",
    "study.num_samples=50",
    "study.replicates=20",
    "study.evaluation_samples=200",
]


def run(name, tmp_path, *more):
    folders = [f"study.results={tmp_path / 'results'}", f"run_dir={tmp_path / 'run'}"]
    return pipeline.run(config.compose_config([f"experiment={name}", *QUICK, *folders, *more]))


def test_table2(tmp_path, monkeypatch):
    result = run("table2", tmp_path, *TABLE2)
    table = pd.read_csv(tmp_path / "results" / "table2.csv")
    assert len(table) == 8 and result["study"] == "table2"
    assert np.allclose(table["kl_avg"] - table["kl_mix"], table["jsd"])
    for name in ("kl_mix", "kl_avg", "jsd"):  # Monte Carlo agrees with quadrature at the same parameters
        error = (table[name] - table[f"{name}_quadrature"]).abs()
        assert (error < 5 * table[f"{name}_se"] + 1e-3).all(), name
    assert (table["log_z_box"] - table["log_z_box_anchor"]).abs().max() < 1.5e-3
    text = (tmp_path / "results" / "table2.md").read_text()
    assert "no normaliser on R^2" in text and "standard deviation 0.894" in text
    assert (tmp_path / "results" / "figure2.png").stat().st_size > 10_000
    with monkeypatch.context() as patch:  # again: nothing is trained
        patch.setattr("miselbo.training.vectorised.Training.run", lambda *_: pytest.fail("trained again"))
        run("table2", tmp_path, *TABLE2)


def test_figure3(tmp_path):
    budget = ["study.means=[0,5]", "study.deviations=[0.002]", "study.replicates=[400,50,10]"]
    run("figure3", tmp_path, *budget)
    table = pd.read_csv(tmp_path / "results" / "figure3.csv")
    assert len(table) == (3 * 2 + 1) * 5
    assert (table["jsd"] - table["jsd_quadrature"]).abs().max() < 0.02
    error = (table["delta"] - table["delta_quadrature"]).abs()
    assert (error < 5 * table["delta_se"] + 2e-3).all()
    same = table[(table["mu"] == 0) & (table["target"] == "bimodal")]
    assert same["delta"].abs().max() < 1e-9
    assert (tmp_path / "results" / "figure3.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="study.levels"):
        run("figure3", tmp_path, "study.levels=[10,1]")


def test_failure(tmp_path):
    budget = ["study.size=3", "study.epochs=1", "study.steps_per_epoch=300", "study.replicates=200"]
    run("failure", tmp_path, *budget)
    delta = pd.read_csv(tmp_path / "results" / "delta.csv").set_index(["case", "L"])
    assert delta.loc[("wide", 1000), "delta"] == pytest.approx(-0.018, abs=0.003)
    assert delta.loc[("apart", 1000), "miselbo"] == pytest.approx(-0.5108, abs=0.003)
    assert delta.loc[("wide", 1), "delta_quadrature"] == pytest.approx(0.07418, abs=1e-4)
    collapse = pd.read_csv(tmp_path / "results" / "collapse.csv").set_index(["target", "objective"])
    assert (
        collapse.loc[("coln_quad", "mixture"), "jsd"]
        > collapse.loc[("coln_quad", "independent"), "jsd"] + 0.2
    )


def test_an_error_names_its_part(tmp_path):
    cfg = config.compose_config(["experiment=table2", *QUICK, f"run_dir={tmp_path / 'run'}"])
    parts = [study.SubRun("first", ["model=gaussian", "dataset=u1", "ensemble.size=0"])]
    with pytest.raises(InputError, match="first: ensemble.size"):
        study.run_parts(study_of(cfg), parts)


@pytest.mark.parametrize("workers", [0, True, "two"])
def test_bad_workers(tmp_path, workers):
    cfg = config.compose_config(["experiment=table2", *QUICK, f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(InputError, match="study.workers"):
        study.run_parts(study_of(cfg), [], workers)
