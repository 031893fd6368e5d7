"""Each sentence on trust fires where it must and only there."""

import math

import numpy as np
import pandas as pd
import pytest

from miselbo.evaluation import trust


def examples(count=50, **columns):
    table = {
        "index": np.arange(count),
        "miselbo": -2.0,
        "joint_bound": -1.0,
        "ess": 150.0,
        "pareto_k": 0.1,
        "non_finite": 0,
        "slack": 0.1,
        "responsibility_1": 0.5,
        "responsibility_2": 0.5,
    }
    return pd.DataFrame(table | columns)


HEADLINE = {
    "S": 2, "L": 200, "miselbo": -2.0, "joint_bound": -1.0, "average_iwelbo": -3.0, "average_elbo": -4.0,
    "delta": 0.2, "delta_se_mc": 0.01, "jsd": 0.4, "jsd_se_mc": 0.01,
}  # fmt: skip


def said(headline=None, **columns):
    return " ".join(trust.trust(examples(**columns), HEADLINE | (headline or {}))["sentences"])


def test_an_infinite_bound_names_its_example_and_the_mean_of_the_others():
    bound = np.full(50, -2.0)
    bound[7] = -math.inf
    text = said({"miselbo": -math.inf}, miselbo=bound)
    assert "index 7 (1 of 50)" in text and "No warning" not in text
    assert "other 49 examples the mean MISELBO is -2.0000" in text
    assert trust.finite_means(examples(miselbo=bound))["num_data"] == 49
    assert said().startswith("No warning")


@pytest.mark.parametrize("name", ["miselbo", "joint_bound", "average_iwelbo", "average_elbo"])
@pytest.mark.parametrize("value", [-math.inf, math.nan, None])
def test_no_headline_that_is_not_finite_stands_beside_no_warning(name, value):
    assert "No warning" not in said({name: value})


@pytest.mark.parametrize(
    ("headline", "columns", "word", "fires"),
    [
        ({"jsd": -0.103, "jsd_se_mc": 0.026}, {}, "log_q cannot be", True),
        ({"jsd": -0.103, "jsd_se_mc": 0.026}, {}, "collapsed", False),
        ({"jsd": -0.05, "jsd_se_mc": 0.026}, {}, "log_q cannot be", False),
        ({"jsd": 0.001, "jsd_se_mc": 0.001}, {}, "collapsed", True),
        ({"jsd": -1e-17, "jsd_se_mc": 0.0}, {}, "log_q cannot be", False),
        ({"S": 1, "L": 5}, {"ess": 5.0}, "rests on a few", False),
        ({}, {"ess": 5.0}, "rests on a few", True),
        ({"delta": 8e-17, "delta_se_mc": 1e-16}, {}, "sign is open", False),
        ({"delta": 0.2, "delta_se_mc": 0.11}, {}, "sign is open", True),
        ({"delta": 0.2, "delta_se_mc": 0.09}, {}, "sign is open", False),
    ],
)
def test_verdicts(headline, columns, word, fires):
    assert (word in said(headline, **columns)) == fires
