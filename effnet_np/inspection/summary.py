"""summary(): a row a layer with output shape, parameters and multiply-adds, worked out from the configuration alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from effnet_np.hf_config import EfficientNetConfig
from effnet_np.layer_specs import LayerSpec, layer_specs
from effnet_np.presets import PRESETS
from effnet_np.printable import printable
from effnet_np.tracing.trace import activation_name

# Paper, Table 2: parameters and multiply-adds of B0..B7 at their image sizes.
PAPER = {
    "b0": (5.3e6, 0.39e9),
    "b1": (7.8e6, 0.70e9),
    "b2": (9.2e6, 1.0e9),
    "b3": (12e6, 1.8e9),
    "b4": (19e6, 4.2e9),
    "b5": (30e6, 9.9e9),
    "b6": (43e6, 19e9),
    "b7": (66e6, 37e9),
}


@dataclass(frozen=True)
class Row:
    """One layer under its module's name: output shape (C, H, W) or (C,), parameters, and multiply-adds an image."""

    name: str
    layer: str
    output_shape: tuple[int, ...]
    parameters: int
    mult_adds: int
    stride: int = 0  # these are 0, () or "" where a layer has none
    padding: tuple[int, ...] = ()  # pixels of zeros: (top and left, bottom and right), or (top, bottom, left, right)
    groups: int = 0
    eps: float = 0.0
    activation: str = ""  # of the layer's output


@dataclass(frozen=True)
class Summary:
    """The rows of a network, their totals, and, by `str()`, the table to print."""

    input_shape: tuple[int, ...]
    rows: list[Row]
    preset: str | None = None  # where the network is a published one at its own image size

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def mult_adds(self) -> int:
        return sum(row.mult_adds for row in self.rows)

    def deviation(self) -> tuple[float, float] | None:
        """(parameters, multiply-adds) relative to the paper's Table 2, 0.01 for 1% more; None where the paper has no figure."""
        if self.preset not in PAPER:
            return None
        parameters, mult_adds = PAPER[self.preset]
        return self.parameters / parameters - 1, self.mult_adds / mult_adds - 1

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        settings = f"{'stride':>6} {'padding':>7} {'groups':>6} {'eps':>6} {'activation':10}"
        lines = [f"{'layer':{width}}  {'kind':22} {'output':>15} {settings} {'parameters':>12} {'mult-adds':>14}"]
        for row in self.rows:
            shape, padding = " x ".join(map(str, row.output_shape)), ", ".join(map(str, row.padding))
            eps, activation = f"{row.eps:g}" if row.eps else "", printable(row.activation)
            settings = f"{row.stride or '':>6} {padding:>7} {row.groups or '':>6} {eps:>6} {activation:10}"
            counts = f"{row.parameters:>12,} {row.mult_adds:>14,}"
            lines.append(f"{row.name:{width}}  {row.layer:22} {shape:>15} {settings} {counts}")
        lines.append(f"{'total':{width}}  {'':22} {'':15} {'':39} {self.parameters:>12,} {self.mult_adds:>14,}")
        shape = " x ".join(map(str, self.input_shape))
        lines.append(f"input {shape}; {self.parameters * 4 / 1e6:.1f} MB of float32 parameters")
        deviation = self.deviation()
        if deviation is not None:
            paper = PAPER[self.preset]  # type: ignore[index]
            lines.append(
                f"paper's Table 2: {paper[0] / 1e6:g}M parameters ({deviation[0]:+.1%} here), "
                f"{paper[1] / 1e9:g}B mult-adds ({deviation[1]:+.1%} here)"
            )
        return "\n".join(lines)


def summary(model: Any, input_shape: tuple[int, ...] | None = None) -> Summary:
    """model: a model, a configuration, or a preset's name; input_shape (C, H, W), by default the configuration's own.

    Multiply-adds are those of convolutions and of the classifier, as in the paper. Raises ValueError for an image that is
    too small for the network or has another number of channels.
    """
    config = EfficientNetConfig.preset(model) if isinstance(model, str) else getattr(model, "config", model)
    if input_shape is None:
        input_shape = (config.num_channels, config.image_size, config.image_size)
    if len(input_shape) != 3 or input_shape[0] != config.num_channels:
        raise ValueError(f"input_shape must be ({config.num_channels}, height, width) for this network, got {input_shape}")
    config.check_image_size(*input_shape[1:])
    backbone = not isinstance(model, (str, EfficientNetConfig)) and not hasattr(model, "classifier")
    rows = _rows(config, *input_shape[1:], backbone)
    return Summary(tuple(input_shape), rows, _preset_of(config, input_shape) if not backbone else None)


def _rows(config: EfficientNetConfig, height: int, width: int, backbone: bool) -> list[Row]:
    rows, last = [], None
    for layer in layer_specs(config.architecture(), height, width):
        shape, counts = (layer.out_channels, layer.height, layer.width), (layer.parameters, layer.mult_adds)
        if layer.kind == "conv":
            kind = f"Conv2d {layer.kernel_size}x{layer.kernel_size}" + (" depthwise" if layer.groups > 1 else "")
            row = Row(layer.name, kind, shape, *counts, activation=_activation(layer, config))
            rows.append(replace(row, stride=layer.stride, padding=layer.padding, groups=layer.groups))
        elif layer.kind == "norm":
            activation = _activation(layer, config)
            rows.append(Row(layer.name, "BatchNorm2d", shape, *counts, eps=config.batch_norm_eps, activation=activation))
        else:
            last = Row(layer.name, "Linear", shape[:1], *counts)
    rows.append(Row("efficientnet.pooler", f"{config.pooling_type} of each plane", (config.hidden_dim,), 0, 0))
    if backbone:
        return [replace(row, name=row.name.removeprefix("efficientnet.")) for row in rows]
    return rows if last is None else [*rows, last]


def _activation(layer: LayerSpec, config: EfficientNetConfig) -> str:
    """What is applied to a layer's output at once: nothing to a convolution that is normalised, and to a projection."""
    if layer.name.endswith("squeeze_excite.expand"):  # the gate
        return "sigmoid"
    return activation_name(config.hidden_act) if layer.activated else ""


def _preset_of(config: EfficientNetConfig, input_shape: tuple[int, ...]) -> str | None:
    """The name of the published network that this is, at its own image size and with 1,000 labels."""
    for name in PRESETS:
        preset = EfficientNetConfig.preset(name)
        size = preset.image_size
        if input_shape == (3, size, size) and config.num_labels == 1000 and config.blocks() == preset.blocks():
            return name
    return None
