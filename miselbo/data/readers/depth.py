"""What an image file holds, before its pixels are taken: bits per colour, grey or colour, and how many pixels."""

import re

from PIL import Image

FORMATS = (
    "PNG",
    "JPEG",
    "BMP",
    "GIF",
    "WEBP",
    "TIFF",
    "PPM",
)  # by content; no reader that starts another program
LARGEST = 2**26  # pixels of one image; a file of some kilobytes can announce thousands of times more
BITS_PER_SAMPLE = 258  # tag of TIFF
_GREY = ("1", "L", "LA")
_COLOUR = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB")


def refusal(image: Image.Image) -> str | None:
    """Why an opened image cannot be read without loss or at all, as the end of a sentence; None where it can.

    Pillow cuts colour, and grey with alpha, of 16 bits to 8 without a word: the raw form says so.

    Example:
        >>> refusal(Image.new("RGB", (4, 4))), refusal(Image.new("I;16", (4, 4)))
        (None, "an image of mode 'I;16' (more than 8 bits per colour); expected 8 bits: convert it first")
    """
    if image.width * image.height > LARGEST:
        return f"{image.width} x {image.height} pixels (width x height), more than {LARGEST:,} in all; scale it first"
    if image.mode in _GREY + _COLOUR and not _deep(image):
        return None
    return f"an image of mode {image.mode!r} (more than 8 bits per colour); expected 8 bits: convert it first"


def channels(image: Image.Image) -> int:
    """1 for grey, a palette of which only greys are used included; else 3.

    Example:
        >>> ramp = Image.linear_gradient("L")
        >>> channels(ramp.convert("P")), channels(Image.new("P", (1, 1))), channels(Image.new("RGB", (1, 1)))
        (1, 1, 3)
    """
    if image.mode in _GREY:
        return 1
    if image.mode not in ("P", "PA"):
        return 3
    palette = image.palette
    if palette is not None and _all_grey(image.getpalette("RGB") or []):
        return 1
    pixels = image.convert("RGB").getcolors(257)  # entries that no pixel uses do not count
    return 1 if all(_all_grey(colour) for _, colour in pixels or [(1, (0, 1, 2))]) else 3


def _all_grey(values: object) -> bool:
    flat = list(values)  # type: ignore[call-overload]
    return flat[0::3] == flat[1::3] == flat[2::3]


def _deep(image: Image.Image) -> bool:
    """Whether the file has more than 8 bits per colour, whatever the mode that Pillow turns it into."""
    for tile in getattr(image, "tile", []):
        arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if any(isinstance(value, str) and re.search(r";16[BLN]$", value) for value in arguments):
            return True
        if tile.codec_name.startswith("ppm") and arguments[-1] > 255:  # the largest value of a PPM file
            return True
    bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,))
    return max(bits) > 8
