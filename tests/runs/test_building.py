"""From configuration to modules: presets, seeds, and settings that cannot be."""

import pytest
import runs
import torch
from omegaconf import OmegaConf

from miselbo.data import ImageSpec
from miselbo.errors import InputError
from miselbo.protocols import fingerprint
from miselbo.runs.building import build, seeded
from miselbo.runs.config import CONF, compose_config
from miselbo.runs.plan import build_ensemble

DIGIT = ImageSpec(1, 8, 8, "bernoulli")
MNIST = ImageSpec(1, 28, 28, "bernoulli")
PUBLISHED = ("nvae_mnist", "nvae_cifar10", "nvae_celeba64")  # test_presets.py
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))


def size_of(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("image", [DIGIT, MNIST])
@pytest.mark.parametrize(
    "name", [name for name in MODELS if name.startswith(("nvae", "vae")) and name not in PUBLISHED]
)
def test_presets_build_and_score(name, image):
    target, members = build_ensemble(compose_config([f"model={name}", "run_dir=x"]), image, 2)
    x = torch.zeros(3, 1, image.height, image.width)
    eps = [torch.zeros(1, 3, *shape) for shape in target.latent_shapes]
    draw = target.draw(x, members[0], members[0].encode(x), eps)
    assert draw.log_p.shape == (1, 3) and bool(draw.log_p.isfinite().all())
    assert target.sample_prior([part[0] for part in eps]).shape == x.shape


def test_the_published_size():
    target, members = build_ensemble(compose_config(["model=nvae_mnist", "run_dir=x"]), MNIST, 1)
    assert size_of(target) + size_of(members[0]) == 33_363_134


@pytest.mark.parametrize("model", [runs.VAE, runs.NVAE])
def test_parameters_are_a_function_of_seed_and_member(tmp_path, model):
    def stamps(size: int, *more: str) -> list[str]:
        target, members = build_ensemble(runs.configure(tmp_path, *more, model=model), DIGIT, size)
        return [fingerprint(module) for module in (target, *members)]

    torch.manual_seed(1)
    one = stamps(1)
    torch.manual_seed(2)
    three = stamps(3)
    assert three[:2] == one
    assert len(set(three)) == 4
    assert not set(three) & set(stamps(3, "seed=1"))


def test_the_global_generator_is_left_alone(tmp_path):
    before = torch.get_rng_state()
    build_ensemble(runs.configure(tmp_path), DIGIT, 2)
    with seeded(2**64 - 1):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.target.num_preprocess_blocks=4", "num_preprocess_blocks"),
        ("model.target.num_latent_scales=7", "num_latent_scales"),
        ("model.target.arch=res_wonder", "arch"),
        ("model.approximation.arch=res_wonder", "arch"),
    ],
)
def test_a_model_that_cannot_be(tmp_path, override, words):
    with pytest.raises(InputError, match=words):
        build_ensemble(runs.configure(tmp_path, override, model=runs.NVAE), DIGIT, 1)


def test_a_model_for_other_data(tmp_path):
    with pytest.raises(InputError, match="Bernoulli likelihood; the data ask for 'normal'"):
        build_ensemble(runs.configure(tmp_path), ImageSpec(3, 32, 32, "normal"), 1)


def test_a_target_that_cannot_be_called_is_one_error():
    with pytest.raises(InputError, match="cannot build collections.OrderedDict"):
        build(OmegaConf.create({"_target_": "collections.OrderedDict", "_args_": [1]}))
