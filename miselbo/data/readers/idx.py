"""Reading image files in the IDX format (the format of MNIST), gzipped or not, with clear errors for damage.

An image file starts with the bytes 00 00 08 03 (unsigned bytes, three axes) and three big-endian 32-bit
numbers: images, rows, columns. The pixels follow, row by row. Source: the description of the files by LeCun,
Cortes and Burges, http://yann.lecun.com/exdb/mnist/.
"""

import hashlib
import struct
from pathlib import Path

import torch
from torch import Tensor

from miselbo.errors import InputError
from miselbo.runtime.gzipped import unpacked

_HEADER = struct.Struct(">4s3I")
_IMAGES = bytes([0, 0, 8, 3])
_LABELS = bytes([0, 0, 8, 1])
_RENEW = "Get the file again: delete it and put a whole copy in its place."


def read_idx_images(path: Path, md5: str | None = None) -> Tensor:
    """Images of an IDX file, gzipped or not (told by the content, not by the name).

    Args:
        path: the file.
        md5: MD5 of the uncompressed content, when it is known.

    Returns:
        [N, 1, H, W], uint8.

    Raises:
        InputError: the file cannot be read, is cut short or too long, is no IDX file of images, holds no
            images, or has another MD5. The message names the file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "two-images"
        >>> header = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3])
        >>> _ = path.write_bytes(header + bytes([9, 8, 7, 6, 5, 4]))
        >>> read_idx_images(path).tolist()
        [[[[9, 8, 7]]], [[[6, 5, 4]]]]
    """
    content = _content(path)
    if len(content) < _HEADER.size:
        raise InputError(
            f"{path}: truncated: {len(content)} bytes, and the header of an IDX image file alone has "
            f"{_HEADER.size}. {_RENEW}"
        )
    magic, num_images, height, width = _HEADER.unpack_from(content)
    if magic != _IMAGES:
        hint = " This is a file of labels." if magic == _LABELS else ""
        raise InputError(
            f"{path}: not an IDX file of images: its first four bytes are {magic.hex(' ')}, expected "
            f"{_IMAGES.hex(' ')}.{hint} Put the right file in its place."
        )
    if num_images == 0 or height == 0 or width == 0:
        raise InputError(
            f"{path}: the header announces {num_images} images of {height} x {width} pixels; at least one "
            f"image with at least one pixel is needed. {_RENEW}"
        )
    expected, got = num_images * height * width, len(content) - _HEADER.size
    if got != expected:
        what = "truncated" if got < expected else "too long"
        raise InputError(
            f"{path}: {what}: the header announces {num_images} images of {height} x {width} pixels, "
            f"{expected} bytes, and {got} bytes follow. {_RENEW}"
        )
    if md5 is not None and (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        raise InputError(
            f"{path}: the content is not the published one: MD5 of the uncompressed file {found}, "
            f"expected {md5}. {_RENEW}"
        )
    pixels = torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=_HEADER.size)
    return pixels.view(num_images, 1, height, width)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
    return unpacked(content, path, _RENEW)
