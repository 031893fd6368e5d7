"""The guides: examples that run, links that lead somewhere, a site that builds without a network."""

import re
import runpy
import shutil
import subprocess
import sys

import pytest
import runs
import yaml
from PIL import Image

from miselbo import config
from miselbo.pipeline import run

DOCS = runs.PROJECT / "docs"


def block(page, language):
    return re.search(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL).group(1)


def test_the_example_of_an_own_model_trains_and_scores(tmp_path, monkeypatch):
    conf = tmp_path / "conf"
    shutil.copytree(config.CONF, conf)
    (conf / "model" / "my_model.yaml").write_text(block("own_model.md", "yaml"))
    (tmp_path / "my_model.py").write_text(block("own_model.md", "python"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(config, "CONF", conf)
    model = ["model=my_model", "model.target.width=16", "model.target.num_latents=2"]
    summary = run(config.compose_config(runs.overrides(tmp_path / "run", "ensemble.size=2", model=model)))
    assert summary["protocol"]["model"] == "my_model" and summary["headline"]["S"] == 2
    assert -100 < summary["headline"]["average_elbo"] < 0
    assert (tmp_path / "run" / "report.html").exists()
    monkeypatch.delitem(sys.modules, "my_model")


def test_the_charts_of_the_dashboard_guide_are_drawn_from_an_offline_file(tmp_path):
    more = [
        "ensemble.size=2",
        "logger=wandb",
        "logger.mode=offline",
        "report=false",
        "evaluation.num_pictures=0",
    ]
    runs.fit(tmp_path / "run", *more)
    draw = runpy.run_path(str(DOCS / "dashboard.py"))
    (files,), (table,) = (list(found.values()) for found in draw["read"](tmp_path))
    assert draw["curve"](files[0].history, 2, "val/miselbo")[0] == [0]  # half of two epochs
    assert table["S"].max() == 2 and table["L"].max() == 4
    draw["main"](tmp_path, tmp_path / "charts.png")
    assert Image.open(tmp_path / "charts.png").size == (1200, 2025)
    with pytest.raises(SystemExit, match="no finished offline W&B run"):
        draw["read"](tmp_path / "run" / "results")


def pages(node):
    for entry in node:
        (value,) = entry.values()
        yield value


def test_every_guide_is_on_the_site():
    listed = set(pages(yaml.safe_load((runs.PROJECT / "mkdocs.yml").read_text())["nav"]))
    assert listed == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}


def test_the_site_builds_without_a_network(tmp_path):
    pytest.importorskip("mkdocs")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--quiet",
        "--strict",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, cwd=runs.PROJECT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "index.html").read_text()
    assert "numbers.html" in page
    assert not re.findall(r'<(?:script|link)[^>]*(?:src|href)="(?:https?:)?//', page)
