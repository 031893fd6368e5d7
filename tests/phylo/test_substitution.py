import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from phylo_models import batch, random_alignment
from scipy import integrate, stats
from scipy.linalg import expm

from miselbo.errors import InputError
from miselbo.phylo import Alignment, Substitution, log_likelihood
from miselbo.phylo.likelihood import JukesCantor, Reversible, make_likelihood
from miselbo.phylo.tree import nodes, random_topology
from miselbo.pipeline import run
from miselbo.runs.config import compose_config
from miselbo.runs.folder import check_folder, claim_folder, config_path, stored

PI = (0.35, 0.15, 0.2, 0.3)
GTR = {"model": "gtr", "rates": (1.2, 3.1, 0.8, 0.6, 4.2, 1.0), "frequencies": PI}
MODELS = [
    {"model": "jc69", "gamma_shape": 0.7},
    {"model": "hky", "kappa": 2.5, "frequencies": PI},
    GTR,
    {**GTR, "gamma_shape": 0.4, "num_categories": 3},
]


def plain(alignment, topology, lengths, model):
    """log p by matrix exponentials, column by column, category by category."""
    pi = model.pi(alignment)
    q = model.rate_matrix(pi)
    n = alignment.num_taxa
    total = np.zeros(alignment.num_sites)
    for rate in model.category_rates():
        p = [expm(q * rate * length) for length in lengths]
        below = {e: (alignment.codes[e] >> np.arange(4)[:, None] & 1).astype(float) for e in range(n)}
        for up, left, right in nodes(topology, n):
            below[up if up else -1] = (p[left] @ below[left]) * (p[right] @ below[right])
        total += pi @ (below[0] * (p[0] @ below[-1])) / len(model.category_rates())
    return np.log(total).sum()


@settings(deadline=None, max_examples=20)
@given(st.integers(4, 9), st.integers(1, 90), st.sampled_from(MODELS), st.integers(0, 2**32 - 1))
def test_value_is_that_of_matrix_exponentials(num_taxa, sites, kind, seed):
    generator = np.random.default_rng(seed)
    alignment = random_alignment(num_taxa, sites, generator)
    model, topology = Substitution(**kind), random_topology(num_taxa, generator)
    lengths = generator.exponential(0.3, 2 * num_taxa - 3)
    found = Reversible(alignment, model)(batch([topology], num_taxa), torch.from_numpy(lengths)[None])
    assert found.item() == pytest.approx(plain(alignment, topology, lengths, model), abs=1e-8, rel=1e-12)


@pytest.mark.parametrize("kind", MODELS)
def test_gradcheck(kind):
    generator = np.random.default_rng(0)
    alignment = random_alignment(6, 70, generator)
    shape = batch([random_topology(6, generator) for _ in range(2)], 6)
    lengths = torch.from_numpy(generator.exponential(0.2, size=(2, 9))).requires_grad_()
    model = Reversible(alignment, Substitution(**kind))
    assert torch.autograd.gradcheck(lambda b: model(shape, b), lengths)


def test_jc69_is_a_special_case():
    generator = np.random.default_rng(1)
    alignment = random_alignment(10, 300, generator)
    shape = batch([random_topology(10, generator) for _ in range(4)], 10)
    lengths = torch.from_numpy(generator.exponential(0.2, size=(4, 17))).requires_grad_()
    expected = JukesCantor(alignment)(shape, lengths)
    (slopes,) = torch.autograd.grad(expected.sum(), lengths)
    same = {"frequencies": [0.25] * 4}
    for kind in ({}, {"model": "hky", "kappa": 1.0, **same}, {"model": "gtr", "rates": [3.0] * 6, **same}):
        values = Reversible(alignment, Substitution(**kind))(shape, lengths)
        (found,) = torch.autograd.grad(values.sum(), lengths)
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(found, slopes, rtol=1e-10, atol=1e-9)
    assert isinstance(make_likelihood(alignment, Substitution()), JukesCantor)


GOLDEN = json.loads(Path(__file__).with_name("iqtree_models.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['iqtree_model']}-{case['tree']}")
def test_values_of_iqtree(case):
    alignment = Alignment.from_sequences(GOLDEN["sequences"])
    value = log_likelihood(alignment, GOLDEN["trees"][case["tree"]], Substitution(**case["model"]))
    assert value == pytest.approx(case["log_likelihood"], abs=1e-6, rel=0)


def test_the_probabilities_of_all_columns_sum_to_one():
    letters = np.array(np.meshgrid(*[list("ACGT")] * 4)).reshape(4, -1)
    model, tree = Substitution(**MODELS[-1]), "(a:0.1,b:0.4,(c:0.2,d:0.9):0.3);"
    columns = (Alignment.from_sequences(dict(zip("abcd", column, strict=True))) for column in letters.T)
    assert sum(math.exp(log_likelihood(one, tree, model)) for one in columns) == pytest.approx(1, abs=1e-12)


def test_tiny_long_and_zero_edges():
    model = Substitution(**GTR)
    alignment = Alignment.from_sequences({"a": "A", "b": "A", "c": "G", "d": "G"})
    q = model.rate_matrix(np.array(PI))
    for t in (1e-12, 1e-200):
        value = log_likelihood(alignment, f"(a:0,b:0,(c:0,d:0):{t});", model)
        assert value == pytest.approx(math.log(PI[0] * q[0, 2]) + math.log(t), abs=1e-9)
    far = log_likelihood(alignment, "(a:50,b:50,(c:50,d:50):50);", model)
    assert far == pytest.approx(2 * math.log(PI[0] * PI[2]), abs=1e-9)
    assert log_likelihood(alignment, "(a:0,b:0,(c:0,d:0):0);", model) == -math.inf


def test_no_underflow_with_many_taxa():
    num_taxa = 700
    generator = np.random.default_rng(3)
    alignment = random_alignment(num_taxa, 3, generator, "ACGT")
    shape = batch([random_topology(num_taxa, generator)], num_taxa)
    lengths = torch.full((1, 2 * num_taxa - 3), 1e-5, dtype=torch.float64).requires_grad_()
    value = Reversible(alignment, Substitution("jc69", gamma_shape=0.1))(shape, lengths)
    (slope,) = torch.autograd.grad(value.sum(), lengths)
    assert -1e6 < value.item() < -3 * num_taxa and slope.isfinite().all()


def test_category_rates_are_means_of_the_gamma_density():
    for shape, count in ((0.3, 4), (2.0, 5)):
        rates = Substitution(gamma_shape=shape, num_categories=count).category_rates()
        density = stats.gamma(shape, scale=1 / shape)
        cuts = density.ppf(np.linspace(0, 1, count + 1))
        for rate, low, high in zip(rates, cuts[:-1], cuts[1:], strict=True):
            mean, _ = integrate.quad(lambda x, density=density: x * density.pdf(x), low, high)
            assert rate == pytest.approx(mean * count, rel=1e-5)
        assert rates.mean() == pytest.approx(1, abs=1e-12)
    assert Substitution(gamma_shape=0.3, num_categories=1).category_rates().tolist() == [1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "k80"}, "model must be one of jc69, hky, gtr, got 'k80'"),
        ({"model": "hky"}, "kappa must be a positive number for model=hky, got None"),
        ({"model": "gtr"}, "rates must be six positive numbers .* for model=gtr"),
        ({"kappa": 2.0}, "kappa must be null for model=jc69"),
        ({"model": "hky", "kappa": -1.0}, "kappa must be a positive number, got -1.0"),
        ({"model": "gtr", "rates": [1.0, 2.0]}, "rates must be 6 positive numbers"),
        ({"model": "hky", "kappa": 2.0, "frequencies": [0.5, 0.5, 0.5, 0.5]}, "frequencies must .* sum to 1"),
        ({"model": "hky", "kappa": 2.0, "frequencies": "ACGT"}, "frequencies must be 4 positive numbers"),
        ({"gamma_shape": 0.0}, "gamma_shape must be a positive number"),
        ({"gamma_shape": 1.0, "num_categories": 0}, "num_categories must be a whole number"),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(InputError, match=f"model.target.substitution.{message}"):
        Substitution(**values)


def test_a_base_that_never_occurs():
    alignment = Alignment.from_sequences({name: "ACA" for name in "abcd"})
    with pytest.raises(InputError, match="holds no G T: give model.target.substitution.frequencies"):
        Reversible(alignment, Substitution("hky", kappa=2.0))


def test_a_run_with_another_model(tmp_path):
    common = ["model=vbpi", "trainer.enable_progress_bar=false", "model.objective.steps_per_epoch=10", "report=false",
              "evaluation.num_samples=5", "trainer.max_epochs=1", "dataset.support.replicates=1", "ensemble.size=1",
              "dataset.support.nj_trees=5", "dataset.replicates=2", "logger=csv", f"run_dir={tmp_path}"]  # fmt: skip
    hky = ["model.target.substitution.model=hky", "model.target.substitution.kappa=3",
           "model.target.substitution.gamma_shape=0.5"]  # fmt: skip
    summary = run(compose_config([*common, *hky]))
    text = summary["protocol"]["substitution_model"]
    assert text.startswith("HKY85 (kappa 3, frequencies 0.2") and "gamma shape 0.5, 4 categories" in text
    with pytest.raises(
        InputError, match="of another configuration: model.target.substitution.gamma_shape was 0.5"
    ):
        run(compose_config(common))


def test_a_folder_of_an_older_version_lacks_the_model(tmp_path):
    cfg = compose_config(["model=vbpi", f"run_dir={tmp_path}"])
    claim_folder(cfg, tmp_path)
    (tmp_path / "members").mkdir()
    (tmp_path / "members" / "q1.ckpt").touch()
    old = stored(tmp_path)
    del old.model.target["substitution"]
    OmegaConf.save(old, config_path(tmp_path))
    check_folder(cfg, tmp_path)
