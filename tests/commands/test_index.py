"""The page of all runs: finished, stopped, running and failed ones, sweeps, links; read in a real browser."""

import json
import os
import re
import shutil
import socket
import subprocess

import pytest
import runs

from miselbo.commands import index
from miselbo.errors import InputError
from miselbo.runs.status import status
from miselbo.runtime import locks

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    runs.fit(root / "done", "ensemble.size=2", "report=false")
    (root / "done" / "report.html").write_text("a report")
    for name in ("stopped", "running", "failed", "sweeps/a/job"):
        shutil.copytree(root / "done", root / name)
        (root / name / "members" / "q2.ckpt").unlink()
        shutil.rmtree(root / name / "results")
    owner = {"host": socket.gethostname(), "process": os.getpid(), "parent": None, "doing": "being trained"}
    (root / "running" / ".locks" / "q2.json").write_text(json.dumps(owner))
    (root / "stopped" / ".locks" / "q2.json").write_text(
        json.dumps(owner | {"process": 2**22 + 7})
    )  # was killed
    (root / "failed" / ".hydra" / "failure.json").write_text('{"task": "run", "error": "disk full"}')
    sweep = root / "sweeps" / "a"
    (sweep / "jobs").mkdir()
    record = {"overrides": ["seed=0"], "run_dir": "job", "status": "failed", "error": "diverged"}
    (sweep / "jobs" / "job.json").write_text(json.dumps(record))
    (root / "broken" / ".hydra").mkdir(parents=True)
    (root / "broken" / ".hydra" / "config.yaml").write_text("{")
    return root


def test_status_comes_from_the_files_alone(outputs):
    found = {name: status(outputs / name) for name in ("done", "stopped", "running", "failed")}
    assert [one.word for one in found.values()] == ["finished", "stopped", "running", "failed"]
    assert re.fullmatch(
        r"1 of 2 members trained, q2 being trained, q\d at step \d+", found["running"].progress
    )
    assert "disk full" in found["failed"].progress and "1 of 2 members" in found["stopped"].progress
    with locks.hold(outputs / "done", locks.WHOLE, "in use (task=evaluate)"):
        assert status(outputs / "done").word == "running"


def test_a_failing_task_is_recorded_and_a_good_one_forgets_it(outputs, tmp_path):
    from miselbo.runs.using import using

    folder = shutil.copytree(outputs / "done", tmp_path / "run")
    with pytest.raises(RuntimeError), using(folder, "evaluate"):
        raise RuntimeError("no such device\nmore")
    assert status(folder).word == "failed" and "task=evaluate: no such device" in status(folder).progress
    with using(folder, "evaluate"):
        pass
    assert status(folder).word == "finished"


def test_the_page_in_a_browser(outputs, capsys):
    path = index.index({"task": "index", "run_dir": str(outputs)})
    assert (
        "6 runs (2 failed, 1 finished, 1 running, 1 stopped, 1 unreadable), 1 sweeps."
        in capsys.readouterr().out
    )
    text = path.read_text()
    if BROWSER is not None:
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{path}"]
        text = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        assert "<button" in text  # its script has run
    assert '<a href="done/report.html">done</a>' in text and "diverged" in text and "1 jobs: 1 failed" in text
    joint = json.loads((outputs / "done" / "results" / "summary.json").read_text())["headline"]["joint_bound"]
    assert f"{joint:.1f}"[:4] in text and not re.search(r'(src|href)="(https?:)?//', text)


def test_what_cannot_be_shown(tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        index.index({"run_dir": str(tmp_path / "none")})
    with pytest.raises(InputError, match="got seed"):
        index.index({"run_dir": str(tmp_path), "seed": 1})
    assert "0 runs (none)" in index.index({"run_dir": str(tmp_path)}).read_text()
