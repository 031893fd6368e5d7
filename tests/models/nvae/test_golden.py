"""The whole network against the recorded numbers of the published program (float64)."""

from functools import cache

import numpy as np
import pytest
import torch
from golden_nvae import load_arrays, load_members, load_tables, needs_golden, split_state
from torch import Tensor

from miselbo.models.hierarchical import Draw

pytestmark = needs_golden
MODELS = ["A", "B", "E", "F"]
RELATIVE = 1e-8


def close(ours: Tensor, recorded: np.ndarray, relative: float = RELATIVE) -> None:
    expected = torch.from_numpy(recorded).to(ours.dtype)
    torch.testing.assert_close(ours.detach(), expected, rtol=relative, atol=1e-9)


@cache
def scored(name: str):
    """Arrays, per-member draws at the stored samples, and log q [B, S, L, S]."""
    arrays = load_arrays(name)
    decoders, encoders = load_members(name)
    x = torch.from_numpy(arrays["x"]).double()
    num_groups = sum(key.startswith("z_g") for key in arrays)
    with torch.no_grad():
        contexts = [encoder.encode(x) for encoder in encoders]
        draws = []
        for s, decoder in enumerate(decoders):
            base = [torch.from_numpy(arrays[f"z_g{g}"][s]).double() for g in range(num_groups)]
            draws.append(decoder.at(x, [push(encoders[s], g, z) for g, z in enumerate(base)]))
        log_q = torch.stack(
            [
                torch.stack([e.log_prob(c, draw).T for e, c in zip(encoders, contexts, strict=True)], -1)
                for draw in draws
            ],
            1,
        )
    return arrays, decoders, encoders, contexts, draws, log_q


def push(encoder, group: int, z: Tensor) -> Tensor:
    """Stored samples are those before the flow."""
    for k in range(group * encoder.num_flows, (group + 1) * encoder.num_flows):
        with torch.no_grad():
            z = encoder.flows[k](z.flatten(0, 1)).unflatten(0, z.shape[:2])
    return z


def stack(draws: list[Draw], name: str) -> Tensor:
    return torch.stack([getattr(draw, name).T for draw in draws], 1)  # [B, S, L]


@pytest.mark.parametrize("name", MODELS)
def test_log_p_of_stored_samples(name):
    arrays, _, _, _, draws, _ = scored(name)
    close(stack(draws, "log_px"), arrays["log_px_f64"])
    close(stack(draws, "log_pz"), arrays["log_pz_f64"])
    close(stack(draws, "log_p"), arrays["log_px_f64"] + arrays["log_pz_f64"])


@pytest.mark.parametrize("name", MODELS)
def test_log_q_of_every_member_at_every_members_samples(name):
    arrays, *_, log_q = scored(name)
    key = "log_q_corrected_f64" if "log_q_corrected_f64" in arrays else "log_q_f64"
    close(log_q, arrays[key])


@pytest.mark.parametrize("name", MODELS)
def test_intermediate_parameters(name):
    arrays, _, encoders, contexts, draws, _ = scored(name)
    leading = arrays["q_mu_g0"].shape[1]
    for s, draw in enumerate(draws):
        logits = arrays["logits_f64"][s]
        relative = 1e-6 if logits.dtype == np.float32 else RELATIVE
        close(draw.logits[:leading], logits.astype(np.float64), relative)
        for g, (feature, raw) in enumerate(zip(draw.features, draw.prior_raw, strict=True)):
            with torch.no_grad():
                q = encoders[s].posterior_of(contexts[s], g, feature, raw, draw.num_samples).base
            close(q.loc[:leading], arrays[f"q_mu_g{g}"][s])
            close(q.scale[:leading], arrays[f"q_sigma_g{g}"][s])
            close(draw.prior[g].loc[:leading], arrays[f"p_mu_g{g}"][s])
            close(draw.prior[g].scale[:leading], arrays[f"p_sigma_g{g}"][s])


@pytest.mark.parametrize("name", MODELS)
def test_sampling_path_and_divergences(name):
    """The recorded noise gives the recorded samples, and their KL per group."""
    arrays, decoders, encoders, contexts, _, _ = scored(name)
    x = torch.from_numpy(arrays["x"]).double()
    for s, (decoder, encoder) in enumerate(zip(decoders, encoders, strict=True)):
        groups = range(len(decoder.latent_shapes))
        noise = [torch.from_numpy(arrays[f"eps_g{g}"][s]).double() for g in groups]
        with torch.no_grad():
            draw = decoder.draw(x, encoder, contexts[s], noise)
        for g in groups:
            recorded = torch.from_numpy(arrays[f"z_g{g}"][s]).double().flatten(0, 1)
            torch.testing.assert_close(draw.base_z[g], recorded, rtol=1e-3, atol=1e-4)
            if f"zflow_g{g}" in arrays:
                recorded = torch.from_numpy(arrays[f"zflow_g{g}"][s]).double().flatten(0, 1)
                torch.testing.assert_close(draw.z[g], recorded, rtol=1e-3, atol=1e-4)
        own = np.moveaxis(arrays["kl_all_f64"][:, s], 0, 1)
        torch.testing.assert_close(draw.kl(), torch.from_numpy(own), rtol=1e-3, atol=2e-3)
        assert (draw.log_q - encoder.log_prob(contexts[s], draw)).abs().max() < 1e-9


@pytest.mark.parametrize("name", MODELS)
def test_decoders_of_the_members_are_one(name):
    first, *others = scored(name)[1]
    state = first.state_dict()
    for other in others:
        assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


def test_pair_with_different_decoders_is_seen():
    (first, second), _ = load_members("U")
    assert not torch.equal(first.first_feature, second.first_feature)


def test_unpadded_images_score_the_same():
    arrays, decoders, encoders, contexts, draws, _ = scored("A")
    x = torch.from_numpy(arrays["x"]).double()[..., 2:30, 2:30]
    draw = decoders[0].at(x, [z.unflatten(0, (draws[0].num_samples, -1)) for z in draws[0].z])
    torch.testing.assert_close(draw.log_p, draws[0].log_p, rtol=0, atol=0)
    for ours, theirs in zip(encoders[0].encode(x), contexts[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_training_step():
    """Model A in training mode: reconstruction, KL, gradients and BN statistics; then its regularisers."""
    units, tables = load_arrays("units"), load_tables()
    (decoder, _), (encoder, _) = load_members("A")
    modules = {"decoder": decoder.train(), "encoder": encoder.train()}
    noise = [torch.from_numpy(units[f"step/eps_g{g}"])[None] for g in range(3)]
    draw = decoder.draw(torch.from_numpy(units["step/x"]), encoder, None, noise)
    close(-draw.log_px[0], units["step/recon"])
    close(draw.kl()[0], units["step/kl_all"])
    close(draw.log_q[0], units["step/log_q"])
    scales = [norm.weight.abs().amax() for module in modules.values() for norm in module.batch_norms()]
    bn_loss = torch.stack(scales).sum()
    close(bn_loss, units["step/bn_loss"])

    coefficients = torch.from_numpy(units["step/kl_coeffs"])
    balanced = 0.3 * (draw.kl()[0] * coefficients).sum(-1)
    close(balanced, units["step/balanced_kl"])
    ((balanced - draw.log_px[0]).mean() + 0.01 * bn_loss).backward()
    double = torch.float64
    norms = {key: torch.tensor(value, dtype=double) for key, value in tables["step_grad_norms"].items()}
    for side, expected in split_state(norms, modules).items():
        gradients = {name: p.grad.norm() for name, p in modules[side].named_parameters()}
        assert gradients.keys() == expected.keys()
        for name, value in expected.items():
            assert float(gradients[name]) == pytest.approx(float(value), rel=1e-6, abs=1e-9), name
    after = {key: torch.tensor(value, dtype=double) for key, value in tables["step_bn_after"].items()}
    for side, expected in split_state(after, modules).items():
        for name, value in expected.items():
            got = modules[side].get_buffer(name).norm()
            assert float(got) == pytest.approx(float(value), rel=1e-8), name


def test_spectral_norms_of_effective_kernels():
    units, reference = load_arrays("units"), load_tables()["spectral_ref"]
    (decoder, _), (encoder, _) = load_members("A")
    kernels = [*decoder.conv_kernels(), *encoder.conv_kernels()]
    assert len(kernels) == reference["n_layers"]
    assert len([*decoder.batch_norms(), *encoder.batch_norms()]) == reference["n_bn"]
    total = sum(torch.linalg.matrix_norm(kernel.flatten(1), 2) for kernel in kernels)
    close(total, units["step/spectral_exact_svd"])
