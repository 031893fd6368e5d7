"""Compiled kernels run wherever their cache can or cannot be: installation, temporary folder, none."""

import os
import sys
from pathlib import Path

import numba
import pytest
from numba.core import caching

from miselbo.runtime import compiled as module
from miselbo.runtime import files
from miselbo.runtime.compiled import compiled


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """Numba finds no place beside the source and none in the user's cache; the temporary folder is an empty one."""
    for kind in (caching.InTreeCacheLocator, caching.UserWideCacheLocator, caching.IPythonCacheLocator):
        monkeypatch.setattr(kind, "from_function", classmethod(lambda cls, *arguments: None))
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    for function in (files.own_temporary, module.say):
        function.cache_clear()
    yield tmp_path
    for function in (files.own_temporary, module.say):
        function.cache_clear()


def twice(x):
    return 2 * x


def kept(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.nb*") if path.is_file()]


def test_the_temporary_folder_is_used_and_one_notice_given(nowhere, capsys):
    for _ in range(2):
        assert compiled()(twice)(3.0) == 6.0
    (folder,) = nowhere.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(kept(folder)) == 2  # an index and one kernel, read by the second
    assert compiled()(twice)._cache.cache_path.startswith(str(folder))
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("how", ["open to others", "a link", "no folder at all"])
def test_a_folder_that_others_write_to_is_not_trusted(nowhere, capsys, how, monkeypatch):
    folder = nowhere / f"miselbo-{os.getuid()}"
    if how == "open to others":
        folder.mkdir()
        folder.chmod(0o777)
    elif how == "a link":
        (nowhere / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(nowhere / "elsewhere")
    else:
        folder.write_text("")
    assert compiled()(twice)(3.0) == 6.0
    assert not kept(nowhere)
    assert (
        capsys.readouterr().err == "compiled kernels cannot be kept anywhere: each run compiles them anew\n"
    )


def test_a_full_disk_and_a_damaged_cache_cost_time_alone(nowhere, capsys, monkeypatch):
    assert compiled()(twice)(3.0) == 6.0
    for path in kept(nowhere):
        path.write_bytes(path.read_bytes()[:7])
    assert compiled()(twice)(3.0) == 6.0

    def full(self, *arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    assert compiled()(twice)(3) == 6
    assert "(No space left on device): each run compiles them anew" in capsys.readouterr().err


def test_numba_s_private_parts_are_there():
    kernel = numba.njit(twice)
    assert isinstance(kernel._cache, caching.NullCache)
    assert hasattr(numba.config, "CACHE_DIR")
    assert compiled()(twice)._cache.cache_path.startswith(str(Path(sys.modules[__name__].__file__).parent))
