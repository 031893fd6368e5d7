"""How a folder of images is split: by the names of its subfolders, or by a hash of each file's path."""

import hashlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from miselbo.data.readers.walking import check_apart, image_files
from miselbo.errors import InputError
from miselbo.runtime.words import shown

WORDS = {
    "train": "train", "training": "train",
    "valid": "validation", "validation": "validation", "val": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
REST = r"[\W_]*(set|split|data|images|imgs)?"  # that may follow one of the words, as in training_set
ORDER = "in the order of the SHA-256 of their relative path"


@dataclass(frozen=True)
class Parts:
    """The files of each split, and the rule in words that made them."""

    train: list[Path]
    validation: list[Path]
    test: list[Path]
    rule: str


def by_hash(paths: Sequence[Path], root: Path) -> list[Path]:
    """In the order of the SHA-256 of the path relative to ``root``: random, and hardly changed by files added later.

    Example:
        >>> [path.name for path in by_hash([Path("/r/a.png"), Path("/r/b.png")], Path("/r"))]
        ['b.png', 'a.png']
    """
    return sorted(
        paths, key=lambda path: hashlib.sha256(os.fsencode(path.relative_to(root).as_posix())).digest()
    )


def meaning(name: str) -> str | None:
    """The split a subfolder's name says, whatever its case: "train", "validation" or "test"; None for any other name.

    Example:
        >>> [meaning(name) for name in ("Train", "testing", "VAL", "training_set", "trains")]
        ['train', 'test', 'validation', 'train', None]
    """
    found = re.fullmatch(f"({'|'.join(WORDS)}){REST}", name.casefold())
    return WORDS[found[1]] if found else None


def split_folder(root: Path, validation_share: float, test_share: float) -> Parts:
    """By the subfolders that say train, validation and test (:func:`meaning`) if present, else by hash.

    One folder around all others, as archives have it, is stepped into.

    Raises:
        InputError: no images, one of train and test without the other, two folders for one split, equal files in two
            splits, or too few images to share out.
    """
    files = image_files(root)
    top = _unwrapped(root, files)
    named = _named(top)
    have = [path.name for path in named.values()]
    if have and not {"train", "test"} <= named.keys():
        lacks = [split for split in ("train", "test") if split not in named]
        raise InputError(
            f"{shown(top)}: has the subfolder {' and '.join(map(shown, have))} but not {' and '.join(lacks)}. Expected "
            "are train and test (and valid, if you have it), or none of these names: then images are shared out by a "
            "stated rule."
        )
    parts = (
        _by_names(top, named, validation_share, len(files))
        if named
        else _by_share(root, files, validation_share, test_share)
    )
    check_apart({"train": parts.train, "validation": parts.validation, "test": parts.test})
    return parts


def _by_names(top: Path, named: dict[str, Path], validation_share: float, whole: int) -> Parts:
    found = {split: by_hash(image_files(place), place) for split, place in named.items()}
    train, validation, test = (found.get(split, []) for split in ("train", "validation", "test"))
    left = whole - sum(map(len, found.values()))
    rest = f"; {left:,} images outside them are left out" if left > 0 else ""
    names = [shown(named[split].name) for split in ("train", "validation", "test") if split in named]
    rule = f"the subfolders {', '.join(names[:-1])} and {names[-1]}, {ORDER}"
    if not validation:
        count = _share("validation_share", validation_share, len(train))
        rule += f"; validation: the last {count:,} of {names[0]}"
        train, validation = train[:-count], train[-count:]
    if not train:
        raise InputError(
            f"{shown(named['train'])}: one image, which is held out for validation: none to train on. Add images."
        )
    return Parts(train, validation, test, rule + rest)


def _by_share(root: Path, files: list[Path], validation_share: float, test_share: float) -> Parts:
    paths = by_hash(files, root)
    tests = _share("test_share", test_share, len(paths))
    validations = _share("validation_share", validation_share, len(paths))
    count = len(paths) - tests - validations
    if count < 1:
        raise InputError(
            f"{shown(root)}: {len(paths)} images cannot be shared out: {tests} for test and {validations} for "
            "validation leave none to train on. Add images, or lower dataset.test_share and dataset.validation_share."
        )
    counts = f"the first {count:,} train, then {validations:,} validation, {tests:,} test"
    rule = f"all {len(paths):,} images {ORDER}: {counts}"
    folders = {name for path in paths for name in path.relative_to(root).parts[:-1]}
    if alike := sorted(name for name in folders if _like_a_split(name)):
        said = f"folders named {', '.join(map(shown, alike[:4]))} are NOT taken as a split"
        rule += f"; {said}"
        print(
            f"{shown(root)}: {said}: expected are subfolders train and test, or training and testing, at the top"
        )
    return Parts(paths[:count], paths[count : count + validations], paths[count + validations :], rule)


def _unwrapped(root: Path, files: Sequence[Path]) -> Path:
    """The folder that holds the splits: below ``root`` while there is one subfolder alone and no image beside it."""
    top = root
    if _named(root):
        return root
    while not _named(top):
        first = {path.relative_to(top).parts[0] for path in files}
        (name, *others) = first
        if others or not (top / name).is_dir():
            return root
        top = top / name
    return top if {"train", "test"} <= _named(top).keys() else root


def _named(top: Path) -> dict[str, Path]:
    """Split -> subfolder."""
    found: dict[str, Path] = {}
    for path in sorted(top.iterdir()):
        split = meaning(path.name)
        if split is None or not path.is_dir():
            continue
        if split in found:
            raise InputError(
                f"{shown(top)}: has the subfolders {shown(found[split].name)} and {shown(path.name)}, both for "
                f"{split}: bring them together, or rename one so that it says no split."
            )
        found[split] = path
    return found


def _like_a_split(name: str) -> bool:
    """Whether a name speaks of a split, though it stands where, or is spelled as, none is looked for."""
    return any(word in WORDS for word in re.split(r"[\W_]+|set\b", name.casefold()))


def _share(key: str, share: float, whole: int) -> int:
    """That share of ``whole``, rounded up."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise InputError(f"dataset.{key}={share!r}: expected a number between 0 and 1.")
    return math.ceil(share * whole)
