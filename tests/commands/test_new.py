"""``task=new``: files that run at once in a folder of the user's own, and never over somebody's file."""

import json
import re
import runpy
import sys

import pytest
import runs

from miselbo.commands.new import FILES
from miselbo.training import cost

DOCS = runs.PROJECT / "docs"


@pytest.fixture
def quick_forecast(monkeypatch):
    """``task=cost`` that measures for a moment."""

    def forecast(*given):
        found = cost.predict(*given, seconds=0.01)
        print(cost.cost_text(found))
        return found

    monkeypatch.setattr(cost, "forecast", forecast)


def test_the_files_of_a_new_model_run_at_once(call, tmp_path, quick_forecast):
    status, out, err = call("task=new", "name=rings")
    assert (status, err) == (0, "")
    train, forecast = (
        re.sub(r" {2,}\(.*", "", line).split()[1:]
        for line in out.splitlines()
        if line.startswith("  miselbo")
    )
    small = [
        "trainer.max_epochs=1",
        "dataset.num_train=100",
        "dataset.num_test=20",
        "evaluation.num_samples=4",
    ]
    status, _, err = call(*train, *small, "run_dir=run", "report=false", "trainer.enable_progress_bar=false")
    assert status == 0, err
    summary = json.loads((tmp_path / "run" / "results" / "summary.json").read_text())
    assert (summary["protocol"]["model"], summary["protocol"]["dataset"]) == ("rings", "rings_data")
    assert (summary["headline"]["S"], summary["headline"]["num_data"]) == (2, 20)
    status, out, err = call(*forecast, *small)
    assert status == 0 and "evaluation: 20 examples" in out, err
    written = runpy.run_path("test_rings.py")
    written["test_log_p_and_log_q_are_those_of_torch_distributions"]()
    written["test_it_trains_and_is_scored"](tmp_path / "again")
    del sys.modules["rings"], sys.modules["rings_data"]


def test_what_is_there_is_never_changed(call, tmp_path):
    (tmp_path / "rings_data.py").write_text("mine")
    before = runs.snapshot(tmp_path)
    for arguments, words in (
        (["name=rings"], "rings_data.py is there"),
        ([], "task=new needs name="),
        (["name=a-b"], "got name=a-b"),
        (["name=torch"], "Python has a module of that name"),
        (["name=good", "seed=3"], "takes nothing else, got seed"),
    ):
        status, out, err = call("task=new", *arguments)
        assert (status, out) == (2, "") and words in err and err.count("\n") == 1
    assert runs.snapshot(tmp_path) == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("language", "file"), [("python", "my_model.py.txt"), ("yaml", "my_model.yaml.txt")])
def test_the_guide_shows_these_files(language, file):
    text = (DOCS / "own_model.md").read_text()
    assert re.search(rf"```{language}\n(.*?)```", text, re.DOTALL).group(1) == (FILES / file).read_text()


def test_the_yaml_of_an_own_model_is_short():
    assert len((FILES / "my_model.yaml.txt").read_text().splitlines()) <= 8
