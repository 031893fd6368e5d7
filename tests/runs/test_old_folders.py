"""Run folders made before the house was rebuilt (commit ebdc9c3) still open: evaluate, report, continue."""

import json
import shutil
from pathlib import Path

import pytest
import runs

from miselbo import load_run

OLD = Path(__file__).parent / "old"


@pytest.fixture(params=["vae", "vbpi"])
def old(request, tmp_path):
    folder = tmp_path / request.param
    shutil.copytree(OLD / request.param, folder)
    return folder


def test_the_same_numbers_come_out_again(old):
    before = json.loads((old / "results" / "summary.json").read_text())["headline"]
    after = runs.from_folder("evaluate", old, "report=false", "trainer.accelerator=cpu")["headline"]
    for name in ("miselbo", "joint_bound", "average_iwelbo", "average_elbo", "delta", "jsd", "slack"):
        assert after[name] == pytest.approx(before[name], abs=2e-4), name


def test_report_and_result(old):
    run = load_run(old)
    assert run.report().is_file()
    assert run.result.bounds["S"].max() == len(run.ensemble().members) == 2


def test_a_larger_ensemble_goes_on_from_it(old):
    kept = [runs.state(old, name) for name in ("target", "q1", "q2")]
    cfg = load_run(old).config
    cfg.ensemble.size, cfg.run_dir, cfg.report, cfg.task = 3, str(old), False, "run"
    from miselbo import run

    assert run(cfg)["headline"]["S"] == 3
    assert all(
        runs.same_tensors(runs.state(old, n), k) for n, k in zip(("target", "q1", "q2"), kept, strict=True)
    )
