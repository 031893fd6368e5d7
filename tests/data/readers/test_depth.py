"""Images are read as they are or refused: bits per colour, grey or colour, and how many pixels."""

import gzip
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from miselbo.data.readers.decoding import Recipe, decode, inspect
from miselbo.data.readers.idx import read_idx_images
from miselbo.errors import InputError

COLOURS = {0: 1, 2: 3, 4: 2, 6: 4}  # PNG colour type -> samples per pixel


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, kind: int, bits: int, pixels: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(COLOURS)),
    st.sampled_from([8, 16]),
    st.integers(1, 5),
    st.integers(1, 5),
    st.data(),
)
def test_a_png_is_read_right_or_refused(tmp_path_factory, kind, bits, width, height, data):
    samples = COLOURS[kind]
    row = st.binary(min_size=width * samples * bits // 8, max_size=width * samples * bits // 8)
    rows = [data.draw(row) for _ in range(height)]
    path = tmp_path_factory.mktemp("png") / "a.png"
    path.write_bytes(png(width, height, kind, bits, b"".join(b"\0" + row for row in rows)))
    if bits == 16:
        with pytest.raises(InputError, match="more than 8 bits per colour"):
            inspect(path)
        with pytest.raises(InputError, match="more than 8 bits per colour"):
            decode(path, Recipe(height, width, 3))
        return
    channels = 1 if kind in (0, 4) else 3
    assert inspect(path) == (height, width, channels)
    stored = np.frombuffer(b"".join(rows), np.uint8).reshape(height, width, samples)[..., :channels]
    assert np.array_equal(decode(path, Recipe(height, width, channels)), stored.transpose(2, 0, 1))


@pytest.mark.parametrize("magic", [b"P2", b"P3", b"P5", b"P6"])
@pytest.mark.parametrize("largest", [15, 255, 256, 1000, 65535])
def test_ppm_by_its_largest_value(tmp_path, magic, largest):
    path, samples = tmp_path / "a.ppm", 3 if magic in (b"P3", b"P6") else 1
    one = (
        b"%d " % largest if magic in (b"P2", b"P3") else struct.pack(">H" if largest > 255 else ">B", largest)
    )
    path.write_bytes(magic + b"\n2 1\n%d\n" % largest + one * 2 * samples)
    if largest > 255:
        with pytest.raises(InputError, match="more than 8 bits per colour"):
            inspect(path)
    else:
        assert inspect(path) == (1, 2, samples)
        assert (decode(path, Recipe(1, 2, samples)) == 255).all()


def test_tiff_of_sixteen_bits(tmp_path):
    entries = [(256, 2), (257, 1), (258, 0), (259, 1), (262, 2), (273, 0), (277, 3), (278, 1), (279, 12)]
    start = 8 + 2 + 12 * len(entries) + 4
    table = b"".join(
        struct.pack("<HHII", tag, 3, 3 if tag == 258 else 1, {258: start, 273: start + 6}.get(tag, value))
        for tag, value in entries
    )
    content = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + table + struct.pack("<I", 0)
    (tmp_path / "a.tiff").write_bytes(content + struct.pack("<3H", 16, 16, 16) + bytes(range(12)))
    with pytest.raises(InputError, match="more than 8 bits per colour"):
        inspect(tmp_path / "a.tiff")


def test_a_grey_palette_is_grey_and_entries_without_a_pixel_do_not_count(tmp_path):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    for name, entries in (
        ("grey", [value for level in range(256) for value in (level,) * 3]),
        ("unused", [value for level in range(64) for value in (level,) * 3] + [255, 0, 0] * 192),
        ("used", [9, 8, 7] + [value for level in range(1, 256) for value in (level,) * 3]),
    ):
        palette = image.convert("P")
        palette.putpalette(entries)
        palette.save(tmp_path / f"{name}.png")
        assert inspect(tmp_path / f"{name}.png") == (8, 8, 3 if name == "used" else 1)
    assert np.array_equal(decode(tmp_path / "unused.png", Recipe(8, 8, 1))[0], np.asarray(image))


def test_a_bomb_is_refused_before_its_pixels(tmp_path):
    (tmp_path / "a.png").write_bytes(png(10**4, 10**4, 0, 8, b"\0" * 10**6))
    with (
        pytest.raises(InputError, match="10000 x 10000 pixels .*more than 67,108,864"),
        pytest.warns(match="bomb"),
    ):
        decode(tmp_path / "a.png", Recipe(8, 8, 1))


def test_another_format_under_a_picture_s_name_is_not_run(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(InputError, match="cannot be read as an image"):
        inspect(tmp_path / "a.png")


def test_a_gzipped_bomb_is_not_unpacked(tmp_path, monkeypatch):
    from miselbo.runtime import gzipped

    monkeypatch.setattr(gzipped, "LARGE", 10**4)
    content = bytes([0, 0, 8, 3]) + struct.pack(">3I", 1, 1000, 1000) + bytes(10**6)
    (tmp_path / "a").write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match="unpacks to more than"):
        read_idx_images(tmp_path / "a")
