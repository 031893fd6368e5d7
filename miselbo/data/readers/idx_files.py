"""Where IDX files are: a folder the user named, the usual folders, or a download into the cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import pooch

from miselbo.errors import InputError


@dataclass(frozen=True)
class IdxFile:
    """A published IDX file of images.

    Args:
        name: without ``.gz``, for example ``train-images-idx3-ubyte``.
        md5: of the uncompressed content; None when unknown.
        gzip_md5: of the gzipped file at ``mirrors``; None when there is nothing to download.
    """

    name: str
    md5: str | None = None
    gzip_md5: str | None = None

    def styles(self) -> tuple[str, str]:
        """The two names under which it is known, apart from ``.gz``.

        Example:
            >>> IdxFile("t10k-images-idx3-ubyte").styles()
            ('t10k-images-idx3-ubyte', 't10k-images.idx3-ubyte')
        """
        return self.name, self.name.replace("-idx", ".idx")

    def find(self, folder: Path) -> Path | None:
        """The file in ``folder``, or None; a plain one before a gzipped one."""
        paths = (folder / (style + suffix) for style in self.styles() for suffix in ("", ".gz"))
        return next((path for path in paths if path.is_file()), None)


@dataclass(frozen=True)
class IdxCollection:
    """A training file and a test file that belong together.

    Args:
        name: of the cache folder, for example ``mnist``.
        train: file of training images.
        test: file of test images.
        mirrors: addresses of folders that hold the gzipped files, tried in turn.
        folders: folders of the system where a package may have put them.
        subfolders: places below a folder where other libraries put them.
    """

    name: str
    train: IdxFile
    test: IdxFile
    mirrors: Sequence[str] = ()
    folders: Sequence[str] = ()
    subfolders: Sequence[str] = ()


def locate(
    files: IdxCollection, root: str | Path | None = None, download: bool | None = None
) -> tuple[Path, Path]:
    """Paths of the training and the test file.

    Args:
        files: what to look for.
        root: a folder that must hold the files; None looks in ``data/<name>`` of the working directory, in
            ``files.folders`` and in the user's cache, in this order.
        download: what to do when they are in none of these. None: download into the cache if ``root`` is
            None, else stop. True: download, into ``root`` if it is given. False: stop.

    Raises:
        InputError: the files are nowhere, or the download fails. The message says what to put where.
    """
    cache = Path(pooch.os_cache("miselbo")) / files.name
    if root is not None:
        target = Path(root).expanduser().resolve()
        folders = [target]
    else:
        target = cache
        folders = [Path("data", files.name).absolute(), *map(Path, files.folders), cache]
    for folder in folders:
        for place in (folder, *(folder / below for below in files.subfolders)):
            train, test = files.train.find(place), files.test.find(place)
            if train is not None and test is not None:
                return train, test
    if download is None:
        download = root is None
    if not download or not files.mirrors:
        raise InputError(_not_found(files, folders, named=root is not None))
    return _download(files, files.train, target), _download(files, files.test, target)


def _names(files: IdxCollection) -> str:
    pairs = zip(files.train.styles(), files.test.styles(), strict=True)
    return " (or ".join(f"{train} and {test}" for train, test in pairs) + "), gzipped (.gz) or not"


def _not_found(files: IdxCollection, folders: Sequence[Path], *, named: bool) -> str:
    looked = "; ".join(f"{folder} ({_state(files, folder)})" for folder in folders)
    where = "there" if named else "into one of them"
    origin = f" (from {files.mirrors[0]})" if files.mirrors else ""
    ways = [f"Put {where} {_names(files)}{origin}", "or set dataset.root to the folder that has them"]
    if files.mirrors:
        ways.append(f"or set dataset.download=true to download them into {folders[-1]}")
    return f"{files.name}: image files not found. Looked in {looked}. {', '.join(ways)}."


def _state(files: IdxCollection, folder: Path) -> str:
    if not folder.is_dir():
        return "no such folder"
    found = [path.name for path in (files.train.find(folder), files.test.find(folder)) if path is not None]
    return f"has only {found[0]}" if found else "has neither file"


def _download(files: IdxCollection, file: IdxFile, folder: Path) -> Path:
    if (present := file.find(folder)) is not None:
        return present
    failures = []
    for mirror in files.mirrors:
        url = f"{mirror.rstrip('/')}/{file.name}.gz"
        known_hash = None if file.gzip_md5 is None else f"md5:{file.gzip_md5}"
        try:
            path = pooch.retrieve(url, known_hash, fname=f"{file.name}.gz", path=folder, progressbar=True)
            return Path(path)
        except (OSError, ValueError) as error:  # no network, no such address, cannot write; another hash
            failures.append(f"{url}: {type(error).__name__}, {shorten(str(error), 120, placeholder=' ...')}")
    raise InputError(
        f"{files.name}: download failed ({'; '.join(failures)}). By hand: put {_names(files)} into {folder}, "
        f"or into any folder and set dataset.root to it."
    )
