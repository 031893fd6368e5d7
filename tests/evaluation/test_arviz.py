"""The export that arviz reads, and its own k-hat of it."""

import builtins

import numpy as np
import pandas as pd
import pytest
import runs

from miselbo.errors import InputError
from miselbo.evaluation import arviz


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    more = ["ensemble.size=2", "report=false", "evaluation.num_samples=40", "evaluation.save_scores=true"]
    runs.fit(folder, *more)
    return folder


def test_log_weights_are_the_bounds(made):
    weights = arviz.log_weights(made / "results" / "scores")
    examples = pd.read_parquet(made / "results" / "per_example.parquet")
    assert weights["mixture"].shape == (2, 40, 12)
    log_mean = np.logaddexp.reduce(weights["mixture"], axis=1) - np.log(40)
    assert np.allclose(log_mean.mean(0), examples["miselbo"], atol=1e-9)
    log_mean = np.logaddexp.reduce(weights["own"], axis=1) - np.log(40)
    assert np.allclose(log_mean[1], examples["iwelbo_2"], atol=1e-9)


def test_arviz_reads_it(made):
    pytest.importorskip("arviz_base", reason="arviz is an extra")
    tree = arviz.to_arviz(made)
    examples = pd.read_parquet(made / "results" / "per_example.parquet")
    assert dict(tree["log_weights"].sizes) == {"chain": 2, "draw": 40, "example": 12}
    assert np.allclose(tree["example_data"]["joint_bound"], examples["joint_bound"])
    assert tree["example_data"]["example"].values.tolist() == examples["index"].tolist()
    stats = pytest.importorskip("arviz_stats.base", reason="arviz is an extra")
    flat = (
        tree["log_weights"]["mixture"].stack(sample=("chain", "draw")).transpose("example", "sample").values
    )
    _, k = stats.array_stats.psislw(-flat, axis=-1)
    ours = examples["pareto_k"].to_numpy()
    known = np.isfinite(ours)
    assert known.sum() > 6 and np.allclose(k[known], ours[known], atol=1e-6)


def test_without_arviz_it_says_what_to_install(made, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name == "arviz_base":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match=r"pip install 'miselbo\[arviz\]'"):
        arviz.to_arviz(made)
