"""Folders of images: splits, detection, resizing, cache, bad input."""

import re

import numpy as np
import pictures
import pytest
import torch
from PIL import Image

from miselbo.data import image_folder
from miselbo.data.readers import decoding
from miselbo.data.readers.decoding import Recipe, decode, decode_all
from miselbo.data.readers.folders import crop_of, size_of
from miselbo.data.readers.splits import split_folder
from miselbo.data.readers.walking import image_files
from miselbo.errors import InputError

NAMES = ("train", "validation", "test")


def grey(data, name: str) -> torch.Tensor:
    split = data.split(name)
    return split.grey(torch.arange(len(split)))


def as_rows(images: torch.Tensor) -> list[list[int]]:
    return sorted((images * 255).round().int().flatten(1).tolist())


def test_every_image_is_in_one_split_with_its_own_pixels(tmp_path):
    written = [pictures.write(tmp_path / "a" / f"{i:02d}.png", i) for i in range(13)]
    written += [pictures.write(tmp_path / "b" / "deep" / f"{i:02d}.png", 100 + i) for i in range(7)]
    data = image_folder(root=tmp_path)
    assert [len(data.split(name)) for name in NAMES] == [16, 2, 2]
    assert (data.image.channels, data.image.height, data.image.width) == (3, 8, 8)
    assert data.image.likelihood == "logistic_mixture" and data.image.num_bits == 8
    together = torch.cat([grey(data, name) for name in NAMES])
    assert as_rows(together) == sorted(image.flatten().tolist() for image in written)


def test_the_hashed_split_is_fixed_and_hardly_moves_when_files_come(tmp_path):
    pictures.folder(tmp_path, 40)
    before = split_folder(tmp_path, 0.1, 0.1)
    assert [path.name for path in before.test] == ["24.png", "36.png", "15.png", "30.png"]  # golden
    (tmp_path / "class0" / "24.png").touch()
    assert split_folder(tmp_path, 0.1, 0.1) == before
    pictures.write(tmp_path / "class1" / "new.png")
    after = split_folder(tmp_path, 0.1, 0.1)
    assert len(set(before.train) & set(after.train)) >= 30
    assert "40 images in the order of the SHA-256" in before.rule and "first 32 train" in before.rule


@pytest.mark.parametrize("name", ["valid", "val", "validation"])
def test_subfolders_say_the_split(tmp_path, name):
    for part, count in (("train", 6), (name, 3), ("test", 4)):
        for i in range(count):
            pictures.write(
                tmp_path / part / "kind" / f"{part}{i}.png", sum(part.encode()) + 9 * i, channels=1
            )
    data = image_folder(root=tmp_path)
    assert [len(data.split(part)) for part in NAMES] == [6, 3, 4]
    assert data.image.channels == 1
    protocol = data.protocol("validation")
    assert f"the subfolders train, {name} and test" in protocol["split_rule"]
    assert protocol["split_rule"].endswith("validation: all 3 validation images")
    few = image_folder(root=tmp_path, num_validation=2, num_train=5, num_test=1)
    assert [len(few.split(part)) for part in NAMES] == [5, 2, 1]
    assert torch.equal(grey(few, "validation"), grey(data, "validation")[:2])
    with pytest.raises(InputError, match=r"num_validation=4: there are only 3"):
        image_folder(root=tmp_path, num_validation=4).setup()


def test_without_valid_a_part_of_train_is_held_out(tmp_path):
    for part, count in (("train", 11), ("test", 4)):
        for i in range(count):
            pictures.write(tmp_path / part / f"{i}.png", sum(part.encode()) + 9 * i)
    data = image_folder(root=tmp_path)
    assert [len(data.split(part)) for part in NAMES] == [9, 2, 4]
    assert "the last 2 of train" in data.protocol()["split_rule"]


@pytest.mark.parametrize(
    ("have", "lacks"), [("train", "test"), ("test", "train"), ("valid", "train and test")]
)
def test_half_of_the_subfolders_is_refused(tmp_path, have, lacks):
    pictures.write(tmp_path / have / "a.png")
    with pytest.raises(InputError, match=f"has the subfolder {have} but not {lacks}"):
        image_folder(root=tmp_path).setup()


def test_grey_and_colour(tmp_path):
    pictures.folder(tmp_path, 6, channels=1)
    assert image_folder(root=tmp_path).image.channels == 1
    assert image_folder(root=tmp_path, channels=3).image.channels == 3
    pictures.write(tmp_path / "class0" / "colour.png")
    data = image_folder(root=tmp_path)
    assert data.image.channels == 3
    assert image_folder(root=tmp_path, channels=1).image.channels == 1


def test_sizes_that_differ_are_named_with_the_fix(tmp_path):
    pictures.folder(tmp_path, 6)
    pictures.write(tmp_path / "class0" / "wide.png", height=8, width=12)
    with pytest.raises(InputError, match=r"different sizes. Set dataset.size .* dataset.size=\[8,8\]"):
        image_folder(root=tmp_path).setup()
    data = image_folder(root=tmp_path, size=4)
    assert (data.image.height, data.image.width) == (4, 4)
    assert "scaled (bilinear) and cut centrally to 4 x 4" in data.protocol()["source"]
    data = image_folder(root=tmp_path, size=[4, 6])
    assert (data.image.height, data.image.width) == (4, 6)


def test_resizing_scales_and_cuts_the_middle(tmp_path):
    array = np.zeros((4, 12, 3), np.uint8)
    array[:, 4:8] = 200
    Image.fromarray(array).save(tmp_path / "a.png")
    assert (decode(tmp_path / "a.png", Recipe(4, 4, 3)) == 200).all()
    # triangle filter of width 4: weights 1/8, 3/8, 3/8, 1/8, of which one end lies outside the cut
    assert (decode(tmp_path / "a.png", Recipe(2, 2, 3)) == 175).all()
    assert (decode(tmp_path / "a.png", Recipe(4, 4, 3, crop=(0, 0, 4, 4))) == 0).all()
    with pytest.raises(InputError, match="12 x 4 pixels .*, the other images are 4 x 4. Set dataset.size"):
        decode(tmp_path / "a.png", Recipe(4, 4, 3, resize=False))


@pytest.mark.parametrize("bits", [1, 3, 5, 8])
def test_fewer_bits_in_every_split(tmp_path, bits):
    data = image_folder(root=pictures.folder(tmp_path, 20), num_bits=bits, batch_size=16)
    assert data.image.num_bits == bits
    for name in NAMES:
        levels = (grey(data, name) * 255).round().int() >> (8 - bits)  # drop the low bits
        batches = list(data.evaluation_batches(name))
        shown = torch.cat([batch["image"] for batch in batches]) * (2**bits - 1)
        torch.testing.assert_close(shown, levels.float())
    batch = next(iter(data.train_dataloader()))
    levels = (data.split("train").grey(batch["index"]) * 255).round().int() >> (8 - bits)
    torch.testing.assert_close(batch["image"] * (2**bits - 1), levels.float())
    said = data.protocol()["binarisation"]
    assert said == "none: intensities in [0, 1]" + (f", {bits} bits" if bits != 8 else "")


def test_bits_that_cannot_be(tmp_path):
    for bits in (0, 9, 2.5, True):
        with pytest.raises(InputError, match=r"dataset\.num_bits="):
            image_folder(root=tmp_path, num_bits=bits)
    with pytest.raises(InputError, match="num_bits=5 with dataset.likelihood=bernoulli"):
        image_folder(root=tmp_path, num_bits=5, likelihood="bernoulli")


# the cache


def test_the_cache_holds_the_same_pixels_and_is_used_again(tmp_path, monkeypatch, capsys):
    root = pictures.folder(tmp_path / "images", 12)
    plain, cached = (image_folder(root=root, cache=cache) for cache in (None, tmp_path / "cache"))
    for name in NAMES:
        assert torch.equal(grey(plain, name), grey(cached, name))
    assert "decoding 12 images once into" in capsys.readouterr().out
    (file,) = (tmp_path / "cache").glob("*.npy")
    assert np.load(file).shape == (12, 3, 8, 8)
    monkeypatch.setattr(decoding, "decode", None)  # another decoding would fail
    again = image_folder(root=root, cache=tmp_path / "cache")
    assert torch.equal(grey(plain, "test"), grey(again, "test"))


def test_the_cache_is_made_anew_for_changed_files_other_sizes_and_damage(tmp_path):
    root, cache = pictures.folder(tmp_path / "images", 12), tmp_path / "cache"
    image_folder(root=root, cache=cache).setup()
    (first,) = cache.glob("*.npy")
    whole = first.read_bytes()
    first.write_bytes(whole[:100])
    image_folder(root=root, cache=cache).setup()
    assert first.read_bytes() == whole
    changed = pictures.write(root / "class0" / "00.png", seed=999)
    data = image_folder(root=root, cache=cache)
    assert changed.flatten().tolist() in as_rows(torch.cat([grey(data, name) for name in NAMES]))
    image_folder(root=root, cache=cache, size=4).setup()
    assert len(list(cache.glob("*.npy"))) == 3


def test_training_writes_nothing_to_the_cache_file(tmp_path):
    root = pictures.folder(tmp_path / "images", 12)
    data = image_folder(root=root, cache=tmp_path / "cache")
    (file,) = (data.setup(), *(tmp_path / "cache").glob("*.npy"))[1:]
    before = file.read_bytes()
    data._splits["train"].zero_()
    assert file.read_bytes() == before


def test_many_images_go_to_the_users_cache_and_a_failure_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(decoding, "IN_MEMORY", 100)
    root = pictures.folder(tmp_path / "images", 12)
    image_folder(root=root).setup()
    assert len(list((tmp_path / "home" / "miselbo").glob("image_folder-*.npy"))) == 1
    bad = root / "class0" / "10.png"
    bad.write_bytes(bad.read_bytes()[:-40])
    with pytest.raises(InputError, match=re.escape(str(bad))):
        image_folder(root=root).setup()
    assert len(list((tmp_path / "home" / "miselbo").glob("*.npy"))) == 1
    assert not list((tmp_path / "home" / "miselbo").glob("*.tmp"))


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    root = pictures.folder(tmp_path / "images", 12)
    with pytest.raises(InputError, match="cannot be kept in .*Set dataset.cache"):
        image_folder(root=root, cache=tmp_path / "file").setup()


# bad input


def test_no_folder_no_root_and_no_images(tmp_path):
    with pytest.raises(InputError, match="needs dataset.root"):
        image_folder().setup()
    with pytest.raises(InputError, match="nowhere: no such folder of images"):
        image_folder(root=tmp_path / "nowhere").setup()
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / ".hidden.png").write_text("")
    with pytest.raises(InputError, match=r"no image in this folder or below it \(1 other files\).*\.png"):
        image_folder(root=tmp_path).setup()


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_damaged_image_is_named(tmp_path, content):
    root = pictures.folder(tmp_path, 8)
    bad = root / "class1" / "03.png"
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2] if content is None else content)
    with pytest.raises(InputError, match=f"{re.escape(str(bad))}: cannot be read as an image"):
        image_folder(root=root).setup()


def test_sixteen_bits_are_refused(tmp_path):
    pictures.folder(tmp_path, 8)
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match="deep.png: an image of mode 'I;16' .*: convert it first.$"):
        image_folder(root=tmp_path).setup()


def test_too_few_images_and_shares_that_cannot_be(tmp_path):
    pictures.folder(tmp_path, 2)
    with pytest.raises(InputError, match="2 images cannot be shared out: 1 for test and 1 for validation"):
        image_folder(root=tmp_path).setup()
    for share in (0, 1, -0.1, "x", True):
        with pytest.raises(InputError, match=r"dataset\.test_share=.*between 0 and 1"):
            image_folder(root=tmp_path, test_share=share).setup()


@pytest.mark.parametrize("size", [0, -1, "64", 2.5, [1], [1, 2, 3], [0, 4], True])
def test_sizes_that_cannot_be(size):
    with pytest.raises(InputError, match=r"dataset\.size="):
        size_of(size)


@pytest.mark.parametrize("crop", [0, 200, "x", [1, 2, 3], [5, 0, 5, 9], [0, 0, 1.5, 2], True])
def test_crops_that_cannot_be(crop):
    with pytest.raises(InputError, match=r"dataset\.crop="):
        crop_of(crop, 178, 218)


def test_channels_that_cannot_be(tmp_path):
    with pytest.raises(InputError, match="dataset.channels=2"):
        image_folder(root=pictures.folder(tmp_path), channels=2).setup()


def test_files_are_found_in_order_whatever_their_case(tmp_path):
    for name in ("b/x.PNG", "a/y.JPG", "a/.z.png", ".git/q.png", "a/readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)] == ["a/y.JPG", "b/x.PNG"]


def test_decode_all_of_one_recipe_in_order(tmp_path):
    written = [pictures.write(tmp_path / f"{i}.png", i) for i in range(5)]
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    pixels = decode_all(paths, Recipe(8, 8, 3), "some")
    assert pixels.dtype == torch.uint8 and np.array_equal(pixels.numpy(), np.stack(written))
