"""Reading CIFAR-10 in its binary version: six files of records, in a folder or still in their archive.

A record is one label byte (0 to 9) and 3,072 pixel bytes: 1,024 red, 1,024 green, 1,024 blue, each row by row.
Source: the description at https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import hashlib
import tarfile
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from miselbo.data.images import ImageData, ImageOptions, Images
from miselbo.errors import InputError

RECORD = 3073
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = "test_batch.bin"
FOLDER, ARCHIVE = "cifar-10-batches-bin", "cifar-10-binary.tar.gz"
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
PUBLISHED = 10_000  # records per file
LARGEST = 20 * PUBLISHED * RECORD  # bytes of a file in the archive
ORIGIN = f"{ARCHIVE} (170,052,171 bytes, MD5 {ARCHIVE_MD5}) from https://www.cs.toronto.edu/~kriz/cifar.html"


def read_records(content: bytes, name: str | Path) -> np.ndarray:
    """The images of one binary file, [N, 3, 32, 32] uint8.

    Args:
        content: the whole file.
        name: for messages.

    Raises:
        InputError: not a whole number of records, none at all, or a label above 9.

    Example:
        >>> read_records(bytes([3]) + bytes(1024) + bytes([255]) * 2048, "one")[0, :, 0, 0].tolist()
        [0, 255, 255]
    """
    if not content or len(content) % RECORD:
        raise InputError(
            f"{name}: truncated or no CIFAR-10 binary file: {len(content):,} bytes, expected a whole number of records "
            f"of {RECORD} bytes ({PUBLISHED * RECORD:,} bytes as published). Get the file again: {ORIGIN}."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    if (records[:, 0] > 9).any():
        at = int((records[:, 0] > 9).argmax())
        raise InputError(
            f"{name}: record {at} starts with the byte {int(records[at, 0])}, "
            f"expected a label from 0 to 9: damaged, or another dataset (CIFAR-100, the Python version). Expected is "
            f"the binary version: {ORIGIN}."
        )
    return records[:, 1:].reshape(-1, 3, 32, 32)


def load_cifar10(root: str | Path | None = None) -> Images:
    """CIFAR-10 from ``root`` (default ``data/cifar10``): the .bin files, a folder with them, or the archive.

    Raises:
        InputError: nothing of the kind there, files missing, damaged or truncated.
    """
    folder = Path("data", "cifar10") if root is None else Path(root).expanduser()
    place, files = _contents(folder.absolute())
    arrays = {name: read_records(content, place / name) for name, content in files.items()}
    counts = sorted({len(array) for array in arrays.values()})
    standard = counts == [PUBLISHED]
    return Images(
        train=torch.from_numpy(np.concatenate([arrays[name] for name in TRAIN])),
        test=torch.from_numpy(arrays[TEST].copy()),
        white=255,
        source=f"{place} (CIFAR-10, binary version"
        + (
            ")"
            if standard
            else f"; NOT the published sizes: {counts[0]:,} to {counts[-1]:,} records per file)"
        ),
        rule=f"the published training files ({TRAIN[0]} .. {TRAIN[-1]}) and test file, in file order",
    )


def cifar10(
    *,
    root: str | Path | None = None,
    name: str = "cifar10",
    num_validation: int | None = 5000,
    **options: Unpack[ImageOptions],
) -> ImageData:
    """CIFAR-10, 3 x 32 x 32: 45,000 / 5,000 / 10,000 images by default; ``root`` as for :func:`load_cifar10`."""
    options.setdefault("likelihood", "logistic_mixture")
    return ImageData(partial(load_cifar10, root), name=name, num_validation=num_validation, **options)


def _contents(root: Path) -> tuple[Path, Mapping[str, bytes]]:
    """Where the files are, and the bytes of all six."""
    if root.is_file():
        return root, _unpacked(root)
    for folder in (root, root / FOLDER):
        missing = [name for name in (*TRAIN, TEST) if not (folder / name).is_file()]
        if not missing:
            return folder, {name: _read(folder / name) for name in (*TRAIN, TEST)}
        if len(missing) < 6:
            raise InputError(
                f"cifar10: {folder} lacks {', '.join(missing)}. Put all of {TRAIN[0]} .. {TRAIN[-1]} and {TEST} there: "
                f"they are in {ORIGIN}."
            )
    if (archive := root / ARCHIVE).is_file():
        return archive, _unpacked(archive)
    state = "has none of these" if root.is_dir() else "no such folder"
    raise InputError(
        f"cifar10: image files not found. Looked in {root} ({state}) for {TRAIN[0]} .. {TRAIN[-1]} and {TEST}, for a "
        f"folder {FOLDER} with them, and for {ARCHIVE}. Put {ORIGIN} there, unpacked or not, or set dataset.root "
        "to the folder that has it."
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _unpacked(archive: Path) -> dict[str, bytes]:
    """The six files of the archive, read without unpacking it on disk."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name).name
                if name not in (*TRAIN, TEST) or (file := tar.extractfile(member)) is None:
                    continue
                if member.size > LARGEST:
                    raise InputError(
                        f"{archive}: {name} unpacks to {member.size:,} bytes, expected are {PUBLISHED * RECORD:,} and "
                        f"at most {LARGEST:,}. Get it again: {ORIGIN}."
                    )
                found[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        md5 = hashlib.md5(_read(archive), usedforsecurity=False).hexdigest()
        raise InputError(
            f"{archive}: damaged or truncated archive ({error or type(error).__name__}; {archive.stat().st_size:,} "
            f"bytes, MD5 {md5}). Get it again: {ORIGIN}."
        ) from error
    if missing := [name for name in (*TRAIN, TEST) if name not in found]:
        raise InputError(f"{archive}: lacks {', '.join(missing)}. Expected is {ORIGIN}.")
    return found
