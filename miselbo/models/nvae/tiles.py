"""Compiled transforms of Winograd's convolution (:mod:`miselbo.models.nvae.winograd`), float32.

Images are [N, H, W, C], tiles [36, N H W / 16, C], first index 6 * row + column. Every two-dimensional transform is a
one-dimensional one of the columns, then of the rows. Channels go through in blocks of constant size, so that the
compiler uses vector instructions; an image's block is in a frame, for the input with a border of zeros, that stays in
the core's nearest cache.
"""

import numpy as np

from miselbo.models.nvae.kernels import BLOCK, compiled, copy, inlined

B2, B3, B4, B5, B6 = (k * BLOCK for k in range(2, 7))
TWO, FOUR, FIVE, EIGHT = (np.float32(k) for k in (2, 4, 5, 8))


@compiled
def cut(x, tiles, first, last):
    """B^T d B of every 6x6 tile d of the images first..last: x [N, H, W, C], ``tiles`` filled."""
    height, width, channels = x.shape[1:]
    frame = np.zeros((height + 2, width + 2, BLOCK), np.float32)
    flat, stride = frame.reshape(-1), (width + 2) * BLOCK
    half, whole = np.zeros(36 * BLOCK, np.float32), np.zeros(36 * BLOCK, np.float32)
    for start in range(0, channels, BLOCK):
        size = min(BLOCK, channels - start)
        for n in range(first, last):
            for h in range(height):
                for w in range(width):
                    copy(x[n, h, w, start : start + size], frame[h + 1, w + 1])
            t = n * (height // 4) * (width // 4)
            for h in range(0, height, 4):
                for w in range(0, width, 4):
                    cut_columns(half, *six_rows(flat, h * stride + w * BLOCK, stride))
                    for k in range(0, 36 * BLOCK, B6):
                        cut_row(half[k : k + B6], whole[k : k + B6])
                    for k in range(36):
                        copy(whole[k * BLOCK : k * BLOCK + size], tiles[k, t, start : start + size])
                    t += 1


@compiled
def cut_adjoint(tiles, x, first, last):
    """Adjoint of :func:`cut`: ``x`` filled."""
    height, width, channels = x.shape[1:]
    frame = np.zeros((height + 2, width + 2, BLOCK), np.float32)
    flat, stride = frame.reshape(-1), (width + 2) * BLOCK
    half, whole = np.zeros(36 * BLOCK, np.float32), np.zeros(36 * BLOCK, np.float32)
    for start in range(0, channels, BLOCK):
        size = min(BLOCK, channels - start)
        for n in range(first, last):
            flat[:] = np.float32(0)
            t = n * (height // 4) * (width // 4)
            for h in range(0, height, 4):
                for w in range(0, width, 4):
                    for k in range(36):
                        copy(tiles[k, t, start : start + size], whole[k * BLOCK : k * BLOCK + BLOCK])
                    for k in range(0, 36 * BLOCK, B6):
                        cut_row_adjoint(whole[k : k + B6], half[k : k + B6])
                    cut_columns_adjoint(half, *six_rows(flat, h * stride + w * BLOCK, stride))
                    t += 1
            for h in range(height):
                for w in range(width):
                    copy(frame[h + 1, w + 1, :size], x[n, h, w, start : start + size])


@compiled
def join(tiles, bias, y, first, last):
    """A^T M A of every tile M, plus the bias [C]: y [N, H, W, C] filled for the images first..last."""
    height, width, channels = y.shape[1:]
    rows = np.zeros((4, width, BLOCK), np.float32)
    flat, stride = rows.reshape(-1), width * BLOCK
    half, whole = np.zeros(24 * BLOCK, np.float32), np.zeros(36 * BLOCK, np.float32)
    for start in range(0, channels, BLOCK):
        size = min(BLOCK, channels - start)
        shift = bias[start : start + size]
        for n in range(first, last):
            t = n * (height // 4) * (width // 4)
            for h in range(0, height, 4):
                for w in range(0, width, 4):
                    for k in range(36):
                        copy(tiles[k, t, start : start + size], whole[k * BLOCK : k * BLOCK + BLOCK])
                    join_columns(whole, half)
                    for r in range(4):
                        a = r * stride + w * BLOCK
                        join_row(half[r * B6 : r * B6 + B6], flat[a : a + B4])
                    t += 1
                for r in range(4):
                    for w in range(width):
                        target = y[n, h + r, w, start : start + size]
                        for c in range(size):
                            target[c] = rows[r, w, c] + shift[c]


@compiled
def join_adjoint(y, tiles, first, last):
    """Adjoint of :func:`join` without the bias: ``tiles`` filled."""
    height, width, channels = y.shape[1:]
    rows = np.zeros((4, width, BLOCK), np.float32)
    flat, stride = rows.reshape(-1), width * BLOCK
    half, whole = np.zeros(24 * BLOCK, np.float32), np.zeros(36 * BLOCK, np.float32)
    for start in range(0, channels, BLOCK):
        size = min(BLOCK, channels - start)
        for n in range(first, last):
            t = n * (height // 4) * (width // 4)
            for h in range(0, height, 4):
                for r in range(4):
                    for w in range(width):
                        copy(y[n, h + r, w, start : start + size], rows[r, w])
                for w in range(0, width, 4):
                    for r in range(4):
                        a = r * stride + w * BLOCK
                        join_row_adjoint(flat[a : a + B4], half[r * B6 : r * B6 + B6])
                    join_columns_adjoint(half, whole)
                    for k in range(36):
                        copy(whole[k * BLOCK : k * BLOCK + size], tiles[k, t, start : start + size])
                    t += 1


@inlined
def six_rows(flat, start, stride):
    """Six pixels of each of the six rows of a frame that begin at ``start``."""
    return (
        flat[start : start + B6],
        flat[start + stride : start + stride + B6],
        flat[start + 2 * stride : start + 2 * stride + B6],
        flat[start + 3 * stride : start + 3 * stride + B6],
        flat[start + 4 * stride : start + 4 * stride + B6],
        flat[start + 5 * stride : start + 5 * stride + B6],
    )


@inlined
def into(d0, d1, d2, d3, d4, d5):
    """B^T d."""
    p, q, r, s = d4 - FOUR * d2, d3 - FOUR * d1, d4 - d2, TWO * (d3 - d1)
    return FOUR * d0 - FIVE * d2 + d4, p + q, p - q, r + s, r - s, FOUR * d1 - FIVE * d3 + d5


@inlined
def into_adjoint(v0, v1, v2, v3, v4, v5):
    """B v."""
    p, q, r, s = v1 + v2, v1 - v2, v3 + v4, v3 - v4
    return (
        FOUR * v0,
        FOUR * (v5 - q) - TWO * s,
        -FIVE * v0 - FOUR * p - r,
        q + TWO * s - FIVE * v5,
        v0 + p + r,
        v5,
    )


@inlined
def out_of(m0, m1, m2, m3, m4, m5):
    """A^T m."""
    p, q, r, s = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return m0 + p + r, q + TWO * s, p + FOUR * r, q + EIGHT * s + m5


@inlined
def out_of_adjoint(g0, g1, g2, g3):
    """A g."""
    p, q, r, s = g0 + g2, g1 + g3, g0 + FOUR * g2, TWO * g1 + EIGHT * g3
    return g0, p + q, p - q, r + s, r - s, g3


@compiled
def cut_columns(out, d0, d1, d2, d3, d4, d5):
    """B^T d of six rows of six pixels."""
    for c in range(B6):
        o0, o1, o2, o3, o4, o5 = into(d0[c], d1[c], d2[c], d3[c], d4[c], d5[c])
        out[c], out[c + B6], out[c + 2 * B6] = o0, o1, o2
        out[c + 3 * B6], out[c + 4 * B6], out[c + 5 * B6] = o3, o4, o5


@compiled
def cut_row(d, out):
    """d B of one row of six pixels."""
    for c in range(BLOCK):
        o0, o1, o2, o3, o4, o5 = into(d[c], d[c + BLOCK], d[c + B2], d[c + B3], d[c + B4], d[c + B5])
        out[c], out[c + BLOCK], out[c + B2] = o0, o1, o2
        out[c + B3], out[c + B4], out[c + B5] = o3, o4, o5


@compiled
def cut_row_adjoint(v, out):
    """v B^T of one row of six pixels."""
    for c in range(BLOCK):
        o0, o1, o2, o3, o4, o5 = into_adjoint(v[c], v[c + BLOCK], v[c + B2], v[c + B3], v[c + B4], v[c + B5])
        out[c], out[c + BLOCK], out[c + B2] = o0, o1, o2
        out[c + B3], out[c + B4], out[c + B5] = o3, o4, o5


@compiled
def cut_columns_adjoint(v, d0, d1, d2, d3, d4, d5):
    """Add B v to six rows of six pixels."""
    for c in range(B6):
        o0, o1, o2, o3, o4, o5 = into_adjoint(
            v[c], v[c + B6], v[c + 2 * B6], v[c + 3 * B6], v[c + 4 * B6], v[c + 5 * B6]
        )
        d0[c] += o0
        d1[c] += o1
        d2[c] += o2
        d3[c] += o3
        d4[c] += o4
        d5[c] += o5


@compiled
def join_columns(m, out):
    """A^T m: four rows of six from six."""
    for c in range(B6):
        o0, o1, o2, o3 = out_of(m[c], m[c + B6], m[c + 2 * B6], m[c + 3 * B6], m[c + 4 * B6], m[c + 5 * B6])
        out[c], out[c + B6], out[c + 2 * B6], out[c + 3 * B6] = o0, o1, o2, o3


@compiled
def join_row(m, out):
    """m A of one row: four pixels from six."""
    for c in range(BLOCK):
        o0, o1, o2, o3 = out_of(m[c], m[c + BLOCK], m[c + B2], m[c + B3], m[c + B4], m[c + B5])
        out[c], out[c + BLOCK], out[c + B2], out[c + B3] = o0, o1, o2, o3


@compiled
def join_row_adjoint(g, out):
    """g A^T of one row: six from four pixels."""
    for c in range(BLOCK):
        o0, o1, o2, o3, o4, o5 = out_of_adjoint(g[c], g[c + BLOCK], g[c + B2], g[c + B3])
        out[c], out[c + BLOCK], out[c + B2] = o0, o1, o2
        out[c + B3], out[c + B4], out[c + B5] = o3, o4, o5


@compiled
def join_columns_adjoint(g, out):
    """A g: six rows of six from four."""
    for c in range(B6):
        o0, o1, o2, o3, o4, o5 = out_of_adjoint(g[c], g[c + B6], g[c + 2 * B6], g[c + 3 * B6])
        out[c], out[c + B6], out[c + 2 * B6] = o0, o1, o2
        out[c + 3 * B6], out[c + 4 * B6], out[c + 5 * B6] = o3, o4, o5
