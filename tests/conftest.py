"""Shared fixtures: one thread, the folder of golden values, small models."""

import os
import runpy
import sys
from pathlib import Path

import pytest
import runs
import torch

from miselbo.report import files

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def png_alone():
    """Figures of a test are drawn as PNG; SVG and PDF, half of the time, where ``test_report_write`` asks for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "FORMATS", ("png",))
        yield


@pytest.fixture(scope="session")
def golden():
    """Folder of values computed by independent programs."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip(f"golden values are absent: no folder {folder}")
    return folder


@pytest.fixture(scope="session")
def mnist_root():
    """Folder of the real MNIST."""
    folder = SHARED / "data" / "mnist"
    if not folder.is_dir():
        pytest.skip(f"real MNIST is absent: no folder {folder}")
    return folder


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    """Runs the command in this process, in an empty folder; gives status, standard output and error."""

    def inner(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
        monkeypatch.setattr(sys, "argv", [str(runs.PROJECT / "run.py"), *arguments])
        status = 0
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            status = end.code
        out, err = capfd.readouterr()
        return status, out, err

    monkeypatch.chdir(tmp_path)
    return inner
