import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miselbo import noise

# Known-answer vectors of Random123's philox4x32-10
KNOWN = [
    ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_known_answers(counter, key, words):
    got = noise.philox([torch.tensor([word]) for word in counter], key[0] | key[1] << 32)
    assert " ".join(f"{int(word):08x}" for word in got) == words


def test_splitmix_known_answers():
    """First words of the seeds 0 and 1234567 with the usual gamma."""
    start, gamma = torch.tensor([[0], [1234567]]), torch.tensor(0x9E3779B97F4A7C15 - 2**64)
    got = noise.splitmix(start, gamma, torch.arange(1, 4)).tolist()
    assert [f"{word % 2**64:016x}" for word in got[0]] == [
        "e220a8397b1dcdaf",
        "6e789e6aa1b965f4",
        "06c45d188009454f",
    ]
    assert [word % 2**64 for word in got[1]] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_splitmix_agrees_with_whole_numbers():
    generator = torch.Generator().manual_seed(0)
    start, gamma, counter = torch.randint(-(2**63), 2**63 - 1, (3, 200), generator=generator)
    for got, s, g, k in zip(
        *(t.tolist() for t in (noise.splitmix(start, gamma, counter), start, gamma, counter)), strict=True
    ):
        z = (s + k * g) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        assert got % 2**64 == z ^ (z >> 31)


def test_a_gamma_with_few_changes_of_bit_is_replaced():
    """Steele, Lea and Flood: where fewer than 24 of 64 neighbouring bits differ, by whole numbers of any size."""
    index, word, seen = torch.arange(4000), 2**64 - 1, []
    counters = [torch.full((4000,), 2**32 - 1), torch.full((4000,), 3), index, torch.full((4000,), 2)]
    words = [part.tolist() for part in noise.philox(counters, 11)]
    start, gamma = noise._split(11, index, 2, 3)
    for row in range(4000):
        odd = (words[2][row] << 32 | words[3][row]) | 1
        seen.append((odd ^ odd >> 1).bit_count())
        expected = odd if seen[-1] >= 24 else odd ^ 0xAAAAAAAAAAAAAAAA
        assert int(gamma[row]) & word == expected
        assert int(start[row]) & word == words[0][row] << 32 | words[1][row]
    assert {21, 23, 25, 27} <= set(seen)  # always odd, as gamma is


def test_normal_follows_its_distribution_function():
    z = noise.normal(11, torch.arange(400), 501, sample=torch.arange(5)).double().flatten().sort().values
    expected = torch.special.ndtr(z)
    distance = (expected - torch.linspace(0, 1, len(z), dtype=torch.float64)).abs().max()
    assert distance * math.sqrt(len(z)) < 1.95  # Kolmogorov and Smirnov at 0.1%


def test_the_two_numbers_of_a_pair_are_independent():
    z = noise.normal(2, torch.arange(500), 400, sample=torch.arange(5)).double().unflatten(-1, (-1, 2))
    a, b = z[..., 0].flatten(), z[..., 1].flatten()
    for f, g in ((a, b), (a**2 - 1, b**2 - 1), (a.abs(), b), (a, b.roll(1)), (a[1:], a[:-1])):
        product = (f - f.mean()) * (g - g.mean())
        assert abs(product.mean()) < 4 * product.std() / math.sqrt(len(f))


def test_normal_moments_and_tails():
    z = noise.normal(3, torch.arange(1000), 40, sample=torch.arange(50)).double()
    n = z.numel()
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)
    for bound in (1.0, 2.0, 3.0):
        expected = math.erfc(bound / math.sqrt(2))
        assert abs((z.abs() > bound).double().mean() - expected) < 4 * math.sqrt(expected / n)


def test_streams_are_uncorrelated():
    index, sample = torch.arange(200), torch.arange(50)
    base = noise.normal(0, index, 8, sample=sample).double()
    others = [
        noise.normal(1, index, 8, sample=sample),
        noise.normal(0, index, 8, sample=sample, member=1),
        noise.normal(0, index + 200, 8, sample=sample),
        noise.normal(0, index, 8, sample=sample + 50),
        base.roll(1, -1),
    ]
    for other in others:
        assert abs((base * other.double()).mean()) < 4 / math.sqrt(base.numel())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 7), st.data())
def test_any_cut_gives_the_same_numbers(batch, samples, size, data):
    index = torch.randperm(50)[:batch]
    whole = noise.normal(5, index, size, member=2, sample=torch.arange(samples))
    i, s = data.draw(st.integers(0, batch - 1)), data.draw(st.integers(0, samples - 1))
    assert torch.equal(whole[s, i], noise.normal(5, index[i : i + 1], size, member=2, sample=s)[0])
    wider = noise.normal(5, index, size + 3, member=2, sample=torch.arange(samples))
    assert torch.equal(whole, wider[..., :size])


def test_follows_the_device():
    assert noise.normal(0, torch.arange(3, device="meta"), 5).device.type == "meta"


@pytest.mark.parametrize(
    ("word", "expected"), [(0, 2.0**-24), (2**32 - 1, 1 - 2.0**-24), (2**31, 0.5 + 2.0**-24)]
)
def test_uniform_numbers_end_half_a_step_before_0_and_1(word, expected, monkeypatch):
    monkeypatch.setattr(noise, "_words", lambda *given: (torch.tensor([[word]]),))
    assert noise.uniform(0, torch.zeros(1, dtype=torch.int64), 1).item() == expected


def test_every_bit_of_a_step_makes_another_seed():
    steps = [0, *(1 << bit for bit in range(64))]
    assert len({noise.derive(5, step) for step in steps}) == 65
    assert len({noise.derive(5, 0, step) for step in steps}) == 65
