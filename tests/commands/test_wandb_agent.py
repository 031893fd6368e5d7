"""W&B's own agent starts our command as it stands in docs/dashboards.md, twice, without a network."""

import json
import os
import queue
import re
import sys
from pathlib import Path

import pytest
import runs
import yaml

PROJECT = Path(__file__).resolve().parents[2]


def documented() -> dict:
    """The sweep of the docs."""
    text = (PROJECT / "docs" / "dashboards.md").read_text()
    return yaml.safe_load(re.search(r"```yaml\n(command:.*?)```", text, re.S)[1])


@pytest.mark.slow
def test_the_agent_runs_the_documented_sweep_offline(tmp_path, monkeypatch):
    wandb_agent = pytest.importorskip("wandb.wandb_agent")
    from wandb.apis.public import sweeps as api

    sweep = documented()
    fixed = {key: value["value"] for key, value in sweep["parameters"].items() if "value" in value}
    tiny = dict(word.split("=", 1) for word in [*runs.VAE, *runs.TINY, "ensemble.size=1", "report=false"])
    jobs = [
        {"type": "run", "run_id": f"job{seed}",
         "args": {k: {"value": v} for k, v in {**fixed, **tiny, "seed": seed, "logger.mode": "offline",
                                               "run_dir": f"run{seed}"}.items()}}
        for seed in sweep["parameters"]["seed"]["values"][:2]
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "miselbo"  # what pip installs
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m miselbo "$@"\n')
    command.chmod(0o755)
    monkeypatch.setattr(api, "_sweep_with_runs", lambda *_: {"config": yaml.safe_dump(sweep)})
    monkeypatch.setattr(api, "_register_agent", lambda *_, **__: {"id": "agent"})
    waiting = [*jobs]

    def heartbeat(_, __, ___, running):
        return [] if running or not waiting else [waiting.pop(0)]

    monkeypatch.setattr(api, "_agent_heartbeat", heartbeat)
    monkeypatch.setattr(wandb_agent.wandb, "Api", lambda: None)
    monkeypatch.setattr(wandb_agent.Agent, "POLL_INTERVAL", 0.2)
    agent = wandb_agent.Agent(None, queue.Queue(), sweep_id="abc", count=2)
    agent.run()
    assert not waiting and agent._finished == 2 and agent._failed == 0
    found = [
        json.loads((tmp_path / f"run{seed}" / "results" / "summary.json").read_text()) for seed in (0, 1)
    ]
    assert [one["protocol"]["seed"] for one in found] == [0, 1]
    assert all(list((tmp_path / f"run{seed}").glob("wandb/offline-run-*/*.wandb")) for seed in (0, 1))
