"""Forecasts: counts against hand computations, lines against known clocks, and nothing is changed."""

import json

import pytest
import small
import torch
from torch import nn

from miselbo.data import ImageData, Images
from miselbo.evaluation import cost
from miselbo.evaluation.scoring import NetworkSource, score_batch
from miselbo.evaluation.settings import Settings
from miselbo.protocols import fingerprint
from miselbo.runs.config import compose_config
from miselbo.runs.plan import training_plan
from miselbo.runtime import counters
from miselbo.training import cost as costs
from miselbo.training.member import Objective

ZERO = 1e-9


def data(train: int = 24) -> ImageData:
    grey = torch.rand(train + 15, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images = Images(grey[:-11], grey[-11:], 1.0, "noise", "in order")
    return ImageData(lambda: images, name="noise", num_validation=4, batch_size=10)


def settings(**changes) -> Settings:
    standard = {"split": "test", "num_samples": 6, "grid": (1, 2, 6), "batch_size": 4, "samples_per_pass": 3}
    return Settings(**{**standard, "num_examples": None, "seed": 3, **changes})


def test_operations_of_the_small_vae_by_hand():
    # 8 x 8 pixels, Z = 3, 4 channels; one multiply-add is two operations
    encoder = 2 * (4 * 4 * 4 * 9 + 2 * 2 * 8 * 4 * 9 + 2 * 2 * 8 * 8 * 9 + (8 * 2 * 2) * 6)
    decoder = 2 * (3 * (8 * 2 * 2) + 2 * 2 * 8 * 8 * 9 + 4 * 4 * 4 * 8 * 9 + 8 * 8 * 4 * 9)
    gflop = cost.evaluation_gflop(small.vae_ensemble(3), small.images(1))
    assert gflop["encoder"] == pytest.approx(encoder / 1e9, abs=ZERO / 1e3)
    assert gflop["decoder"] == pytest.approx(decoder / 1e9, abs=ZERO / 1e3)
    assert gflop["head"] == 0 and gflop["pass"] == gflop["decoder"]


def test_a_pass_of_an_nvae_holds_the_heads_of_all_members():
    one, three = (
        cost.evaluation_gflop(small.nvae_ensemble(size).requires_grad_(False), small.images(1))
        for size in (1, 3)
    )
    assert one["head"] == three["head"] > 0 and one["decoder"] == three["decoder"]
    assert three["pass"] - one["pass"] == pytest.approx(2 * one["head"])


@pytest.mark.parametrize("groups", [1, 4])
def test_operations_of_a_convolution_and_its_gradients(groups):
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
    x = torch.randn(5, 8, 6, 6, requires_grad=True)
    forward = 2 * 5 * 6 * 6 * 8 * (8 // groups) * 9 / 1e9
    assert counters.count_gflop(lambda: conv(x))[0] == pytest.approx(forward)
    assert counters.count_gflop(lambda: conv(x).sum().backward())[0] == pytest.approx(3 * forward)
    assert counters.count_gflop(lambda: conv(x.detach()).sum().backward())[0] == pytest.approx(2 * forward)


def test_peak_counts_what_is_alive():
    with counters.Peak() as peak:
        kept = [torch.zeros(1000) for _ in range(3)]
        for _ in range(10):
            torch.zeros(1000)
        views = [tensor[:10] for tensor in kept]
        del kept
        torch.zeros(100)
    assert len(views) == 3 and peak.bytes == 4 * 4000
    with counters.Peak() as peak:
        torch.zeros(1000)
        torch.zeros(500)
    assert peak.bytes == 4000


def test_a_line_of_a_known_clock():
    asked = []

    def measure(n):
        asked.append(n)
        return 0.3 + 0.05 * n + (5.0 if len(asked) == 3 else 0.0)  # one measurement is disturbed

    assert counters.line(measure, 4, 8, seconds=2) == pytest.approx((0.3, 0.05))
    assert asked[:4] == [4, 8, 4, 8]
    assert counters.line(lambda n: 0.1 * n, 5, 5, seconds=0.1) == pytest.approx((0.0, 0.1))
    assert counters.line(lambda n: 0.5 / n, 2, 5, seconds=0.1) == pytest.approx((0.1, 0.0))
    assert counters.line(lambda n: n**2, 2, 5, seconds=0.1) == pytest.approx((0.0, 5.0))


class Clock:
    """Advances by what a batch's work is said to cost."""

    def __init__(self, monkeypatch, fixed: float, per_sample: float):
        self.now = 0.0
        real = cost.score_batch

        def score_batch(source, index, batch, settings):
            self.now += fixed + per_sample * len(index) * settings.num_samples
            return real(source, index, batch, settings)

        monkeypatch.setattr(cost, "score_batch", score_batch)
        monkeypatch.setattr(cost.time, "perf_counter", lambda: self.now)


@pytest.mark.parametrize("num_samples", [1, 3, 6, 100])
@pytest.mark.parametrize("processes", [1, 2])
def test_seconds_of_an_evaluation_at_a_known_speed(monkeypatch, num_samples, processes):
    Clock(monkeypatch, fixed=0.02, per_sample=0.001)
    chosen = settings(num_samples=num_samples, grid=(num_samples,))
    result = cost.evaluation_cost(
        small.vae_ensemble(2, torch.float32), data(), chosen, processes=processes, seconds=0.01
    )
    expected = 3 * 0.02 + 11 * num_samples * 0.001  # batches of 4, 4 and 3 examples
    share = {1: 1, 2: 2 / 3}[processes]
    short = 0 if num_samples > 3 else 0.02 / 4  # with one measured size the short batch counts as 3/4
    assert result["minutes"] * 60 == pytest.approx((expected - short) * share)


def test_slow_batches_are_measured_on_some_examples(monkeypatch):
    Clock(monkeypatch, fixed=0.0, per_sample=0.1)
    seen = []
    real = cost.score_batch
    monkeypatch.setattr(
        cost, "score_batch", lambda s, index, *rest: seen.append(len(index)) or real(s, index, *rest)
    )
    result = cost.evaluation_cost(small.vae_ensemble(2, torch.float32), data(), settings(num_samples=50))
    assert set(seen[2:]) == {1}  # a pass of three samples of a whole batch would take 1.2 s
    assert result["minutes"] * 60 == pytest.approx(11 * 50 * 0.1)


@pytest.mark.parametrize("make", [small.vae_ensemble, small.nvae_ensemble])
def test_counts_of_an_evaluation(make):
    ensemble = make(2, torch.float32)
    one, two = (
        cost.evaluation_cost(ensemble, data(), settings(num_samples=samples, grid=(1, samples), save_scores=True),
                              seconds=0.01)
        for samples in (6, 12)
    )  # fmt: skip
    assert one["decoder_passes"] == 11 * 2 * 6 and two["decoder_passes"] == 2 * one["decoder_passes"]
    encoder = 11 * 2 * one["gflop_by_part"]["encoder"]
    assert two["gflop"] - encoder == pytest.approx(2 * (one["gflop"] - encoder))
    assert two["bytes"]["saved_scores"] == 2 * one["bytes"]["saved_scores"] == 11 * 2 * 12 * (1 + 2) * 8
    assert one["bytes"]["parameters"] == counters.parameter_bytes(ensemble)
    assert one["bytes"]["activations"] > 0 and one["batches"] == 3


@pytest.mark.parametrize("grid", [(20,), (1, 2, 5, 10, 20), (1, 100)])
def test_result_shards_have_the_size_they_will_have(grid):
    ensemble, chosen = small.vae_ensemble(3, torch.float32), settings(num_samples=grid[-1], grid=grid)
    source = NetworkSource(ensemble, data(), chosen, "cpu")
    parts = [score_batch(source, index, batch, chosen) for index, batch in source.batches()]
    written = sum(array.nbytes for part in parts for name, array in part.items() if name != "seconds")
    forecast = cost.evaluation_cost(ensemble, data(), chosen, seconds=0.01)
    assert forecast["bytes"]["result_shards"] == written


def test_counts_of_training():
    ensemble = small.vae_ensemble(3, torch.float32)
    cost = costs.training_cost(
        ensemble.target, list(ensemble.members), data(), Objective(regulariser=0), [4, 2, 2], seconds=0.01
    )
    first, second, third = cost["members"]
    assert [row["epochs"] for row in cost["members"]] == [4, 2, 2]
    assert first["steps"] == 4 * 3 and second["steps"] == 2 * 3  # 24 examples in batches of 10
    assert first["decoder_passes"] == 4 * 24 and cost["decoder_passes"] == 8 * 24
    assert {**second, "member": 3} == third
    # one forward pass and two gradients of it, less the image's gradient in p and q_1; p's kernels' in q_2
    forward = 2 * (4 * 4 * 4 * 9 + 2 * 2 * 8 * 4 * 9 + 2 * 2 * 8 * 8 * 9 + (8 * 2 * 2) * 6) / 1e9
    decoder = 2 * (3 * (8 * 2 * 2) + 2 * 2 * 8 * 8 * 9 + 4 * 4 * 4 * 8 * 9 + 8 * 8 * 4 * 9) / 1e9
    image = 2 * 4 * 4 * 4 * 9 / 1e9
    assert first["gflop"] == pytest.approx(96 * (3 * forward + 3 * decoder - image))
    assert second["gflop"] == pytest.approx(48 * (3 * forward + 2 * decoder - image))
    weights = counters.parameter_bytes(ensemble)
    assert cost["bytes"]["parameters"] == weights and cost["bytes"]["working"] > 0
    assert cost["minutes"] == pytest.approx(sum(row["minutes"] for row in cost["members"]))


@pytest.mark.parametrize("train", [1, 2, 3, 11])
def test_few_training_examples(train):
    ensemble = small.vae_ensemble(1, torch.float32)
    cost = costs.training_cost(
        ensemble.target, list(ensemble.members), data(train), Objective(), [3], seconds=0.01
    )
    assert cost["decoder_passes"] == 3 * train and cost["minutes"] > 0


@pytest.mark.parametrize(("model", "make"), [("vae", small.vae_ensemble), ("nvae", small.nvae_ensemble)])
def test_a_forecast_changes_nothing_and_can_be_stored(model, make, capsys):
    cfg = compose_config([f"model={model}", "run_dir=x", "ensemble.size=3", "trainer.max_epochs=10"])
    ensemble = make(3, torch.float32).train()
    members = list(ensemble.members)
    before, module = fingerprint(ensemble), data()
    generator, stream = torch.get_rng_state(), module.stream_seed
    flags = [(p.requires_grad, p.grad) for p in ensemble.parameters()]
    result = costs.predict(training_plan(cfg), module, ensemble.target, members, settings(), seconds=0.05)
    assert fingerprint(ensemble) == before
    assert all(part.training for part in ensemble.modules())
    assert [(p.requires_grad, p.grad) for p in ensemble.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), generator) and module.stream_seed == stream
    assert json.loads(json.dumps(result)) == result
    assert [row["epochs"] for row in result["training"]["members"]] == [10, 5, 5]
    assert result["minutes"] == pytest.approx(result["training"]["minutes"] + result["evaluation"]["minutes"])
    assert capsys.readouterr().out == ""


def test_text():
    row = {"member": 1, "decoder_passes": 51880, "gflop": 824.82, "minutes": 1.5}
    result = {
        "device": "cpu",
        "training": {
            "members": [row, {**row, "member": 2, "minutes": 0.75}],
            "decoder_passes": 103760,
            "gflop": 1649.64,
            "minutes": 2.25,
            "bytes": {"parameters": 3 * 2**20, "working": 5 * 2**30},
        },
        "evaluation": {
            "num_data": 10000, "S": 2, "L": 1000, "decoder_passes": 20_000_000, "gflop": 41554.0, "minutes": 58.25,
            "gflop_per_pass": 0.0020777, "processes": 2,
            "bytes": {"activations": 2048, "result_shards": 600, "saved_scores": 0},
        },
        "minutes": 60.5,
    }  # fmt: skip
    lines = costs.cost_text(result).splitlines()
    table = {
        line[:16].strip(): line[16:].split() for line in lines if line[:5] in ("train", "evalu", "total")
    }
    assert table["train p and q1"] == ["51,880", "824.8", "1.50"]
    assert table["train q2"][2] == "0.75" and table["train, in all"] == ["103,760", "1,649.6", "2.25"]
    assert table["evaluate"] == ["20,000,000", "41,554.0", "58.25"] and table["total"] == ["60.50"]
    text = "\n".join(lines)
    for part in (
        "decoder passes",
        "GFLOP",
        "minutes",
        "L = 1,000",
        "2 process",
        "3.0 MiB",
        "5.0 GiB",
        "600 B",
    ):
        assert part in text, part
