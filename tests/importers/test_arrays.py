"""Imported scores: what is read, what is refused and in which words, and the documented example."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from miselbo import bounds
from miselbo.errors import InputError
from miselbo.importers import arrays
from miselbo.importers.arrays import ArraySource, batches, read_scores

DOCS = Path(__file__).resolve().parents[2] / "docs" / "arrays.md"
N, S, L = 4, 3, 7


def make(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(N, S, L)), generator.normal(size=(N, S, L, S))


def npz(folder: Path, **content) -> Path:
    path = folder / "scores.npz"
    np.savez(path, **content)
    return path


def npy(folder: Path, **content) -> Path:
    target = folder / "scores"
    target.mkdir()
    for name, array in content.items():
        np.save(target / f"{name}.npy", array)
    return target


@pytest.fixture(params=[npz, npy])
def save(request, tmp_path):
    return lambda **content: request.param(tmp_path, **content)


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f8"])
def test_values_come_back(save, dtype):
    log_p, log_q = (array.astype(dtype) for array in make())
    scores = read_scores(str(save(log_p=log_p, log_q=log_q, index=np.array([7, 0, 3, 9], "uint8"))))
    parts = list(batches(scores, 3))
    assert [len(part["index"]) for part in parts] == [3, 1]
    assert torch.cat([part["index"] for part in parts]).tolist() == [7, 0, 3, 9]
    for name, expected in (("log_p", log_p), ("log_q", log_q)):
        whole = torch.cat([part[name] for part in parts])
        assert whole.dtype == torch.float64
        np.testing.assert_array_equal(whole.numpy(), expected.astype("float64"))


def test_a_folder_is_memory_mapped(tmp_path):
    log_p, log_q = make()
    scores = read_scores(npy(tmp_path, log_p=log_p, log_q=np.asfortranarray(log_q)))
    assert isinstance(scores.log_p, np.memmap) and isinstance(scores.log_q, np.memmap)
    assert scores.index.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("chunk", [1, 10, 10**6])
def test_checks_and_passes_do_not_depend_on_the_cut(tmp_path, monkeypatch, chunk):
    log_p, log_q = make()
    path = npz(tmp_path, log_p=log_p, log_q=log_q)
    whole = ArraySource(path).fingerprint
    monkeypatch.setattr(arrays, "CHUNK", chunk)
    source = ArraySource(path, batch_size=3, num_samples=5)
    assert (source.num_data, source.num_members, source.num_samples) == (N, S, 5)
    for index, batch in source.batches():
        p, q = (torch.cat(parts, 2) for parts in zip(*source.passes(index, batch), strict=True))
        np.testing.assert_array_equal(p, log_p[index.numpy()][:, :, :5])
        np.testing.assert_array_equal(q, log_q[index.numpy()][:, :, :5])
    if chunk == 10**6:
        assert source.fingerprint == whole
    log_q[2, 1, 3, 0], log_q[1, 2, 6, 2], log_q[2, 0, 1, 1] = np.nan, np.inf, -np.inf  # the last one is legal
    with pytest.raises(
        InputError, match=r"log_q in .* holds 2 values .* \[n, s, l, j\] = \[1, 2, 6, 2\] \(inf\)"
    ):
        read_scores(npz(tmp_path, log_p=log_p, log_q=log_q))


def test_fingerprint_follows_the_values(tmp_path):
    log_p, log_q = make()
    one = ArraySource(npz(tmp_path, log_p=log_p, log_q=log_q)).fingerprint
    assert ArraySource(npy(tmp_path, log_p=log_p, log_q=log_q)).fingerprint == one
    log_q[3, 2, 6, 2] += 1e-12
    assert ArraySource(npz(tmp_path, log_p=log_p, log_q=log_q)).fingerprint != one
    log_q[3, 2, 6, 2] -= 1e-12
    relabelled = npz(tmp_path, log_p=log_p, log_q=log_q, index=np.arange(N)[::-1])
    assert ArraySource(relabelled).fingerprint != one


def test_the_first_examples_and_samples(tmp_path):
    path = npz(tmp_path, log_p=make()[0], log_q=make()[1])
    source = ArraySource(path, num_examples=3, batch_size=2)
    assert [index.tolist() for index, _ in source.batches()] == [[0, 1], [2]]
    assert source.protocol()["num_examples"] == 3
    with pytest.raises(InputError, match=r"num_samples=8, but .* holds L = 7 .* ask for 1 to 7"):
        ArraySource(path, num_samples=8)


def test_minus_infinity_is_legal_where_a_density_may_be_zero(save):
    log_p, log_q = make()
    log_p[0, 0, 0] = -np.inf
    log_q[0, 0, 0, 1] = -np.inf
    assert read_scores(save(log_p=log_p, log_q=log_q)).log_p[0, 0, 0] == -np.inf


@pytest.mark.parametrize(
    ("name", "at", "value", "words"),
    [
        (
            "log_p",
            (1, 2, 3),
            np.nan,
            r"log_p in .* holds 1 .* NaN or \+inf.* \[n, s, l\] = \[1, 2, 3\] \(nan\)",
        ),
        ("log_p", (0, 0, 0), np.inf, r"\[0, 0, 0\] \(inf\)"),
        ("log_q", (3, 0, 6, 2), np.nan, r"\[3, 0, 6, 2\] \(nan\)"),
        ("log_q", (3, 0, 6, 2), np.inf, r"\[3, 0, 6, 2\] \(inf\)"),
        ("log_q", (2, 1, 0, 1), -np.inf, r"-inf of a member at its own sample.* \[2, 1, 0, 1\] \(-inf\)"),
    ],
)
def test_bad_values(save, name, at, value, words):
    log_p, log_q = make()
    {"log_p": log_p, "log_q": log_q}[name][at] = value
    with pytest.raises(InputError, match=words):
        read_scores(save(log_p=log_p, log_q=log_q))


@pytest.mark.parametrize(
    ("shape_p", "shape_q", "words"),
    [
        ((4, 5, 9), (4, 5, 9, 3), r"log_q's last axis \(S, members\) is 3 .* but log_p has S = 5 members"),
        ((4, 5, 9), (3, 5, 9, 5), r"log_q's first axis \(N, examples\) is 3 .* N = 4 examples"),
        ((4, 5, 9), (4, 5, 8, 5), r"log_q's third axis \(L, samples\) is 8 .* L = 9 samples"),
        ((5, 4, 9), (4, 5, 9, 5), r"fit \[S, N, L\] and \[N, S, L, S\].*log_p.transpose\(1, 0, 2\)"),
        ((4, 9, 5), (4, 5, 9, 5), r"fit \[N, L, S\] and .*log_p.transpose\(0, 2, 1\)"),
        (
            (4, 5, 9),
            (4, 5, 5, 9),
            r"third axis .* is 5 .*fit .* \[N, S, S, L\].*log_q.transpose\(0, 1, 3, 2\)",
        ),
        (
            (5, 4, 9),
            (5, 4, 9, 5),
            r"fit \[S, N, L\] and \[S, N, L, S\].*log_p.*, log_q.transpose\(1, 0, 2, 3\)",
        ),
        ((5, 9), (5, 9, 5), r"log_p in .* has 2 axes, \[5, 9\]; expected 3, \[N, S, L\].*log_p\[None\]"),
        ((4, 5, 9), (4, 5, 9), r"log_q in .* has 3 axes.* expected 4.* under all S members"),
        ((0, 5, 9), (0, 5, 9, 5), r"N = 0 examples"),
        ((4, 0, 9), (4, 0, 9, 0), r"S = 0 members"),
        ((4, 5, 0), (4, 5, 0, 5), r"L = 0 samples"),
    ],
)
def test_bad_shapes(save, shape_p, shape_q, words):
    with pytest.raises(InputError, match=words):
        read_scores(save(log_p=np.zeros(shape_p), log_q=np.zeros(shape_q)))


def test_no_order_is_suggested_where_none_fits(save):
    with pytest.raises(InputError) as caught:
        read_scores(save(log_p=np.zeros((4, 5, 9)), log_q=np.zeros((4, 5, 9, 3))))
    assert "transpose" not in str(caught.value)


@pytest.mark.parametrize("name", ["log_p", "log_q"])
@pytest.mark.parametrize("dtype", ["int64", "float16", "complex128", "bool"])
def test_bad_dtypes(save, name, dtype):
    content = dict(zip(("log_p", "log_q"), make(), strict=True))
    content[name] = content[name].astype(dtype)
    with pytest.raises(InputError, match=rf"{name} in .* dtype {dtype}; expected float64.*astype"):
        read_scores(save(**content))


class Bomb:
    """Would make a file if it were unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_objects_are_never_unpickled(save, tmp_path):
    content = np.array([Bomb(tmp_path / "exploded")], dtype=object)
    with pytest.raises(InputError, match="dtype object, which is not loaded"):
        read_scores(save(log_p=content, log_q=make()[1]))
    assert not (tmp_path / "exploded").exists()


def test_missing_and_misnamed_arrays(save):
    log_p, log_q = make()
    with pytest.raises(
        InputError, match="holds no log_p, only log_P, log_q; did you mean 'log_P'.*expected log_p"
    ):
        read_scores(save(log_P=log_p, log_q=log_q))


def test_an_empty_folder(tmp_path):
    with pytest.raises(InputError, match="holds no log_p, only no array"):
        read_scores(tmp_path)


def test_files_of_another_kind(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.npz does not exist; expected log_p \[N, S, L\]"):
        read_scores(tmp_path / "nowhere.npz")
    text = tmp_path / "text.npz"
    text.write_text("log_p, log_q")
    with pytest.raises(InputError, match=r"text.npz is no .npz file, or damaged"):
        read_scores(text)
    np.save(tmp_path / "one.npy", make()[0])
    with pytest.raises(InputError, match=r"one.npy is a single array"):
        read_scores(tmp_path / "one.npy")


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_anywhere_is_one_error(tmp_path, compressed):
    path = tmp_path / "scores.npz"
    (np.savez_compressed if compressed else np.savez)(path, log_p=make()[0], log_q=make()[1])
    content = path.read_bytes()
    refused = 0
    for at in range(0, len(content), 97):
        path.write_bytes(content[:at] + bytes(64) + content[at + 64 :])
        try:
            read_scores(path)
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > len(content) // 97 * 0.8
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="no .npz file, or damaged"):
        read_scores(path)


def test_a_truncated_npy(tmp_path):
    folder = npy(tmp_path, log_p=make()[0], log_q=make()[1])
    file = folder / "log_q.npy"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"log_q.npy cannot be read .*damaged"):
        read_scores(folder)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (np.array([0, 5, 1, 5]), r"index in .* holds 5 twice \(positions 1 and 3\), 1 repeats"),
        (np.arange(3), r"index in .* of shape \[3\]; expected \[4\]"),
        (np.arange(4.0), "index in .* dtype float64; expected whole numbers"),
    ],
)
def test_bad_labels(save, index, words):
    log_p, log_q = make()
    with pytest.raises(InputError, match=words):
        read_scores(save(log_p=log_p, log_q=log_q, index=index))


def test_the_documented_example_has_the_known_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (block,) = [text for text in blocks if "torch.distributions" in text]
    exec(compile(block, str(DOCS), "exec"), {})
    for text in blocks:
        compile(text, str(DOCS), "exec")
    scores = next(batches(read_scores("scores.npz"), 4))
    log_p, log_q = scores["log_p"], scores["log_q"]
    x = torch.tensor([-1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
    evidence = -0.25 * x.square() - 0.5 * np.log(4 * np.pi)
    # the exact posterior's weights are all p(x)
    torch.testing.assert_close(bounds.iwelbo(log_p, log_q)[:, 0], evidence, rtol=0, atol=1e-12)
    # ELBO = log p(x) - KL(N(m + 0.3, 1) to N(m, 1/2)), KL = (1 + 0.09) / (2 * 0.5) - 1/2 - log(1 / sqrt(1/2))
    kl = 1.09 - 0.5 - 0.5 * np.log(2)
    elbo = evidence - torch.tensor([0.0, kl, kl])[:, None]
    values = log_p - log_q.diagonal(dim1=1, dim2=3).mT
    error = values.std(-1) / 1000**0.5
    assert bool(((values.mean(-1) - elbo.T).abs() <= 4.5 * error + 1e-12).all())
    assert bool((error[:, 1:] > 0.01).all())
    torch.testing.assert_close(bounds.joint_bound(log_p, log_q), evidence, rtol=0, atol=0.05)
