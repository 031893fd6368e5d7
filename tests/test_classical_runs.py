"""python run.py model=gaussian dataset=u2: the same commands and files as every other family."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import runs

from miselbo import pipeline
from miselbo.bounds import quantities
from miselbo.errors import InputError
from miselbo.runs import config

QUICK = [
    "model=gaussian",
    "trainer.max_epochs=2",
    "trainer.enable_progress_bar=false",
    "trainer.accelerator=cpu",
    "model.objective.steps_per_epoch=10",
    "model.objective.num_samples=20",
    "evaluation.num_samples=30",
    "evaluation.grid=[1, 10]",
    "evaluation.batch_size=4",
    "dataset.replicates=10",
    "report=false",
]


def run(folder, *more):
    return pipeline.run(config.compose_config([*QUICK, f"run_dir={folder}", *more]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("u2") / "run"
    return folder, run(folder, "dataset=u2", "ensemble.size=3", "report=true")


def test_the_same_files(finished):
    folder, summary = finished
    names = ["target", "q1", "q2", "q3"]
    expected = [".hydra/config.yaml", "metrics.csv", "report.html", "report.md", "figures/density.png"]
    expected += [f"members/{name}.ckpt" for name in names]
    expected += [
        f"results/{name}"
        for name in (
            "bounds.csv",
            "per_member.csv",
            "per_example.parquet",
            "summary.json",
            "subsets.csv",
            "density.npz",
        )
    ]
    for name in expected:
        assert (folder / name).stat().st_size > 0, name
    table = pd.read_csv(folder / "results" / "bounds.csv").set_index(["S", "L"])
    assert list(table.index) == [(s, n) for s in (1, 2, 3) for n in (1, 10, 30)]
    assert np.abs(table.xs(1, level="L")["delta"] - table.xs(1, level="L")["jsd"]).max() < 1e-10
    assert (table["num_data"] == 10).all()
    for name in quantities.names():
        assert np.isfinite(table[name]).all()
    assert summary["num_dims"] is None and summary["headline"]["S"] == 3
    assert [row["stage"][:8] for row in summary["cost"]] == ["train q1", "train q2", "train q3", "evaluate"]


def test_the_words_are_those_of_a_density(finished):
    folder, summary = finished
    page = (folder / "report.md").read_text()
    assert "replicates" in page and "bits/dim" not in page and "log Z" in page
    assert "over the examples" not in page and "images" not in page.replace("figures/", "")
    assert "no normaliser on R^2" in page and "KL of the mixture" in page
    assert any("log Z on R^2 is infinite" in line for line in summary["trust"]["sentences"])
    assert summary["protocol"]["log_normaliser"] == pytest.approx(2.0824, abs=1e-3)


def test_again_and_from_the_folder(finished):
    folder, summary = finished
    before = runs.snapshot(folder / "members")
    again = run(folder, "dataset=u2", "ensemble.size=3")
    assert runs.snapshot(folder / "members") == before and again["headline"] == summary["headline"]
    more = runs.from_folder(
        "evaluate", folder, "evaluation.num_samples=40", "evaluation.grid=[40]", "report=false"
    )
    assert more["headline"]["L"] == 40


def test_batches_and_passes_do_not_matter(finished, tmp_path):
    folder, summary = finished
    other = run(
        tmp_path / "run", "dataset=u2", "ensemble.size=3", "evaluation.batch_size=3",
        "evaluation.samples_per_pass=7",
    )  # fmt: skip
    for name in quantities.names():
        assert other["headline"][name] == pytest.approx(summary["headline"][name], rel=1e-9)
    assert not (tmp_path / "run" / "report.html").exists()


def test_your_own_target(tmp_path, monkeypatch):
    (tmp_path / "my_module.py").write_text("def log_p(z):\n    return -0.5 * ((z - 1) ** 2).sum(-1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = ["dataset=density", "dataset.density._target_=my_module.log_p", "dataset.dim=3", "ensemble.size=2"]
    summary = run(
        tmp_path / "run", *own, "trainer.max_epochs=40", "model.objective.learning_rate=5e-2", "report=true"
    )
    exact = 1.5 * math.log(2 * math.pi)
    assert summary["headline"]["joint_bound"] == pytest.approx(exact, abs=0.3)
    assert "unknown" in (tmp_path / "run" / "report.md").read_text()
    sys.modules.pop("my_module")


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("return z", "one number per point"),
        ("return z.sum(-1) * float('nan')", "nan"),
        ("return z.sum(-1) + float('inf')", "inf"),
    ],
)
def test_a_bad_target_is_refused_before_anything_is_written(tmp_path, monkeypatch, body, match):
    (tmp_path / "bad_module.py").write_text(f"def log_p(z):\n    {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=match):
        run(tmp_path / "run", "dataset=density", "dataset.density._target_=bad_module.log_p")
    assert not (tmp_path / "run").exists()
    sys.modules.pop("bad_module")


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["model.approximation.family=Poisson"], "not reparameterised"),
        (["ensemble.objective=mixtur"], "did you mean 'mixture'"),
        (["ensemble.estimator=a2a"], "all_to_all"),
        (["ensemble.sampled=9"], "ensemble.sampled"),
        (["model.members=[{}]"], "model.members"),
        (["evaluation.split=validation"], "evaluation.split=test"),
        (["task=cost"], "no forecast"),
        (["model.objective.num_samples=0"], "num_samples"),
        (["dataset.replicates=0"], "replicates"),
    ],
)
def test_bad_settings(tmp_path, more, match):
    with pytest.raises(InputError, match=match):
        run(tmp_path / "run", "dataset=u1", "ensemble.size=2", *more)


def test_images_are_no_density(tmp_path):
    with pytest.raises(InputError, match="approximates a density"):
        pipeline.run(
            config.compose_config(["model=gaussian", "dataset=digits", f"run_dir={tmp_path / 'run'}"])
        )


def test_other_families_and_one_dimension(tmp_path):
    summary = run(
        tmp_path / "run",
        "dataset=bimodal",
        "ensemble.size=2",
        "model.approximation.family=Laplace",
        "report=true",
    )
    assert math.isfinite(summary["headline"]["miselbo"])
    assert (tmp_path / "run" / "figures" / "density.png").exists()


def test_the_command_line(call, tmp_path):
    status, out, err = call(*QUICK, "dataset=ring", "ensemble.size=2", f"run_dir={tmp_path / 'run'}")
    assert status == 0, err
    assert Path(tmp_path / "run" / "results" / "summary.json").exists()
    assert json.loads((tmp_path / "run" / "results" / "summary.json").read_text())["words"]
