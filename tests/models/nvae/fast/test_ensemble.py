import pytest
import small
import torch

from miselbo.data import ImageSpec
from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.models import nvae
from miselbo.models.nvae.cells import ARCHITECTURES, Cell
from miselbo.models.nvae.fast.ensemble import inference_form
from miselbo.models.nvae.fast.folding import FoldedCell
from miselbo.models.nvae.fast.fused_conv import FusedConv2d
from miselbo.models.nvae.fast.scoring import Run, cut
from miselbo.models.nvae.fast.steps import Convolution
from miselbo.protocols import fingerprint

PADDED = ImageSpec(1, 6, 6, "bernoulli")


def assert_same(ensemble, x, tolerance=1e-9, num_samples=3, **options):
    expected = ensemble.score(x, num_samples, seed=3, exact_modules=True)
    got = inference_form(ensemble, **options).score(x, num_samples, seed=3)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (3, {}),
        (1, {}),
        (3, {"num_flows": 1}),
        (2, {"num_flows": 2}),
        (2, {"res_dist": False}),
        (2, {"use_se": False}),
        (2, {"image": PADDED}),
        (2, {"image": ImageSpec(3, 8, 8, "logistic_mixture")}),
        (2, {"image": ImageSpec(1, 8, 8, "normal")}),
    ],
)
@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_scores_are_those_of_the_ensemble(size, options, rows):
    ensemble = small.nvae_ensemble(size, **options)
    form = inference_form(ensemble)
    form.memory = rows * form.target.row_bytes
    x = small.images(image=options.get("image", small.DIGIT))
    for ours, theirs in zip(
        form.score(x, 3, seed=3), ensemble.score(x, 3, seed=3, exact_modules=True), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("use_se", [True, False])
def test_every_architecture(arch, use_se):
    torch.manual_seed(0)
    decoder = nvae.Decoder(
        small.DIGIT,
        num_latent_scales=2,
        num_groups_per_scale=1,
        num_latent_per_group=2,
        num_channels=8,
        arch=arch,
        use_se=use_se,
    )
    encoders = [nvae.Encoder(decoder, num_channels=8, arch=arch, use_se=use_se) for _ in range(2)]
    assert_same(small.prepared(decoder, encoders, torch.float64), small.images(2))


def test_vanilla_model():
    torch.manual_seed(0)
    decoder = nvae.Decoder(
        small.DIGIT, num_latent_scales=1, num_groups_per_scale=1, num_latent_per_group=2, num_channels=4
    )
    ensemble = small.prepared(
        decoder, [nvae.Encoder(decoder, num_channels=4) for _ in range(3)], torch.float64
    )
    assert_same(ensemble, small.images())


def test_members_may_differ():
    torch.manual_seed(0)
    decoder = nvae.Decoder(
        small.DIGIT, num_latent_scales=2, num_groups_per_scale=2, num_latent_per_group=2, num_channels=4
    )
    encoders = [
        nvae.Encoder(decoder, num_channels=4),
        nvae.Encoder(decoder, num_channels=8, res_dist=False),
        nvae.Encoder(decoder, num_channels=2, num_flows=1, use_se=False, arch="mbconv_sep"),
    ]
    assert_same(small.prepared(decoder, encoders, torch.float64), small.images())


@pytest.mark.parametrize("options", [{}, {"num_flows": 1}])
def test_float32(options):
    ensemble = small.nvae_ensemble(3, torch.float32, **options)
    assert_same(ensemble, small.images(dtype=torch.float32), 1e-4)


def test_float32_without_blocked_kernels(monkeypatch):
    monkeypatch.setattr("miselbo.models.nvae.fast.fused_conv.blocked_works", lambda: False)
    assert_same(small.nvae_ensemble(2, torch.float32), small.images(dtype=torch.float32), 1e-4)


def test_given_samples():
    ensemble, x = small.nvae_ensemble(2, num_flows=1), small.images()
    generator = torch.Generator().manual_seed(0)
    shapes = ensemble.target.latent_shapes
    z = [torch.randn((2, 5, 4, *shape), generator=generator, dtype=torch.float64) for shape in shapes]
    for ours, theirs in zip(inference_form(ensemble).log_prob(x, z), ensemble.log_prob(x, z), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    with pytest.raises(InputError, match="z must hold"):
        inference_form(ensemble).log_prob(x, z[1:])


def test_passes_and_cuts():
    ensemble, x = small.nvae_ensemble(2), small.images(5)
    form = inference_form(ensemble)
    whole_p, whole_q = form.score(x, 7)
    assert [p.shape[2] for p, _ in form.passes(x, 7, 3)] == [3, 3, 1]
    index = torch.arange(5)
    parts = [form.score(x[i : i + 2], 7, index=index[i : i + 2], samples_per_pass=2) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat([p for p, _ in parts]), whole_p, rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.cat([q for _, q in parts]), whole_q, rtol=0, atol=1e-9)
    torch.testing.assert_close(form.score(x, 9)[1][:, :, :7], whole_q, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 2, 7, 24, 40, 1000])
def test_blocks_cover_everything_once(rows):
    count = torch.zeros(3, 4, 5)
    for block in cut(3, 4, 5, rows):
        part = count[block.members.start : block.members.stop, block.samples, block.examples]
        assert 1 <= part.numel() <= rows
        part += 1
    assert (count == 1).all()


def test_no_graph_and_nothing_changed():
    ensemble, x = small.nvae_ensemble(2, torch.float32).train(), small.images(dtype=torch.float32)
    before = fingerprint(ensemble)
    form = inference_form(ensemble)
    log_p, log_q = form.score(x, 2)
    assert not log_p.requires_grad and not log_q.requires_grad
    assert not any(parameter.requires_grad for parameter in form.parameters())
    assert fingerprint(ensemble) == before
    assert all(module.training for module in ensemble.modules())
    assert all(parameter.requires_grad for parameter in ensemble.parameters())


def test_memory_that_runs_out_is_met_with_smaller_passes(monkeypatch):
    ensemble, x = small.nvae_ensemble(2), small.images()
    expected = ensemble.score(x, 6, exact_modules=True)
    form = inference_form(ensemble)
    run = Run.scores
    limit = 5

    def limited(self):
        if self.log_p.numel() > limit:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return run(self)

    monkeypatch.setattr(Run, "scores", limited)
    with pytest.warns(UserWarning, match="out of memory with"):
        got = form.score(x, 6)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    limit = 0
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="allocate"):
        form.score(x, 1)


def test_other_errors_pass(monkeypatch):
    def broken(self):
        raise RuntimeError("sizes differ")

    form = inference_form(small.nvae_ensemble(1))
    monkeypatch.setattr(Run, "scores", broken)
    with pytest.raises(RuntimeError, match="sizes differ"):
        form.score(small.images(), 1)


def test_half_precision_stays_near():
    ensemble, x = small.nvae_ensemble(2, torch.float32), small.images(dtype=torch.float32)
    log_p, log_q = inference_form(ensemble, dtype=torch.bfloat16).score(x, 3)
    expected_p, expected_q = ensemble.score(x, 3, exact_modules=True)
    assert (log_p - expected_p).abs().max() < 0.05 * expected_p.abs().max()
    assert (log_q - expected_q).abs().max() < 0.05 * expected_q.abs().max() + 1


def test_meta_device():
    form = inference_form(small.nvae_ensemble(2, torch.float32)).to("meta")
    log_p, log_q = form.score(torch.zeros(2, 1, 8, 8, device="meta"), 3)
    assert log_p.shape == (2, 2, 3)
    assert log_q.shape == (2, 2, 3, 2)
    assert log_p.device.type == log_q.device.type == "meta"


def test_bad_input():
    with pytest.raises(InputError, match="NVAE"):
        inference_form(small.vae_ensemble())
    form = inference_form(small.nvae_ensemble(1))
    with pytest.raises(InputError, match="at least 1"):
        form.score(small.images(), 0)
    with pytest.raises(InputError, match="8"):
        form.score(torch.zeros(2, 1, 9, 9), 1)


@pytest.mark.parametrize("kinds", sorted({kinds for row in ARCHITECTURES.values() for kinds in row.values()}))
@pytest.mark.parametrize("stride", [1, 2, -1])
@pytest.mark.parametrize("use_se", [True, False])
@torch.inference_mode()
def test_folded_cell(kinds, stride, use_se):
    cell = Cell(8, kinds, stride, use_se).double().eval()
    small.perturb(cell, 1)
    x = torch.randn(3, 8, 8, 8, dtype=torch.float64)
    copy = x.clone()
    torch.testing.assert_close(FoldedCell(cell)(x), cell(x), rtol=0, atol=1e-11)
    assert torch.equal(x, copy)


@pytest.mark.parametrize("swish", [True, False])
@pytest.mark.parametrize("groups", [1, 8])
@torch.inference_mode()
def test_fused_convolution(swish, groups):
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn((8, 8 // groups, 5, 5), generator=generator, dtype=torch.float64)
    step = Convolution(
        kernel, torch.randn(8, generator=generator, dtype=torch.float64), padding=2, groups=groups
    )
    exact, fast = FusedConv2d(step, torch.float64, swish), FusedConv2d(step, torch.float32, swish)
    for batch in (3, 20):  # one blocked kernel serves any batch
        x = torch.randn((batch, 8, 6, 6), generator=generator)
        torch.testing.assert_close(fast(x).double(), exact(x.double()), rtol=1e-5, atol=1e-4)
    assert fast.double()(x.double()).dtype == torch.float64


def test_ensemble_of_one_object_twice():
    one, x = small.nvae_ensemble(1), small.images()
    assert_same(Ensemble(one.target, [one.members[0]] * 2), x)


@pytest.mark.slow
def test_compiled_cells_give_the_same_scores():
    ensemble = small.nvae_ensemble(2, torch.float32)
    x = torch.rand(3, 1, 8, 8).round()
    expected = inference_form(ensemble).score(x, 4)
    for got, value in zip(inference_form(ensemble, compiled=True).score(x, 4), expected, strict=True):
        torch.testing.assert_close(got, value, rtol=0, atol=1e-4)
