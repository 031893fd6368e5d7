"""NVAE as a whole: shapes, consistency, gradients, devices, memory formats, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miselbo.data.spec import ImageSpec
from miselbo.errors import InputError
from miselbo.models.hierarchical import Draw, crop_image, pad_image
from miselbo.models.nvae import Decoder, Encoder, batch_norms, conv_kernels
from miselbo.models.nvae.convs import WeightNormConv2d, shared_kernels
from miselbo.models.nvae.topology import build_topology, groups_per_scale

GREY8 = ImageSpec(1, 8, 8, "bernoulli")


def small(image=GREY8, num_flows=0, res_dist=True, encoder_channels=8, enc=None, **changes):
    arguments = dict(
        num_latent_scales=2, num_groups_per_scale=2, num_latent_per_group=2, num_channels=8, use_se=True
    )
    torch.manual_seed(0)
    decoder = Decoder(image, **{**arguments, **changes})
    options = {key: changes[key] for key in ("arch", "use_se") if key in changes}
    options |= dict(num_channels=encoder_channels, num_flows=num_flows, res_dist=res_dist)
    return decoder, Encoder(decoder, **options, **(enc or {}))


def noise_for(decoder, samples, batch, **options):
    return [torch.randn(samples, batch, *shape, **options) for shape in decoder.latent_shapes]


def images(image, batch, **options):
    return torch.rand(batch, image.channels, image.height, image.width, **options).round()


CONFIGURATIONS = {
    "one scale, one group": dict(num_latent_scales=1, num_groups_per_scale=1),
    "one scale": dict(num_latent_scales=1, num_groups_per_scale=3, num_flows=1),
    "two scales 28": dict(image=ImageSpec(1, 28, 28, "bernoulli"), num_preprocess_blocks=2),
    "three scales, adaptive, wider encoder": dict(
        image=ImageSpec(3, 16, 16, "logistic_mixture", 5),
        num_latent_scales=3,
        num_groups_per_scale=4,
        ada_groups=True,
        encoder_channels=12,
        num_flows=1,
    ),
    "four scales, minimum of two": dict(
        image=ImageSpec(3, 32, 32, "normal"),
        num_latent_scales=4,
        num_groups_per_scale=1,
        ada_groups=True,
        min_groups_per_scale=2,
        res_dist=False,
        num_channels=4,
    ),
    "five scales 64": dict(
        image=ImageSpec(3, 64, 64, "bernoulli"), num_latent_scales=5, num_groups_per_scale=1, num_channels=4
    ),
    "rectangle": dict(image=ImageSpec(1, 11, 30, "logistic_mixture", 4), num_mixtures=3),
    "more cells": dict(
        num_cells_per_group=2,
        num_postprocess_cells=1,
        enc=dict(num_cells_per_group=2, num_preprocess_cells=1),
        arch="mbconv_res",
    ),
    "dilated": dict(arch="res35_mbconv", use_se=False),
    "grouped": dict(arch="mbconv_den"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_shapes_and_gradients(name):
    decoder, encoder = small(**CONFIGURATIONS[name])
    image = decoder.image
    batch, samples = 3, 2
    draw = decoder.draw(images(image, batch), encoder, None, noise_for(decoder, samples, batch))
    assert [tuple(z.shape[1:]) for z in draw.z] == decoder.latent_shapes
    assert draw.logits.shape[-2:] == decoder.network_size
    assert draw.log_px.shape == draw.log_pz.shape == draw.log_p.shape == draw.log_q.shape == (samples, batch)
    assert draw.kl().shape == (samples, batch, len(decoder.latent_shapes))
    assert draw.log_p.dtype == torch.float64
    assert decoder.image_mean(draw.logits).shape == (6, image.channels, image.height, image.width)
    (draw.kl().sum() - draw.log_px.sum()).backward()
    for side in (decoder, encoder):
        missing = [key for key, p in side.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not missing


@pytest.mark.parametrize("num_flows", [0, 2])
def test_density_of_own_samples(num_flows):
    """draw() then at(): the same densities, and log_prob equals the one used in sampling."""
    decoder, encoder = (m.double().eval() for m in small(num_flows=num_flows))
    x = images(GREY8, 3).double()
    context = encoder.encode(x)
    with torch.no_grad():
        draw = decoder.draw(x, encoder, context, noise_for(decoder, 4, 3, dtype=torch.float64))
        again = decoder.at(x, [z.unflatten(0, (4, 3)) for z in draw.z])
    for name in ("log_px", "log_pz"):
        torch.testing.assert_close(getattr(draw, name), getattr(again, name), rtol=0, atol=1e-10)
    torch.testing.assert_close(encoder.log_prob(context, again), draw.log_q, rtol=0, atol=1e-9)
    if num_flows:
        torch.testing.assert_close(draw.kl().sum(-1), draw.log_q - draw.log_pz, rtol=0, atol=1e-9)


def test_analytic_divergence_is_the_mean_of_log_ratios():
    decoder, encoder = (m.double().eval() for m in small(num_latent_scales=1, num_groups_per_scale=1))
    x = images(GREY8, 1).double()
    with torch.no_grad():
        draw = decoder.draw(x, encoder, None, noise_for(decoder, 1000, 1, dtype=torch.float64))
        ratios = (draw.log_q - draw.log_pz)[:, 0]
        assert abs(ratios.mean() - draw.kl()[0, 0, 0]) < 5 * ratios.std() / 1000**0.5


def test_samples_are_folded_samples_major():
    """Scoring [L, B] at once equals scoring each sample alone (evaluation mode)."""
    decoder, encoder = (m.double().eval() for m in small(num_flows=1, encoder_channels=12))
    x = images(GREY8, 3).double()
    noise = noise_for(decoder, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        together = decoder.draw(x, encoder, None, noise)
        for sample in range(2):
            alone = decoder.draw(x, encoder, None, [eps[sample : sample + 1] for eps in noise])
            torch.testing.assert_close(together.log_p[sample], alone.log_p[0])
            torch.testing.assert_close(together.log_q[sample], alone.log_q[0])
        for example in range(3):
            one = slice(example, example + 1)
            alone = decoder.draw(x[one], encoder, None, [eps[:, one] for eps in noise])
            torch.testing.assert_close(together.log_p[:, example], alone.log_p[:, 0])


def test_channels_last_changes_nothing():
    decoder, encoder = (m.double().eval() for m in small(ImageSpec(3, 16, 16, "bernoulli"), num_flows=1))
    x, noise = images(decoder.image, 3).double(), noise_for(decoder, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        plain = decoder.draw(x, encoder, None, noise)
        decoder.to(memory_format=torch.channels_last)
        encoder.to(memory_format=torch.channels_last)
        context = encoder.encode(x)
        draw = decoder.draw(x, encoder, context, noise)
    torch.testing.assert_close(draw.log_p, plain.log_p)
    torch.testing.assert_close(draw.log_q, plain.log_q)
    last = torch.channels_last
    assert all(c.is_contiguous(memory_format=last) for c in context)
    assert all(f.is_contiguous(memory_format=last) for f in draw.features if f is not None)


def test_mixed_precision():
    """Convolutions in half precision, densities not: close to single precision, with all gradients."""
    decoder, encoder = small(ImageSpec(3, 8, 8, "logistic_mixture"), num_flows=1)
    x, noise = torch.randint(256, (4, 3, 8, 8)) / 255, noise_for(decoder, 2, 4)
    single = decoder.draw(x, encoder, None, noise)
    with torch.autocast("cpu", torch.bfloat16):
        draw = decoder.draw(x, encoder, None, noise)
        loss = (draw.kl().sum(-1) - draw.log_px).mean()
    assert draw.logits.dtype == torch.bfloat16 and draw.posterior[1].base.loc.dtype == torch.float32
    torch.testing.assert_close(draw.log_px, single.log_px, rtol=0.02, atol=0)
    loss.backward()
    for side in (decoder, encoder):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in side.parameters())


def test_meta_device():
    with torch.device("meta"):
        decoder, encoder = small(image=ImageSpec(3, 16, 16, "logistic_mixture"), num_flows=1)
        x, noise = torch.empty(3, 3, 16, 16), noise_for(decoder, 2, 3)
        context = encoder.encode(x)
        draw = decoder.draw(x, encoder, context, noise)
        outputs = [draw.log_p, draw.log_q, draw.kl(), encoder.log_prob(context, draw), *conv_kernels(encoder)]
        assert all(output.is_meta for output in outputs)


def test_paper_size():
    """The MNIST model of the published recipe."""
    with torch.device("meta"):
        decoder = Decoder(
            ImageSpec(1, 28, 28, "bernoulli"),
            num_latent_scales=2,
            num_groups_per_scale=10,
            num_latent_per_group=20,
            ada_groups=True,
            num_channels=32,
            num_preprocess_blocks=2,
            num_postprocess_cells=3,
            num_cells_per_group=2,
        )
        encoder = Encoder(decoder, num_channels=32, num_preprocess_cells=3, num_cells_per_group=2)
    parameters = [*decoder.parameters(), *encoder.parameters()]
    assert sum(p.numel() for p in parameters) == 33_363_134
    assert sum(p.numel() for p in decoder.tower.parameters()) == pytest.approx(12.37e6, rel=1e-3)
    assert len(conv_kernels(decoder) + conv_kernels(encoder)) == 255
    assert len(batch_norms(decoder) + batch_norms(encoder)) == 214


def test_encoders_share_the_decoder():
    decoder, first = small()
    second = Encoder(decoder, num_channels=4)
    held = {id(p) for encoder in (first, second) for p in encoder.parameters()}
    assert not held & {id(p) for p in decoder.parameters()}
    draw = decoder.draw(images(GREY8, 3), first, None, noise_for(decoder, 2, 3))
    assert second.log_prob(second.encode(draw.x), draw).shape == (2, 3)


def test_effective_kernels_have_gradients():
    _, encoder = small(num_flows=1)
    torch.stack([kernel.square().sum() for kernel in conv_kernels(encoder)]).sum().backward()
    assert encoder.stem.log_gain.grad is not None
    flow = encoder.flows[0].first.mix
    assert (flow.kernel()[flow.mask == 0] == 0).all()
    norms = flow.kernel().flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, flow.log_gain.exp().flatten(), rtol=1e-2, atol=0)


def test_temperature_zero_gives_the_mode():
    decoder, _ = small()
    decoder.eval()
    noise = [torch.randn(4, *shape) for shape in decoder.latent_shapes]
    pictures = decoder.sample_prior(noise, temperature=0.0)
    assert pictures.shape == (4, 1, 8, 8) and (pictures >= 0).all() and (pictures <= 1).all()
    torch.testing.assert_close(pictures[0], pictures[3])
    assert not torch.equal(decoder.sample_prior(noise)[0], pictures[0])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3), st.integers(0, 9), st.integers(0, 9))
def test_crop_undoes_padding(height, width, channels, rows, columns):
    image = ImageSpec(channels, height, width, "bernoulli")
    x = torch.rand(2, channels, height, width)
    padded = pad_image(x, image, (height + rows, width + columns))
    assert padded.shape == (2, channels, height + rows, width + columns)
    assert torch.equal(crop_image(padded, image), x)
    assert padded.sum() == pytest.approx(float(x.sum()), rel=1e-4)
    assert pad_image(padded, image, (height + rows, width + columns)) is padded


@given(st.integers(1, 6), st.integers(1, 40), st.booleans(), st.integers(1, 5))
def test_groups(scales, groups, adaptive, minimum):
    result = groups_per_scale(scales, groups, adaptive, minimum)
    assert len(result) == scales and result[0] == groups
    if adaptive:
        assert all(b == max(minimum, a // 2) for a, b in zip(result, result[1:], strict=False))
    else:
        assert set(result) == {groups}


@settings(deadline=None)
@given(st.integers(8, 70), st.integers(8, 70), st.integers(1, 3))
def test_automatic_number_of_blocks(height, width, scales):
    topology = build_topology(ImageSpec(1, height, width, "bernoulli"), scales, 1, 1, False, 1, "auto")
    rows, columns = topology.latent_shapes[0][1:]
    available = -(-min(height, width) // 8) * 8
    assert max(rows, columns) <= 4 or 2 * topology.reduction > available
    assert topology.reduction <= available
    for size, padded in zip((height, width), topology.network_size, strict=True):
        assert 0 <= padded - size < max(8, topology.reduction)


ERRORS = {
    "arch": (dict(arch="res_mbconv9"), "res_mbconv9.*expected one of res_mbconv"),
    "halvings": (dict(num_latent_scales=4), "divide the resolution by 16.*8x8"),
    "channels": (dict(num_channels=0), "num_channels is 0"),
    "groups": (dict(num_groups_per_scale=-1), "num_groups_per_scale is -1"),
    "scales": (dict(num_latent_scales=1.5), "num_latent_scales is 1.5"),
    "blocks": (dict(num_preprocess_blocks=0), "num_preprocess_blocks is 0"),
    "likelihood": (dict(image=ImageSpec(1, 8, 8, "poisson")), "poisson.*bernoulli"),
    "mixture": (dict(image=ImageSpec(2, 8, 8, "logistic_mixture")), "1 or 3 channels"),
    "bits": (dict(image=ImageSpec(3, 8, 8, "logistic_mixture", 9)), "num_bits is 9"),
    "flows": (dict(num_flows=-1), "num_flows is -1"),
    "vanilla": (
        dict(num_latent_scales=1, num_groups_per_scale=1, encoder_channels=4),
        "num_channels is 4 here and 8 in the decoder",
    ),
    "grouped": (dict(arch="mbconv_den", num_channels=1, encoder_channels=1), "in 8 groups"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    arguments, message = ERRORS[name]
    with pytest.raises(InputError, match=message):
        small(**arguments)


def test_errors_of_arguments():
    decoder, encoder = small()
    with pytest.raises(InputError, match=r"\(2, 1, 9, 8\).*\(1, 8, 8\)"):
        encoder.encode(torch.zeros(2, 1, 9, 8))
    noise = noise_for(decoder, 2, 3)
    with pytest.raises(InputError, match="noise has the shapes"):
        decoder.draw(images(GREY8, 4), encoder, None, noise)
    with pytest.raises(InputError, match="z has the shapes.*deepest first"):
        decoder.at(images(GREY8, 3), noise[::-1])
    draw: Draw = decoder.at(images(GREY8, 3), noise)
    for use in (lambda: draw.log_q, draw.kl):
        with pytest.raises(InputError, match="given to at"):
            use()


def test_the_kernel_has_the_gradient_of_its_formula():
    torch.manual_seed(0)
    conv = WeightNormConv2d(2, 3, 3).double()
    with torch.no_grad():
        conv.weight[1] = 0.0  # a kernel of norm 0 has a zero gradient of its norm, as in torch

    def formula(v, g):
        return g.exp() * v / (torch.linalg.vector_norm(v, dim=(1, 2, 3), keepdim=True) + 1e-5)

    gradient = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    parameters = [conv.weight, conv.log_gain]
    got = torch.autograd.grad(conv.kernel(), parameters, gradient)
    expected = torch.autograd.grad(formula(*parameters), parameters, gradient)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-9)


def test_kernels_are_shared_inside_the_block_alone():
    conv = WeightNormConv2d(2, 3, 1)
    with pytest.raises(RuntimeError, match="inside"), shared_kernels(conv):
        assert conv.kernel() is conv.kernel()
        raise RuntimeError("inside")
    assert conv.kernel() is not conv.kernel()
