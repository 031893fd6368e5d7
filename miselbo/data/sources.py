"""The datasets in the box, one function each; ``conf/dataset/<name>.yaml`` names it and its arguments."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from miselbo.data.draws import permutation
from miselbo.data.images import ImageData, ImageOptions, Images
from miselbo.data.readers.idx import read_idx_images
from miselbo.data.readers.idx_files import IdxCollection, IdxFile, locate
from miselbo.errors import InputError

DIGITS_TEST = 300
DIGITS_SEED = 0

MNIST = IdxCollection(
    name="mnist",
    train=IdxFile(
        "train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb", "f68b3c2dcbeaaa9fbdd348bbdeb94873"
    ),
    test=IdxFile(
        "t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea", "9fb629c4189551a2d022fa330f9573f3"
    ),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    subfolders=("MNIST/raw",),
)

FASHION_MNIST = IdxCollection(
    name="fashion_mnist",
    train=IdxFile(
        "train-images-idx3-ubyte", "f4a8712d7a061bf5bd6d2ca38dc4d50a", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"
    ),
    test=IdxFile(
        "t10k-images-idx3-ubyte", "8181f5470baa50b63fa0f6fddb340f0a", "bef4ecab320f06d8554ea6380940ec79"
    ),
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    folders=("/usr/share/datasets/fashion-mnist",),  # Debian package dataset-fashion-mnist
    subfolders=("FashionMNIST/raw",),
)


def load_digits() -> Images:
    """The 1,797 handwritten digits of scikit-learn, 8 x 8 pixels with 17 grey levels; nothing is downloaded.

    Example:
        >>> images = load_digits()
        >>> tuple(images.train.shape), tuple(images.test.shape), images.white
        ((1497, 1, 8, 8), (300, 1, 8, 8), 16)
    """
    grey = torch.as_tensor(_embedded_digits(), dtype=torch.uint8)[:, None]
    grey = grey[permutation(len(grey), DIGITS_SEED)]
    return Images(
        train=grey[:-DIGITS_TEST],
        test=grey[-DIGITS_TEST:],
        white=16,
        source="scikit-learn load_digits (8 x 8, 17 grey levels)",
        rule=f"fixed permutation (Philox4x32-10, seed {DIGITS_SEED}) of the {len(grey):,} images, the last "
        f"{DIGITS_TEST} are the test split",
    )


def _embedded_digits() -> np.ndarray:
    """[1797, 8, 8] from the file that scikit-learn ships; importing the package takes a second, so only if it moved."""
    package = find_spec("sklearn")
    path = (
        Path(package.origin or "").parent / "datasets" / "data" / "digits.csv.gz" if package else Path("none")
    )
    if path.is_file():
        return np.loadtxt(path, delimiter=",", dtype=np.uint8)[:, :64].reshape(-1, 8, 8)
    from sklearn.datasets import load_digits as embedded

    return embedded().images


def load_idx(files: IdxCollection, root: str | Path | None = None, download: bool | None = None) -> Images:
    """Training and test images of IDX files, looked for as :func:`miselbo.data.readers.idx_files.locate` says.

    Raises:
        InputError: files missing, damaged, or of two image sizes.
    """
    paths = locate(files, root, download)
    train = read_idx_images(paths[0], files.train.md5)
    test = read_idx_images(paths[1], files.test.md5)
    if train.shape[1:] != test.shape[1:]:
        raise InputError(
            f"{paths[0]} holds images of {train.shape[2]} x {train.shape[3]} pixels and {paths[1]} of "
            f"{test.shape[2]} x {test.shape[3]}: files of two datasets? Put the right pair in one folder."
        )
    checked = files.train.md5 is not None and files.test.md5 is not None
    return Images(
        train=train,
        test=test,
        white=255,
        source=f"{paths[0]}, {paths[1].name} (IDX{', MD5 as published' if checked else ''})",
        rule="the published training file and test file, in file order",
    )


def digits(*, name: str = "digits", num_validation: int = 200, **options: Unpack[ImageOptions]) -> ImageData:
    """Scikit-learn's 8 x 8 digits: 1,297 / 200 / 300 images by default; options as for :class:`ImageData`.

    Example:
        >>> data = digits()
        >>> [len(data.split(name)) for name in ("train", "validation", "test")]
        [1297, 200, 300]
    """
    return ImageData(load_digits, name=name, num_validation=num_validation, **options)


def mnist(
    *,
    root: str | Path | None = None,
    download: bool | None = None,
    name: str = "mnist",
    num_validation: int = 5000,
    **options: Unpack[ImageOptions],
) -> ImageData:
    """MNIST, 28 x 28: 55,000 / 5,000 / 10,000 images by default; ``root``, ``download`` as in ``locate``."""
    source = partial(load_idx, MNIST, root, download)
    return ImageData(source, name=name, num_validation=num_validation, **options)


def fashion_mnist(
    *,
    root: str | Path | None = None,
    download: bool | None = None,
    name: str = "fashion_mnist",
    num_validation: int = 5000,
    **options: Unpack[ImageOptions],
) -> ImageData:
    """Fashion-MNIST, 28 x 28: 55,000 / 5,000 / 10,000 images by default; arguments as for :func:`mnist`."""
    source = partial(load_idx, FASHION_MNIST, root, download)
    return ImageData(source, name=name, num_validation=num_validation, **options)


def idx_images(
    *,
    name: str,
    num_validation: int,
    root: str | Path | None = None,
    train: str = "train-images-idx3-ubyte",
    test: str = "t10k-images-idx3-ubyte",
    **options: Unpack[ImageOptions],
) -> ImageData:
    """Your own pair of IDX files, named ``train`` and ``test``, in ``root`` (default ``data/<name>``)."""
    files = IdxCollection(name, IdxFile(train), IdxFile(test))
    return ImageData(partial(load_idx, files, root), name=name, num_validation=num_validation, **options)
