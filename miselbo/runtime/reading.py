"""Small files that anybody may have written: bounded in size and depth, an error that names the file."""

import json
import zipfile
from pathlib import Path
from typing import Any

from miselbo.errors import InputError

LARGEST, LARGEST_ARRAYS = 2**26, 2**32  # bytes of a JSON file, of the arrays in an .npz


def read_json(path: Path, largest: int = LARGEST) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: it cannot be read, has more than ``largest`` bytes, is no JSON, or is nested too deep.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "deep.json"
        >>> _ = path.write_text("[" * 10**6)
        >>> read_json(path)
        Traceback (most recent call last):
        ...
        miselbo.errors.InputError: ...deep.json cannot be read: ...
    """
    try:
        return parse_json(read_bytes(path, largest))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} cannot be read: no JSON, damaged or nested too deep ({str(error)[:120]})"
        ) from None


def parse_json(content: bytes) -> Any:
    """JSON in UTF-8.

    Raises:
        ValueError: it is none; RecursionError: it is nested too deep.
    """
    return json.loads(content.decode())


def read_bytes(path: Path, largest: int) -> bytes:
    """A file of at most ``largest`` bytes.

    Raises:
        InputError: it is larger, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > largest:
        raise InputError(f"{path} has more than {largest:,} bytes: damaged, or not of this project")
    return content


def check_archive(path: Path, largest: int = LARGEST_ARRAYS) -> None:
    """Refuse an .npz whose arrays would take more than ``largest`` bytes, before one is unpacked.

    Raises:
        InputError: it would, or it is no such archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if size > largest:
        raise InputError(f"{path} would unpack to {size:,} bytes: damaged, or not of this project")
