"""Members of two runs as one ensemble: scored as they were; a table where targets differ."""

import json

import pandas as pd
import pytest
import runs

from miselbo.errors import InputError
from miselbo.pipeline import run
from miselbo.runs.together import assemble, parse


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """q1 and target alike, q2 trained with another share of epochs."""
    place = tmp_path_factory.mktemp("runs")
    common = ["ensemble.size=2", "report=false", "from_run=null"]
    runs.fit(place / "a", *common)
    runs.fit(place / "b", *common, "model.member_epoch_share=1.0")
    runs.fit(place / "other", *common, "seed=1")
    return place


def test_members_of_two_runs_are_scored_together(two, tmp_path):
    names = [f"{two / 'a'}:q1", f"{two / 'b'}:q2", f"{two / 'a'}:q2"]
    cfg = assemble(names, tmp_path / "new", ["task=evaluate", "report=false"])
    summary = run(cfg)
    assert summary["headline"]["S"] == 3
    assert runs.same_tensors(runs.state(tmp_path / "new", "q2"), runs.state(two / "b", "q2"))
    assert runs.same_tensors(runs.state(tmp_path / "new", "q3"), runs.state(two / "a", "q2"))
    alone = pd.read_csv(two / "a" / "results" / "per_member.csv").query("member == 1")["iwelbo"]
    new = pd.read_csv(tmp_path / "new" / "results" / "per_member.csv").query("member == 1")["iwelbo"]
    assert new.tolist() == pytest.approx(alone.tolist())  # the same draws: of member 1
    assert [row["stage"] for row in summary["cost"]][1] == f"train {names[1]}"
    curves = pd.read_csv(tmp_path / "new" / "metrics.csv")
    assert {*curves["member"]} == {1, 2, 3}
    assert runs.from_folder("check", tmp_path / "new")["confirmed"]  # a run folder like any other
    again = assemble(names, tmp_path / "new", ["task=evaluate", "report=false"])
    assert json.dumps(run(again)["headline"]) == json.dumps(summary["headline"])
    with pytest.raises(InputError, match="another configuration: members was"):
        assemble(names[:2], tmp_path / "new", [])


def test_another_target_is_refused_with_a_table(two, tmp_path, capsys):
    names = [f"{two / 'a'}:q1", f"{two / 'other'}:q2"]
    with pytest.raises(InputError, match="have no common model and data.*: target differ"):
        assemble(names, tmp_path / "new", [])
    table = capsys.readouterr().err.splitlines()
    assert table[0].split() == ["member", "target"] and [row.split()[0] for row in table[1:]] == names
    assert not (tmp_path / "new").exists()


def test_one_member_does_not_count_twice(two, tmp_path):
    with pytest.raises(InputError, match="one and the same member"):  # q1 of both was trained alike
        assemble([f"{two / 'a'}:q1", f"{two / 'b'}:q1"], tmp_path / "new", [])
    with pytest.raises(InputError, match="stands there twice"):
        parse(["a:q1", "./a:q1"])
    with pytest.raises(InputError, match="q5.ckpt does not exist"):
        assemble([f"{two / 'a'}:q5"], tmp_path / "new", [])
