"""The published sizes: parameters counted by hand, from the architecture as the paper describes it."""

import pytest
import torch

from miselbo.data import ImageSpec
from miselbo.runs.config import CONF, compose_config
from miselbo.runs.plan import build_ensemble

IMAGES = {
    "nvae_mnist": ImageSpec(1, 28, 28, "bernoulli"),
    "nvae_cifar10": ImageSpec(3, 32, 32, "logistic_mixture"),
    "nvae_celeba64": ImageSpec(3, 64, 64, "logistic_mixture"),
}
# groups per scale (highest resolution first), channels, blocks, cells per block, flows, side of the padded image
RECIPES = {
    "nvae_mnist": ([10, 5], 32, 2, 3, 0, 32),
    "nvae_cifar10": ([30], 128, 1, 2, 1, 32),
    "nvae_celeba64": ([20, 10, 5], 64, 1, 2, 1, 64),
}
LATENT = 20


def conv(c_in: int, c_out: int, size: int = 1, bias: bool = True) -> int:
    """Weight-normalised: direction, gain, bias."""
    return c_in * c_out * size**2 + c_out * (1 + bias)


def bottleneck(c_in: int, c_out: int, expansion: int, size: int = 5) -> int:
    hidden = expansion * c_in
    norms = 2 * (c_in + hidden + hidden + c_out)
    return norms + c_in * hidden + hidden * size**2 + hidden * c_out


def residual(c_in: int, c_out: int) -> int:
    return 2 * c_in + conv(c_in, c_out, 3) + 2 * c_out + conv(c_out, c_out, 3)


def excitation(channels: int) -> int:
    hidden = max(channels // 16, 4)
    return 2 * channels * hidden + hidden + channels


def encoder_cell(c: int, down: bool = False) -> int:
    out = 2 * c if down else c
    skip = 4 * conv(c, out // 4) if down else 0
    return residual(c, out) + excitation(out) + skip


def decoder_cell(c: int, expansion: int, up: bool = False) -> int:
    out = c // 2 if up else c
    skip = conv(c, out, bias=False) if up else 0
    return bottleneck(c, out, expansion) + excitation(out) + skip


def flow() -> int:
    """A pair of shift flows on 20 channels, 6 x 20 hidden ones."""
    hidden = 6 * LATENT
    one = conv(LATENT, hidden, 3, bias=False) + hidden * 25 + hidden + conv(hidden, LATENT)
    return 2 * one


def counts(name: str) -> tuple[int, int]:
    """(decoder, encoder)."""
    groups, width, blocks, cells, flows, side = RECIPES[name]
    image = IMAGES[name]
    outputs = 1 if image.likelihood == "bernoulli" else 10 * 10  # ten mixtures, ten numbers each
    widths = [width * 2 ** (blocks + scale) for scale in range(len(groups))]
    total = sum(groups)

    encoder = conv(image.channels, width, 3)
    for block in range(blocks):
        c = width * 2**block
        encoder += (cells - 1) * encoder_cell(c) + encoder_cell(c, down=True)
    for scale, (number, c) in enumerate(zip(groups, widths, strict=True)):
        last = scale == len(groups) - 1
        encoder += number * 2 * encoder_cell(c)
        encoder += (number - last) * conv(c, c)  # combiners
        encoder += number * conv(c, 2 * LATENT, 3)  # posterior heads
        encoder += 0 if last else encoder_cell(c, down=True)
    encoder += conv(widths[-1], widths[-1])
    encoder += total * flows * flow()

    deepest = side // 2 ** (blocks + len(groups) - 1)
    decoder = widths[-1] * deepest**2  # the learned constant
    for scale in reversed(range(len(groups))):
        number, c = groups[scale], widths[scale]
        first = scale == len(groups) - 1
        decoder += (number - first) * (2 * decoder_cell(c, 6) + conv(c, 2 * LATENT))
        decoder += number * conv(c + LATENT, c)
        decoder += 0 if scale == 0 else decoder_cell(c, 6, up=True)
    for block in reversed(range(blocks)):
        c = width * 2 ** (block + 1)
        decoder += decoder_cell(c, 3, up=True) + (cells - 1) * decoder_cell(c // 2, 3)
    return decoder + conv(width, outputs, 3), encoder


def size_of(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_count_by_hand_gives_the_published_number():
    assert sum(counts("nvae_mnist")) == 33_363_134


@pytest.mark.parametrize("name", sorted(IMAGES))
def test_a_preset_has_the_size_of_the_recipe_and_goes_with_its_dataset(name):
    """Built and run without memory or arithmetic."""
    image = IMAGES[name]
    groups, _, blocks, _, flows, side = RECIPES[name]
    cfg = compose_config([f"model={name}", f"dataset={name.removeprefix('nvae_')}", "run_dir=x"])
    assert cfg.dataset.likelihood == image.likelihood
    with torch.device("meta"):
        target, (member,) = build_ensemble(cfg, image, 1)
        x = torch.zeros(2, image.channels, image.height, image.width)
        context = member.encode(x)
        draw = target.draw(x, member, context, [torch.zeros(1, 2, *shape) for shape in target.latent_shapes])
        scores = draw.log_p, draw.log_q, member.log_prob(context, draw)
    assert [score.shape for score in scores] == [(1, 2)] * 3
    assert (size_of(target), size_of(member)) == counts(name)
    assert f"{sum(counts(name)):,} parameters" in (CONF / "model" / f"{name}.yaml").read_text()
    assert target.network_size == (side, side)
    assert target.latent_shapes[-1] == (LATENT, side // 2**blocks, side // 2**blocks)
    assert len(target.latent_shapes) == sum(groups) and len(member.flows) == flows * sum(groups)


@pytest.mark.parametrize(
    ("name", "epochs", "regulariser"),
    [("nvae_mnist", 400, 1e-2), ("nvae_cifar10", 400, 1e-2), ("nvae_celeba64", 90, 1e-1)],
)
def test_the_objective_of_the_recipe(name, epochs, regulariser):
    model = compose_config([f"model={name}", "run_dir=x"]).model
    assert (model.max_epochs, model.objective.regulariser) == (epochs, regulariser)
    assert (model.objective.learning_rate, model.objective.learning_rate_min) == (1e-2, 1e-4)
    assert (model.objective.weight_decay, model.objective.kl_anneal_portion) == (3e-4, 0.3)
    assert model.target.use_se and model.approximation.use_se and model.approximation.res_dist
    assert model.target.arch == model.approximation.arch == "res_mbconv"
