"""Contrasts of a sweep's configurations: paired by seed, against plain arithmetic."""

import numpy as np
import pandas as pd
from scipy import stats

from miselbo.report import sweep
from miselbo.report.folder import QUANTITIES


def frame(values: dict[str, dict[str, float]]) -> pd.DataFrame:
    rows = [
        {
            "configuration": name,
            "label": name,
            "seed": seed,
            "status": "finished",
            **dict.fromkeys(QUANTITIES, value),
        }
        for name, seeds in values.items()
        for seed, value in seeds.items()
    ]
    return pd.DataFrame(rows)


def test_contrasts_are_of_the_seeds_that_both_have():
    first, second = {"0": -100.0, "1": -90.0, "2": -80.0}, {"2": -79.5, "0": -99.9, "7": 5.0, "1": -89.7}
    found = sweep.contrasts(frame({"S=2": first, "S=5": second, "S=9": {"0": -1.0}}))
    row = found.set_index("quantity").loc["joint_bound"]
    low, high = stats.t.interval(0.95, 2, loc=0.3, scale=stats.sem([0.1, 0.3, 0.5]))
    assert np.allclose([row["difference"], row["difference_low"], row["difference_high"]], [0.3, low, high])
    assert row["num_seeds"] == 3 and set(found["configuration"]) == {"S=5"}
    (section,) = sweep.contrast_section(found)
    assert len(section.tables[0].rows) == len(QUANTITIES)


def test_without_seeds_in_common_there_are_none():
    assert sweep.contrasts(frame({"a": {"0": 1.0, "1": 2.0}})).empty
    assert sweep.contrasts(frame({"a": {"0": 1.0}}).drop(columns="seed")).empty
    assert sweep.contrast_section(sweep.contrasts(frame({"a": {"0": 1.0}, "b": {"1": 1.0}}))) == []
