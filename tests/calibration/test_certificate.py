"""The certified limit lies above the truth at most 5 times in 100, with light and with hopeless weights."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "certificate.py"
specification = importlib.util.spec_from_file_location("certificate_study", SCRIPT)
study = importlib.util.module_from_spec(specification)
specification.loader.exec_module(study)


@pytest.mark.parametrize("spread", [0.5, 2.0, 8.0])
@pytest.mark.parametrize(("num_data", "size", "samples"), [(1, 1, 1), (20, 3, 10)])
def test_few_limits_are_above_the_truth(spread, num_data, size, samples):
    joint, best = study.violations(spread, num_data, size, samples, repetitions=400)
    assert joint <= 0.05 and best <= 0.05
