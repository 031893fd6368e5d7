import pytest
import small
import torch

from miselbo import bounds
from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.protocols import Frozen, fingerprint, latent_noise


def naive_score(ensemble, x, num_samples, seed):
    """The published algorithm: one sample at a time, a whole encoder and decoder pass for every pair (s, j)."""
    size, batch = len(ensemble.members), len(x)
    log_p = torch.empty(batch, size, num_samples, dtype=torch.float64)
    log_q = torch.empty(batch, size, num_samples, size, dtype=torch.float64)
    index, shapes = torch.arange(batch), ensemble.target.latent_shapes
    for s, member in enumerate(ensemble.members):
        for sample in range(num_samples):
            eps = latent_noise(shapes, seed, index, s, torch.tensor([sample]), x.dtype)
            drawn = ensemble.target.draw(x, member, member.encode(x), eps)
            log_p[:, s, sample] = drawn.log_p[0]
            for j, other in enumerate(ensemble.members):
                again = ensemble.target.at(x, [z[None] for z in drawn.z])
                log_q[:, s, sample, j] = other.log_prob(other.encode(x), again)[0]
    return log_p, log_q


@pytest.mark.parametrize("make", [small.nvae_ensemble, small.vae_ensemble])
@torch.no_grad()
def test_shared_decoder_equals_the_naive_double_loop(make):
    ensemble, x = make(), small.images()
    log_p, log_q = ensemble.score(x, 5, seed=3)
    expected_p, expected_q = naive_score(ensemble, x, 5, seed=3)
    torch.testing.assert_close(log_p, expected_p, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(log_q, expected_q, rtol=1e-12, atol=1e-10)


@torch.no_grad()
def test_flows_are_scored_at_the_right_point():
    ensemble, x = small.nvae_ensemble(num_flows=1), small.images()
    log_p, log_q = ensemble.score(x, 3)
    expected_p, expected_q = naive_score(ensemble, x, 3, seed=0)
    torch.testing.assert_close(log_p, expected_p, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(log_q, expected_q, rtol=1e-10, atol=1e-9)


def test_one_decoder_pass_per_member_and_sample():
    ensemble, x = small.nvae_ensemble(size=4), small.images(3)
    decoded, encoded = [], []
    generate = ensemble.target.generate
    ensemble.target.generate = lambda choose, batch: decoded.append(batch) or generate(choose, batch)
    for member in ensemble.members:
        encode = member.encode
        member.encode = lambda x, encode=encode: encoded.append(len(x)) or encode(x)
    ensemble.score(x, 6, samples_per_pass=2, exact_modules=True)
    assert sum(decoded) == 4 * 6 * 3
    assert encoded == [3] * 4


@pytest.mark.parametrize("make", [small.nvae_ensemble, small.vae_ensemble])
def test_result_does_not_depend_on_the_cut(make):
    ensemble, x = make(dtype=torch.float32), small.images(5, dtype=torch.float32)
    whole_p, whole_q = ensemble.score(x, 7)
    parts = [
        ensemble.score(x[i : i + 2], 7, index=torch.arange(i, min(i + 2, 5)), samples_per_pass=3)
        for i in (0, 2, 4)
    ]
    torch.testing.assert_close(torch.cat([p for p, _ in parts]), whole_p, rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.cat([q for _, q in parts]), whole_q, rtol=0, atol=1e-4)
    longer_p, _ = ensemble.score(x, 9)
    torch.testing.assert_close(longer_p[..., :7], whole_p, rtol=0, atol=1e-4)


def test_a_larger_ensemble_extends_a_smaller_one():
    ensemble, x = small.nvae_ensemble(), small.images()
    log_p, log_q = ensemble.score(x, 4)
    fewer_p, fewer_q = Ensemble(ensemble.target, list(ensemble.members)[:2]).score(x, 4)
    torch.testing.assert_close(log_p[:, :2], fewer_p)
    torch.testing.assert_close(log_q[:, :2, :, :2], fewer_q)


def test_log_prob_of_drawn_samples_is_their_score():
    ensemble, x = small.nvae_ensemble(), small.images()
    index, samples = torch.arange(4), torch.arange(5)
    drawn = []
    with torch.no_grad():
        for s, member in enumerate(ensemble.members):
            eps = latent_noise(ensemble.target.latent_shapes, 0, index, s, samples, x.dtype)
            drawn.append(ensemble.target.draw(x, member, member.encode(x), eps).z)
    groups = range(len(ensemble.target.latent_shapes))
    z = [torch.stack([sample[g].unflatten(0, (5, 4)) for sample in drawn]) for g in groups]
    for scored, expected in zip(ensemble.log_prob(x, z), ensemble.score(x, 5), strict=True):
        torch.testing.assert_close(scored, expected)


def test_padded_images_score_as_unpadded_ones():
    from miselbo.data import ImageSpec

    image = ImageSpec(1, 6, 6, "bernoulli")
    ensemble, x = small.nvae_ensemble(image=image), small.images(image=image)
    torch.testing.assert_close(
        ensemble.score(x, 2), ensemble.score(torch.nn.functional.pad(x, (1, 1, 1, 1)), 2)
    )


def test_identical_members_score_as_one():
    one, x = small.nvae_ensemble(size=1), small.images()
    three = Ensemble(one.target, [one.members[0]] * 3)
    log_p, log_q = three.score(x, 4)
    assert bounds.jsd(log_q).abs().max() < 1e-12
    torch.testing.assert_close(bounds.miselbo(log_p, log_q), bounds.average_iwelbo(log_p, log_q))
    torch.testing.assert_close(bounds.iwelbo(*one.score(x, 4))[:, 0], bounds.iwelbo(log_p, log_q)[:, 0])


def test_scoring_on_the_meta_device_meets_no_stray_tensor():
    ensemble = small.nvae_ensemble(dtype=torch.float32, num_flows=0).to("meta")
    log_p, log_q = ensemble.score(torch.zeros(2, 1, 8, 8, device="meta"), 3)
    assert log_p.device.type == log_q.device.type == "meta"
    assert log_q.shape == (2, 3, 3, 3)


def test_scoring_leaves_mode_and_statistics_alone():
    ensemble = small.nvae_ensemble(dtype=torch.float32).train()
    before = fingerprint(ensemble)
    ensemble.score(small.images(dtype=torch.float32), 2)
    assert fingerprint(ensemble) == before
    assert all(module.training for module in ensemble.modules())


def test_frozen_stays_frozen_under_train_and_optimiser():
    ensemble = small.nvae_ensemble(size=1, dtype=torch.float32)
    frozen = Frozen(ensemble.target)
    holder = torch.nn.Sequential(frozen, ensemble.members[0]).train()
    optimizer = torch.optim.Adamax([p for p in holder.parameters() if p.requires_grad], lr=0.1)
    x = small.images(dtype=torch.float32)
    eps = latent_noise(frozen.module.latent_shapes, 0, torch.arange(4), 0, torch.arange(1), x.dtype)
    encoder = ensemble.members[0]
    before = fingerprint(encoder)
    draw = frozen.module.draw(x, encoder, encoder.encode(x), eps)
    (draw.kl().sum() - draw.log_px.sum()).backward()
    optimizer.step()
    frozen.verify()
    assert fingerprint(encoder) != before
    assert not any(module.training for module in frozen.module.modules())
    with torch.no_grad():
        next(frozen.module.buffers()).add_(1e-6)
    with pytest.raises(RuntimeError, match="fingerprint"):
        frozen.verify()


def test_bad_input():
    ensemble, x = small.vae_ensemble(), small.images()
    with pytest.raises(InputError, match="at least one member"):
        Ensemble(ensemble.target, [])
    with pytest.raises(InputError, match="at least 1, got 0"):
        ensemble.score(x, 0)
    with pytest.raises(InputError, match=r"z must hold 1 latents"):
        ensemble.log_prob(x, [torch.zeros(3, 5, 2, 3, 1, 1)])
    with pytest.raises(InputError, match="8"):
        ensemble.score(torch.zeros(2, 1, 9, 9), 1)
