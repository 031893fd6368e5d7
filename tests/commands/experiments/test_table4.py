"""Section 5.3 on a tiny alignment: the study, its two experiments, and what it refuses."""

import math

import pandas as pd
import pytest

from miselbo import pipeline
from miselbo.commands.experiments import table4
from miselbo.errors import InputError
from miselbo.phylo.simulation import NAMES, TREE, simulate
from miselbo.runs import config
from miselbo.runs.folder import identity, stored
from miselbo.runs.plan import study_of

QUICK = ["trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "trainer.max_epochs=2"]
TINY = [
    "study.workers=1",
    "model.objective.steps_per_epoch=150",
    "evaluation.num_samples=60",
    "dataset.replicates=4",
    "dataset.support.method=nj",
    "dataset.support.replicates=1",
    "dataset.support.nj_trees=30",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with two alignments that go by the names of the benchmark sets."""
    folder = tmp_path_factory.mktemp("alignments it's")
    for number, seed in ((1, 1), (2, 2)):
        made = simulate(TREE, NAMES, 120, seed)
        rows = zip(made.names, made.codes, strict=True)
        text = "".join(f">{name}\n{''.join(LETTERS[code] for code in row)}\n" for name, row in rows)
        (folder / f"DS{number}.fasta").write_text(text)
        (folder / f"DS{number}_posterior.trprobs").write_text(TREE)
    return folder


LETTERS = {1: "A", 2: "C", 4: "G", 8: "T"}


def run(name, root, folder, *more):
    places = [f"study.results={folder / 'results'}", f"run_dir={folder / 'run'}"]
    data = f"dataset.root={table4.written(str(root))}"
    arguments = [f"experiment={name}", *QUICK, *TINY, *places, data, *more]
    config.check_overrides(arguments)
    return pipeline.run(config.compose_config(arguments))


def test_small(root, tmp_path, monkeypatch):
    result = run("table4_small", root, tmp_path)
    results = tmp_path / "results"
    table = pd.read_csv(results / "table4_small.csv").set_index("set")
    assert result["study"] == "table4_small" and list(table.index) == ["ds1"]
    line = table.loc["ds1"]
    assert (line["S"], line["L"], line["replicates"]) == (3, 60, 4)
    assert abs(line["copies_gain"]) < 1e-9 < 0.02 < line["copies_recipe_gain"] < math.log(3)
    assert line["gain"] == pytest.approx(line["miselbo"] - line["average_iwelbo"], abs=1e-9)
    assert line["phylogfn"] == -7108.4 and line["mrbayes"] == -7108.42
    assert (line["vbpi_gnn"], line["sbn_elbo"], line["artree_elbo"]) == (-7108.41, -7110.24, -7110.09)
    fresh = pd.read_csv(tmp_path / "run" / "ds1" / "results" / "trees.csv")
    assert line["elbo"] == pytest.approx(fresh["elbo"][:3].mean()) and line["tv"] == pytest.approx(
        fresh["tv"][:3].mean()
    )
    assert (
        line["mixture_kl"] == pytest.approx(fresh["kl"][3])
        and line["cpu_seconds"] > 0
        and line["steps"] == 300
    )
    bounds = pd.read_csv(tmp_path / "run" / "ds1" / "results" / "bounds.csv").set_index(["S", "L"])
    assert line["miselbo"] == pytest.approx(bounds.loc[(3, 60), "miselbo"], abs=1e-9)
    text = (results / "table4_small.md").read_text()
    assert table4.DIFFERENCE in text and "q_1 3 times" in text
    assert (results / "table4_small.png").stat().st_size > 10_000
    assert "</html>" in (results / "table4_small_ds1_report.html").read_text()
    with monkeypatch.context() as patch:  # again: nothing is trained
        patch.setattr("miselbo.phylo.training.Training.epoch", lambda *_: pytest.fail("trained again"))
        run("table4_small", root, tmp_path)
    part = tmp_path / "run" / "ds1"  # values of other draws are noticed
    examples = pd.read_parquet(part / "results" / "per_example.parquet")
    examples["miselbo"] += 0.1
    examples.to_parquet(part / "results" / "per_example.parquet")
    with pytest.raises(RuntimeError, match="not those of the evaluation"):
        table4.row(part)


@pytest.mark.slow
def test_several_sets_with_a_flow(root, tmp_path):
    more = [
        "model=vbpi_realnvp",
        "study.sets=[ds1,ds2]",
        "ensemble.size=2",
        "model.approximation.flow.layers=2",
    ]
    run("table4", root, tmp_path, *more)
    table = pd.read_csv(tmp_path / "results" / "table4.csv").set_index("set")
    assert list(table.index) == ["ds1", "ds2"] and (table["S"] == 2).all()
    assert (table["copies_gain"].abs() < 1e-9).all() and (table["copies_recipe_gain"].abs() > 1e-3).all()
    cfg = stored(tmp_path / "run" / "ds2")
    assert (cfg.dataset.name, cfg.model.approximation.flow.layers) == ("ds2", 2)


def test_parts_are_ordinary_runs():
    """What the study composes for DS1 is what the plain command would, so either goes on where the other stopped."""
    cfg = config.compose_config(["experiment=table4_small", "dataset.root=/data", "run_dir=x"])
    part = config.compose_config([*table4.overrides(study_of(cfg), "ds1"), "run_dir=x"])
    plain = config.compose_config(["model=vbpi", "dataset=ds1", "ensemble.size=3", "run_dir=x"])
    assert identity(part) == identity(plain) and part.evaluation.num_samples == 1000
    large = config.compose_config(["experiment=table4", "dataset.root=/data", "run_dir=x"])
    assert list(large.study.sets) == list(table4.SETS) and large.ensemble.size == 3
    one = config.compose_config([*table4.overrides(study_of(large), "ds8"), "run_dir=x"])
    assert (one.dataset.name, one.ensemble.size, one.trainer.max_epochs) == ("ds8", 3, 80)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["study.sets=[ds9]"], "study.sets must list different ones of ds1"),
        (["study.sets=[ds1,ds1]"], "study.sets"),
        (["study.sets=[]"], "study.sets"),
        (["model=vae"], "model=vbpi and its like, got model=vae"),
        (["dataset=simulated"], "study.sets names the data sets here"),
        (["dataset.root=null"], "needs dataset.root"),
        (["study.sets=ds9"], "study.sets"),
        (["study.sets=3"], "study.sets"),
        (["study.sets=[ds1,ds2]", "dataset.posterior=a.trprobs"], "dataset.posterior is of one data set"),
        (["study.sets=[ds1,ds2]", "dataset.support.file=a.nex"], "dataset.support.file is of one data set"),
        (["dataset.posterior=a.trprobs"], "ds1: dataset.posterior=a.trprobs does not exist"),
    ],
)
def test_refusals(changed, message, root, tmp_path):
    simulated = "dataset=simulated" in changed
    data = [] if simulated else [f"dataset.root={table4.written(str(root))}"]
    places = [f"study.results={tmp_path / 'results'}", f"run_dir={tmp_path / 'run'}"]
    cfg = config.compose_config(["experiment=table4_small", *QUICK, *data, *places, *changed])
    with pytest.raises(InputError, match=message):
        pipeline.run(cfg)
    assert not list(tmp_path.glob("run/*/members"))
