"""CelebA at 64 x 64: the aligned and cropped images (178 x 218), cut and scaled, with the published partition.

Source of the files: https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, img_align_celeba.zip (202,599 JPEG files) and
list_eval_partition.txt (162,770 / 19,867 / 19,962 images).
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Unpack

from miselbo.data.images import ImageData, ImageOptions, Images
from miselbo.data.readers.decoding import Recipe
from miselbo.data.readers.folders import crop_of, load_parts, size_of
from miselbo.data.readers.splits import Parts, split_folder
from miselbo.data.readers.walking import image_files
from miselbo.errors import InputError

LISTS = ("list_eval_partition.txt", "list_eval_partition.csv")
IMAGES = "img_align_celeba"
WIDTH, HEIGHT = 178, 218
CROP = (15, 40, 163, 188)  # 148 x 148, the cut of Larsen et al. 2016 (arXiv 1512.09300)
ORIGIN = (
    "img_align_celeba.zip and list_eval_partition.txt from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
)


def read_partition(path: Path) -> dict[str, int]:
    """File name -> 0 (train), 1 (validation) or 2 (test), in file order; blank or comma between the two.

    Raises:
        InputError: a line of another form, a name twice, or no line at all.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "list_eval_partition.txt"
        >>> _ = path.write_text("000001.jpg 0\\n000002.jpg 2\\n")
        >>> read_partition(path)
        {'000001.jpg': 0, '000002.jpg': 2}
    """
    partition: dict[str, int] = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}). Get it again: {ORIGIN}.") from error
    for number, line in enumerate(lines, start=1):
        fields = line.replace(",", " ").split()
        if not fields or (number == 1 and fields[-1] == "partition"):
            continue
        if len(fields) != 2 or fields[1] not in ("0", "1", "2") or fields[0] in partition:
            raise InputError(
                f"{path}, line {number}: {line[:60]!r}; expected a file name of its own and 0 (train), 1 "
                f"(validation) or 2 (test). Get the file again: {ORIGIN}."
            )
        partition[fields[0]] = int(fields[1])
    if not partition:
        raise InputError(f"{path}: names no image. Get it again: {ORIGIN}.")
    return partition


def split_celeba(root: Path, validation_share: float, test_share: float) -> tuple[Path, Parts]:
    """Folder of the images, and their split: the published partition where its list is, else as any folder of images.

    Raises:
        InputError: no images, or listed ones are missing.
    """
    folder = root / IMAGES if (root / IMAGES).is_dir() else root
    if not root.is_dir():
        raise InputError(
            f"celeba64: image files not found. Looked in {root} (no such folder). Put {ORIGIN} there, unpacked, or set "
            "dataset.root to the folder that has them."
        )
    lists = [place / name for place in (root, folder, root.parent) for name in LISTS]
    path = next((path for path in lists if path.is_file()), None)
    if path is None:
        return folder, split_folder(folder, validation_share, test_share)
    partition = read_partition(path)
    found = {file.name: file for file in image_files(folder)}
    if missing := [name for name in partition if name not in found]:
        raise InputError(
            f"{folder}: {len(missing):,} of the {len(partition):,} images that {path} lists are missing "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}). Put them there ({ORIGIN}), or take "
            "their lines out of the list."
        )
    counts = Counter(partition.values())
    if empty := [name for number, name in enumerate(("train", "validation", "test")) if not counts[number]]:
        raise InputError(f"{path}: lists no image for {' and '.join(empty)}. Get it again: {ORIGIN}.")
    train, validation, test = (
        [found[name] for name, number in partition.items() if number == part] for part in range(3)
    )
    left = len(found) - len(partition)
    rest = f"; {left:,} images that it does not list are left out" if left else ""
    rule = f"{path.name} ({len(train):,} / {len(validation):,} / {len(test):,} images), in file order{rest}"
    return folder, Parts(train, validation, test, rule)


def load_celeba64(
    root: str | Path | None,
    name: str,
    size: int | Sequence[int],
    crop: int | Sequence[int] | None,
    validation_share: float,
    test_share: float,
    cache: str | Path | None,
) -> Images:
    """CelebA from ``root`` (default ``data/celeba64``); see :func:`celeba64`."""
    folder = (Path("data", "celeba64") if root is None else Path(root).expanduser()).absolute()
    side = size_of(size)
    if side is None:
        raise InputError(
            "dataset.size=null: celeba64 needs the size of the images it is to make, such as 64."
        )
    box = crop_of(crop, WIDTH, HEIGHT)
    place, parts = split_celeba(folder, validation_share, test_share)
    made = "whole" if box is None else f"cut to (left, top, right, bottom) = {box}"
    source = f"{place} (CelebA, {made}, scaled (bilinear) to {side[0]} x {side[1]})"
    return load_parts(parts, Recipe(*side, channels=3, crop=box), name, source, cache)


def celeba64(
    *,
    root: str | Path | None = None,
    name: str = "celeba64",
    size: int = 64,
    crop: int | Sequence[int] | None = CROP,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    num_validation: int | None = None,
    cache: str | Path | None = None,
    **options: Unpack[ImageOptions],
) -> ImageData:
    """CelebA, 3 x 64 x 64: 162,770 / 19,867 / 19,962 images with the published partition.

    Args:
        root: folder with the image files or with ``img_align_celeba``, and ``list_eval_partition.txt``.
        name: of the dataset.
        size: side of the images made.
        crop: cut out first: [left, top, right, bottom], or the side of a central square; None for nothing. Files that
            have the final size already are taken as they are.
        validation_share: used only without a partition list and without subfolders, see :func:`image_folder`.
        test_share: likewise.
        num_validation: use only the first so many validation images; None for all.
        cache: folder for the decoded images (2.5 GB for all); None: the user's cache.
        **options: of :class:`ImageData`; likelihood is ``logistic_mixture`` unless given.
    """
    options.setdefault("likelihood", "logistic_mixture")
    source = partial(load_celeba64, root, name, size, crop, validation_share, test_share, cache)
    return ImageData(source, name=name, num_validation=num_validation, **options)
