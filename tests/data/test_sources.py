"""CIFAR-10, CelebA and Omniglot: written here in their published formats, read back, damaged."""

import tarfile

import numpy as np
import pictures
import pytest
import torch
from scipy.io import savemat

from miselbo.data import celeba64, cifar10, omniglot
from miselbo.data.readers.celeba import CROP, read_partition
from miselbo.data.readers.cifar import FOLDER, TEST, TRAIN
from miselbo.errors import InputError

NAMES = ("train", "validation", "test")
CIFAR_FILES = (*TRAIN, TEST)


def grey(data, name: str) -> torch.Tensor:
    split = data.split(name)
    return split.grey(torch.arange(len(split)))


def records(seed: int, count: int = 4) -> tuple[bytes, np.ndarray]:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, 10, count, dtype=np.uint8)
    return b"".join(
        bytes([label]) + image.tobytes() for label, image in zip(labels, pixels, strict=True)
    ), pixels


def write_cifar(folder, count: int = 4) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for seed, name in enumerate(CIFAR_FILES):
        content, written[name] = records(seed, count)
        (folder / name).write_bytes(content)
    return written


# CIFAR-10


@pytest.mark.parametrize("layout", ["plain", "subfolder", "archive", "archive itself"])
def test_cifar10_in_each_layout(tmp_path, layout):
    root = tmp_path / "root"
    written = write_cifar(root / FOLDER if layout == "subfolder" else root)
    if layout.startswith("archive"):
        archive = root / "cifar-10-binary.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for name in CIFAR_FILES:
                tar.add(root / name, f"{FOLDER}/{name}")
                (root / name).unlink()
        root = archive if layout.endswith("itself") else root
    data = cifar10(root=root, num_validation=3)
    assert [len(data.split(name)) for name in NAMES] == [17, 3, 4]
    train = torch.from_numpy(np.concatenate([written[name] for name in TRAIN]))
    assert torch.equal(torch.cat([grey(data, "train"), grey(data, "validation")]), train.float() / 255)
    assert torch.equal(grey(data, "test"), torch.from_numpy(written[TEST]).float() / 255)
    image = data.image
    assert (image.channels, image.height, image.width, image.likelihood) == (3, 32, 32, "logistic_mixture")
    assert "NOT the published sizes: 4 to 4 records" in data.protocol()["source"]


def test_cifar10_is_not_binarised_by_default_and_may_be(tmp_path):
    write_cifar(tmp_path)
    data = cifar10(root=tmp_path, num_validation=3)
    assert torch.equal(next(data.evaluation_batches("test"))["image"], grey(data, "test"))
    binary = cifar10(root=tmp_path, num_validation=3, likelihood="bernoulli")
    assert set(next(binary.evaluation_batches("test"))["image"].unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("keep", [0, 3072, 3073 * 4 - 1, 3073 * 2 + 5])
def test_truncated_cifar10(tmp_path, keep):
    write_cifar(tmp_path)
    bad = tmp_path / "data_batch_3.bin"
    bad.write_bytes(bad.read_bytes()[:keep])
    with pytest.raises(
        InputError, match=rf"data_batch_3.bin: truncated.*{keep:,} bytes, expected .* records of 3073"
    ):
        cifar10(root=tmp_path).setup()


def test_damaged_cifar10(tmp_path):
    write_cifar(tmp_path)
    content = bytearray((tmp_path / TEST).read_bytes())
    content[2 * 3073] = 77
    (tmp_path / TEST).write_bytes(content)
    with pytest.raises(
        InputError, match=r"test_batch.bin: record 2 starts with the byte 77, expected a label"
    ):
        cifar10(root=tmp_path).setup()


def test_missing_cifar10(tmp_path):
    with pytest.raises(
        InputError, match=r"no such folder.*cifar-10-binary.tar.gz.*MD5 c32a1d4a.*set dataset.root"
    ):
        cifar10(root=tmp_path / "nowhere").setup()
    with pytest.raises(InputError, match="has none of these"):
        cifar10(root=tmp_path).setup()
    write_cifar(tmp_path)
    (tmp_path / "data_batch_2.bin").unlink()
    with pytest.raises(InputError, match=r"lacks data_batch_2.bin\."):
        cifar10(root=tmp_path).setup()


def test_damaged_archive_of_cifar10(tmp_path):
    write_cifar(tmp_path / "files")
    archive = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in TRAIN:
            tar.add(tmp_path / "files" / name, name)
    with pytest.raises(InputError, match="lacks test_batch.bin"):
        cifar10(root=tmp_path).setup()
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"damaged or truncated archive \(.*5,000 bytes, MD5"):
        cifar10(root=tmp_path).setup()


# Omniglot


def write_omniglot(path, train: int = 6, test: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    upright = {"data": rng.random((train, 28, 28)), "testdata": rng.random((test, 28, 28))}
    columns = {
        name: images.reshape(-1, 28, 28).transpose(0, 2, 1).reshape(len(images), 784).T
        for name, images in upright.items()
    }
    savemat(path, columns)
    return upright


def test_omniglot_images_stand_upright(tmp_path):
    upright = write_omniglot(tmp_path / "chardata.mat")
    for root in (tmp_path, tmp_path / "chardata.mat"):
        data = omniglot(root=root, num_validation=2)
        assert [len(data.split(name)) for name in NAMES] == [4, 2, 3]
        train = torch.cat([grey(data, "train"), grey(data, "validation")])
        np.testing.assert_allclose(train[:, 0].numpy(), upright["data"].astype(np.float32))
        np.testing.assert_allclose(grey(data, "test")[:, 0].numpy(), upright["testdata"].astype(np.float32))
    assert (data.image.num_dims, data.image.likelihood) == (784, "bernoulli")
    assert "NOT the published file: git blob id" in data.protocol()["source"]
    assert "binarised once from seed 0" in data.protocol()["binarisation"]


def test_bad_omniglot(tmp_path):
    file = tmp_path / "chardata.mat"
    with pytest.raises(
        InputError, match=r"no such folder.*chardata.mat.*github.com/yburda/iwae.*dataset=image_folder"
    ):
        omniglot(root=tmp_path / "nowhere").setup()
    with pytest.raises(InputError, match="has no chardata.mat"):
        omniglot(root=tmp_path).setup()
    write_omniglot(file)
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(InputError, match="chardata.mat: damaged, truncated"):
        omniglot(root=tmp_path).setup()
    file.write_bytes(b"hello")
    with pytest.raises(InputError, match="chardata.mat: damaged, truncated, or no MATLAB file"):
        omniglot(root=tmp_path).setup()
    whole = np.zeros((784, 5))
    for arrays, message in (
        ({"data": whole}, "lacks testdata; it has data"),
        ({"data": whole.T, "testdata": whole}, r"'data' has the shape \(5, 784\).*784 x N"),
        (
            {"data": whole, "testdata": whole + 255},
            "values of 'testdata' go from 255 to 255; expected grey levels",
        ),
        ({"data": whole * np.nan, "testdata": whole}, "values of 'data' go from nan"),
    ):
        savemat(file, arrays)
        with pytest.raises(InputError, match=message):
            omniglot(root=tmp_path, num_validation=1).setup()


# CelebA


def write_celeba(root, below: str = "img_align_celeba", count: int = 8) -> list[np.ndarray]:
    images = [pictures.write(root / below / f"{i:06d}.png", i, 218, 178) for i in range(count)]
    lines = (f"{i:06d}.png {[0, 0, 1, 2][i % 4]}\n" for i in range(count))
    (root / "list_eval_partition.txt").write_text("".join(lines))
    return images


@pytest.mark.parametrize("below", ["img_align_celeba", "."])
def test_celeba64_follows_the_published_partition(tmp_path, below):
    write_celeba(tmp_path, below)
    data = celeba64(root=tmp_path)
    assert [len(data.split(name)) for name in NAMES] == [4, 2, 2]
    assert (data.image.channels, data.image.height, data.image.width, data.image.num_dims) == (
        3,
        64,
        64,
        12288,
    )
    protocol = data.protocol()
    assert "list_eval_partition.txt (4 / 2 / 2 images)" in protocol["split_rule"]
    assert "cut to (left, top, right, bottom) = (15, 40, 163, 188)" in protocol["source"]


def test_celeba64_cuts_what_it_says(tmp_path):
    images = write_celeba(tmp_path)
    data = celeba64(root=tmp_path, size=148)  # nothing left to scale
    left, top, right, bottom = CROP
    expected = torch.from_numpy(images[3][:, top:bottom, left:right].copy())
    assert torch.equal((grey(data, "test")[0] * 255).round().byte(), expected)
    middle = celeba64(root=tmp_path, size=140, crop=140)
    expected = torch.from_numpy(images[3][:, 39:179, 19:159].copy())
    assert torch.equal((grey(middle, "test")[0] * 255).round().byte(), expected)


def test_celeba64_scales_by_averaging(tmp_path):
    images = write_celeba(tmp_path)
    small = grey(celeba64(root=tmp_path), "test")[0]
    left, top, right, bottom = CROP
    cut = torch.from_numpy(images[3][:, top:bottom, left:right].copy()).float()[None] / 255
    expected = torch.nn.functional.interpolate(cut, size=(64, 64), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(small, expected, atol=2 / 255, rtol=0)


def test_celeba64_takes_images_of_the_final_size_whole(tmp_path):
    for i in range(10):
        pictures.write(tmp_path / f"{i}.png", i, 64, 64)
    data = celeba64(root=tmp_path)
    assert [len(data.split(name)) for name in NAMES] == [8, 1, 1]
    assert "SHA-256" in data.protocol()["split_rule"]
    pictures.write(tmp_path / "small.png", 0, 100, 100)
    with pytest.raises(InputError, match=r"small.png: 100 x 100 pixels .*too small for the crop"):
        celeba64(root=tmp_path).setup()


def test_bad_celeba64(tmp_path):
    with pytest.raises(InputError, match=r"no such folder.*img_align_celeba.zip.*mmlab.ie.cuhk.edu.hk"):
        celeba64(root=tmp_path / "nowhere").setup()
    write_celeba(tmp_path)
    (tmp_path / "img_align_celeba" / "000002.png").unlink()
    with pytest.raises(InputError, match=r"1 of the 8 images that .* lists are missing \(000002.png\)"):
        celeba64(root=tmp_path).setup()
    listed = tmp_path / "list_eval_partition.txt"
    listed.write_text("000000.png 0\n000001.png 0\n")
    with pytest.raises(InputError, match="lists no image for validation and test"):
        celeba64(root=tmp_path).setup()
    listed.write_text("000000.png 0\n000001.png 1\n000003.png 2\n")
    assert (
        "5 images that it does not list are left out" not in celeba64(root=tmp_path).protocol()["split_rule"]
    )
    assert "4 images that it does not list are left out" in celeba64(root=tmp_path).protocol()["split_rule"]
    with pytest.raises(InputError, match="celeba64 needs the size"):
        celeba64(root=tmp_path, size=None).setup()


@pytest.mark.parametrize("line", ["a.jpg", "a.jpg 3", "a.jpg 0 1", "b.jpg 1"])
def test_bad_lines_of_the_partition(tmp_path, line):
    path = tmp_path / "list_eval_partition.txt"
    path.write_text(f"b.jpg 0\n{line}\n")
    with pytest.raises(InputError, match="line 2"):
        read_partition(path)
    path.write_text("image_id,partition\nb.jpg,2\n")
    assert read_partition(path) == {"b.jpg": 2}
    path.write_text("")
    with pytest.raises(InputError, match="names no image"):
        read_partition(path)
