"""The benchmark alignments and the golden values of phylogenetics."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture(scope="session")
def phylo_root():
    """Folder of DS1..DS8."""
    folder = SHARED / "data" / "phylo"
    if not folder.is_dir():
        pytest.skip(f"the benchmark alignments are absent: no folder {folder}")
    return folder


@pytest.fixture(scope="session")
def phylo_golden(golden):
    """Folder of values confirmed by IQ-TREE and by enumeration."""
    return golden / "phylo"
