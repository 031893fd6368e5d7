"""The notebooks in ``examples/`` run as they stand, and what they show is so."""

import json
import math
import os

import pytest
import runs
import torch

EXAMPLES = runs.PROJECT / "examples"


def played(name, monkeypatch, folder):
    """The names a notebook leaves behind, its code cells run one after the other in an empty folder."""
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    monkeypatch.chdir(folder)
    scope = {}
    for cell in json.loads((EXAMPLES / name).read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] or cell["execution_count"], "a notebook is kept as it ran"
            exec("".join(cell["source"]), scope)
    plt.close("all")
    return scope


def test_own_vae(monkeypatch, tmp_path):
    scope = played("own_vae.ipynb", monkeypatch, tmp_path)
    last = scope["result"].bounds.iloc[-1]
    assert (last["S"], last["L"]) == (4, 20) and -26 < last["miselbo"] < -18
    assert last["joint_bound"] >= last["miselbo"] and 0 < last["jsd"] < math.log(4)


def test_density(monkeypatch, tmp_path):
    pytest.importorskip("zuko"), pytest.importorskip("pyro")
    state = torch.random.get_rng_state()
    scope = played("density.ipynb", monkeypatch, tmp_path)
    torch.random.set_rng_state(state)
    last = scope["result"].bounds.iloc[-1]
    assert last["S"] == 3 and last["joint_bound"] == pytest.approx(math.log(2 * math.pi), abs=0.1)
    alone = scope["result"].members.query("L == L.max()")["elbo"]
    assert alone.iloc[0] > alone.iloc[2] + 0.5  # the flow against the normal nobody fitted


def test_finished_run(monkeypatch, tmp_path):
    scope = played("finished_run.ipynb", monkeypatch, tmp_path)
    assert scope["finished"].result.summary["headline"] == scope["summary"]["headline"]
    assert scope["log_q"].shape == (2, 3, 5, 3) and os.listdir(tmp_path) == ["run"]
