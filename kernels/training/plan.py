"""The passes of a step of learning, forward and back, as a list of steps for one shape of batch. Read ../plan.py first.

A block, in the words of project.py and its neighbours: X goes in, D is the depthwise convolution's output, P the projection's;
both are stored as they are, before their batch norms, with the moments of their channels. They, X and a few numbers a channel
are all that the way back needs: an activated map is never stored, an expanded one only where it is small (expand.py).

What lies before the first layer that learns (`first`) is the forward pass of `effnet_np.compile` where statistics are the
stored ones (frozen.py); else it is computed in memory that all such blocks share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from effnet_np.kernels.arena import Arena
from effnet_np.kernels.depthwise import Taps, plan_ring, rows_name, window_of
from effnet_np.kernels.head import MAX, MEAN
from effnet_np.kernels.record import Activation, At, Cut, Step
from effnet_np.kernels.stem import StemLayer
from effnet_np.kernels.table import CLAMPS, CODES
from effnet_np.kernels.target import BYTES, VECTORS, WIDTH
from effnet_np.kernels.tiling import blocks_of, ceil_div, cut
from effnet_np.kernels.training.batch import BatchMap, Partial, pieces_of, stretch_of
from effnet_np.kernels.training.depthwise import DepthwiseBackward, DepthwiseForward, ReduceTaps, plan_back
from effnet_np.kernels.training.expand import ExpandBackward, ExpandForward
from effnet_np.kernels.training.frozen import Prefix
from effnet_np.kernels.training.full import FullBackward, FullForward, Spread, piece_bytes
from effnet_np.kernels.training.head import HeadBackward, HeadForward
from effnet_np.kernels.training.layers import Block, Layers, Wide
from effnet_np.kernels.training.matrices import Reduce
from effnet_np.kernels.training.norm import MOMENTS, SUMS, Norm, NormBackward, NormForward, cut_blocks
from effnet_np.kernels.training.outer import rounded
from effnet_np.kernels.training.project import (
    STRETCH,
    Normalise,
    NormInput,
    NormSums,
    ProjectBackward,
    ProjectForward,
    ProjectWeights,
)
from effnet_np.kernels.training.squeeze import ACTIVATE, GATE, PLAIN, Dense, DenseBackward, Squeeze
from effnet_np.kernels.training.stem import Slope, StemBackward, StemForward

TASKS = 32  # so many tasks or more, where the shapes allow it
WEIGHT_PIECES = 8 << 20  # bytes that the pieces of a weight gradient may fill
ROOM = 384 * 1024  # bytes of scratch
STORED = 64  # input channels from which on the output of a wide convolution is stored: see expand.py


@dataclass(frozen=True)
class Asked:
    """What a plan is made for."""

    images: int
    height: int
    width: int
    first: int  # the first part that learns: -1 the stem, then the blocks, the head, the classifier
    batch_statistics: bool
    drops: tuple[int, ...]  # blocks whose residual branch is masked
    pixels: bool  # whether the gradient of the pictures is wanted

    @property
    def folds(self) -> bool:
        """Whether the beginning, a block at least, is the forward pass's: see frozen.py."""
        return self.first > 0 and not self.batch_statistics


@dataclass
class BlockMaps:
    """What the way back reads of a block."""

    source: BatchMap
    raw: BatchMap | None
    projected: BatchMap
    target: BatchMap
    mask: BatchMap | None
    expanded: BatchMap | None = None
    gates: BatchMap | None = None
    means: BatchMap | None = None
    reduced: BatchMap | None = None
    squeezed: BatchMap | None = None


def whole_pages(scratch: int) -> int:
    """Bytes of a thread's scratch, with a page for reads that go a little further."""
    return ceil_div(scratch, 4096) * 4096 + 4096


@dataclass
class TrainingPlan:
    """The four parts of a step, between which the host drops out and computes the loss; where it reads and writes; how large
    each memory has to be."""

    prefix: Prefix | None  # what comes before `forward`
    forward: list[Step]
    classify: list[Step]
    classify_back: list[Step]
    backward: list[Step]
    pooled: BatchMap
    logits: BatchMap | None
    masks: dict[int, BatchMap]
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def scratch_bytes(self) -> int:
        return whole_pages(max(step.scratch for step in self.steps))

    @property
    def steps(self) -> list[Step]:
        return self.forward + self.classify + self.classify_back + self.backward


class Planner:
    """Walks through the network there and back."""

    def __init__(self, config, layers: Layers, asked: Asked, momenta: dict[str, float]):
        self.config, self.layers, self.asked, self.momenta = config, layers, asked, momenta
        self.panels, self.arena = layers.panels, Arena()
        self.sizes: dict[str, int] = {}
        low, high = CLAMPS.get(config.hidden_act, (0.0, 0.0))
        self.activation = Activation(CODES[config.hidden_act], low, high)

    # -- memory ---------------------------------------------------------------------------------------------------

    def map(self, channels: int, height: int = 1, width: int = 1, base: str = "arena") -> BatchMap:
        """A map of the batch with a place of its own, or in the memory of that name, which others use before and after."""
        whole = BatchMap(0, channels, self.asked.images, height, width, base)
        if base == "arena":
            return BatchMap(self.arena.reserve(whole.bytes).offset, *list(vars(whole).values())[1:])
        self.sizes[base] = max(self.sizes.get(base, 0), whole.bytes + 64)
        return whole

    def partial(self, base: str, piece: int, pieces: int) -> Partial:
        self.sizes[base] = max(self.sizes.get(base, 0), piece * pieces)
        return Partial(At(base, 0), piece, pieces)

    def kept(self, index: int) -> bool:
        return index >= self.asked.first

    # -- steps that every layer has -------------------------------------------------------------------------------

    def norm_forward(self, name: str, norm: Norm, channels: int, count: int, moments: Partial | None) -> NormForward:
        return NormForward(
            cut=cut_blocks(blocks_of(channels)),
            norm=norm,
            moments=moments,
            channels=channels,
            eps=self.config.batch_norm_eps,
            momentum=self.momenta[name],
            unbias=count / max(1, count - 1),
        )

    def norm_backward(self, name: str, norm: Norm, channels: int, count: int, sums: Partial) -> NormBackward:
        return NormBackward(
            cut=cut_blocks(blocks_of(channels)),
            norm=norm,
            sums=sums,
            channels=channels,
            share=1 / count if self.asked.batch_statistics else 0.0,
            dweight=self.panels.gradient(name + ".weight"),
            dbias=self.panels.gradient(name + ".bias"),
        )

    def moments(self, blocks: int, pieces: int) -> Partial | None:
        """Where pieces of a norm's statistics go; stored ones need none."""
        if not self.asked.batch_statistics:
            return None
        return self.partial("moments", blocks * MOMENTS * BYTES, pieces)

    def sums(self, blocks: int, pieces: int) -> Partial:
        return self.partial("sums", blocks * SUMS * BYTES, pieces)

    def range_pieces(self, blocks: int, positions: int) -> int:
        """Into how many ranges positions are cut, for tasks that have a group of blocks each."""
        return min(pieces_of(positions), max(ceil_div(TASKS, ceil_div(blocks, VECTORS)), positions // 16384))

    # -- forward --------------------------------------------------------------------------------------------------

    def wide_output(self, part: int, source: BatchMap, outputs: int) -> BatchMap | None:
        """Where the output of a wide convolution is stored, if it is."""
        if source.channels < STORED or not self.kept(part):
            return None
        return self.map(outputs, source.height, source.width)

    def wide_norm(self, wide: Wide, source: BatchMap, outputs: int, target: BatchMap | None) -> Iterator[Step]:
        """The statistics of a wide convolution, and its output, if it is stored."""
        blocks = blocks_of(outputs)
        pieces = self.range_pieces(blocks, source.positions)
        moments = self.moments(blocks, pieces)
        if moments or target:
            yield ExpandForward(
                cut=cut(blocks, pieces),
                source=source.map,
                positions=source.positions,
                stretch=min(STRETCH, source.positions),
                inputs=source.channels,
                outputs=outputs,
                matrix=wide.there,
                target=target.map if target else None,
                moments=moments,
            )
        yield self.norm_forward(wide.norm_name, wide.norm, outputs, source.positions, moments)

    def stem_layer(self) -> StemLayer:
        row = ceil_div(self.asked.width + 2, 16) * 64
        there = self.layers.stem.there
        height, width = self.asked.height, self.asked.width
        top, _, left, _ = self.config.architecture().stem.zeros(height, width)
        image, channels = At("image", 0), self.config.num_channels
        return StemLayer(image, channels, height, width, top, left, row, there.weights, there.bias)

    def stem(self, raw: BatchMap, target: BatchMap) -> Iterator[Step]:
        bands = max(1, min(raw.height, max(raw.height // 16, ceil_div(16, raw.images))))
        moments = self.moments(raw.blocks, bands * raw.images)
        yield StemForward(
            cut=Cut(1, raw.blocks, bands * raw.images, 1),
            stem_layer=self.stem_layer(),
            channels=raw.channels,
            height=raw.height,
            width=raw.width,
            bands=bands,
            target=raw.map,
            moments=moments,
        )
        norm = self.layers.stem.norm
        yield self.norm_forward("embeddings.batchnorm", norm, raw.channels, raw.positions, moments)
        yield self.normalise(raw, norm, target, activates=True)

    def normalise(self, raw, norm, target, mask=None, residual=None, activates=False) -> Normalise:
        return Normalise(
            cut=Cut(1, raw.blocks, pieces_of(raw.positions), 1),
            raw=raw.map,
            positions=raw.positions,
            norm=norm,
            mask=mask.map if mask else None,
            residual=residual.map if residual else None,
            target=target.map,
            activates=int(activates),
            activation=self.activation,
        )

    def bands(self, height: int) -> int:
        """Into how many bands of rows a picture is cut where few pictures make few tasks."""
        return max(1, min(height // 8, ceil_div(16, self.asked.images)))

    def depthwise(self, block: Block, maps: BlockMaps) -> Iterator[Step]:
        spec, source, target = block.spec, maps.source, maps.raw
        window = window_of(spec, source, target)
        bands = self.bands(target.height)
        tasks = cut(target.blocks, bands * target.images, bands_first=False)
        chunk, ring = plan_ring(window, ceil_div(target.blocks, tasks.groups), ceil_div(window.out_height, bands))
        moments = self.moments(target.blocks, tasks.bands)
        yield DepthwiseForward(
            cut=tasks,
            source=source.map,
            inputs=source.channels,
            expanded=maps.expanded.map if maps.expanded else None,
            expand=block.expand.there if block.expand else None,
            before=block.expand.norm.ready if block.expand else None,
            channels=target.channels,
            window=window,
            taps=Taps(block.taps[0], self.panels.zeros, window.kernel, window.stride),
            ring=ring,
            chunk=chunk,
            bands=bands,
            target=target.map,
            moments=moments,
            activation=self.activation,
            rows=rows_name(window.kernel, window.stride),
        )
        yield self.norm_forward(block.inner_name, block.inner_norm, target.channels, target.positions, moments)

    def squeeze(self, block: Block, maps: BlockMaps) -> Iterator[Step]:
        raw, squeezed, excite = maps.raw, block.spec.squeeze_channels, block.excite
        base = "arena" if self.kept(block.spec.index) else "frozen squeeze {}"
        maps.means, maps.gates = self.map(raw.channels, base=base.format(0)), self.map(raw.channels, base=base.format(1))
        maps.reduced, maps.squeezed = self.map(squeezed, base=base.format(2)), self.map(squeezed, base=base.format(3))
        yield Squeeze(
            cut=cut(raw.blocks, raw.images, bands_first=False),
            raw=raw.map,
            pixels=raw.pixels,
            norm=block.inner_norm,
            scale=1 / raw.pixels,
            target=maps.means.map,
            activation=self.activation,
        )
        layers = ((maps.means, excite.reduce, maps.reduced, maps.squeezed, ACTIVATE),)
        for source, matrix, output, then, kind in (*layers, (maps.squeezed, excite.expand, maps.gates, maps.gates, GATE)):
            yield Dense(
                cut=cut(output.blocks),
                source=source.map,
                images=source.images,
                inputs=source.channels,
                outputs=output.channels,
                matrix=matrix[0],
                raw=output.map,
                then=kind,
                target=then.map,
                activation=self.activation,
                factor=self.panels.inner,
            )

    def project(self, block: Block, maps: BlockMaps) -> Iterator[Step]:
        source, target = maps.raw, maps.projected
        pieces = pieces_of(source.positions)
        moments = self.moments(target.blocks, pieces)
        yield ProjectForward(
            cut=Cut(1, target.blocks, pieces, 1),
            source=source.map,
            inputs=source.channels,
            input_blocks=source.blocks,
            outputs=target.channels,
            positions=source.positions,
            pixels=source.pixels,
            stretch=stretch_of(source.channels, source.positions),
            norm=block.inner_norm,
            gates=maps.gates.map if maps.gates else None,
            matrix=block.project[0],
            target=target.map,
            moments=moments,
            activation=self.activation,
        )
        name = block.name + "projection.project_bn"
        yield self.norm_forward(name, block.project_norm, target.channels, target.positions, moments)
        yield self.normalise(target, block.project_norm, maps.target, maps.mask, maps.source if block.spec.residual else None)

    def full(self, block: Block, maps: BlockMaps) -> Iterator[Step]:
        """A fused block's convolution; where that is all of it, its output."""
        whole = block.project is None
        source, target = maps.source, maps.projected if whole else maps.raw
        norm, bands = block.project_norm if whole else block.inner_norm, self.bands(target.height)
        tasks = Cut(1, target.blocks, bands * target.images, 1)
        moments = self.moments(target.blocks, tasks.bands)
        yield FullForward(
            cut=tasks,
            source=source.map,
            inputs=source.channels,
            outputs=target.channels,
            window=window_of(block.spec, source, target),
            matrix=block.full.there,
            bands=bands,
            target=target.map,
            moments=moments,
        )
        yield self.norm_forward(block.inner_name, norm, target.channels, target.positions, moments)
        if whole:
            residual = source if block.spec.residual else None
            yield self.normalise(target, norm, maps.target, maps.mask, residual, activates=True)

    def block(self, block: Block, maps: BlockMaps) -> Iterator[Step]:
        if block.full:
            yield from self.full(block, maps)
            if block.project:
                yield from self.project(block, maps)
            return
        if block.expand:
            channels = block.spec.expanded_channels
            maps.expanded = self.wide_output(block.spec.index, maps.source, channels)
            yield from self.wide_norm(block.expand, maps.source, channels, maps.expanded)
        yield from self.depthwise(block, maps)
        if block.excite:
            yield from self.squeeze(block, maps)
        yield from self.project(block, maps)

    def head(self, source: BatchMap, raw: BatchMap | None, pooled: BatchMap) -> Iterator[Step]:
        head = self.layers.head
        yield from self.wide_norm(head, source, pooled.channels, raw)
        fields = self.head_fields(source, raw, pooled)
        yield HeadForward(matrix=head.there, target=pooled.map, **fields)

    def head_fields(self, source: BatchMap, raw: BatchMap | None, pooled: BatchMap) -> dict:
        largest = self.config.pooling_type == "max"
        return {
            "cut": cut(pooled.blocks, source.images),
            "source": source.map,
            "raw": raw.map if raw else None,
            "inputs": source.channels,
            "outputs": pooled.channels,
            "pixels": source.pixels,
            "norm": self.layers.head.norm,
            "pool": MAX if largest else MEAN,
            "scale": 1.0 if largest else 1 / source.pixels,
            "activation": self.activation,
        }

    def classifier(self, pooled: BatchMap, logits: BatchMap) -> tuple[list[Step], list[Step]]:
        """(logits of the pooled features, all gradients of what lies in the logits' place)"""
        there, back = self.layers.classifier
        same = {"images": pooled.images, "activation": self.activation, "factor": 1.0, "then": PLAIN}
        wide, narrow = pooled.channels, logits.channels
        dpooled = self.map(wide, base="dpooled")
        fields = {"raw": logits.map, "target": logits.map, "inputs": wide, "outputs": narrow}
        forward = Dense(cut=cut(logits.blocks), source=pooled.map, matrix=there, **fields, **same)
        weights = DenseBackward(
            cut=cut(logits.blocks),
            source=pooled.map,
            gradient=None,
            matrix=None,
            dweight=self.panels.gradient("classifier.weight"),
            dbias=self.panels.gradient("classifier.bias"),
            **(fields | {"raw": None}),
            **same,
        )
        fields = {"raw": dpooled.map, "target": dpooled.map, "inputs": narrow, "outputs": wide}
        return [forward], [weights, Dense(cut=cut(dpooled.blocks), source=logits.map, matrix=back, **fields, **same)]

    # -- the way back ---------------------------------------------------------------------------------------------

    def wide_back(self, wide: Wide, source, raw, gradient, sums, target, residual) -> Iterator[Step]:
        """From dz of a wide convolution's activation to its weights, its norm and its input."""
        outputs, inputs = gradient.channels, source.channels
        yield self.norm_backward(wide.norm_name, wide.norm, outputs, source.positions, sums)
        size = gradient.blocks * WIDTH * source.blocks * BYTES
        pieces = min(pieces_of(source.positions), max(4, WEIGHT_PIECES // size))
        partial = self.partial("weight pieces", size, pieces)
        yield ExpandBackward(
            cut=Cut(1, gradient.blocks, pieces, 1),
            source=source.map,
            positions=source.positions,
            stretch=stretch_of(outputs, source.positions),
            inputs=inputs,
            outputs=outputs,
            input_blocks=source.blocks,
            matrix=wide.there,
            back=wide.back,
            gradient=gradient.map,
            norm=wide.norm,
            stored=int(not self.asked.batch_statistics),
            raw=raw.map if raw else None,
            partial=partial,
            target=target.map if target else None,
            residual=residual.map.address if residual and target else None,
        )
        yield self.reduce(wide.name, outputs, inputs, partial, Cut(1, source.blocks, 16, 1), 0)

    def reduce(self, name: str, rows: int, columns: int, partial: Partial, tasks: Cut, room: int) -> Reduce:
        return Reduce(
            cut=tasks, partial=partial, rows=rows, columns=columns, room=room, target=self.panels.gradient(name + ".weight")
        )

    def head_back(self, source: BatchMap, raw: BatchMap | None, pooled: BatchMap, target: BatchMap | None) -> Iterator[Step]:
        head = self.layers.head
        gradient = self.map(pooled.channels, source.height, source.width, "expanded dz")
        sums = self.sums(gradient.blocks, source.images)
        dpooled = self.map(pooled.channels, base="dpooled")
        fields = self.head_fields(source, raw, pooled)
        yield HeadBackward(matrix=head.there, gradient=dpooled.map, target=gradient.map, sums=sums, **fields)
        yield from self.wide_back(head, source, raw, gradient, sums, target, None)

    def project_back(self, block: Block, maps: BlockMaps, gradient: BatchMap) -> Iterator[Step]:
        """From the gradient of the block's output to dz of the depthwise convolution's norm, whose map this gives."""
        projected, raw, norm = maps.projected, maps.raw, block.project_norm
        pieces, mask = pieces_of(projected.positions), maps.mask.map if maps.mask else None
        sums = self.sums(projected.blocks, pieces)
        tasks = Cut(1, projected.blocks, pieces, 1)
        same = {"cut": tasks, "raw": projected.map, "gradient": gradient.map, "mask": mask, "norm": norm}
        yield NormSums(positions=projected.positions, sums=sums, **same)
        name = block.name + "projection.project_bn"
        yield self.norm_backward(name, norm, projected.channels, projected.positions, sums)
        draw = self.map(projected.channels, projected.height, projected.width, "draw")
        yield NormInput(positions=projected.positions, target=draw.map, **same)
        yield from self.project_weights(block, maps, draw)
        means = None
        if block.excite:
            yield from self.squeeze_back(block, maps)
            means = self.map(raw.channels, base="dmeans")
        pieces = self.range_pieces(raw.blocks, raw.positions)
        sums = self.sums(raw.blocks, pieces)
        yield ProjectBackward(
            cut=cut(raw.blocks, pieces),
            draw=draw.map,
            inputs=raw.channels,
            outputs=draw.channels,
            positions=raw.positions,
            pixels=raw.pixels,
            stretch=min(STRETCH, raw.positions),
            back=block.project[1],
            raw=raw.map,
            norm=block.inner_norm,
            gates=maps.gates.map if maps.gates else None,
            means=means.map if means else None,
            target=self.map(raw.channels, raw.height, raw.width, "dz").map,
            sums=sums,
            activation=self.activation,
        )
        yield self.norm_backward(block.inner_name, block.inner_norm, raw.channels, raw.positions, sums)

    def project_weights(self, block: Block, maps: BlockMaps, draw: BatchMap) -> Iterator[Step]:
        raw = maps.raw
        groups, room = ceil_div(raw.blocks, VECTORS), rounded(draw.channels)
        pieces = min(raw.images, max(1, ceil_div(TASKS, groups)))
        partial = self.partial("weight pieces", raw.blocks * room * BYTES, pieces)
        yield ProjectWeights(
            cut=cut(raw.blocks, pieces),
            source=raw.map,
            inputs=raw.channels,
            outputs=draw.channels,
            images=raw.images,
            pixels=raw.pixels,
            stretch=min(STRETCH, raw.pixels),
            norm=block.inner_norm,
            gates=maps.gates.map if maps.gates else None,
            draw=draw.map,
            back=block.project[1],
            room=room,
            partial=partial,
            dgates=self.map(raw.channels, base="dgates").map if maps.gates else None,
            activation=self.activation,
        )
        name = block.name + "projection.project_conv"
        yield self.reduce(name, draw.channels, raw.channels, partial, cut(raw.blocks), room)

    def squeeze_back(self, block: Block, maps: BlockMaps) -> Iterator[Step]:
        excite, channels, squeezed = block.excite, maps.raw.channels, block.spec.squeeze_channels
        dgates, de = self.map(channels, base="dgates"), self.map(channels, base="de")
        dreduced, dmeans = self.map(squeezed, base="dreduced"), self.map(channels, base="dmeans")
        same = {"images": maps.raw.images, "activation": self.activation, "factor": self.panels.inner}
        for name, source, matrix, then, gradient, raw, target in (
            ("expand", maps.squeezed, None, GATE, dgates, maps.gates, de),
            ("reduce", maps.means, excite.expand[1], ACTIVATE, de, maps.reduced, dreduced),
        ):
            yield DenseBackward(
                cut=cut(target.blocks),
                source=source.map,
                inputs=source.channels,
                outputs=target.channels,
                then=then,
                gradient=gradient.map,
                matrix=matrix,
                raw=raw.map,
                target=target.map,
                dweight=self.panels.gradient(f"{excite.name}{name}.weight"),
                dbias=self.panels.gradient(f"{excite.name}{name}.bias"),
                **same,
            )
        yield Dense(
            cut=cut(dmeans.blocks),
            source=dreduced.map,
            inputs=squeezed,
            outputs=channels,
            matrix=excite.reduce[1],
            raw=dmeans.map,
            then=PLAIN,
            target=dmeans.map,
            **same,
        )

    def depthwise_back(self, block: Block, maps: BlockMaps, gradient, target) -> Iterator[Step]:
        """From dz of the depthwise convolution's norm to the block's input; target: where its gradient goes, if wanted."""
        spec, source, raw = block.spec, maps.source, maps.raw
        window = window_of(spec, source, raw)
        bands = self.bands(source.height)
        tasks = cut(raw.blocks, bands * raw.images, bands_first=False)
        chunk, ring = plan_back(window, ceil_div(raw.blocks, tasks.groups), ceil_div(window.height, bands), ROOM)
        taps = spec.kernel_size**2
        partial = self.partial("tap pieces", raw.blocks * taps * BYTES, tasks.bands)
        wide, to, sums = block.expand, target, None
        if wide:
            to = self.map(raw.channels, source.height, source.width, "expanded dz")
            sums = self.sums(raw.blocks, tasks.bands)
        residual = gradient if spec.residual else None
        yield DepthwiseBackward(
            cut=tasks,
            source=source.map,
            inputs=source.channels,
            expanded=maps.expanded.map if maps.expanded else None,
            expand=wide.there if wide else None,
            channels=raw.channels,
            window=window,
            taps=Taps(block.taps[1], self.panels.zeros, window.kernel, 1),
            ring=ring,
            chunk=chunk,
            bands=bands,
            raw=raw.map,
            gradient=self.map(raw.channels, raw.height, raw.width, "dz").map,
            norm=block.inner_norm.ready,
            before=wide.norm.ready if wide else None,
            sums=sums,
            partial=partial,
            target=to.map if to else None,
            residual=residual.map if residual and to and not wide else None,
            activation=self.activation,
            rows=rows_name(window.kernel, 1),
        )
        yield ReduceTaps(
            cut=Cut(raw.blocks, raw.blocks, 1, 1),
            partial=partial,
            channels=raw.channels,
            taps=taps,
            target=self.panels.gradient(block.name + "depthwise_conv.depthwise_conv.weight"),
        )
        if wide:
            yield from self.wide_back(wide, source, maps.expanded, to, sums, target, residual)

    def whole_back(self, block: Block, maps: BlockMaps, gradient: BatchMap, target: BatchMap | None) -> Iterator[Step]:
        """From the gradient of the output of a fused block that is one convolution to its input."""
        raw, norm, pieces = maps.projected, block.project_norm, pieces_of(maps.projected.positions)
        sums, dz = self.sums(raw.blocks, pieces), self.map(raw.channels, raw.height, raw.width, "dz")
        yield Slope(
            cut=Cut(1, raw.blocks, pieces, 1),
            positions=raw.positions,
            raw=raw.map,
            gradient=gradient.map,
            mask=maps.mask.map if maps.mask else None,
            target=dz.map,
            norm=norm,
            sums=sums,
            activation=self.activation,
        )
        yield self.norm_backward(block.inner_name, norm, raw.channels, raw.positions, sums)
        yield from self.full_back(block, maps, raw, norm, gradient, target)

    def full_back(self, block: Block, maps: BlockMaps, raw: BatchMap, norm: Norm, gradient, target) -> Iterator[Step]:
        """From dz of a full convolution's norm to the block's input."""
        spec, source, full = block.spec, maps.source, block.full
        taps = spec.kernel_size**2
        planes = taps * source.blocks
        partial = self.partial(
            "weight pieces", piece_bytes(raw.channels, source.channels, spec.kernel_size), min(raw.images, TASKS)
        )
        yield FullBackward(
            cut=Cut(1, raw.blocks, partial.pieces, 1),
            source=source.map,
            images=raw.images,
            inputs=source.channels,
            outputs=raw.channels,
            window=window_of(spec, source, raw),
            raw=raw.map,
            gradient=self.map(raw.channels, raw.height, raw.width, "dz").map,
            norm=norm,
            partial=partial,
            back=full.back,
            target=target.map if target else None,
            residual=gradient.map if spec.residual and target else None,
        )
        tasks = Cut(1, planes, 16, 1)
        yield Reduce(cut=tasks, partial=partial, rows=raw.channels, columns=planes * WIDTH, room=0, target=full.wide)
        yield Spread(
            cut=Cut(raw.channels, raw.channels, 1, 1),
            narrow=self.panels.gradient(full.name + ".weight"),
            wide=full.wide,
            inputs=source.channels,
            taps=taps,
            back=1,
        )

    def stem_back(self, raw: BatchMap, gradient: BatchMap) -> Iterator[Step]:
        stem, pieces = self.layers.stem, pieces_of(raw.positions)
        sums = self.sums(raw.blocks, pieces)
        yield Slope(
            cut=Cut(1, raw.blocks, pieces, 1),
            positions=raw.positions,
            raw=raw.map,
            gradient=gradient.map,
            mask=None,
            target=gradient.map,
            norm=stem.norm,
            sums=sums,
            activation=self.activation,
        )
        yield self.norm_backward("embeddings.batchnorm", stem.norm, raw.channels, raw.positions, sums)
        columns = 9 * self.config.num_channels
        size = raw.blocks * WIDTH * blocks_of(columns) * BYTES
        partial = self.partial("weight pieces", size, min(raw.images, TASKS))
        yield StemBackward(
            cut=Cut(1, raw.blocks, partial.pieces, 1),
            stem_layer=self.stem_layer(),
            images=raw.images,
            channels=raw.channels,
            height=raw.height,
            width=raw.width,
            raw=raw.map,
            gradient=gradient.map,
            norm=stem.norm,
            partial=partial,
            back=stem.back,
            pixels=At("pixels", 0) if self.asked.pixels else None,
        )
        tasks = Cut(1, blocks_of(columns), 4, 1)
        yield self.reduce("embeddings.convolution", raw.channels, columns, partial, tasks, 0)

    # -- all of it ------------------------------------------------------------------------------------------------

    def plan(self) -> TrainingPlan:
        config, asked = self.config, self.asked
        pooled = self.map(config.head_channels)
        forward: list[Step] = [step for part, step in self.panels.steps if part >= asked.first or not asked.folds]
        prefix = self.prefix(pooled) if asked.folds else None
        maps: list[BlockMaps | None] = []
        raw = head_raw = None
        if prefix:
            source, maps = prefix.target, [None] * min(asked.first, len(self.layers.blocks))
        else:
            size = config.stem_size(asked.height, asked.width)
            raw = self.map(config.stem_channels, *size, "arena" if self.kept(-1) else "frozen raw")
            source = self.map(config.stem_channels, *size, "arena" if self.kept(0) else "frozen x 1")
            forward += self.stem(raw, source)
        for block in self.layers.blocks[len(maps) :]:
            here = self.block_maps(block, source)
            maps.append(here)
            forward += self.block(block, here)
            source = here.target
        if source is not pooled:
            head_raw = self.wide_output(len(maps), source, config.head_channels)
            forward += self.head(source, head_raw, pooled)
        classify, back, logits = [], [], None
        if self.layers.classifier:
            logits = self.map(config.num_labels)
            classify, back = self.classifier(pooled, logits)
        backward = list(self.backward(raw, maps, source, head_raw, pooled))
        masks = prefix.masks if prefix else {}
        masks |= {index: each.mask for index, each in enumerate(maps) if each and each.mask}
        self.sizes["arena"] = self.arena.bytes
        return TrainingPlan(prefix, forward, classify, back, backward, pooled, logits, masks, self.sizes)

    def prefix(self, pooled: BatchMap) -> Prefix:
        """What comes before `first`, by the forward pass, and where it goes."""
        asked, specs = self.asked, self.config.blocks()
        sizes = self.config.architecture().sizes(asked.height, asked.width)[1:]
        maps = {spec.index: (spec.out_channels, *size) for spec, size in zip(specs, sizes, strict=True)}
        masks = {index: self.map(*maps[index]) for index in asked.drops if index < asked.first}
        target = pooled if asked.first > len(specs) else self.map(*maps[asked.first - 1])
        return Prefix(asked.first, asked.height, asked.width, masks, target)

    def block_maps(self, block: Block, source: BatchMap) -> BlockMaps:
        spec, kept = block.spec, self.kept(block.spec.index)
        size = spec.output_size(source.height, source.width)
        raw = None  # of a fused block that is one convolution: it has no map between two
        if block.project:
            raw = self.map(spec.expanded_channels, *size, "arena" if kept else "frozen raw")
        projected = self.map(spec.out_channels, *size, "arena" if kept else "frozen projected")
        following = "arena" if self.kept(spec.index + 1) else f"frozen x {spec.index % 2}"
        target = self.map(spec.out_channels, *size, following)
        mask = self.map(spec.out_channels, *size, "arena") if spec.index in self.asked.drops else None
        return BlockMaps(source, raw, projected, target, mask)

    def backward(
        self, raw: BatchMap | None, maps: list[BlockMaps | None], source: BatchMap, head_raw: BatchMap | None, pooled: BatchMap
    ) -> Iterator[Step]:
        first, count = self.asked.first, len(maps)
        if first > count:
            return
        gradient = self.map(source.channels, source.height, source.width, "dx 0") if first < count else None
        yield from self.head_back(source, head_raw, pooled, gradient)
        for block, here in zip(reversed(self.layers.blocks), reversed(maps), strict=True):
            index, target = block.spec.index, None
            if index < first:
                return
            if index > first:
                below = here.source
                base = "dx 1" if gradient.base == "dx 0" else "dx 0"
                target = self.map(below.channels, below.height, below.width, base)
            if block.project is None:
                yield from self.whole_back(block, here, gradient, target)
            else:
                yield from self.project_back(block, here, gradient)
                if block.full:
                    yield from self.full_back(block, here, here.raw, block.inner_norm, gradient, target)
                else:
                    yield from self.depthwise_back(block, here, gradient, target)
            gradient = target
        if first < 0:
            yield from self.stem_back(raw, gradient)
