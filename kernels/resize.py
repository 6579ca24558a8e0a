"""Pillow's resize of RGB pictures, bit for bit, in vectors: the largest part of preprocessing.

Pillow resizes columns, rounds to 8 bits, and then resizes rows. A number of the result is a sum over a few neighbours, each
times a whole number (a weight of 22 binary digits), shifted back and clipped. Pillow adds one pixel of three numbers after the
other; but neighbours in a *column* have their neighbours in the same order, so that sixteen numbers of a row can be added at
once. `resample` does that, for rows. Columns go the same way, on the transposed picture: turning it costs less than it gains.

    resample: (M rows, N numbers) uint8 -> (O rows, N) uint8, each a weighted sum of the rows from `first` on
    turn:     (H, W) pixels -> (W, H), of three bytes
    turn_to_planes, resample_to_numbers: the same two, the second time: reds, greens and blues of a row by themselves, and
              sums become the network's numbers at once

They are in resample.py. Source: Pillow, src/libImaging/Resample.c (`precompute_coeffs`, `normalize_coeffs_8bpc`), for
bilinear and bicubic.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from effnet_np.images import processor
from effnet_np.kernels import library

DIGITS = 22  # binary, of a weight: 32, less 8 of a pixel, and 2 to spare
BILINEAR, BICUBIC = 2, 3  # Pillow's numbers
SUPPORT = {BILINEAR: 1.0, BICUBIC: 2.0}  # how far the filter reaches


def _filter(x: np.ndarray, resample: int) -> np.ndarray:
    x = np.abs(x)
    if resample == BILINEAR:
        return np.where(x < 1, 1 - x, 0)
    near, far = ((-0.5 + 2) * x - (-0.5 + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0))


@functools.lru_cache(maxsize=256)
def weights(size: int, wanted: int, filter: int) -> np.ndarray:
    """(wanted, 2 + taps) int32: for each number of a row of `wanted`, the first of `size`, how many, and their weights."""
    scale = size / wanted
    reach = SUPPORT[filter] * max(scale, 1.0)
    taps = math.ceil(reach) * 2 + 1
    center = (np.arange(wanted) + 0.5) * scale
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    count = np.minimum((center + reach + 0.5).astype(np.int64), size) - first
    table = np.zeros((wanted, taps))
    total = np.zeros(wanted)
    for tap in range(taps):  # added one after the other, as Pillow does
        inside = tap < count
        weight = _filter((tap + first - center + 0.5) * (1.0 / max(scale, 1.0)), filter)
        table[:, tap] = np.where(inside, weight, 0)
        total += table[:, tap]
    table /= total[:, None]
    whole = np.trunc(np.where(table < 0, -0.5, 0.5) + table * (1 << DIGITS))
    return np.ascontiguousarray(np.concatenate([first[:, None], count[:, None], whole], axis=1).astype(np.int32))


@functools.cache
def _kernels():
    counts = {"resample": 6, "turn": 6, "resample_to_numbers": 8, "turn_to_planes": 4}
    return [library.function(name, count) for name, count in counts.items()]


def takes(image: np.ndarray, height: int, width: int, resample: int) -> bool:
    """Whether the kernels know this case: RGB, of three or four bytes a pixel, without gaps in a row, a filter from above.

    And a picture that is no taller than wide, and shrinks no more in height than in width: else Pillow 13 may resize rows
    first, which older ones do not, and which rounds otherwise.
    """
    rgb = image.dtype == np.uint8 and image.shape[2:] == (3,) and image.strides[1:] in ((3, 1), (4, 1)) and image.size > 0
    return (
        rgb and resample in SUPPORT and image.shape[0] <= image.shape[1] and image.shape[0] * width <= image.shape[1] * height
    )


def resize(image: np.ndarray, height: int, width: int, resample: int) -> np.ndarray:
    """`processor.resize`: (H, W, C) -> (height, width, C), what Pillow's `resize` gives, by the kernels where they know it."""
    if not takes(image, height, width, resample):
        return processor.resize(image, height, width, resample)
    narrow = _narrowed(image, width, resample)
    turned = np.empty((narrow.shape[1], width, 3), np.uint8)
    _kernels()[1](narrow.ctypes.data, narrow.strides[0], 3, turned.ctypes.data, *narrow.shape[:2])
    return turned if height == len(turned) else _added(turned, height, resample)


def _narrowed(image: np.ndarray, width: int, resample: int) -> np.ndarray:
    """(H, W, 3) -> (width, H, 3): columns are resized, as rows of the turned picture."""
    height = image.shape[0]
    turned = np.empty((image.shape[1], height, 3), np.uint8)
    _kernels()[1](image.ctypes.data, *image.strides[:2], turned.ctypes.data, *image.shape[:2])
    return turned if width == len(turned) else _added(turned, width, resample)


def _added(source: np.ndarray, wanted: int, resample: int) -> np.ndarray:
    """(M, N, 3) -> (wanted, N, 3)"""
    plan = weights(len(source), wanted, resample)
    out = np.empty((wanted, *source.shape[1:]), np.uint8)
    numbers, taps = source[0].size, plan.shape[1] - 2
    _kernels()[0](source.ctypes.data, numbers, out.ctypes.data, wanted, plan.ctypes.data, taps)
    return out


def network_input(settings: processor.EfficientNetImageProcessor, pixels: np.ndarray) -> np.ndarray:
    """`settings.network_input`: (H, W, C) uint8 -> (C, h, w); by the kernels where they know it."""
    if not settings.do_resize or settings.do_center_crop or pixels.shape[2:] != (3,):
        return settings.network_input(pixels, resize)
    image, table = settings.cut(pixels), settings.table(3)
    height, width = settings.resized(*image.shape[:2])
    if table.dtype != np.float32 or not takes(image, height, width, settings.resample):
        return settings.network_input(pixels, resize)
    narrow = _narrowed(image, width, settings.resample)
    rows = narrow.shape[1]
    planes = np.empty((rows + 1, 3, width), np.uint8)  # a row more, for what is made of them
    plan = weights(rows, height, settings.resample)
    numbers = np.empty((3, height, width), np.float32)
    _, _, resample_to_numbers, turn_to_planes = _kernels()
    turn_to_planes(narrow.ctypes.data, planes.ctypes.data, width, rows)
    arguments = (height, plan.ctypes.data, plan.shape[1] - 2, table.ctypes.data, planes[rows].ctypes.data)
    resample_to_numbers(planes.ctypes.data, width, numbers.ctypes.data, *arguments)
    return numbers
