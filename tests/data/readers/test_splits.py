"""Which files of a folder are in which split: whole folders by generation, and the names that say a split."""

import os
import tempfile
from pathlib import Path

import pictures
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from miselbo.data.readers.splits import meaning, split_folder
from miselbo.data.readers.walking import check_apart, image_files
from miselbo.errors import InputError

NAMES = st.sampled_from(
    [b"a", b"b\xff", b"Train", b"test", b"VAL", b"train", b".x", "ö".encode(), b"new\nline"]
)
ENTRY = st.tuples(
    st.lists(NAMES, min_size=1, max_size=3),  # folders on the way
    st.sampled_from(
        ["file", "file", "file", "link to the top", "link to a folder", "link to a file", "text"]
    ),
    st.integers(0, 12),  # which picture: equal ones come up
)


def make(root: Path, entries) -> None:
    """A tree of folders, files and links; an entry that cannot be is passed over."""
    kept = [Path(tempfile.gettempdir(), f"picture-{os.getpid()}-{i}.ppm") for i in range(13)]
    for number, (names, kind, picture) in enumerate(entries):
        folder = root.joinpath(*map(os.fsdecode, names))
        folder.mkdir(parents=True, exist_ok=True)
        place = folder / f"{number}.ppm"
        if kind == "file":
            if not kept[picture].exists():
                kept[picture].write_bytes(b"P6 2 1 255\n" + pictures.pixels(picture, 1, 2).tobytes())
            place.write_bytes(kept[picture].read_bytes())
        elif kind == "link to the top":
            (folder / f"{number}").symlink_to(root, target_is_directory=True)
        elif kind == "link to a folder":
            (folder / f"{number}").symlink_to(folder.parent, target_is_directory=True)
        elif kind == "link to a file":
            others = [path for path in sorted(root.rglob("*.ppm")) if not path.is_symlink()]
            if others:
                place.symlink_to(others[picture % len(others)])
        else:
            (folder / f"{number}.txt").write_text("")
    for path in kept:
        path.unlink(missing_ok=True)


def expected(root: Path) -> set[tuple[int, int]]:
    """The regular image files below a folder, names that start with a dot passed over, by their place on the disk."""
    return {
        (path.stat().st_dev, path.stat().st_ino)
        for path in root.rglob("*.ppm")
        if not path.is_symlink() and not any(part.startswith(".") for part in path.relative_to(root).parts)
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(ENTRY, min_size=1, max_size=14))
def test_a_folder_is_a_set_and_its_splits_are_apart(entries):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make(root, entries)
        whole = expected(root)
        try:
            files = image_files(root)
        except InputError:
            assert not whole
            return
        places = [(path.stat().st_dev, path.stat().st_ino) for path in files]
        assert whole <= set(places) and len(places) == len(set(places))  # each once, however it is reached
        try:
            parts = split_folder(root, 0.1, 0.1)
        except InputError as error:
            str(error).encode()  # one line, printable anywhere
            assert "\n" not in str(error)
            return
        parts.rule.encode()
        splits = [parts.train, parts.validation, parts.test]
        assert all(splits)
        contents = [{path.read_bytes() for path in paths} for paths in splits]
        assert not (contents[0] & contents[1] or contents[0] & contents[2] or contents[1] & contents[2])
        if parts.rule.startswith("all"):
            assert sum(map(len, splits)) == len(files)
            assert not {"train", "test"} <= {meaning(path.name) for path in root.iterdir()}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"), ("Train", "TEST"), ("training", "testing"), ("training_set", "test_set"),
        ("archive/train", "archive/test"), ("a/b/Training", "a/b/Testing"), ("TrainImages", "test-images"),
    ],
)  # fmt: skip
def test_names_that_say_a_split(tmp_path, train, test):
    for number in range(9):
        pictures.write(tmp_path / (train if number < 6 else test) / f"{number}.png", number)
    parts = split_folder(tmp_path, 0.1, 0.1)
    assert {path.name for path in parts.test} == {"6.png", "7.png", "8.png"}
    assert len(parts.train) == 5 and len(parts.validation) == 1
    assert parts.rule.startswith(f"the subfolders {Path(train).name} and {Path(test).name}, in the order")


def test_names_that_say_none_are_said_to_be_none(tmp_path, capsys):
    for number in range(12):
        pictures.write(
            tmp_path / f"kind{number % 2}" / ("train", "test")[number % 2] / f"{number}.png", number
        )
    rule = split_folder(tmp_path, 0.1, 0.1).rule
    assert rule.startswith("all 12 images") and rule.endswith(
        "folders named test, train are NOT taken as a split"
    )
    assert "folders named test, train are NOT taken as a split: expected are" in capsys.readouterr().out


def test_what_is_beside_the_splits_is_counted(tmp_path):
    for number, name in enumerate(["train/a", "train/b", "train/c", "test/d", "extra/e", "f"]):
        pictures.write(tmp_path / f"{name}.png", number)
    assert split_folder(tmp_path, 0.1, 0.1).rule.endswith("; 2 images outside them are left out")


def test_two_folders_for_one_split_are_refused(tmp_path):
    for number, name in enumerate(["train", "training", "test"]):
        pictures.write(tmp_path / name / "a.png", number)
    with pytest.raises(InputError, match="has the subfolders train and training, both for train"):
        split_folder(tmp_path, 0.1, 0.1)


@pytest.mark.parametrize("how", ["copy", "hard link", "link", "folder"])
def test_one_file_in_two_splits_is_refused_however_it_is_there(tmp_path, how):
    for number in range(6):
        pictures.write(tmp_path / ("train" if number < 4 else "test") / f"{number}.png", number)
    first, other = tmp_path / "train" / "1.png", tmp_path / "test" / "x.png"
    if how == "copy":
        other.write_bytes(first.read_bytes())
    elif how == "hard link":
        other.hardlink_to(first)
    elif how == "link":
        other.symlink_to(first)
    else:
        (tmp_path / "test" / "more").symlink_to(tmp_path / "train", target_is_directory=True)
    with pytest.raises(InputError, match=r"\(train\) and .* \(test\) are equal.*Keep one of each pair"):
        split_folder(tmp_path, 0.1, 0.1)


def test_equal_files_in_one_split_and_equal_starts_are_not(tmp_path):
    long = b"x" * 5000
    for name, content in (("a", long + b"1"), ("b", long + b"1"), ("c", long + b"2")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (tmp_path / name for name in "abc")
    check_apart({"train": [a, b], "test": [c]})
    with pytest.raises(InputError, match="1 files in all"):
        check_apart({"train": [a], "test": [b, c]})


def test_what_cannot_be_read_is_said(tmp_path):
    pictures.folder(tmp_path, 4)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"gone.png: cannot be read as an image .*: a link to nothing\?"):
        image_files(tmp_path)
    (tmp_path / "gone.png").unlink()
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="pipe.png: cannot be read as an image: it is no file"):
        image_files(tmp_path)


def test_bytes_that_are_no_text_in_a_name(tmp_path):
    for number in range(8):
        name = os.fsdecode(b"\xff%d.png" % number)
        Image.fromarray(pictures.pixels(number)).save(tmp_path / name)
    assert len(split_folder(tmp_path, 0.1, 0.1).train) == 6
