"""The plan: a model's weights packed for the kernels, and its layers as a table of steps over one arena of floats.

Weights are packed once for a model (`Weights`): batch norm is folded into the convolution before it, in float64; a matrix
becomes panels, each with the weights of up to 3 blocks of output channels in the order in which a tile reads them; swish's
factor goes in (see activations.py). A plan (`Planner`) is made for each image size: where every map lies in the arena, how
each step is cut into tasks, and one row of numbers for each step, which table.py describes.

A block of EfficientNet is three steps: expansion and depthwise convolution; squeeze-excite; projection. Maps lie in the arena
as planes of (H, W, WIDTH), one plane for each WIDTH channels, and channels that only fill the last plane are zeros: their
weights are zero, and every activation takes 0 to 0. Two places in the arena take turns as input and output of a block.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import numpy as np

from effnet_np.kernels import table
from effnet_np.kernels.table import CLAMP, CLAMPS, CODES, INNER, SWISH, depthwise_rows_name
from effnet_np.kernels.target import BYTES, HALVES, UNIT, VECTORS, WIDTH

ALIGN = 64
NO_ACTIVATION = {"ACTIVATION": CLAMP, "LOW": -math.inf, "HIGH": math.inf}
RING_BYTES = 384 * 1024  # of a thread's ring of expanded rows: well inside of an L2 of 512 KB or more


def blocks_of(channels: int) -> int:
    return -(-channels // WIDTH)


def groups_of(blocks: int, largest: int = VECTORS) -> int:
    return -(-blocks // largest)


def units_of(channels: int) -> int:
    return -(-channels // UNIT)


def starts(groups: int, blocks: int) -> list[int]:
    return [(g * blocks + groups - 1) // groups for g in range(groups + 1)]


# -- weights ----------------------------------------------------------------------------------------------------------


def fold(state, conv: str, norm: str, eps: float, scale_in: float = 1.0, scale_out: float = 1.0):
    """Weight and bias (float64) of a convolution with the batch norm behind it folded in.

    The input that it will get is `scale_in` times what the network means, its output is to be `scale_out` times that.
    """
    scale = state[norm + ".weight"].astype(np.float64) / np.sqrt(state[norm + ".running_var"].astype(np.float64) + eps)
    bias = state[norm + ".bias"] - state[norm + ".running_mean"] * scale
    weight = state[conv + ".weight"]
    return weight * (scale * (scale_out / scale_in)).reshape(-1, *[1] * (weight.ndim - 1)), bias * scale_out


class Weights:
    """All packed weights of a model in one array of floats: `offset[name]` is where a piece begins, in bytes."""

    def __init__(self, state, config):
        self.config = config
        self.offset: dict = {}
        self.size = 0
        self._pieces: list = []
        prefix = "efficientnet." if any(key.startswith("efficientnet.") for key in state) else ""
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        eps = config.batch_norm_eps
        inner = INNER if CODES[config.hidden_act] == SWISH else 1.0
        self.inner = inner
        self._stem(
            "stem",
            lambda: fold(state, "embeddings.convolution", "embeddings.batchnorm", eps, 1.0, inner),
            config.num_channels,
            config.stem_channels,
        )
        for spec in config.blocks():
            name = f"encoder.blocks.{spec.index}."
            b, e, s = spec.index, spec.expanded_channels, spec.squeeze_channels

            outer = inner if b == 0 else 1.0  # the stem's output is scaled, a block's is not

            def folded(conv, norm, scale_in, scale_out, name=name):
                return fold(state, name + conv, name + norm, eps, scale_in, scale_out)

            if spec.expand_ratio != 1:
                self._matrix(
                    (b, "expand"),
                    lambda f=folded, o=outer: f("expansion.expand_conv", "expansion.expand_bn", o, inner),
                    spec.in_channels,
                    e,
                )
            before = outer if spec.expand_ratio == 1 else inner
            self._taps(
                (b, "depthwise"),
                lambda f=folded, i=before: f("depthwise_conv.depthwise_conv", "depthwise_conv.depthwise_norm", i, inner),
                e,
                spec.kernel_size,
            )
            if s:
                se = name + "squeeze_excite."

                def dense(layer, scale_in=1.0, scale_out=1.0, se=se):
                    return state[se + layer + ".weight"] * np.float32(scale_out / scale_in), state[
                        se + layer + ".bias"
                    ] * np.float32(scale_out)

                rows = blocks_of(e) * WIDTH
                self._matrix((b, "reduce"), lambda d=dense: d("reduce", inner, inner), e, s, rows=rows, in_order=True)
                self._matrix((b, "gate"), lambda d=dense: d("expand", inner), s, e)
            self._matrix(
                (b, "project"),
                lambda f=folded: f("projection.project_conv", "projection.project_bn", inner, 1.0),
                e,
                spec.out_channels,
            )
        last = config.blocks()[-1].out_channels
        self._matrix(
            "head", lambda: fold(state, "encoder.top_conv", "encoder.top_bn", eps, 1.0, inner), last, config.head_channels
        )
        self.classifier = "classifier.weight" in state
        if self.classifier:
            self._matrix(
                "classifier",
                lambda: (state["classifier.weight"], state["classifier.bias"]),
                config.hidden_dim,
                config.num_labels,
            )
        self._memory = np.zeros(self.size // 4 + ALIGN // 4, np.float32)
        start = -self._memory.ctypes.data % ALIGN
        self.data = self._memory[start // 4 : start // 4 + self.size // 4]
        self.address = self.data.ctypes.data
        for name, count, fill in self._pieces:
            fill(self.data[self.offset[name] // 4 :][:count])
        del self._pieces

    def _reserve(self, name, count, fill):
        self.offset[name] = self.size
        self.size += -(-count * 4 // ALIGN) * ALIGN
        self._pieces.append((name, count, fill))

    def _matrix(self, name, get, inputs, outputs, rows=None, in_order=False):
        """Panels of up to VECTORS blocks of outputs: all inputs one after another, for each the panel's weights."""
        rows = units_of(inputs) * UNIT if rows is None else rows
        blocks = blocks_of(outputs)
        cache: dict = {}

        def weight_and_bias():
            if "w" not in cache:
                cache["w"] = get()
            return cache["w"]

        def fill(out):
            weight = weight_and_bias()[0].reshape(outputs, inputs)
            position = 0
            # In order: cut at every third block, the rest last.
            edges = [*range(0, blocks, VECTORS), blocks] if in_order else starts(groups_of(blocks), blocks)
            for b0, b1 in zip(edges, edges[1:], strict=False):
                width = (b1 - b0) * WIDTH
                panel = out[position : position + rows * width].reshape(rows, width)
                part = weight[b0 * WIDTH : b1 * WIDTH]
                panel[:inputs, : len(part)] = part.T
                position += rows * width

        def fill_bias(out):
            out[:outputs] = weight_and_bias()[1]
            cache.clear()

        self._reserve(name, rows * blocks * WIDTH, fill)
        self._reserve((name, "bias"), blocks * WIDTH, fill_bias)

    def _taps(self, name, get, channels, kernel):
        blocks = blocks_of(channels)

        def fill(out):
            taps = np.zeros((blocks * WIDTH, kernel * kernel), np.float64)
            taps[:channels] = get()[0].reshape(channels, -1)
            out.reshape(blocks, kernel * kernel, WIDTH)[...] = taps.reshape(blocks, WIDTH, -1).transpose(0, 2, 1)

        def fill_bias(out):
            out[:channels] = get()[1]

        self._reserve(name, blocks * WIDTH * kernel * kernel, fill)
        self._reserve((name, "bias"), blocks * WIDTH, fill_bias)

    def _stem(self, name, get, inputs, outputs):
        blocks = blocks_of(outputs)

        def fill(out):
            weight = get()[0].reshape(outputs, inputs * 9)
            position = 0
            edges = starts(groups_of(blocks), blocks)
            for b0, b1 in zip(edges, edges[1:], strict=False):
                width = (b1 - b0) * WIDTH
                panel = out[position : position + 9 * inputs * width].reshape(9 * inputs, width)
                part = weight[b0 * WIDTH : b1 * WIDTH]
                panel[:, : len(part)] = part.T
                position += 9 * inputs * width

        def fill_bias(out):
            out[:outputs] = get()[1]

        self._reserve(name, 9 * inputs * blocks * WIDTH, fill)
        self._reserve((name, "bias"), blocks * WIDTH, fill_bias)


# -- how a step is cut into tasks ---------------------------------------------------------------------------------------


def makespan(tasks: list[float], threads: int) -> float:
    """When the last of the tasks is done, if each thread takes the next one whenever it is free."""
    free = [0.0] * threads
    for cost in tasks:
        first = min(range(threads), key=free.__getitem__)
        free[first] += cost
    return max(free)


def best_bands(most: int, tasks_for) -> int:
    """How many bands to cut into: more give every thread its share, but each costs something. `tasks_for(bands)`: costs.

    The answer must not depend on the number of threads, because sums over a band are added up band by band and the
    result is to be the same for any number. So it is the one that is good for one, two, four and eight.
    """
    best, best_cost = 1, math.inf
    for bands in sorted({b for b in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16) if b <= most} | {most}):
        tasks = tasks_for(bands)
        cost = sum(weight * threads * makespan(tasks, threads) for threads, weight in ((1, 1.0), (2, 1.0), (4, 0.5), (8, 0.25)))
        if cost < best_cost * 0.999:
            best, best_cost = bands, cost
    return best


def sizes_of(groups: int, blocks: int) -> list[int]:
    edges = starts(groups, blocks)
    return [b1 - b0 for b0, b1 in zip(edges, edges[1:], strict=False)]


@functools.lru_cache(maxsize=4096)
def depthwise_bands(groups, blocks, made, used, height, width, out_height, out_width, kernel, stride, before) -> int:
    """For an expansion and its depthwise convolution: `made` cycles an input vector, `used` an output vector."""
    sizes = sizes_of(groups, blocks)

    def tasks_for(bands):
        tasks = []
        for band in range(bands):
            y0, y1 = band * out_height // bands, (band + 1) * out_height // bands
            rows_in = min(height, (y1 - 1) * stride - before + kernel) - max(0, y0 * stride - before)
            tasks += [size * (rows_in * width * made + (y1 - y0) * out_width * used) + 1000 for size in sizes]
        return tasks

    return best_bands(min(out_height, 16), tasks_for)


@functools.lru_cache(maxsize=4096)
def product_bands(groups, blocks, depth, pixels, folding) -> int:
    """For a projection: `folding` cycles to multiply one register of weights by a gate, in each band anew."""

    def tasks_for(bands):
        spans = [(band + 1) * pixels // bands - band * pixels // bands for band in range(bands)]
        return [size * depth * (span + folding) + 500 for size in sizes_of(groups, blocks) for span in spans]

    return best_bands(min(16, max(1, pixels // 24)), tasks_for)


# -- the plan ---------------------------------------------------------------------------------------------------------


@dataclass
class Plane:
    """A feature map in the arena: `blocks` planes of (height, width, WIDTH) floats."""

    offset: int
    channels: int
    height: int
    width: int

    @property
    def plane(self) -> int:
        return self.height * self.width * BYTES

    @property
    def pixels(self) -> int:
        return self.height * self.width


@dataclass(frozen=True)
class At:
    """An address: `offset` bytes into "arena" or "weights"."""

    base: str
    offset: int


@dataclass
class Plan:
    """A table of steps for one image size, with what has to be known to run it."""

    rows: list = field(default_factory=list)
    labels: list = field(default_factory=list)
    flops: list = field(default_factory=list)
    bytes: list = field(default_factory=list)  # of the tensors that a step reads and writes, weights included
    hidden: list = field(default_factory=list)
    image: tuple[int, int] = (0, 0)  # height and width
    arena_bytes: int = 0
    scratch_bytes: int = 0
    last: Plane | None = None
    pooled: int = 0
    logits: int | None = None

    def bind(self, arena: int, weights: int, functions: dict[str, int], threads: int) -> np.ndarray:
        rows = np.zeros((len(self.rows), len(table.NAMES)), np.int64)
        floats = rows.view(np.float32)
        rows[:, table.THREADS] = threads
        bases = {"arena": arena, "weights": weights}
        for number, row in enumerate(self.rows):
            for name, value in row.items():
                column = getattr(table, name)
                if isinstance(value, At):
                    rows[number, column] = bases[value.base] + value.offset
                elif isinstance(value, str):
                    rows[number, column] = functions[value]
                elif isinstance(value, float):
                    floats[number, 2 * column] = value
                else:
                    rows[number, column] = value
        return rows


class Planner:
    def __init__(self, config, weights: Weights, height: int, width: int, keep_hidden: bool, keep_last: bool):
        self.config, self.weights, self.keep_hidden = config, weights, keep_hidden
        self.plan = Plan(image=(height, width))
        self.top = 0
        self.activation = {"ACTIVATION": CODES[config.hidden_act]}
        low, high = CLAMPS.get(config.hidden_act, (0.0, 0.0))
        self.activation |= {"LOW": low, "HIGH": high}
        self._build(height, width, keep_last)

    def at(self, name) -> At:
        return At("weights", self.weights.offset[name])

    def reserve(self, size: int) -> int:
        offset = self.top
        self.top += -(-size // ALIGN) * ALIGN
        return offset

    def step(self, label, flops, floats, **row):
        self.plan.rows.append(row)
        self.plan.bytes.append(4 * floats)
        self.plan.labels.append(label)
        self.plan.flops.append(flops)

    def scratch(self, size):
        self.plan.scratch_bytes = max(self.plan.scratch_bytes, -(-size // 4096) * 4096 + 4096)

    def _build(self, height, width, keep_last):
        config, plan = self.config, self.plan
        specs = config.blocks()
        h, w = (height - 2) // 2 + 1, (width - 2) // 2 + 1
        if h < 1 or w < 1:
            raise ValueError(f"an image of {height} x {width} is too small for this network")
        shapes = [(config.stem_channels, h, w)]
        for spec in specs:
            h, w = spec.output_size(h, w)
            if h < 1 or w < 1:
                raise ValueError(
                    f"an image of {height} x {width} is too small for this network: block {spec.index} has nothing left"
                )
            shapes.append((spec.out_channels, h, w))
        fuse_stem = specs[0].expand_ratio == 1 and not self.keep_hidden
        sizes = [blocks_of(c) * hh * ww * BYTES for c, hh, ww in shapes]
        if self.keep_hidden:
            places = [self.reserve(s) for s in sizes]
        else:
            pair = [self.reserve(max(sizes[1:] if fuse_stem else sizes)) for _ in range(2)]
            places = [pair[i % 2] for i in range(len(sizes))]
        maps = [Plane(o, c, hh, ww) for o, (c, hh, ww) in zip(places, shapes, strict=True)]
        plan.hidden = maps if self.keep_hidden else []
        widest = max(blocks_of(s.expanded_channels) * m.plane for s, m in zip(specs, maps[1:], strict=True))
        expanded = self.reserve(widest)
        self.small = {}
        if not fuse_stem:
            self._stem_step(maps[0], height, width)
        for spec, source, target in zip(specs, maps, maps[1:], strict=False):
            self._block(spec, source, target, expanded, (height, width) if fuse_stem and spec.index == 0 else None)
        self._head(maps[-1], keep_last)
        plan.arena_bytes = self.top

    def _stem_columns(self, height, width, out_width):
        row = -(-(width + 2) // 16) * 64
        self.stem_scratch = 3 * self.config.num_channels * row + 256
        return {
            "SOURCE": 0, "CHANNELS": self.config.num_channels, "IMAGE_HEIGHT": height, "IMAGE_WIDTH": width,
            "STEM_ROW": row, "WEIGHT": self.at("stem"), "EXPAND_BIAS": self.at(("stem", "bias")),
        }  # fmt: skip

    def _stem_step(self, target: Plane, height, width):
        blocks = blocks_of(target.channels)
        groups = groups_of(blocks)
        bands = min(target.height, 16)
        columns = self._stem_columns(height, width, target.width)
        self.scratch(self.stem_scratch)
        self.step(
            "stem", 2 * 9 * self.config.num_channels * target.channels * target.pixels,
            self.config.num_channels * height * width + target.channels * target.pixels,
            FUNCTION="stem", ROWS="stem_row", TASKS=groups * bands, GROUPS=groups, BLOCKS=blocks, BANDS=bands,
            HEIGHT=target.height, WIDTH_=target.width, TARGET=At("arena", target.offset), TARGET_PLANE=target.plane,
            **columns, **self.activation,
        )  # fmt: skip

    def _block(self, spec, source: Plane, target: Plane, expanded: int, image):
        e, k, stride = spec.expanded_channels, spec.kernel_size, spec.stride
        blocks = blocks_of(e)
        middle = Plane(expanded, e, target.height, target.width)
        expand = spec.expand_ratio != 1
        flops = 2 * e * k * k * middle.pixels
        if expand:
            producer = {
                "PRODUCER": table.EXPAND, "SOURCE": At("arena", source.offset), "SOURCE_PLANE": source.plane,
                "UNITS": units_of(spec.in_channels), "WEIGHT": self.at((spec.index, "expand")),
                "EXPAND_BIAS": self.at(((spec.index, "expand"), "bias")),
            }  # fmt: skip
            flops += 2 * spec.in_channels * e * source.pixels
            groups = groups_of(blocks)
        elif image:
            producer = {"PRODUCER": table.CONVOLVE, **self._stem_columns(*image, source.width)}
            groups = groups_of(blocks)
            flops += 2 * 9 * self.config.num_channels * e * source.pixels
        else:
            producer = {"PRODUCER": table.COPY, "SOURCE": At("arena", source.offset), "SOURCE_PLANE": source.plane}
            groups = groups_of(blocks)
        vectors = -(-blocks // groups)
        floats = (
            e * middle.pixels
            + e * k * k
            + (image[0] * image[1] * self.config.num_channels if image else source.channels * source.pixels)
        )
        floats += spec.in_channels * e if expand else 0
        before, after = spec.padding
        left = max(before, 0)
        lead = left - before
        span = max(lead + (middle.width - 1) * stride + k, left + source.width)
        row = span * BYTES
        made = (
            units_of(spec.in_channels) * UNIT if expand else 27 if image else 0
        ) + 10  # cycles a vector of input and of output
        used = k * k + 9
        bands = depthwise_bands(
            groups, blocks, made, used, source.height, source.width, middle.height, middle.width, k, stride, before
        )  # fmt: skip
        most = -(-middle.height // bands)
        chunk = int((RING_BYTES / (vectors * row) - (k - stride)) // stride)
        chunk = max(1, min(most, chunk))
        ring = max(1, chunk * stride + max(0, k - stride))
        listed = -(-8 * (chunk * stride + k) // ALIGN) * ALIGN
        self.scratch(8 * BYTES + listed + vectors * (ring + 1) * row + (self.stem_scratch if image else 0))
        squeeze = {}
        s = spec.squeeze_channels
        tasks = groups * bands
        if s:
            sb = blocks_of(s)
            partial = self.reserve(tasks * sb * BYTES)
            gate_at = self.reserve(units_of(e) * UNIT * 4 + BYTES)
            squeeze = {"SQUEEZE": self.at((spec.index, "reduce")), "SQUEEZE_BLOCKS": sb, "PARTIAL": At("arena", partial)}
        self.step(
            "stem+depthwise" if image else "expand+depthwise" if expand else "depthwise", flops, floats,
            FUNCTION="depthwise", TILES="tiles", TASKS=tasks, GROUPS=groups, BLOCKS=blocks, BANDS=bands,
            KERNEL=k, STRIDE=stride, PAD=before,
            HEIGHT=source.height, WIDTH_=source.width, OUT_HEIGHT=middle.height, OUT_WIDTH=middle.width,
            ROWS=depthwise_rows_name(k, stride), STEM="stem_row", LIST=listed,
            CHUNK=chunk, RING=ring, ROW=row, LEAD=lead, TAPS=self.at((spec.index, "depthwise")),
            SHIFT=self.at(((spec.index, "depthwise"), "bias")), TARGET=At("arena", middle.offset), TARGET_PLANE=middle.plane,
            **producer, **squeeze, **self.activation,
        )  # fmt: skip

        out_blocks = blocks_of(target.channels)
        out_groups = groups_of(out_blocks)
        depth = units_of(e) * UNIT
        # Gates go into the weights (once for each band) or into the activations, whichever are fewer.
        out_bands = product_bands(out_groups, out_blocks, depth, middle.pixels, 3.0 if s else 0.0)
        scale_pixels = s and middle.pixels * blocks < out_bands * depth * out_blocks
        if scale_pixels:
            out_bands = product_bands(out_groups, out_blocks, depth, middle.pixels, 0.0)
        if s:
            panels = groups_of(blocks)
            gate_tasks = min(panels, 8)
            self.scratch(blocks_of(s) * BYTES + 4096)
            scaled = {}
            if scale_pixels:
                scaled = {"SOURCE": At("arena", middle.offset), "SOURCE_PLANE": middle.plane, "PIXELS": middle.pixels}
            self.step(
                "squeeze-excite", 4 * s * e, 2 * s * e,
                FUNCTION="gates", TILES="tiles", TASKS=gate_tasks, BANDS=gate_tasks, GROUPS=panels, BLOCKS=blocks,
                UNITS=units_of(s),
                PARTIAL=At("arena", partial), PARTIALS=tasks, SQUEEZE_BLOCKS=blocks_of(s),
                BIAS=self.at(((spec.index, "reduce"), "bias")), WEIGHT=self.at((spec.index, "gate")),
                SHIFT=self.at(((spec.index, "gate"), "bias")), GATES=At("arena", gate_at), SCALE=1.0 / middle.pixels,
                **scaled, **self.activation,
            )  # fmt: skip
        units = units_of(e)
        more = {
            "HALF": int(
                HALVES and 0 < target.channels % WIDTH <= WIDTH // 2 and target.channels > WIDTH // 2 and out_blocks > 1
            )
        }
        if out_blocks == starts(out_groups, out_blocks)[-2] + 1:
            more["HALF"] = 0  # a tile of half a register does not exist
        if s and not scale_pixels:
            more["GATES"] = At("arena", gate_at)
            self.scratch(units * UNIT * VECTORS * BYTES)
        if spec.residual:
            more["RESIDUAL"] = At("arena", source.offset)
        self.step(
            "project", 2 * e * target.channels * target.pixels,
            e * middle.pixels + e * target.channels + target.channels * target.pixels * (2 if spec.residual else 1),
            FUNCTION="pointwise", TILES="tiles", TASKS=out_groups * out_bands, GROUPS=out_groups, BANDS=out_bands,
            BLOCKS=out_blocks,
            PIXELS=middle.pixels, UNITS=units, SOURCE=At("arena", middle.offset), SOURCE_PLANE=middle.plane,
            WEIGHT=self.at((spec.index, "project")), BIAS=self.at(((spec.index, "project"), "bias")),
            TARGET=At("arena", target.offset), TARGET_PLANE=target.plane, **NO_ACTIVATION, **more,
        )  # fmt: skip

    def _head(self, source: Plane, keep_last):
        config, plan = self.config, self.plan
        blocks = blocks_of(config.head_channels)
        groups = groups_of(blocks)
        plan.pooled = self.reserve(blocks * BYTES)
        more = {}
        if keep_last:
            plan.last = Plane(self.reserve(blocks * source.plane), config.head_channels, source.height, source.width)
            more = {"TARGET": At("arena", plan.last.offset), "TARGET_PLANE": plan.last.plane}
        self.scratch(VECTORS * source.plane)
        self.step(
            "head", 2 * source.channels * config.head_channels * source.pixels,
            source.channels * (source.pixels + config.head_channels) + config.head_channels,
            FUNCTION="head", TILES="tiles", TASKS=groups, GROUPS=groups, BLOCKS=blocks, PIXELS=source.pixels,
            UNITS=units_of(source.channels), SOURCE=At("arena", source.offset), SOURCE_PLANE=source.plane,
            WEIGHT=self.at("head"), BIAS=self.at(("head", "bias")),
            POOL=table.MAX if config.pooling_type == "max" else table.MEAN, POOLED=At("arena", plan.pooled),
            SCALE=1.0 if config.pooling_type == "max" else 1.0 / source.pixels, RESCALE=1.0 / self.weights.inner,
            **more, **self.activation,
        )  # fmt: skip
        if self.weights.classifier:
            blocks = blocks_of(config.num_labels)
            plan.logits = self.reserve(blocks * BYTES)
            self.step(
                "classifier", 2 * config.hidden_dim * config.num_labels, config.hidden_dim * config.num_labels,
                FUNCTION="pointwise", TILES="tiles", TASKS=groups_of(blocks), GROUPS=groups_of(blocks), BANDS=1,
                BLOCKS=blocks, PIXELS=1,
                UNITS=units_of(config.hidden_dim), SOURCE=At("arena", plan.pooled), SOURCE_PLANE=BYTES,
                WEIGHT=self.at("classifier"), BIAS=self.at(("classifier", "bias")), TARGET=At("arena", plan.logits),
                TARGET_PLANE=BYTES, **NO_ACTIVATION,
            )  # fmt: skip
