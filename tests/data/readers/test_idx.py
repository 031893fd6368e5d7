"""IDX files: round trip, every kind of damage, where files are looked for, and the download."""

import gzip
import hashlib
import struct
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from miselbo.data import idx_images, read_idx_images
from miselbo.data.readers.idx_files import IdxCollection, IdxFile, locate
from miselbo.data.sources import load_idx
from miselbo.errors import InputError

TRAIN, TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"


def idx_bytes(pixels: np.ndarray) -> bytes:
    return bytes([0, 0, 8, pixels.ndim]) + struct.pack(f">{pixels.ndim}I", *pixels.shape) + pixels.tobytes()


def some_pixels(num: int, height: int = 4, width: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, height, width), dtype=np.uint8)


def put_pair(folder: Path, train: str = TRAIN, test: str = TEST) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = some_pixels(7), some_pixels(5, seed=1)
    for name, pixels in zip((train, test), arrays, strict=True):
        content = idx_bytes(pixels)
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return arrays


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory and an empty cache; returns the cache folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    return tmp_path / "cache" / "miselbo"


@pytest.mark.parametrize("name", [TRAIN, TRAIN + ".gz"])
def test_round_trip(tmp_path, name):
    train, _ = put_pair(tmp_path, train=name)
    images = read_idx_images(tmp_path / name)
    assert images.dtype == torch.uint8
    assert torch.equal(images, torch.from_numpy(train)[:, None])


def test_gzip_is_told_by_content_and_not_by_name(tmp_path):
    pixels = some_pixels(2)
    (tmp_path / "zipped").write_bytes(gzip.compress(idx_bytes(pixels)))
    (tmp_path / "plain.gz").write_bytes(idx_bytes(pixels))
    assert torch.equal(read_idx_images(tmp_path / "zipped"), read_idx_images(tmp_path / "plain.gz"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(idx_bytes(some_pixels(50)), mtime=0)[:-100], "damaged or truncated gzip"),
        (gzip.compress(idx_bytes(some_pixels(50)), mtime=0)[:6], "damaged or truncated gzip"),
        (b"\x1f\x8b" + b"no gzip at all", "damaged or truncated gzip"),
        (b"", "truncated: 0 bytes"),
        (idx_bytes(some_pixels(2))[:15], "truncated: 15 bytes"),
        (idx_bytes(some_pixels(2))[:-1], "truncated: the header announces 2 images of 4 x 3 pixels, 24"),
        (idx_bytes(some_pixels(2)) + b"\0", "too long"),
        (b"<!DOCTYPE html><html>", "not an IDX file of images: its first four bytes are 3c 21 44 4f"),
        (idx_bytes(np.zeros(20, np.uint8)), "00 00 08 01, expected 00 00 08 03. This is a file of labels"),
        (idx_bytes(some_pixels(0)), "announces 0 images"),
        (idx_bytes(some_pixels(2, width=0)), "4 x 0 pixels; at least one"),
    ],
)
def test_damage_is_one_clear_error_that_names_the_file(tmp_path, content, message):
    path = tmp_path / "broken-file"
    path.write_bytes(content)
    with pytest.raises(InputError, match="broken-file") as caught:
        read_idx_images(path)
    assert message in str(caught.value)


def test_unreadable_file(tmp_path):
    with pytest.raises(InputError, match="absent: cannot be read"):
        read_idx_images(tmp_path / "absent")


def test_md5_of_the_uncompressed_content(tmp_path):
    content = idx_bytes(some_pixels(2))
    (tmp_path / "file.gz").write_bytes(gzip.compress(content))
    assert len(read_idx_images(tmp_path / "file.gz", hashlib.md5(content).hexdigest())) == 2
    with pytest.raises(InputError, match="not the published one"):
        read_idx_images(tmp_path / "file.gz", "0" * 32)


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("style", ["-idx3", ".idx3"])
def test_name_styles(tmp_path, gz, style):
    train, test = (name.replace("-idx3", style) + gz for name in (TRAIN, TEST))
    arrays = put_pair(tmp_path, train, test)
    images = load_idx(IdxCollection("own", IdxFile(TRAIN), IdxFile(TEST)), root=tmp_path)
    assert torch.equal(images.train, torch.from_numpy(arrays[0])[:, None])
    assert torch.equal(images.test, torch.from_numpy(arrays[1])[:, None])


def test_search_order_without_a_root(elsewhere, tmp_path):
    system = str(tmp_path / "system")
    files = IdxCollection("own", IdxFile(TRAIN), IdxFile(TEST), folders=(system,), subfolders=("raw",))
    for folder in (elsewhere / "own", tmp_path / "system" / "raw", tmp_path / "data" / "own"):
        put_pair(folder)
        assert locate(files) == (folder / TRAIN, folder / TEST)


def test_a_named_root_is_the_only_place(elsewhere, tmp_path):
    put_pair(tmp_path / "data" / "own")
    put_pair(tmp_path / "named")
    (tmp_path / "named" / TEST).unlink()
    files = IdxCollection("own", IdxFile(TRAIN), IdxFile(TEST), mirrors=("http://localhost:9/",))
    with pytest.raises(InputError, match="image files not found") as caught:
        locate(files, root="named")
    message = str(caught.value)
    assert str(tmp_path / "named") in message and f"has only {TRAIN}" in message
    for part in (TEST, "t10k-images.idx3-ubyte", "dataset.download=true"):
        assert part in message
    with pytest.raises(InputError, match="no such folder"):
        locate(files, root=tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_two_image_sizes(tmp_path):
    put_pair(tmp_path)
    (tmp_path / TEST).write_bytes(idx_bytes(some_pixels(5, width=9)))
    with pytest.raises(InputError, match="4 x 3 pixels and .* of 4 x 9"):
        load_idx(IdxCollection("own", IdxFile(TRAIN), IdxFile(TEST)), root=tmp_path)


def test_own_files_make_a_data_module(elsewhere, tmp_path):
    arrays = put_pair(tmp_path / "data" / "own")
    data = idx_images(name="own", num_validation=2)
    assert (data.image.channels, data.image.height, data.image.width) == (1, 4, 3)
    grey = data.split("validation").grey(torch.arange(2))
    assert torch.equal(grey, torch.from_numpy(arrays[0][5:, None]) / 255)
    with pytest.raises(InputError, match=r"Put into one of them .* or set dataset\.root"):
        _ = idx_images(name="another", num_validation=2).image


@pytest.fixture
def server(tmp_path):
    """A web server on this machine with the gzipped pair; yields its address and the true collection."""
    folder = tmp_path / "served"
    put_pair(folder, TRAIN + ".gz", TEST + ".gz")
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *args: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(folder))) as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        address = f"http://127.0.0.1:{http.server_port}/"
        files = []
        for name in (TRAIN, TEST):
            packed = (folder / f"{name}.gz").read_bytes()
            hashes = [hashlib.md5(content).hexdigest() for content in (gzip.decompress(packed), packed)]
            files.append(IdxFile(name, *hashes))
        yield address, IdxCollection("own", *files, mirrors=(address + "absent/", address))
        http.shutdown()


def test_download_goes_to_the_cache_after_a_mirror_failed(elsewhere, server, capfd):
    images = load_idx(server[1])
    assert len(images.train) == 7
    assert {path.name for path in (elsewhere / "own").iterdir()} == {TRAIN + ".gz", TEST + ".gz"}
    assert "100%" in capfd.readouterr().err  # the progress bar
    assert torch.equal(load_idx(server[1], download=False).test, images.test)  # found there the next time


def test_download_into_a_named_root_only_when_asked(elsewhere, server, tmp_path):
    with pytest.raises(InputError, match=r"dataset\.download=true"):
        load_idx(server[1], root=tmp_path / "mine")
    assert len(load_idx(server[1], root=tmp_path / "mine", download=True).test) == 5
    assert (tmp_path / "mine" / (TEST + ".gz")).is_file()


def test_download_false_never_asks_the_network(elsewhere, server, monkeypatch):
    monkeypatch.setattr("pooch.retrieve", lambda *args, **kwargs: pytest.fail("asked the network"))
    with pytest.raises(InputError, match="image files not found"):
        load_idx(server[1], download=False)


def test_failed_download_says_what_to_put_where(elsewhere, server):
    address, files = server
    wrong = IdxCollection("own", IdxFile(TRAIN, gzip_md5="0" * 32), files.test, mirrors=(address,))
    unreachable = IdxCollection("own", files.train, files.test, mirrors=("http://127.0.0.1:9/",))
    for collection, reason in ((wrong, "hash"), (unreachable, "127.0.0.1")):
        with pytest.raises(InputError, match="download failed") as caught:
            load_idx(collection)
        for part in (reason, str(elsewhere / "own"), f"{TRAIN} and {TEST}", "dataset.root"):
            assert part in str(caught.value)
    assert not list((elsewhere / "own").glob("*"))  # nothing of it stays
