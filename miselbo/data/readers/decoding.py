"""Image files to one uint8 tensor: inspected, cropped, resized, and kept in a cache when there are many."""

import contextlib
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pooch
import torch
from filelock import FileLock
from PIL import Image, ImageOps
from torch import Tensor

from miselbo.data.readers import depth
from miselbo.errors import InputError
from miselbo.runtime.files import atomic
from miselbo.runtime.progress import Meter
from miselbo.runtime.words import shown

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
IN_MEMORY = 256 * 2**20  # bytes up to which decoded images are kept in memory, without a cache file
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_T = TypeVar("_T")
_R = TypeVar("_R")

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Recipe:
    """How a file becomes an image of a fixed shape.

    Args:
        height: of the result.
        width: of the result.
        channels: 1 or 3; colour files are turned grey and grey ones coloured where it differs.
        crop: (left, top, right, bottom) cut out first; a file that has the final size already is left whole.
        resize: scale (bilinear, antialiased) and cut centrally what then has another size; else it is an error.
    """

    height: int
    width: int
    channels: int
    crop: Box | None = None
    resize: bool = True


def inspect(path: Path) -> tuple[int, int, int]:
    """Height, width and channels (1 or 3) of an image file, from its header.

    Raises:
        InputError: no image file, one of more than 8 bits per colour, or one too large to take in.
    """
    with _opened(path) as image:
        return image.height, image.width, depth.channels(image)


def decode(path: Path, recipe: Recipe) -> np.ndarray:
    """One file as [C, H, W] uint8.

    Raises:
        InputError: as :func:`inspect`, or the file is smaller than the crop, or of another size and may not be resized.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "wide.png"
        >>> Image.new("L", (6, 2), 200).save(path)
        >>> decode(path, Recipe(2, 2, 3))[:, 0, 0].tolist()
        [200, 200, 200]
    """
    size = (recipe.width, recipe.height)
    with _opened(path) as file:
        image = file.convert("RGB" if recipe.channels == 3 else "L")
    if recipe.crop is not None and image.size != size:
        if image.width < recipe.crop[2] or image.height < recipe.crop[3]:
            raise InputError(
                f"{shown(path)}: {image.width} x {image.height} pixels (width x height), too small for the crop "
                f"(left, top, right, bottom) = {recipe.crop}. Expected are the published images, or "
                f"ones that are {size[0]} x {size[1]} already; or set dataset.crop."
            )
        image = image.crop(recipe.crop)
    if image.size != size:
        if not recipe.resize:
            raise InputError(
                f"{shown(path)}: {image.width} x {image.height} pixels (width x height), the other images are "
                f"{size[0]} x {size[1]}. Set dataset.size to bring all images to one size."
            )
        image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[None] if recipe.channels == 1 else array.transpose(2, 0, 1)


def decode_all(
    paths: Sequence[Path], recipe: Recipe, name: str, cache: str | Path | None = None, show: bool = True
) -> Tensor:
    """All files as [N, C, H, W] uint8: in memory, or mapped from a cache file when they are more than ``IN_MEMORY``.

    Args:
        paths: the files.
        recipe: how each becomes an image.
        name: of the dataset: start of the cache file's name.
        cache: folder of the cache file; None for the user's cache, and then only for many images.
        show: print progress.

    Raises:
        InputError: a file cannot be used, or the cache cannot be written to.
    """
    shape = (len(paths), recipe.channels, recipe.height, recipe.width)
    if cache is None and int(np.prod(shape, dtype=np.int64)) <= IN_MEMORY:
        array = np.empty(shape, np.uint8)
        _fill(array, paths, recipe, name, show)
        return torch.from_numpy(array)
    folder = Path(pooch.os_cache("miselbo")) if cache is None else Path(cache).expanduser()
    file = folder / f"{name}-{_key(paths, recipe)}.npy"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):  # of several processes one decodes, the others wait
            if not _is_whole(file, shape):
                if show:
                    print(f"{name}: decoding {len(paths):,} images once into {file}", flush=True)
                with atomic(file) as temporary:
                    mapped = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
                    _fill(mapped, paths, recipe, name, show)
                    mapped.flush()
    except OSError as error:
        raise InputError(
            f"{name}: the decoded images ({np.prod(shape, dtype=np.int64) / 2**20:,.0f} MB) cannot be kept in {folder} "
            f"({error.strerror or error}). Set dataset.cache to a folder with room for them."
        ) from error
    return torch.from_numpy(
        np.load(file, mmap_mode="c", allow_pickle=False)
    )  # private pages: the file is never changed


def in_threads(function: Callable[[_T], _R], items: Sequence[_T]) -> Iterator[_R]:
    """``map`` over threads (decoding leaves Python's lock), in order, the first error raised at once."""
    step = 512
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(items), step):
            yield from pool.map(function, items[start : start + step])


def _fill(array: np.ndarray, paths: Sequence[Path], recipe: Recipe, name: str, show: bool) -> None:
    meter = Meter(f"{name}: decode", len(paths), enabled=show)
    try:
        for position, image in enumerate(in_threads(lambda path: decode(path, recipe), paths)):
            array[position] = image
            if position % 256 == 255:
                meter.update(position + 1)
    finally:
        meter.close()


def _key(paths: Sequence[Path], recipe: Recipe) -> str:
    """Changes with the recipe and with the name, size or time of any file."""
    states = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps([astuple(recipe), states]).encode()).hexdigest()[:16]


def _is_whole(file: Path, shape: tuple[int, ...]) -> bool:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return array.shape == shape and array.dtype == np.uint8


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file whose pixels can be taken as they are; an error inside the block is the file's."""
    try:
        with Image.open(path, formats=depth.FORMATS) as image:
            reason = depth.refusal(image)
            if reason is None:
                yield image
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None
    if reason is not None:
        raise InputError(f"{shown(path)}: {reason}.")


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = "it is empty" if path.is_file() and path.stat().st_size == 0 else error
    return InputError(
        f"{shown(path)}: cannot be read as an image ({reason}): damaged, truncated, or of another format. "
        "Put a whole image in its place, or take the file out of the folder."
    )
