"""Compiled loops of NVAE's training step on a CPU, float32, channels last: arrays are [N, H, W, C].

Channels go through in blocks of constant size, so that the compiler uses vector instructions; an image's block is
copied into a small frame with a border of zeros that stays in the core's nearest cache.
"""

import numpy as np
from numba import njit

BLOCK = 32
B2, B3, B4, B5, B6, B7, B8 = (k * BLOCK for k in range(2, 9))
FAST = {"reassoc", "contract", "nsz", "arcp"}


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
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
        frame[:, :, size:] = 0.0
        row[:, size:] = 0.0
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


@njit(cache=True, nogil=True, error_model="numpy")
def copy(source, target):
    """Channels of one pixel."""
    if len(source) == BLOCK:
        for c in range(BLOCK):
            target[c] = source[c]
    else:
        for c in range(len(source)):
            target[c] = source[c]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
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
