import math

import pandas as pd
import pytest
import torch
from small_phylo import data, fitted, mixture

from miselbo.phylo.comparison import compare, elbo_warnings, save_comparison
from miselbo.phylo.output.draws import draw_trees
from miselbo.phylo.summaries import save, split_probabilities
from miselbo.phylo.tree import all_topologies, newick
from miselbo.report import trees


@pytest.fixture(scope="module")
def ensemble():
    return fitted(data(five=True), epochs=1, size=2, steps_per_epoch=150)


def test_distances_to_a_posterior(ensemble):
    exact = mixture(ensemble)
    found = compare(ensemble, 0, exact, samples=1000)
    whole, found = found, found["mixture"]
    assert found["kl"] == pytest.approx(0, abs=1e-9) and found["tv"] == pytest.approx(0, abs=1e-9)
    assert found["q_outside"] == pytest.approx(0, abs=1e-9) and found["mass_outside"] == 0
    assert 0 < found["asdsf"] < 0.02 and 0 < found["largest_split_difference"] < 0.06
    every = list(exact)
    for row, member in zip(whole["members"], ensemble.members, strict=True):
        q = dict(zip(every, member.sbn.topology_log_prob(every).detach().exp().tolist(), strict=True))
        kl = sum(p * math.log(p / q[topology]) for topology, p in exact.items())
        assert row["kl"] == pytest.approx(kl, rel=1e-9)
        assert row["tv"] == pytest.approx(sum(abs(p - q[t]) for t, p in exact.items()) / 2, rel=1e-9)
        difference = max(
            abs(split_probabilities(q)[x] - split_probabilities(exact)[x]) for x in split_probabilities(q)
        )
        assert row["largest_split_difference"] == pytest.approx(difference, abs=0.06)
        assert row["elbo"] < row["log_marginal"] and 1 < row["ess"] <= 1000
    (best, *_) = sorted(exact, key=exact.get, reverse=True)
    found = compare(ensemble, 0, {best: 1.0}, samples=100)["mixture"]
    assert found["kl"] == pytest.approx(-math.log(exact[best]))
    assert found["tv"] == found["q_outside"] == pytest.approx(1 - exact[best])


def test_weighted_trees_are_the_posterior(ensemble):
    """Of five taxa, every topology's evidence estimated by itself."""
    target, branches = ensemble.target, ensemble.members[0].branches
    every = list(all_topologies(5))
    trees = target.spec.support.trees(every)
    generator = torch.Generator().manual_seed(0)
    value = torch.zeros(len(every), dtype=torch.float64)
    for k in range(len(every)):
        row = trees[torch.full((4000,), k)]
        x, log_q = branches.sample(row, torch.randn(4000, 7, dtype=torch.float64, generator=generator))
        value[k] = (target.log_joint(row, x) - log_q).logsumexp(0)
    posterior = dict(zip(every, value.softmax(0).tolist(), strict=True))
    found = compare(ensemble, 0, posterior, samples=2000)["mixture"]
    assert found["weighted_tv"] < 0.5 * found["tv"]


def test_files_and_the_report(ensemble, tmp_path):
    (tmp_path / "p.nwk").write_text(newick(next(iter(all_topologies(5))), "abcde"))
    save(ensemble, draw_trees(ensemble, 0), str(tmp_path / "p.nwk"), tmp_path)
    old = trees.load(tmp_path)
    save_comparison(ensemble, 0, str(tmp_path / "p.nwk"), tmp_path)
    table = pd.read_csv(tmp_path / "trees.csv")
    assert table["member"].tolist() == ["1", "2", "mixture"] and table["tv"].between(0, 1).all()
    assert (tmp_path / "consensus_weighted.nwk").is_file()
    found = trees.load(tmp_path)
    assert len(trees.text(found)) >= len(trees.text(old)) + 2
    assert any("Between the members" in line for line in trees.text(found))
    shown = trees.distance_table(found["distances"])
    assert [row[0] for row in shown.rows] == ["q_1", "q_2", "mixture"] and shown.columns[
        -1
    ] == "ASDSF, weighted"


def test_an_elbo_that_fresh_draws_do_not_confirm_is_told():
    rows = [{"member": 1, "elbo": -10.0, "elbo_se": 0.1}, {"member": 2, "elbo": -11.0, "elbo_se": 0.5}]
    reported = pd.DataFrame(
        {"member": [1, 1, 2], "L": [1, 100, 100], "elbo": [-20, -10.2, -10.3], "elbo_se": [0.1, 0.1, 0.2]}
    )
    (sentence,) = elbo_warnings(rows, reported)
    assert sentence.startswith(
        "The ELBO of q_2, -10.30 with the standard error 0.20, is 3.5 of its errors from"
    )
    assert elbo_warnings(rows, reported.assign(elbo_se=math.nan)) == []
