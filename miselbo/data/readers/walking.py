"""Which files a folder of images holds, each once, and that no file is in two splits."""

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from miselbo.data.readers.decoding import SUFFIXES, in_threads
from miselbo.errors import InputError
from miselbo.runtime.words import shown

START = 4096  # bytes that tell most files of one size apart


def image_files(root: Path) -> list[Path]:
    """All image files below ``root``, by their endings, sorted; names that start with a dot are passed over.

    A folder or file that is reached twice, by links, counts once, under the first of its names.

    Raises:
        InputError: no such folder, none in it, or a part of it that cannot be read.
    """
    if not root.is_dir():
        raise InputError(
            f"{shown(root)}: no such folder of images. Set dataset.root to a folder of image files."
        )
    found, others = [], 0
    seen = set[tuple[int, int]]()
    for folder, names in _folders(root):
        for name in names:
            path = Path(folder, name)
            if path.suffix.lower() not in SUFFIXES:
                others += 1
                continue
            if (place := _place(path)) not in seen:
                seen.add(place)
                found.append(path)
    if not found:
        raise InputError(
            f"{shown(root)}: no image in this folder or below it ({others} other files). Expected are files ending in "
            f"{' '.join(SUFFIXES)}, in subfolders or not; check dataset.root."
        )
    return found


def check_apart(splits: Mapping[str, Sequence[Path]]) -> None:
    """Refuse splits that share a file: the same one, by a link, or another one of the same content.

    Raises:
        InputError: two files are equal and in two splits.
    """
    sized = defaultdict[int, list[tuple[str, Path]]](list)
    for split, paths in splits.items():
        for path in paths:
            sized[path.stat().st_size].append((split, path))
    for part in (START, None):  # the start of each file first, the whole only of those that agree
        equal = defaultdict[bytes, list[tuple[str, Path]]](list)
        rest = [
            entry for group in sized.values() if len({split for split, _ in group}) > 1 for entry in group
        ]
        digests = in_threads(partial(_digest, part=part), [path for _, path in rest])
        for entry, digest in zip(rest, digests, strict=True):
            equal[digest].append(entry)
        sized = equal  # type: ignore[assignment]
    groups = [group for group in sized.values() if len({split for split, _ in group}) > 1]
    if groups:
        (split, path), *rest = groups[0]
        other, twin = next(entry for entry in rest if entry[0] != split)
        raise InputError(
            f"{shown(path)} ({split}) and {shown(twin)} ({other}) are equal, and so are {len(groups):,} files in all "
            "that are in two splits: what is trained on would be tested on. Keep one of each pair."
        )


def _folders(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder once, top down, with the names of its visible files, sorted."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{shown(error.filename)}: this folder cannot be read ({error.strerror}).") from None

    seen = set[tuple[int, int]]()
    for folder, below, names in os.walk(root, followlinks=True, onerror=refuse):
        state = os.stat(folder)
        if (state.st_dev, state.st_ino) in seen:
            below.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield folder, sorted(name for name in names if not name.startswith("."))


def _place(path: Path) -> tuple[int, int]:
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(
            f"{shown(path)}: cannot be read as an image ({error.strerror}): a link to nothing? "
            "Take it out of the folder."
        ) from None
    if not stat.S_ISREG(state.st_mode):
        raise InputError(
            f"{shown(path)}: cannot be read as an image: it is no file. Take it out of the folder."
        )
    return state.st_dev, state.st_ino


def _digest(path: Path, part: int | None) -> bytes:
    """Hash of the size and the first ``part`` bytes of a file."""
    digest = hashlib.blake2b(str(path.stat().st_size).encode(), digest_size=16)
    try:
        with path.open("rb") as file:
            while block := file.read(part or 2**20):
                digest.update(block)
                if part:
                    break
    except OSError as error:
        raise InputError(f"{shown(path)}: cannot be read as an image ({error.strerror or error}).") from None
    return digest.digest()
