"""Samples from the prior, and statistics for sampling that never touch the scored model."""

import math
import shutil

import numpy as np
import pandas as pd
import pytest
import runs
import small
import torch
from PIL import Image

from miselbo import pipeline
from miselbo.data import ImageSpec
from miselbo.errors import InputError
from miselbo.evaluation import sample as sampling
from miselbo.models.hierarchical import HierarchicalDecoder
from miselbo.models.nvae import batch_norms, readjusted
from miselbo.models.nvae.cells import BottleneckOperation
from miselbo.protocols import fingerprint
from miselbo.runs import checkpoints

COLOUR = ImageSpec(3, 8, 8, "logistic_mixture")


def recorded_z(decoder: HierarchicalDecoder, monkeypatch) -> list[list[torch.Tensor]]:
    """Collects the z of every pass."""
    seen = []
    generate = decoder.generate

    def recording(choose, batch):
        trace = generate(choose, batch)
        seen.append(trace.z)
        return trace

    monkeypatch.setattr(decoder, "generate", recording)
    return seen


# sample


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_the_deepest_group_has_the_priors_scale_times_the_temperature(temperature, monkeypatch):
    decoder = small.nvae_ensemble(1).target
    seen = recorded_z(decoder, monkeypatch)
    decoder.sample(1000, temperature)
    z = torch.cat([trace[0] for trace in seen])  # 1000 x 2 x 2 x 2
    expected = 1.01 * temperature
    assert abs(z.std().item() / expected - 1) < 5 / math.sqrt(2 * z.numel())
    assert abs(z.mean().item()) < 5 * expected / math.sqrt(z.numel())


@pytest.mark.parametrize("ensemble", [small.nvae_ensemble, small.vae_ensemble])
def test_an_image_is_a_function_of_seed_and_number(ensemble):
    decoder = ensemble(1).target
    images = decoder.sample(7, 0.7, seed=3)
    assert images.shape == (7, 1, 8, 8) and bool(((images >= 0) & (images <= 1)).all())
    torch.testing.assert_close(decoder.sample(7, 0.7, seed=3, batch_size=2), images)
    torch.testing.assert_close(decoder.sample(3, 0.7, seed=3, start=4), images[4:])
    assert not torch.allclose(decoder.sample(7, 0.7, seed=4), images)
    assert not torch.allclose(decoder.sample(7, 0.9, seed=3), images)


def test_sampling_leaves_mode_and_statistics(monkeypatch):
    decoder = small.nvae_ensemble(1).target.train()
    before = fingerprint(decoder)
    decoder.sample(4)
    assert decoder.training and all(norm.training for norm in batch_norms(decoder))
    assert fingerprint(decoder) == before


@pytest.mark.parametrize(
    "arguments", [(0,), (1, 0.0), (1, -1.0), (1, math.nan), (1, math.inf), (1, 1.0, 0, 0)]
)
def test_samples_that_cannot_be(arguments):
    with pytest.raises(InputError, match="must be"):
        small.vae_ensemble(1).target.sample(*arguments)


# statistics


@pytest.mark.parametrize("image", [small.DIGIT, COLOUR])
def test_statistics_are_means_over_batches_of_prior_samples(image):
    decoder = small.nvae_ensemble(1, image=image).target
    inputs: dict[int, list[torch.Tensor]] = {}
    watched = readjusted(decoder, 0.6, num_batches=1)  # another copy, to watch
    for number, norm in enumerate(batch_norms(watched)):
        norm.register_forward_pre_hook(lambda _, x, n=number: inputs.setdefault(n, []).append(x[0].clone()))
    found = readjusted(watched, 0.6, num_batches=3, batch_size=5, seed=2)  # deep copies keep the hooks
    doubled = [m for m in found.modules() if isinstance(m, BottleneckOperation) and m.up]
    early = [
        norm for m in doubled for norm in (m.norm_in, m.norm_wide)
    ]  # they see each pixel once in place of 4 times
    for number, norm in enumerate(batch_norms(found)):
        assert len(inputs[number]) == 3
        repeats = 4 if any(norm is other for other in early) else 1
        batches = [x.transpose(0, 1).flatten(1).repeat(1, repeats) for x in inputs[number]]  # [C, N h w]
        torch.testing.assert_close(norm.running_mean, torch.stack([x.mean(1) for x in batches]).mean(0))
        torch.testing.assert_close(norm.running_var, torch.stack([x.var(1) for x in batches]).mean(0))
        assert norm.momentum == 0.05 and not norm.training


def test_the_decoder_itself_is_untouched():
    decoder = small.nvae_ensemble(1).target
    decoder.train()
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    random = torch.get_rng_state()
    other = readjusted(decoder, 0.7, num_batches=2, seed=1)
    assert runs.same_tensors(before, decoder.state_dict())
    assert decoder.training and all(p.requires_grad for p in decoder.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert not other.training and fingerprint(other) != fingerprint(decoder)
    after = dict(other.named_parameters())
    assert all(torch.equal(after[name], parameter) for name, parameter in decoder.named_parameters())
    assert {p.data_ptr() for p in other.parameters()}.isdisjoint(p.data_ptr() for p in decoder.parameters())


def test_statistics_are_a_function_of_their_arguments():
    decoder = small.nvae_ensemble(1).target
    stamps = [
        fingerprint(readjusted(decoder, temperature, num_batches, seed))
        for temperature, num_batches, seed in (
            (0.7, 2, 0),
            (0.7, 2, 0),
            (0.8, 2, 0),
            (0.7, 3, 0),
            (0.7, 2, 1),
        )
    ]
    assert stamps[0] == stamps[1] and len(set(stamps)) == 4


def test_statistics_that_cannot_be():
    decoder = small.nvae_ensemble(1).target
    for name, value in (("num_batches", 0), ("batch_size", 1), ("num_batches", 2.5), ("temperature", 0)):
        with pytest.raises(InputError, match=f"{name} must be"):
            readjusted(decoder, **{name: value})
    with torch.no_grad():
        decoder.first_feature.fill_(math.inf)
    with pytest.raises(InputError, match="statistics are not finite after 2 batches"):
        readjusted(decoder, num_batches=2)


# the task


SMALL = ("sampling.readjust_batches=3", "sampling.batch_size=4", "sampling.num=5", "sampling.temperature=0.7")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampling") / "run"
    runs.fit(folder, "ensemble.size=1", "report=false", model=runs.NVAE)
    return folder


def test_the_scored_files_are_the_same_bit_for_bit(finished, monkeypatch):
    before = runs.snapshot(finished)
    made = runs.from_folder("sample", finished, *SMALL)
    after = runs.snapshot(finished)
    assert {name: after[name] for name in before} == before  # bytes and times
    assert sorted(after.keys() - before.keys()) == [
        "members/target_sampling.ckpt",
        "samples/temperature0.7-seed0-num5-readjusted3.png",
    ]
    target = torch.load(finished / "members" / "target.ckpt", weights_only=True)
    copy = torch.load(finished / "members" / "target_sampling.ckpt", weights_only=True)
    assert copy["target_fingerprint"] == target["target_fingerprint"] == made["target_fingerprint"]
    differing = {
        name for name in copy["state"] if not torch.equal(copy["state"][name], target["state"][name])
    }
    assert differing and all(
        name.split(".")[-1].startswith(("running_", "num_batches")) for name in differing
    )
    picture = np.asarray(Image.open(finished / "samples" / "temperature0.7-seed0-num5-readjusted3.png"))
    assert picture.shape == (17, 26)  # two rows of three 8 x 8 images, a pixel between
    assert picture[:8, :8].std() > 0
    # and the kept statistics are used again
    monkeypatch.setattr(sampling, "readjusted", None)
    runs.from_folder("sample", finished, *SMALL)
    again = np.asarray(Image.open(finished / "samples" / "temperature0.7-seed0-num5-readjusted3.png"))
    assert np.array_equal(picture, again)


def test_evaluation_does_not_see_the_statistics_for_sampling(finished, monkeypatch):
    monkeypatch.setattr(pipeline, "report", lambda folder: None)
    (sampling.sampling_path(finished)).unlink(missing_ok=True)
    runs.from_folder("evaluate", finished)
    examples = pd.read_parquet(finished / "results" / "per_example.parquet")
    runs.from_folder("sample", finished, *SMALL)
    shutil.rmtree(finished / "results")
    runs.from_folder("evaluate", finished)
    pd.testing.assert_frame_equal(pd.read_parquet(finished / "results" / "per_example.parquet"), examples)


def test_without_readjustment_no_copy_is_kept(finished):
    sampling.sampling_path(finished).unlink(missing_ok=True)
    made = runs.from_folder("sample", finished, *SMALL, "sampling.readjust_batches=0", "sampling.columns=5")
    assert made["path"].endswith("samples/temperature0.7-seed0-num5.png")
    assert Image.open(made["path"]).size == (44, 8)
    assert not sampling.sampling_path(finished).exists()


def test_a_copy_of_another_target_is_made_anew(finished):
    runs.from_folder("sample", finished, *SMALL)
    path = sampling.sampling_path(finished)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "target_fingerprint": "another"}, path)
    runs.from_folder("sample", finished, *SMALL)
    made = torch.load(path, weights_only=True)
    assert made["target_fingerprint"] == content["target_fingerprint"]
    assert runs.same_tensors(made["state"], content["state"])
    path.write_text("damaged")
    with pytest.raises(InputError, match="target_sampling.ckpt cannot be read"):
        runs.from_folder("sample", finished, *SMALL)
    path.unlink()


def test_a_vae_has_no_statistics(tmp_path):
    folder = tmp_path / "run"
    runs.fit(folder, "ensemble.size=1", "report=false")
    made = runs.from_folder("sample", folder, "sampling.num=2")
    assert made["readjust_batches"] == 0 and not sampling.sampling_path(folder).exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.num=0", "sampling.num must be a whole number of at least 1, got 0"),
        ("sampling.batch_size=1", "sampling.batch_size must be a whole number of at least 2"),
        ("sampling.readjust_batches=-1", "sampling.readjust_batches must be"),
        ("sampling.columns=0", "sampling.columns must be"),
        ("sampling.seed=-1", "sampling.seed must be"),
        ("sampling.temperature=0", "sampling.temperature must be a finite number above 0, got 0"),
        ("sampling.temperature=hot", "sampling.temperature must be a number, got 'hot'"),
        ("sampling.number=3", "did you mean 'sampling.num'"),
        ("model.target.num_channels=9", "cannot be changed for a trained run"),
    ],
)
def test_bad_settings(finished, override, message):
    before = runs.snapshot(finished)
    with pytest.raises(InputError, match=message):
        runs.from_folder("sample", finished, override)
    assert runs.snapshot(finished) == before


def test_a_run_without_a_target(tmp_path):
    cfg = runs.configure(tmp_path, "task=sample")
    with pytest.raises(InputError, match="target.ckpt does not exist"):
        pipeline.run(cfg)
    assert checkpoints.target_path(tmp_path).parent.exists() is False
