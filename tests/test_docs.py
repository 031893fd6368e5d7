"""The guides: examples that run, links that lead somewhere, a site that builds without a network."""

import json
import math
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import runs
import yaml
from PIL import Image

from miselbo.pipeline import run
from miselbo.runs import config

DOCS = runs.PROJECT / "docs"


def block(page, language):
    return re.search(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL).group(1)


def test_the_example_of_own_data_trains_and_scores(tmp_path, monkeypatch):
    conf = tmp_path / "conf"
    shutil.copytree(config.CONF, conf)
    (conf / "dataset" / "my_data.yaml").write_text(block("datasets.md", "yaml"))
    (tmp_path / "my_data.py").write_text(block("datasets.md", "python"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(config, "CONF", conf)
    grey = np.random.default_rng(0).integers(0, 256, (92, 12, 8), dtype=np.uint8)
    np.savez(tmp_path / "grey.npz", train=grey[:80], test=grey[80:])
    data = ["dataset=my_data", f"dataset.path={tmp_path / 'grey.npz'}", "ensemble.size=2"]
    summary = run(config.compose_config(runs.overrides(tmp_path / "run", *data, "report=false")))
    assert summary["protocol"]["dataset"] == "my_data" and summary["headline"]["num_data"] == 12
    assert "as stored in the file" in json.dumps(summary["protocol"])
    with np.load(tmp_path / "run" / "results" / "images.npz") as images:
        assert images["samples"].shape[1:] == (1, 12, 8)
    monkeypatch.delitem(sys.modules, "my_data")


def test_the_example_of_an_own_target_trains_and_scores(tmp_path, monkeypatch):
    text = (DOCS / "classical.md").read_text()
    target, from_python = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (line,) = re.findall(r"python run.py (model=gaussian dataset=density .*?)\n```", text, re.DOTALL)
    (tmp_path / "my_module.py").write_text(target)
    monkeypatch.syspath_prepend(tmp_path)
    overrides = [*shlex.split(line.replace("\\\n", " ")), f"run_dir={tmp_path / 'run'}", "report=false"]
    overrides += [
        "trainer.max_epochs=3",
        "model.objective.steps_per_epoch=40",
        "trainer.enable_progress_bar=false",
        "trainer.accelerator=cpu",
        "dataset.replicates=20",
    ]
    summary = run(config.compose_config(overrides))
    assert summary["headline"]["S"] == 3
    log_z = math.log(2 * math.pi)  # of an unnormalised standard normal in two dimensions
    assert summary["headline"]["joint_bound"] == pytest.approx(log_z, abs=0.2)
    scope = {}
    exec(f"import torch\n{target}\n{from_python}", scope)
    bound = scope["bounds"].joint_bound(scope["log_p_z"], scope["log_q_z"])
    assert float(bound) == pytest.approx(log_z, abs=0.5)
    monkeypatch.delitem(sys.modules, "my_module")


def test_the_numbers_of_the_guide_are_those_of_the_experiment():
    table = pd.read_csv(runs.PROJECT / "experiments" / "failure" / "results" / "delta.csv")
    table = table[table["case"] == "wide"].set_index("L")
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", (DOCS / "numbers.md").read_text(), re.MULTILINE)
    assert [int(samples) for samples, _ in rows] == [1, 5, 10, 20, 100, 1000]
    for samples, cells in rows:
        *values, delta = cells.split(" | ")
        shown = [*values, *delta.rstrip(")").split(" (")]
        names = ["average_iwelbo", "miselbo", "joint_bound", "delta", "delta_se"]
        for cell, name in zip(shown, names, strict=True):
            unit = 10.0 ** -len(cell.split(".")[1])
            assert float(cell) == pytest.approx(table.loc[int(samples), name], abs=0.5001 * unit), (
                samples,
                name,
            )


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
        yield from pages(value) if isinstance(value, list) else [value]


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
    assert "numbers.html" in (tmp_path / "site" / "index.html").read_text()
    loads = r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(?:https?:)?//|url\(["\']?(?:https?:)?//|@import'
    pages = [path for path in (tmp_path / "site").rglob("*") if path.suffix in (".html", ".css")]
    assert len(pages) > 15
    assert [path.name for path in pages if re.search(loads, path.read_text())] == []
