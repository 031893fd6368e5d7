"""Ensembles of every kind written as official files and read back: bit for bit, names included."""

import argparse
from dataclasses import asdict

import official
import pytest
import small
import torch
from official import MNIST, make

from miselbo.data import ImageSpec
from miselbo.errors import InputError
from miselbo.importers.nvlabs import export_checkpoints, load_checkpoints
from miselbo.importers.nvlabs.each import SeparateTargets
from miselbo.importers.nvlabs.names import duplicate_names, official_names
from miselbo.models.nvae import Decoder, Encoder
from miselbo.models.nvae.cells import ARCHITECTURES
from miselbo.protocols import fingerprint

RGB = ImageSpec(3, 32, 32, "logistic_mixture")
SMALL_RGB = ImageSpec(3, 8, 8, "logistic_mixture")
DEEP = {"num_channels": 2, "num_groups_per_scale": 3, "min_groups_per_scale": 2}
CASES = {
    **{arch: dict(arch=arch, num_channels=8, image=small.DIGIT) for arch in ARCHITECTURES},
    "SE": dict(use_se=True),
    "one scale": dict(num_latent_scales=1, num_groups_per_scale=3, ada_groups=False, image=small.DIGIT),
    "three scales": dict(num_latent_scales=3, **DEEP),
    "four scales": dict(num_latent_scales=4, **DEEP, num_cells_per_group=2),
    "five scales": dict(num_latent_scales=5, **DEEP, image=ImageSpec(3, 32, 32, "logistic_mixture", 5)),
    "vanilla": dict(num_latent_scales=1, num_groups_per_scale=1, image=small.DIGIT),
    "vanilla flow": dict(
        num_latent_scales=1, num_groups_per_scale=1, encoder={"num_flows": 1}, num_preprocess_blocks=2, use_se=True
    ),
    "flows": dict(encoder={"num_flows": 2}, image=small.DIGIT),
    "wider encoder": dict(num_channels=4, encoder={"num_channels": 6, "num_cells_per_group": 2}, image=small.DIGIT),
    "wider decoder": dict(num_channels=6, encoder={"num_channels": 4, "num_preprocess_cells": 3}, image=RGB),
    "own posteriors": dict(encoder={"res_dist": False}, image=small.DIGIT),
    "normal": dict(image=ImageSpec(3, 8, 8, "normal")),
    "three mixtures": dict(image=SMALL_RGB, num_mixtures=3),
    "grey mixtures": dict(image=ImageSpec(1, 8, 8, "logistic_mixture", 4)),
    "celeba": dict(image=ImageSpec(3, 64, 64, "logistic_mixture"), num_preprocess_blocks=2, num_postprocess_cells=2),
    "not square": dict(image=ImageSpec(1, 8, 16, "normal")),
}  # fmt: skip


def images(image: ImageSpec) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    levels = torch.randint(0, 256, (2, image.channels, image.height, image.width), generator=generator) / 255
    return levels.round() if image.likelihood == "bernoulli" else levels


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name, tmp_path):
    ensemble = make(2, **CASES[name])
    files = official.write(tmp_path, ensemble)
    loaded = load_checkpoints(files)
    assert fingerprint(loaded) == fingerprint(ensemble)
    assert loaded.target.image == ensemble.target.image
    unused = set() if ensemble.target.image.likelihood == "logistic_mixture" else {"num_mixtures"}
    for key in ensemble.target.arguments.keys() - unused:
        assert loaded.target.arguments[key] == ensemble.target.arguments[key], key
    assert [m.arguments for m in loaded.members] == [m.arguments for m in ensemble.members]
    assert not any(module.training for module in loaded.modules())
    x = images(ensemble.target.image)
    for one, other in zip(ensemble.score(x, 2), loaded.score(x, 2), strict=True):
        assert torch.isfinite(one).all() and torch.equal(one, other)
    again = official.write(tmp_path / "again", loaded)
    for before, after in zip(files, again, strict=True):
        one, other = official.content(before), official.content(after)
        assert vars(one["args"]) == vars(other["args"]) and one["arch_instance"] == other["arch_instance"]
        assert one["state_dict"].keys() == other["state_dict"].keys()
        assert all(torch.equal(value, other["state_dict"][key]) for key, value in one["state_dict"].items())


@pytest.mark.parametrize(
    ("image", "mixtures", "dataset"),
    [
        (MNIST, 10, "mnist"),
        (RGB, 10, "cifar10"),
        (ImageSpec(3, 32, 32, "normal"), 10, "cifar10"),
        (ImageSpec(3, 64, 64, "logistic_mixture", 5), 10, "celeba_64"),
        (small.DIGIT, 10, "custom"),
    ],
)
def test_dataset_and_image_are_told(image, mixtures, dataset, tmp_path):
    (file,) = official.write(tmp_path, make(1, image, num_mixtures=mixtures))
    held = official.content(file)
    assert held["args"].dataset == dataset and isinstance(held["args"], argparse.Namespace)
    assert held["args"].num_x_bits == image.num_bits
    assert held["args"].num_mixture_dec == (1 if image.likelihood == "normal" else mixtures)
    assert held.get("image") == (asdict(image) if dataset == "custom" else None)
    assert {"epoch", "global_step", "scheduler", "grad_scalar"} <= held.keys()
    assert {"batch_size", "distributed", "data"} <= vars(held["args"]).keys()


def test_a_name_the_published_programs_know_is_kept(tmp_path):
    known = export_checkpoints(make(1), tmp_path / "a", dataset="omniglot", seed=5)
    assert (
        official.content(known[0])["args"].dataset == "omniglot"
        and official.content(known[0])["args"].seed == 5
    )
    other = export_checkpoints(make(1), tmp_path / "b", dataset="fashion_mnist")
    assert official.content(other[0])["args"].dataset == "mnist"
    own = export_checkpoints(make(1, small.DIGIT), tmp_path / "c", dataset="digits")
    assert official.content(own[0])["args"].dataset == "digits"


def test_an_architecture_with_another_encoder_side(tmp_path):
    ensemble = make(1, encoder={"arch": "res55_mbconv"}, arch="res_mbconv")
    (file,) = official.write(tmp_path, ensemble)
    assert official.content(file)["args"].arch_instance == "res55_mbconv"
    assert fingerprint(load_checkpoints(file)) == fingerprint(ensemble)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(encoder={"use_se": True}), "use_se is False in the decoder and True in the encoder"),
        (dict(encoder={"arch": "res_elu"}), "no official architecture has both"),
        (dict(image=SMALL_RGB, num_mixtures=1), "mixture of one logistic"),
    ],
)
def test_what_the_official_arguments_cannot_say_is_refused(sizes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        export_checkpoints(make(1, **sizes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"only NVAE ensembles .* got miselbo.models.vae.Decoder"):
        export_checkpoints(small.vae_ensemble(), tmp_path)


def test_the_published_mnist_model_has_its_2016_names():
    """NVAE_FACTS.md: 33,363,134 parameters, 2,016 keys."""
    with torch.device("meta"):
        decoder = Decoder(
            MNIST,
            num_latent_scales=2,
            num_groups_per_scale=10,
            num_latent_per_group=20,
            num_channels=32,
            num_preprocess_blocks=2,
            num_postprocess_cells=3,
            num_cells_per_group=2,
            ada_groups=True,
        )
        encoder = Encoder(decoder, num_channels=32, num_preprocess_cells=3, num_cells_per_group=2)
    modules = (decoder, encoder)
    names = [name for m in modules for name in (*official_names(m), *duplicate_names(m))]
    assert len(names) == len(set(names)) == 2016
    assert sum(parameter.numel() for m in modules for parameter in m.parameters()) == 33_363_134


def test_separate_decoders_round_trip(tmp_path):
    files = official.write(tmp_path, make(1), make(1, num_channels=4))
    official.edit(files[1], lambda held: held["state_dict"]["stem.weight"].add_(1))
    official.edit(files[1], lambda held: held["state_dict"]["post_process.0.skip.1.weight"].mul_(2))
    ensemble = load_checkpoints(files, "each")
    assert isinstance(ensemble, SeparateTargets)
    again = load_checkpoints(export_checkpoints(ensemble, tmp_path / "again"), "each")
    assert fingerprint(again) == fingerprint(ensemble)


def test_separate_decoders_with_other_prior_heads(tmp_path):
    """A member reads priors off another's features by its own heads: as running its program there would."""
    files = official.write(tmp_path, make(1), make(1))
    official.edit(files[1], lambda held: held["state_dict"]["dec_sampler.0.1.bias"].add_(0.3))
    ensemble = load_checkpoints(files, "each", dtype=torch.float64)
    first, second = ensemble.targets
    x = images(MNIST).double()
    _, log_q = ensemble.score(x, 2, seed=1)
    noise = ensemble.noise(x, torch.arange(2), 1, torch.arange(2), 0)
    with torch.no_grad():
        z = first.draw(x, ensemble.members[0], None, noise).z
        # theta differs in that head alone, so the second decoder sees the same features at the same z
        there = second.at(x, [latent.unflatten(0, (2, -1)) for latent in z])
        expected = ensemble.members[1].log_prob(ensemble.members[1].encode(x), there).T
    torch.testing.assert_close(log_q[:, 0, :, 1], expected, rtol=1e-12, atol=0)


def test_counters_of_batch_norms_are_no_part_of_theta(tmp_path):
    files = official.write(tmp_path, make(2))
    official.edit(
        files[1], lambda held: held["state_dict"]["dec_tower.1._ops.0.conv.1.bn.num_batches_tracked"].add_(7)
    )
    assert len(load_checkpoints(files).members) == 2


def test_fewer_bits_are_taken_from_whole_images(tmp_path):
    """x as stored (8 bits) and x as the published program quantises it score the same."""
    image = ImageSpec(3, 8, 8, "logistic_mixture", 5)
    ensemble = load_checkpoints(official.write(tmp_path, make(1, image)), dtype=torch.float64)
    x = images(image)
    reduced = torch.floor(255 * x / 8) / 31
    assert not torch.equal(x, reduced)
    for one, other in zip(ensemble.score(x, 2), ensemble.score(reduced, 2), strict=True):
        assert torch.equal(one, other)
