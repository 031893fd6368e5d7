"""Reading Omniglot as the importance-weighted autoencoder literature uses it: ``chardata.mat``, 28 x 28 grey levels.

The file is in the repository of Burda, Grosse and Salakhutdinov (https://github.com/yburda/iwae, folder
datasets/OMNIGLOT): arrays ``data`` 784 x 24,345 and ``testdata`` 784 x 8,070, one image per column in MATLAB's order
(column by column), grey levels in [0, 1].
"""

import hashlib
import io
import math
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from miselbo.data.images import ImageData, ImageOptions, Images
from miselbo.errors import InputError

FILE = "chardata.mat"
LARGEST = 2**27  # numbers in all arrays of a file; the published one has 2**25
BLOB = "016a3536ffe5e1d38e42563a18d7a78bfaf643ec"  # git's id of the published file
ORIGIN = f"https://github.com/yburda/iwae (datasets/OMNIGLOT/{FILE})"


def images_of_columns(columns: npt.ArrayLike, path: Path, name: str) -> Tensor:
    """[784, N] in [0, 1], pixels in column order -> [N, 1, 28, 28] float32.

    Raises:
        InputError: another shape, or values that are no grey levels.

    Example:
        >>> column = np.zeros((784, 1)); column[1] = 1.0   # the second value of a column: one row down
        >>> images_of_columns(column, Path("a.mat"), "data")[0, 0, :2, :2].tolist()
        [[0.0, 0.0], [1.0, 0.0]]
    """
    array = np.asarray(columns)
    if array.ndim != 2 or array.shape[0] != 784 or array.shape[1] < 1 or array.dtype.kind not in "fiub":
        raise InputError(
            f"{path}: the array {name!r} has the shape {array.shape} and type {array.dtype}; expected numbers 784 x N, "
            f"one 28 x 28 image per column. Expected is {ORIGIN}."
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # also when they are not numbers
        raise InputError(
            f"{path}: the values of {name!r} go from {low:g} to {high:g}; expected grey levels from 0 to 1."
        )
    images = np.ascontiguousarray(array.T.reshape(-1, 28, 28).transpose(0, 2, 1), dtype=np.float32)
    return torch.from_numpy(images)[:, None]


def load_omniglot(root: str | Path | None = None) -> Images:
    """Omniglot from ``chardata.mat`` in ``root`` (default ``data/omniglot``), or from that file itself.

    Raises:
        InputError: no such file, damaged, or without the two arrays.
    """
    given = (Path("data", "omniglot") if root is None else Path(root).expanduser()).absolute()
    path = given if given.is_file() else given / FILE
    if not path.is_file():
        state = f"has no {FILE}" if given.is_dir() else "no such folder"
        raise InputError(
            f"omniglot: image file not found. Looked in {given} ({state}). Put {FILE} there, from {ORIGIN}, or set "
            "dataset.root to the folder that has it. Another version of Omniglot: dataset=image_folder."
        )
    content, arrays = _arrays(path)
    if missing := [name for name in ("data", "testdata") if name not in arrays]:
        names = ", ".join(name for name in arrays if not name.startswith("__")) or "none"
        raise InputError(f"{path}: lacks {' and '.join(missing)}; it has {names}. Expected is {ORIGIN}.")
    train, test = (images_of_columns(arrays[name], path, name) for name in ("data", "testdata"))
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    known = "git blob id as published" if blob == BLOB else f"NOT the published file: git blob id {blob}"
    return Images(
        train=train,
        test=test,
        white=1,
        source=f"{path} (Omniglot 28 x 28 of Burda et al.; {known})",
        rule="the file's arrays data and testdata, in file order",
    )


def omniglot(
    *,
    root: str | Path | None = None,
    name: str = "omniglot",
    num_validation: int | None = 1345,
    **options: Unpack[ImageOptions],
) -> ImageData:
    """Omniglot, 28 x 28: 23,000 / 1,345 / 8,070 images by default; ``root`` as for :func:`load_omniglot`."""
    return ImageData(partial(load_omniglot, root), name=name, num_validation=num_validation, **options)


def _arrays(path: Path) -> tuple[bytes, dict[str, npt.ArrayLike]]:
    from scipy.io import loadmat, whosmat  # slow to import: only where used

    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
    try:
        announced = sum(math.prod(shape) for _, shape, _ in whosmat(io.BytesIO(content)))
        if announced > max(LARGEST, 10 * len(content)):
            raise InputError(
                f"{path}: announces arrays of {announced:,} numbers in all. Expected is {ORIGIN}."
            )
        return content, loadmat(io.BytesIO(content), variable_names=["data", "testdata"])
    except InputError:
        raise
    except NotImplementedError as error:
        raise InputError(f"{path}: a MATLAB 7.3 file; expected the older format of {ORIGIN}.") from error
    except Exception as error:  # loadmat lets many kinds through for a damaged file
        raise InputError(
            f"{path}: damaged, truncated, or no MATLAB file ({type(error).__name__}: {error}). "
            f"Get it again: {ORIGIN}."
        ) from error
