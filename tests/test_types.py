"""What type checkers see of the package: a user's script under ``mypy --strict``."""

import runpy
import subprocess
import sys
import sysconfig

import pytest
import runs

SCRIPT = runs.PROJECT / "examples" / "typed.py"


def test_the_script_with_types_runs(capsys):
    runpy.run_path(str(SCRIPT))
    assert r"\begin{tabular}" in capsys.readouterr().out


@pytest.mark.slow
def test_mypy_strict_accepts_it_against_an_editable_package(tmp_path):
    """An editable installation is a path in site-packages; ``.ci/installed`` checks the wheel."""
    pytest.importorskip("mypy")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (place,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (place / "editable.pth").write_text(f"{runs.PROJECT}\n{sysconfig.get_path('purelib')}\n")
    (tmp_path / "user.py").write_text(SCRIPT.read_text())
    python = tmp_path / "venv" / "bin" / "python"
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--cache-dir",
        "cache",
        "--python-executable",
        python,
        "user.py",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout
