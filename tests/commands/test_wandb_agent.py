"""The W&B sweep of docs/dashboards.md, its command written by W&B's own code, is one that miselbo takes."""

import re
from pathlib import Path

import pytest
import yaml

from miselbo.commands import arguments
from miselbo.runs import config

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_documented_sweep_gives_commands_that_are_taken():
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    sweep = yaml.safe_load(
        re.search(r"```yaml\n(command:.*?)```", (DOCS / "dashboards.md").read_text(), re.S)[1]
    )
    assert utils.create_sweep_command(sweep["command"])[1:] == ["miselbo", "${args}"]
    swept = {key: each.get("values", [each.get("value")]) for key, each in sweep["parameters"].items()}
    chosen = {key: {"value": values[-1]} for key, values in swept.items()} | {"report": {"value": False}}
    words = utils.create_sweep_command_args({"args": chosen})["args"]
    assert "--ensemble.size=4" in words and "--report=False" in words
    plain = arguments.overrides(arguments.without_hyphens(words))
    config.check_overrides(plain)
    cfg = config.compose_config(plain)
    assert (cfg.model.name, cfg.seed, cfg.ensemble.size, cfg.report) == ("vae", 2, 4, False)
