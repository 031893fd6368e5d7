"""A larger ensemble takes over the members of a smaller one: trained once, the same bits, never with other settings."""

import pandas as pd
import pytest
import runs

from miselbo.errors import InputError
from miselbo.training import fit

NAME = "vae-toy-S{}-seed0"


@pytest.fixture
def trained(monkeypatch):
    """Numbers of the members that are really trained."""
    numbers, real = [], fit.fit_member
    monkeypatch.setattr(
        fit,
        "fit_member",
        lambda target, members, s, *rest: numbers.append(s) or real(target, members, s, *rest),
    )
    return numbers


def test_growing_trains_what_is_missing_and_equals_a_fresh_run(tmp_path, trained, capsys):
    runs.fit(tmp_path / "fresh" / NAME.format(3), "ensemble.size=3", "report=false")
    trained.clear()
    runs.fit(tmp_path / NAME.format(2), "ensemble.size=2", "report=false")
    runs.fit(tmp_path / NAME.format(3), "ensemble.size=3", "report=false")
    assert trained == [1, 2, 3] and "taken from" in capsys.readouterr().out
    for name in ("target", "q1", "q2", "q3"):
        one, other = (runs.state(tmp_path / place / NAME.format(3), name) for place in ("", "fresh"))
        assert runs.same_tensors(one, other)
    one, other = (
        pd.read_csv(tmp_path / place / NAME.format(3) / "metrics.csv").sort_values(
            ["member", "step", "metric"]
        )
        for place in ("", "fresh")
    )
    pd.testing.assert_frame_equal(one.reset_index(drop=True), other.reset_index(drop=True))
    one, other = (
        pd.read_csv(tmp_path / place / NAME.format(3) / "results" / "bounds.csv") for place in ("", "fresh")
    )
    assert one["miselbo"].tolist() == other["miselbo"].tolist()


def test_nothing_is_taken_where_it_must_not_be(tmp_path, trained):
    runs.fit(tmp_path / NAME.format(1), "ensemble.size=1", "report=false")
    runs.fit(tmp_path / NAME.format(2), "ensemble.size=2", "from_run=null", "report=false")
    other = ["ensemble.size=2", "model.objective.learning_rate=0.001", "report=false"]
    runs.fit(tmp_path / "other" / "b", *other)
    assert trained == [1, 1, 2, 1, 2]
    (tmp_path / NAME.format(7) / ".hydra").mkdir(parents=True)
    (tmp_path / NAME.format(7) / ".hydra" / "config.yaml").write_text("{not: [yaml")
    runs.fit(
        tmp_path / NAME.format(1), "ensemble.size=1", "report=false"
    )  # a damaged run beside it is not its affair
    with pytest.raises(InputError, match="model.objective.learning_rate is .* there, 0.001 here"):
        runs.fit(tmp_path / "third", *other, f"from_run={tmp_path / NAME.format(1)}")
    with pytest.raises(InputError, match="nowhere is no run folder"):
        runs.fit(tmp_path / "third", *other, f"from_run={tmp_path / 'nowhere'}")
    assert not (tmp_path / "third").exists()
    runs.fit(tmp_path / "named", *other, f"from_run={tmp_path / 'other' / 'b'}")
    assert trained == [1, 1, 2, 1, 2]
