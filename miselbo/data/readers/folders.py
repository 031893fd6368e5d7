"""A folder of images as a dataset: what size and channels; which files and which split is :mod:`splits`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Unpack

from miselbo.data.images import ImageData, ImageOptions, Images
from miselbo.data.readers.decoding import Box, Recipe, decode_all, in_threads, inspect
from miselbo.data.readers.splits import Parts, split_folder
from miselbo.errors import InputError
from miselbo.runtime.words import shown


def detect(paths: Sequence[Path], size: tuple[int, int] | None, channels: int | None) -> Recipe:
    """Size and channels of the images, from their headers; ``size`` (height, width) and ``channels`` where given.

    Three channels as soon as one image has colour.

    Raises:
        InputError: an image that cannot be read as it is, or images of different sizes and no ``size``.
    """
    if size is not None and channels is not None:
        return Recipe(*size, channels)
    height = width = 0
    colours = 1
    for path, (rows, columns, found) in zip(paths, in_threads(inspect, paths), strict=True):
        colours = max(colours, found)
        if size is None and height and (rows, columns) != (height, width):
            raise InputError(
                f"{shown(path)}: {columns} x {rows} pixels (width x height), {shown(paths[0])} has "
                f"{width} x {height}: images of different sizes. Set dataset.size to bring all "
                f"to one, such as dataset.size=64 or "
                f"dataset.size=[{min(rows, height)},{min(columns, width)}] (height, width)."
            )
        height, width = rows, columns
    return Recipe(*(size or (height, width)), channels or colours, resize=size is not None)


def load_parts(
    parts: Parts, recipe: Recipe, name: str, source: str, cache: str | Path | None = None, show: bool = True
) -> Images:
    """Decode the files of all splits, in a cache file when they are many."""
    paths = [*parts.train, *parts.validation, *parts.test]
    pixels = decode_all(paths, recipe, name, cache, show)
    held_out = len(parts.train) + len(parts.validation)
    return Images(pixels[:held_out], pixels[held_out:], 255, source, parts.rule, len(parts.validation))


def load_image_folder(
    root: str | Path | None,
    name: str,
    size: int | Sequence[int] | None,
    channels: int | None,
    validation_share: float,
    test_share: float,
    cache: str | Path | None,
) -> Images:
    """The images of a folder; see :func:`image_folder`.

    Raises:
        InputError: no folder, no images, a damaged file, different sizes, or a split that cannot be.
    """
    if root is None:
        raise InputError("dataset.root=null: dataset=image_folder needs dataset.root=<folder of images>.")
    folder = Path(root).expanduser().absolute()
    wanted = size_of(size)
    if channels not in (None, 1, 3):
        raise InputError(
            f"dataset.channels={channels!r}: expected 1 (grey), 3 (colour), or null to detect it."
        )
    parts = split_folder(folder, validation_share, test_share)
    recipe = detect([*parts.train, *parts.validation, *parts.test], wanted, channels)
    made = (
        f", scaled (bilinear) and cut centrally to {recipe.height} x {recipe.width}" if recipe.resize else ""
    )
    return load_parts(parts, recipe, name, f"{shown(folder)} (image files{made})", cache)


def image_folder(
    *,
    root: str | Path | None = None,
    name: str = "image_folder",
    size: int | Sequence[int] | None = None,
    channels: int | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    num_validation: int | None = None,
    cache: str | Path | None = None,
    **options: Unpack[ImageOptions],
) -> ImageData:
    """A folder of images, in subfolders or not.

    Args:
        root: the folder.
        name: of the dataset, for the protocol and the run folder.
        size: side, or (height, width), to which every image is scaled and cut centrally; None: all have one size.
        channels: 1 or 3; None: 3 as soon as one image has colour.
        validation_share: of the images that go to validation when no subfolder says it.
        test_share: likewise.
        num_validation: use only the first so many validation images; None for all.
        cache: folder for the decoded images; None: the user's cache, for more than 256 MB of them.
        **options: of :class:`ImageData`; likelihood is ``logistic_mixture`` unless given.
    """
    options.setdefault("likelihood", "logistic_mixture")
    source = partial(load_image_folder, root, name, size, channels, validation_share, test_share, cache)
    return ImageData(source, name=name, num_validation=num_validation, **options)


def size_of(size: object) -> tuple[int, int] | None:
    """``dataset.size`` as (height, width).

    Raises:
        InputError: neither null, a whole number nor a pair of them.

    Example:
        >>> size_of(64), size_of([32, 48])
        ((64, 64), (32, 48))
    """
    if size is None:
        return None
    pair = list(size) if isinstance(size, Sequence) and not isinstance(size, str) else [size, size]
    sides = [side for side in pair if type(side) is int and side >= 1]
    if len(pair) != 2 or len(sides) != 2:
        raise InputError(
            f"dataset.size={size!r}: expected a whole number of pixels, [height, width], or null for images that all "
            "have one size."
        )
    return sides[0], sides[1]


def crop_of(crop: object, width: int, height: int) -> Box | None:
    """``dataset.crop`` as (left, top, right, bottom): null, that list, or the side of a square in the middle of a
    width x height image.

    Example:
        >>> crop_of(140, 178, 218)
        (19, 39, 159, 179)
    """
    if crop is None:
        return None
    if type(crop) is int and 1 <= crop <= min(width, height):
        left, top = (width - crop) // 2, (height - crop) // 2
        return left, top, left + crop, top + crop
    box = list(crop) if isinstance(crop, Sequence) and not isinstance(crop, str) else []
    if len(box) == 4 and all(type(v) is int for v in box) and 0 <= box[0] < box[2] and 0 <= box[1] < box[3]:
        return box[0], box[1], box[2], box[3]
    raise InputError(
        f"dataset.crop={crop!r}: expected [left, top, right, bottom], the side of a central square from 1 to "
        f"{min(width, height)}, or null."
    )
