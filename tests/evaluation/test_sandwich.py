"""The sandwich of whole runs: simulated as the data are, the truth between both sides, told in the report."""

import functools
import json

import numpy as np
import pandas as pd
import pytest
import runs
import small
import torch

from miselbo.data import ImageSpec
from miselbo.data.densities import exact_draws, normal_mixture, u1
from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.evaluation.sandwich import measure
from miselbo.evaluation.settings import Settings
from miselbo.models.nvae.distributions import image_log_prob, num_image_parameters, sample_image

SETTINGS = Settings("test", 20, (1, 5, 20), 16, 20, None, 0)


def test_a_mixture_of_normals_is_bounded_from_both_sides():
    density = functools.partial(normal_mixture, means=[-2.0, 2.0], sds=[0.7, 1.0], weights=[0.3, 0.7])
    members = [torch.distributions.Normal(torch.tensor([mean]), 1.3) for mean in (-2.0, 2.0)]
    rows = measure(Ensemble(density, members), SETTINGS, 64)
    assert list(rows["S"]) == [1, 1, 1, 2, 2, 2] and list(rows["L"]) == [1, 5, 20] * 2
    assert (rows["certified_low"] <= 0).all() and (rows["certified_high"] >= 0).all()  # log Z = 0
    assert (rows["lower"] - 4 * rows["lower_se"] <= 0).all() and (
        rows["upper"] + 4 * rows["upper_se"] >= 0
    ).all()
    assert rows.groupby("S")["width"].last()[2] < rows.groupby("S")["width"].first()[2]


@pytest.mark.parametrize("make", [small.nvae_ensemble, small.vae_ensemble])
def test_images_are_simulated_as_the_data_are_whatever_the_batch(make):
    ensemble = make(2, torch.float32)
    x, z = ensemble.target.simulate(torch.arange(5), seed=3)
    assert set(x.unique().tolist()) <= {0.0, 1.0} and x.shape == (5, 1, 8, 8)
    again, latents = ensemble.target.simulate(torch.arange(2, 5), seed=3)
    assert torch.equal(again, x[2:]) and torch.allclose(latents[0], z[0][2:], atol=1e-5)
    rows = measure(ensemble, SETTINGS, 6)
    assert (rows["width"] > -4 * rows["width_se"]).all() and rows["num_data"].eq(6).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_mixture_images_have_the_probabilities_of_their_likelihood(channels):
    """Two bits and one pixel: the frequency of every level against its probability."""
    image = ImageSpec(channels, 1, 1, "logistic_mixture", 2)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, num_image_parameters(image, 2), 1, 1, generator=generator)
    draws = 20_000
    u = torch.rand(draws, 1 + channels, 1, 1, generator=generator)
    x = sample_image(logits.expand(draws, -1, -1, -1), u, image)
    levels, counts = x.flatten(1).unique(dim=0, return_counts=True)
    log_p = image_log_prob(logits.expand(len(levels), -1, -1, -1), levels[..., None, None], image)
    expected = draws * log_p.exp()
    assert expected.sum() > 0.99 * draws
    common = expected > 20
    assert ((counts - expected)[common].abs() < 5 * expected[common].sqrt()).all()


def test_a_density_without_known_draws_is_refused():
    with pytest.raises(InputError, match="no exact draws of u1 are known"):
        exact_draws(u1, torch.arange(2), 0)


def test_a_run_has_it_in_table_summary_headline_and_report(tmp_path, capsys):
    folder = tmp_path / "run"
    summary = runs.fit(folder, "ensemble.size=2", "sandwich=true", "report=true")
    rows = pd.read_csv(folder / "results" / "sandwich.csv")
    assert len(rows) == 2 * len(summary["protocol"]["grid"])
    found = json.loads((folder / "results" / "summary.json").read_text())["sandwich"]
    assert (
        found["lower"] == pytest.approx(rows["lower"].iloc[-1])
        and "On real data only the lower" in found["sentence"]
    )
    assert found["sentence"] in capsys.readouterr().out
    assert "Between two bounds" in (folder / "report.md").read_text()
    assert (folder / "figures" / "sandwich.png").exists()
    before = rows["width"].to_numpy()
    runs.from_folder("sandwich", folder, "report=false")
    assert np.allclose(pd.read_csv(folder / "results" / "sandwich.csv")["width"], before)
