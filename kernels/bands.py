"""Into how many bands of rows or positions a step is cut: enough for every thread to have its share, and no more."""

from __future__ import annotations

import functools
import math

from effnet_np.kernels.record import Cut
from effnet_np.kernels.tiling import group_edges, group_start


def makespan(tasks: list[float], threads: int) -> float:
    """When the last of the tasks is done, if each thread takes the next one whenever it is free."""
    free = [0.0] * threads
    for cost in tasks:
        first = min(range(threads), key=free.__getitem__)
        free[first] += cost
    return max(free)


def cost_of(tasks: list[float]) -> float:
    """Of a cut, for one, two, four and eight threads."""
    return sum(weight * threads * makespan(tasks, threads) for threads, weight in ((1, 1.0), (2, 1.0), (4, 0.5), (8, 0.25)))


def best_bands(most: int, tasks_for) -> int:
    """How many bands to cut into: more give every thread its share, but each costs something. `tasks_for(bands)`: costs.

    The answer must not depend on the number of threads, because sums over a band are added up band by band and the
    result is to be the same for any number. So it is the one that is good for one, two, four and eight.
    """
    best, best_cost = 1, math.inf
    for bands in sorted({b for b in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16) if b <= most} | {most}):
        cost = cost_of(tasks_for(bands))
        if cost < best_cost * 0.999:
            best, best_cost = bands, cost
    return best


def group_sizes(blocks: int) -> list[int]:
    edges = group_edges(blocks)
    return [last - first for first, last in zip(edges, edges[1:], strict=False)]


@functools.lru_cache(maxsize=4096)
def depthwise_bands(blocks: int, input_cycles: int, output_cycles: int, window) -> int:
    """For an expansion and its depthwise convolution: for every register of input so many cycles, and of output."""
    sizes = group_sizes(blocks)

    def tasks_for(bands):
        tasks = []
        for band in range(bands):
            y0, y1 = band * window.out_height // bands, (band + 1) * window.out_height // bands
            first = y0 * window.stride - window.top
            rows_in = min(window.height, (y1 - 1) * window.stride - window.top + window.kernel) - max(0, first)
            cycles = rows_in * window.width * input_cycles + (y1 - y0) * window.out_width * output_cycles
            tasks += [size * cycles + 1000 for size in sizes]
        return tasks

    return best_bands(min(window.out_height, 16), tasks_for)


@functools.lru_cache(maxsize=4096)
def fused_bands(blocks: int, copy_cycles: int, output_cycles: int, window) -> int:
    """For a full convolution: each group copies its input rows, so many cycles a column, and computes registers of output."""
    sizes = group_sizes(blocks)

    def tasks_for(bands):
        tasks = []
        for band in range(bands):
            rows = (band + 1) * window.out_height // bands - band * window.out_height // bands
            copied = (rows * window.stride + window.kernel - window.stride) * window.width * copy_cycles
            tasks += [size * rows * window.out_width * output_cycles + copied + 1000 for size in sizes]
        return tasks

    return best_bands(min(window.out_height, 16), tasks_for)


@functools.lru_cache(maxsize=4096)
def tiled_cut(sizes: tuple[int, ...], rows: int, row_cycles: int, block_cycles: int) -> Cut:
    """For rows of tiles and groups of output blocks of those sizes, each of which a task may have several.

    `row_cycles`: for a row of tiles, in each task anew; `block_cycles`: for a row of tiles and a block of output channels.
    """
    best, best_cost = Cut(1, len(sizes), 1, 1), math.inf
    for parts in range(1, len(sizes) + 1):
        edges = [group_start(part, parts, len(sizes)) for part in range(parts + 1)]
        blocks = [sum(sizes[first:last]) for first, last in zip(edges, edges[1:], strict=False)]
        for bands in range(1, min(rows, 16) + 1):
            spans = [(band + 1) * rows // bands - band * rows // bands for band in range(bands)]
            tasks = [span * (row_cycles + count * block_cycles) + 2000 for count in blocks for span in spans]
            cost = cost_of(tasks)
            if cost < best_cost * 0.999:
                best, best_cost = Cut(parts, len(sizes), bands, 1), cost
    return best


@functools.lru_cache(maxsize=4096)
def product_bands(blocks: int, depth: int, pixels: int, folding: float) -> int:
    """For a projection: `folding` cycles to multiply one register of weights by a gate, in each band anew."""

    def tasks_for(bands):
        spans = [(band + 1) * pixels // bands - band * pixels // bands for band in range(bands)]
        return [size * depth * (span + folding) + 500 for size in group_sizes(blocks) for span in spans]

    return best_bands(min(16, max(1, pixels // 24)), tasks_for)
