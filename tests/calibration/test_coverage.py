"""Do value +- 1.96 printed errors hold the expected bound about 95 times in 100? The study in miniature."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from miselbo.evaluation.library import evaluate_scores

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "coverage.py"
specification = importlib.util.spec_from_file_location("coverage_study", SCRIPT)
study = importlib.util.module_from_spec(specification)
specification.loader.exec_module(study)


@pytest.mark.parametrize(("weights", "size"), [("sd 1", 3), ("sd 8", 1), ("k .64", 1)])
def test_intervals_cover_the_expected_bound(weights, size):
    """The delta method covers .94, .62 and .39 at sd 1, 4, 8 and L = 100."""
    found = study.coverage(weights, size, (10,), repetitions=100, reference=4_000)
    print(found.to_string())
    assert found["coverage"].between(0.88, 1.0).all()
    if weights == "sd 1":
        assert (found["marked"] == 0).all()


def test_the_study_reads_the_table_of_evaluate_scores():
    import torch

    log_p, log_q = study.scores("sd 8", study.EXAMPLES, 3, 100, torch.Generator().manual_seed(0))
    row = evaluate_scores(log_p, log_q).bounds.iloc[-1]
    for part in study.values("sd 8", study.EXAMPLES, 3, (100,), torch.Generator().manual_seed(0)):
        same = study.tables.bounds_table({k: v.numpy() for k, v in part.items()}, (100,), 1.0).iloc[-1]
    for name in study.NAMES:
        for column in (f"{name}_se_mc", f"{name}_se_mc_trusted"):
            assert row[column] == pytest.approx(same[column], rel=1e-9), column
    assert not row["joint_bound_se_mc_trusted"] and row["average_elbo_se_mc_trusted"]
    assert np.isfinite(row["joint_bound_se_mc"])
