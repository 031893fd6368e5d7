"""A machine that fails: one line, no temporary file left, and the same command goes on to the same result."""

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import runs

from miselbo.runtime import faults, files


@contextlib.contextmanager
def limit(kind: int, value: int):
    """One of the system's limits on this process."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def largest_file(value: int):
    """As a full disk: no file grows beyond so many bytes."""
    return limit(resource.RLIMIT_FSIZE, value)


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".tmp" in path.name]


def test_a_full_disk_at_every_stage_costs_one_line(call, tmp_path):
    same = ("ensemble.size=2", "report=false", "evaluation.num_pictures=0")
    command = runs.overrides(tmp_path / "run", *same)
    stages = []
    for most, interval in ((1000, 20), (6000, 0), (8200, 20), (12000, 20)):
        with largest_file(most):
            status, _, err = call(*command, f"ensemble.resume_interval={interval}")
        line = err.strip().splitlines()[-1]
        assert status in (2, faults.STATUS) and line.startswith("error: "), err
        assert "Traceback" not in err and f"{tmp_path}/run/" in line and "(ulimit -f): raise it" in line
        assert not temporaries(tmp_path)
        stages.append(line.split(f"{tmp_path}/run/")[1].split(":")[0])
    assert stages[0] == ".hydra/config.yaml" and stages[1].endswith("q1.resume.ckpt")
    assert stages[2] == "members/target.ckpt" and "shards" in stages[3]
    assert call(*command)[0] == 0
    runs.fit(tmp_path / "whole", *same)
    for name in ("target", "q1", "q2"):
        assert runs.same_tensors(runs.state(tmp_path / "run", name), runs.state(tmp_path / "whole", name))
    for name in ("bounds", "subsets"):
        one, other = (pd.read_csv(tmp_path / place / "results" / f"{name}.csv") for place in ("run", "whole"))
        pd.testing.assert_frame_equal(
            one.drop(columns="seconds", errors="ignore"), other.drop(columns="seconds", errors="ignore")
        )
    assert (tmp_path / "run" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()


def test_a_map_of_a_full_disk_is_an_error_and_no_signal(tmp_path):
    path = tmp_path / "a.npy"
    with largest_file(10**4), pytest.raises(OSError) as caught:
        files.memory_map(path, (100, 100), "float64")
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(path) and not path.exists()
    array = files.memory_map(path, (100, 100), "float64")
    assert path.stat().st_blocks * 512 >= 80_000  # no holes
    array[:] = 1
    array.flush()
    assert np.load(path).sum() == 10**4


def test_a_full_file_system_if_one_can_be_mounted(tmp_path):
    """The same where the system says so itself, in a mount of this test's own."""
    script = f"""
import errno
from pathlib import Path
from miselbo.runtime import files, faults
for write in (lambda path: files.memory_map(path, (10**6,), "float64"),
              lambda path: files.write_text(path, "x" * 10**7),
              lambda path: files.write_tensors(path, {{"a": __import__("torch").zeros(10**7)}})):
    try:
        write(Path("{tmp_path}/full/a"))
    except OSError as error:
        print(faults.explain(error))
    assert not list(Path("{tmp_path}/full").iterdir())
"""
    (tmp_path / "full").mkdir()
    mount = f"mount -t tmpfs -o size=1m none {tmp_path}/full && exec {sys.executable} -c '{script}'"
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode
    ):
        pytest.skip("no mount of one's own is allowed here")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount], capture_output=True, text=True, cwd=runs.PROJECT
    )
    if "mount" in done.stderr and "permitted" in done.stderr:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    expected = (
        f"{tmp_path}/full/a: no space left (1 MB free): make room, or choose another run_dir; {faults.AGAIN}"
    )
    assert done.stdout.splitlines() == [expected] * 3, done.stderr


def test_no_permission_no_descriptor_no_memory(call, tmp_path, monkeypatch):
    command = runs.overrides(tmp_path / "run", "ensemble.size=1", "report=false")
    import miselbo.runs.checkpoints as checkpoints

    for error, said in (
        (PermissionError(errno.EACCES, "Permission denied"), f"{tmp_path}/run/members/target.ckpt: permission denied"),
        (OSError(errno.EROFS, "Read-only file system"), "the file system is read-only: choose another run_dir"),
        (OSError(errno.EMFILE, "Too many open files"), "raise the limit (ulimit -n)"),
        (RuntimeError("could not create a primitive"), "out of memory (could not create a primitive): lower"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory"),
    ):  # fmt: skip

        def fail(path, content, error=error):
            with files.naming(path):
                raise error

        monkeypatch.setattr(checkpoints, "write_tensors", fail)
        status, _, err = call(*command)
        assert status == faults.STATUS and said in err and "Traceback" not in err
        assert err.strip().count("\n") == 0
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert call(*command)[0] == 0


def test_what_a_killed_process_left_is_removed_and_a_living_one_s_is_not(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    host = files._HOST
    for name in (
        f".a.{host}-{gone.pid}.tmp",
        f".b.{host}-{os.getppid()}.tmp",
        f".c.elsewhere-{gone.pid}.tmp",
        "d.tmp",
    ):
        (tmp_path / "members").mkdir(exist_ok=True)
        (tmp_path / "members" / name).write_text("")
    files.forget_temporaries(tmp_path)
    assert sorted(path.name[1] for path in (tmp_path / "members").iterdir()) == [".", "b", "c"]


def test_a_bug_is_no_fault_of_the_machine():
    for error in (ValueError("a"), KeyError("b"), FileNotFoundError(errno.ENOENT, "No such file", "c")):
        assert faults.explain(error) is None
