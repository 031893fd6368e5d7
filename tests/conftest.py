"""Shared fixtures: one thread, the folder of golden values, small models."""

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


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
