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
