"""``--json``: standard output is one JSON object; files of results follow their published schemas."""

import json
import sys
from pathlib import Path

import jsonschema
import pytest
import runs

from miselbo.commands import cli

DOCS = Path(__file__).resolve().parents[2] / "docs"
FAMILIES = {
    "vae": [*runs.VAE, *runs.TINY, "ensemble.size=2"],
    "gaussian": ["model=gaussian", "dataset=linear_gaussian", "ensemble.size=1", "evaluation.num_samples=5",
                 "trainer.max_epochs=1", "trainer.enable_progress_bar=false"],
    "vbpi": ["model=vbpi", "dataset=simulated", "ensemble.size=2", "evaluation.num_samples=5", "trainer.max_epochs=1",
             "trainer.enable_progress_bar=false"],
}  # fmt: skip


def validate(path: Path, name: str) -> None:
    schema = json.loads((DOCS / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(json.loads(path.read_text()))


@pytest.mark.parametrize("family", FAMILIES)
def test_results_follow_the_published_schemas(tmp_path, family):
    from miselbo.pipeline import run
    from miselbo.runs import config

    run(config.compose_config([*FAMILIES[family], f"run_dir={tmp_path / 'run'}", "report=false"]))
    for name in ("summary", "card"):
        validate(tmp_path / "run" / "results" / f"{name}.json", name)
    if family == "vae":
        path = tmp_path / "run" / "results" / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"headline": {"S": 0}}))
        with pytest.raises(jsonschema.ValidationError, match="S|required"):
            validate(path, "summary")


def call(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["miselbo", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_standard_output_is_one_object(tmp_path, monkeypatch, capfd):
    folder = tmp_path / "run"
    runs.fit(folder, "ensemble.size=2", "report=false")
    capfd.readouterr()
    assert call(monkeypatch, "--json", "task=evaluate", f"run_dir={folder}", "report=false") == 0
    out, err = capfd.readouterr()
    told = json.loads(out)
    summary = json.loads((folder / "results" / "summary.json").read_text())
    assert (
        told["task"] == "evaluate" and told["headline"] == summary["headline"] and len(out.splitlines()) == 1
    )
    assert told["trust"] == summary["trust"]["sentences"] and "s.e. data" in err

    assert call(monkeypatch, "--json", "task=check", f"run_dir={folder}") == 0
    assert json.loads(capfd.readouterr().out)["confirmed"] is True
    path = folder / "results" / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 7}))
    assert call(monkeypatch, "--json", "task=check", f"run_dir={folder}") == 1
    assert json.loads(capfd.readouterr().out)["failed"] == [{"field": "seed", "card": 7, "found": 0}]

    assert call(monkeypatch, "--json", "task=evaluate", f"run_dir={tmp_path / 'none'}") == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ")
    assert call(monkeypatch, "--json", "-m", "seed=0,1") == 2
    assert "--json is for one run" in capfd.readouterr().err
    assert "json" not in (folder / ".hydra" / "config.yaml").read_text().replace("json: false", "")
