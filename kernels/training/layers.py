"""What each layer has in the panels' memory: made once for a network, whatever pictures come."""

from __future__ import annotations

from dataclasses import dataclass

from effnet_np.kernels.product import Panel
from effnet_np.kernels.record import At
from effnet_np.kernels.training.norm import Norm
from effnet_np.kernels.training.state import Panels, Parameters


@dataclass
class Stem:
    there: Panel
    back: Panel
    norm: Norm


@dataclass
class Wide:
    """A wide 1x1 convolution with its norm: an expansion, or the head."""

    name: str
    norm_name: str
    there: Panel
    back: Panel
    norm: Norm


@dataclass
class Excite:
    name: str
    reduce: tuple[Panel, Panel]
    expand: tuple[Panel, Panel]


@dataclass
class Full:
    """A full K x K convolution: a fused block's."""

    name: str
    there: Panel
    back: Panel
    wide: At  # its weights as `Spread` writes them; on the way back their gradient


@dataclass
class Block:
    """A fused block has `full` and neither expansion, taps nor excitation; where that is all of it, no projection either."""

    spec: object
    name: str
    expand: Wide | None
    taps: tuple[At, At] | None  # there, back
    full: Full | None
    inner_name: str  # of the norm before the projection
    inner_norm: Norm | None
    excite: Excite | None
    project: tuple[Panel, Panel] | None
    project_norm: Norm


@dataclass
class Layers:
    panels: Panels
    stem: Stem
    blocks: list[Block]
    head: Wide
    classifier: tuple[Panel, Panel] | None  # there, back


def wide(panels: Panels, conv: str, norm: str, outputs: int, inputs: int) -> Wide:
    there, back = panels.matrix(conv + ".weight", outputs, inputs)
    return Wide(conv, norm, there, back, panels.norm(norm, outputs))


def layers(parameters: Parameters, prefix: str, config) -> Layers:
    """Places for everything, in the order of the network."""
    panels = Panels(parameters, prefix, config)
    columns = 9 * config.num_channels
    stem = Stem(
        *panels.matrix("embeddings.convolution.weight", config.stem_channels, columns, inputs=columns),
        panels.norm("embeddings.batchnorm", config.stem_channels),
    )
    blocks = [block(panels, spec) for spec in config.blocks()]
    last = config.blocks()[-1].out_channels
    head = wide(panels, "encoder.top_conv", "encoder.top_bn", config.head_channels, last)
    classifier = None
    if "classifier.weight" in parameters.offset:
        classifier = panels.matrix("classifier.weight", config.num_labels, config.hidden_dim, "classifier.bias")
    return Layers(panels, stem, blocks, head, classifier)


def block(panels: Panels, spec) -> Block:
    name, channels, squeezed = f"encoder.blocks.{spec.index}.", spec.expanded_channels, spec.squeeze_channels
    if spec.fused:
        return fused_block(panels, spec, name)
    expand = None
    if spec.expand_ratio != 1:
        expand = wide(panels, name + "expansion.expand_conv", name + "expansion.expand_bn", channels, spec.in_channels)
    taps = panels.taps(name + "depthwise_conv.depthwise_conv.weight", channels, spec.kernel_size)
    excite, gates = None, name + "squeeze_excite."
    if squeezed:
        excite = Excite(
            gates,
            panels.matrix(gates + "reduce.weight", squeezed, channels, gates + "reduce.bias"),
            panels.matrix(gates + "expand.weight", channels, squeezed, gates + "expand.bias"),
        )
    project = panels.matrix(name + "projection.project_conv.weight", spec.out_channels, channels)
    inner = name + "depthwise_conv.depthwise_norm"
    project_norm = panels.norm(name + "projection.project_bn", spec.out_channels, activated=False)
    return Block(spec, name, expand, taps, None, inner, panels.norm(inner, channels), excite, project, project_norm)


def fused_block(panels: Panels, spec, name: str) -> Block:
    whole, inner, norm = spec.expand_ratio == 1, name + "expansion.expand_bn", name + "projection.project_bn"
    conv, outputs = name + "expansion.expand_conv", spec.expanded_channels
    if whole:
        conv, outputs = name + "projection.project_conv", spec.out_channels
    full = Full(conv, *panels.full(conv + ".weight", outputs, spec.in_channels, spec.kernel_size))
    project_norm = panels.norm(norm, spec.out_channels, activated=whole)
    if whole:
        return Block(spec, name, None, None, full, norm, None, None, None, project_norm)
    project = panels.matrix(name + "projection.project_conv.weight", spec.out_channels, outputs)
    return Block(spec, name, None, None, full, inner, panels.norm(inner, outputs), None, project, project_norm)
