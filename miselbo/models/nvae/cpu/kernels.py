"""Compiled loops of NVAE's training step on a CPU, float32, channels last: arrays are [N, H, W, C].

Channels go through in blocks of constant size, so that the compiler uses vector instructions; an image's block is
copied into a small frame with a border of zeros that stays in the core's nearest cache.
"""

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from miselbo.runtime import compiled as caching

BLOCK = 32
B2, B3, B4, B5, B6, B7, B8 = (k * BLOCK for k in range(2, 9))
compiled = caching.compiled(nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"})
inlined = njit(inline="always")
CHUNK = 64  # rows whose sums are taken in float32, before they go into float64
ONE, HALF = np.float32(1), np.float32(0.5)
LARGEST = np.float32(87)  # of an exponent
PER_DOUBLING = np.float32(1 / np.log(2))
DOUBLING = np.float32(np.floor(np.log(2) * 512) / 512)  # log 2 in two parts: n times the first is exact
DOUBLING_REST = np.float32(np.log(2) - np.floor(np.log(2) * 512) / 512)
C2, C3, C4, C5, C6 = (np.float32(1 / k) for k in (2, 6, 24, 120, 720))


@compiled
def depthwise_gradient(x, gradient, first, last, out):
    """Kernel gradient of a 5 x 5 depthwise convolution that keeps the size, of images first..last.

    Args:
        x, gradient: input and gradient of the output [N, H, W, C].
        first, last: range of images.
        out: [25, C], filled: sum over images and pixels of gradient times the input the tap sees.
    """
    height, width, channels = x.shape[1:]
    wide = -(-width // 4) * 4
    stride = (wide + 4) * BLOCK
    frame = np.zeros((height + 4, wide + 4, BLOCK), np.float32)
    row = np.zeros((wide, BLOCK), np.float32)
    pixels, row_pixels = frame.reshape(-1), row.reshape(-1)
    taps = np.empty(25 * BLOCK, np.float32)
    for start in range(0, channels, BLOCK):
        size = min(BLOCK, channels - start)
        taps[:] = 0.0
        for n in range(first, last):
            for h in range(height):
                for w in range(width):
                    copy(x[n, h, w, start : start + size], frame[h + 2, w + 2])
            for h in range(height):
                for w in range(width):
                    copy(gradient[n, h, w, start : start + size], row[w])
                for r in range(max(0, 2 - h), min(5, height + 2 - h)):
                    for w in range(0, wide, 4):
                        corner = (h + r) * stride + w * BLOCK
                        five_taps(
                            pixels[corner : corner + B8],
                            row_pixels[w * BLOCK : w * BLOCK + B4],
                            taps[r * B5 : r * B5 + B5],
                        )
        for tap in range(25):
            copy(taps[tap * BLOCK : tap * BLOCK + size], out[tap, start : start + size])


@compiled
def copy(source, target):
    """Channels of one pixel."""
    if len(source) == BLOCK:
        for c in range(BLOCK):
            target[c] = source[c]
    else:
        for c in range(len(source)):
            target[c] = source[c]


@compiled
def five_taps(x, g, taps):
    """Four neighbouring gradients g against the eight inputs x that five neighbouring taps see of them."""
    for c in range(BLOCK):
        x0, x1, x2, x3 = x[c], x[c + BLOCK], x[c + B2], x[c + B3]
        x4, x5, x6, x7 = x[c + B4], x[c + B5], x[c + B6], x[c + B7]
        g0, g1, g2, g3 = g[c], g[c + BLOCK], g[c + B2], g[c + B3]
        taps[c] += g0 * x0 + g1 * x1 + g2 * x2 + g3 * x3
        taps[c + BLOCK] += g0 * x1 + g1 * x2 + g2 * x3 + g3 * x4
        taps[c + B2] += g0 * x2 + g1 * x3 + g2 * x4 + g3 * x5
        taps[c + B3] += g0 * x3 + g1 * x4 + g2 * x5 + g3 * x6
        taps[c + B4] += g0 * x4 + g1 * x5 + g2 * x6 + g3 * x7


@compiled
def moments(x, origin, out, first, last):
    """Add the sums of x - origin and of its square over the rows first..last to ``out`` [2, C]."""
    sums = np.empty((2, x.shape[1]), np.float32)
    for start in range(first, last, CHUNK):
        sums[:] = np.float32(0)
        for r in range(start, min(start + CHUNK, last)):
            add_moments(x[r], origin, sums[0], sums[1])
        out += sums


@compiled
def add_moments(x, origin, total, squares):
    """One row of :func:`moments`."""
    for c in range(len(x)):
        d = x[c] - origin[c]
        total[c] += d
        squares[c] += d * d


@compiled
def swish(x, scale, shift, y, first, last):
    """y = z sigmoid(z), z = scale x + shift, of the rows first..last."""
    for r in range(first, last):
        swish_row(x[r], scale, shift, y[r])


@compiled
def swish_row(x, scale, shift, y):
    """One row of :func:`swish`."""
    for c in range(len(x)):
        z = x[c] * scale[c] + shift[c]
        y[c] = z * sigmoid(z)


@compiled
def swish_gradient(x, gradient, out, scale, shift, mean, sums, first, last):
    """Gradient dz of z in :func:`swish` into ``out``; the sums of dz and dz (x - mean) are added to ``sums`` [2, C]."""
    part = np.empty((2, x.shape[1]), np.float32)
    for start in range(first, last, CHUNK):
        part[:] = np.float32(0)
        for r in range(start, min(start + CHUNK, last)):
            swish_gradient_row(x[r], gradient[r], out[r], scale, shift, mean, part[0], part[1])
        sums += part


@compiled
def swish_gradient_row(x, gradient, out, scale, shift, mean, total, along):
    """One row of :func:`swish_gradient`."""
    for c in range(len(x)):
        z = x[c] * scale[c] + shift[c]
        s = sigmoid(z)
        d = gradient[c] * s * (ONE + z * (ONE - s))
        out[c] = d
        total[c] += d
        along[c] += d * (x[c] - mean[c])


@compiled
def add_line(out, x, scale, offset, slope, first, last):
    """out = scale out + offset + slope x, in place, of the rows first..last."""
    for r in range(first, last):
        add_line_row(out[r], x[r], scale, offset, slope)


@compiled
def add_line_row(out, x, scale, offset, slope):
    """One row of :func:`add_line`."""
    for c in range(len(x)):
        out[c] = scale[c] * out[c] + (offset[c] + slope[c] * x[c])


def _float_of(typing_context, bits):
    """The float32 with these 32 bits."""

    def generate(context, builder, signature, arguments):
        from llvmlite import ir

        return builder.bitcast(builder.trunc(arguments[0], ir.IntType(32)), ir.FloatType())

    return types.float32(types.int64), generate


float_of: Any = intrinsic(_float_of)


@inlined
def sigmoid(z):
    """1 / (1 + e^-z); e^t = 2^n e^r with |r| <= log(2) / 2, and e^r by its series, to a rounding error of float32."""
    t = min(max(-z, -LARGEST), LARGEST)
    n = np.floor(t * PER_DOUBLING + HALF)
    r = (t - n * DOUBLING) - n * DOUBLING_REST
    series = ONE + r * (ONE + r * (C2 + r * (C3 + r * (C4 + r * (C5 + r * C6)))))
    return ONE / (ONE + series * float_of((np.int32(n) + 127) << 23))
