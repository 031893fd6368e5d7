"""Unpacking gzipped files that others made, without letting a few kilobytes fill the memory."""

import gzip
import io
import zlib
from pathlib import Path

from miselbo.errors import InputError
from miselbo.runtime.words import shown

MAGIC = b"\x1f\x8b"
LARGE, RATIO = (
    2**28,
    100,
)  # bytes that are always unpacked, and how many times the packed ones: images and text need 10


def unpacked(content: bytes, path: Path, fix: str) -> bytes:
    """The content of a file: unpacked if it is gzipped, as it is otherwise.

    Args:
        content: of the file.
        path: its name, for messages.
        fix: what to do about a bad one.

    Raises:
        InputError: damaged, truncated, or more than ``RATIO`` times as large unpacked.

    Example:
        >>> unpacked(gzip.compress(b"ACGT"), Path("a.gz"), ""), unpacked(b"ACGT", Path("a"), "")
        (b'ACGT', b'ACGT')
    """
    if not content.startswith(MAGIC):
        return content
    most = max(LARGE, RATIO * len(content))
    try:
        with gzip.open(io.BytesIO(content)) as file:
            found = file.read(most + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{shown(path)}: damaged or truncated gzip file ({error}). {fix}") from None
    if len(found) > most:
        raise InputError(
            f"{shown(path)}: a gzipped file of {len(content):,} bytes that unpacks to more than {most:,}: no data of "
            f"ours are like that. {fix}"
        )
    return found
