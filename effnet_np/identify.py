"""Which network another library's checkpoint holds: what the caller or the file says of it, held against names and shapes.

What no file tells, such as timm's padding and eps, is never guessed: where several networks fit, that is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from effnet_np.checkpoints.checkpoint import Foreign
from effnet_np.layer_specs import LayerSpec, layer_specs
from effnet_np.match import Shape
from effnet_np.weights.dialect import Network

ANY_SIZE = 1 << 13  # pixels: no shape of a tensor depends on the image
CLASSIFIER = ("classifier.weight", "classifier.bias")
SAID = ("padding", "batch_norm_eps", "depthwise_padding", "image_size")  # of the configuration, in an error
IMAGENET_CLASSES = 1000


def identify(foreign: Foreign, preset: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
    """(the configuration, the image processor's options) of a foreign network; `preset` is EfficientNetConfig's.

    Raises ValueError where names and shapes fit no known network, or several.
    """
    name = foreign.architecture or _only_one(foreign, fitting(foreign, preset), preset)
    network = foreign.dialect.network(name)
    fields, size = dict(foreign.fields), foreign.fields.get("input_size")
    fields.pop("input_size", None)
    rows = foreign.shapes.get(CLASSIFIER[0], ())
    if rows:
        fields["num_labels"] = rows[0]
    if len(fields.get("id2label", ())) == fields.get("num_labels"):
        fields.pop("num_labels")  # the labels number themselves
    else:
        fields.pop("id2label", None)
    if fields.get("num_labels") in (None, IMAGENET_CLASSES):
        fields.pop("num_labels", None)  # the preset's labels
    stem = foreign.shapes.get("efficientnet.embeddings.convolution.weight", ())
    if len(stem) == 4:
        fields["num_channels"] = stem[1]
    processor = network.processor | (foreign.processor or {})
    if size is not None:
        fields |= _built_for(size, preset(network.preset))
        processor["size"] = fields.get("image_size", processor["size"])
    return preset(network.preset, **(network.fields | fields)), processor


def _built_for(size: tuple[int | None, int | None], native: Any) -> dict[str, Any]:
    """Keras' B0 to B7 are padded for the input that they were built for: with any size, as if all were even."""
    if size == (native.image_size,) * 2 or native.padding != "hf":
        return {} if None in size or size[0] != size[1] else {"image_size": size[0]}
    if None in size:
        return {"depthwise_padding": []}
    return {"padding": "same", "depthwise_padding": [], "image_size": size[0]}


def fitting(foreign: Foreign, preset: Callable[..., Any]) -> list[str]:
    """The networks of the dialect, by name, whose names and shapes are the checkpoint's; of the classifier any size will do."""
    theirs = _compared(foreign.shapes)
    found = []
    for name, network in foreign.dialect.networks.items():
        if "." not in name and _compared(shapes(preset(network.preset, **network.fields))) == theirs:
            found.append(name)
    return found


def shapes(config: Any) -> dict[str, Shape]:
    """The shapes of all tensors of a network, by name, without building it."""
    found: dict[str, Shape] = {}
    for layer in layer_specs(config.architecture(), ANY_SIZE, ANY_SIZE):
        found |= {f"{layer.name}.{tensor}": shape for tensor, shape in _tensors(layer)}
    return found


def _tensors(layer: LayerSpec) -> list[tuple[str, Shape]]:
    if layer.kind == "norm":
        return [(name, (layer.out_channels,)) for name in ("weight", "bias", "running_mean", "running_var")]
    kernel = (layer.kernel_size,) * 2 if layer.kind == "conv" else ()
    weight = (layer.out_channels, layer.in_channels // layer.groups, *kernel)
    return [("weight", weight)] + ([("bias", (layer.out_channels,))] if layer.bias else [])


def _compared(found: Mapping[str, Shape]) -> dict[str, Shape]:
    """Without what may differ in a network of the same name: classes, channels of the image, counts of batches."""
    kept = {name: shape for name, shape in found.items() if name not in CLASSIFIER and not name.endswith("num_batches_tracked")}
    stem = "efficientnet.embeddings.convolution.weight"
    return kept | ({stem: (kept[stem][0], 0, *kept[stem][2:])} if len(kept.get(stem, ())) == 4 else {})


def _only_one(foreign: Foreign, names: list[str], preset: Callable[..., Any]) -> str:
    if len(names) == 1:
        return names[0]
    library, known = foreign.dialect.library, ", ".join(name for name in foreign.dialect.networks if "." not in name)
    if not names:
        raise ValueError(
            f"{foreign.path} is a checkpoint of {library}, by its names, but its tensors are of none of its networks that are "
            f"known here ({known}); to see in what it differs from one of them, say architecture="
        )
    lines = [f"  {name}: {_said(foreign.dialect.network(name), preset)}" for name in names]
    example = f"from_pretrained({foreign.path.name!r}, architecture={names[-1]!r})"
    raise ValueError(
        f"{foreign.path} may be any of {len(names)} networks of {library}, whose tensors have the same names and shapes:\n"
        + "\n".join(lines)
        + f"\nSay which it is, for example {example}"
    )


def _said(network: Network, preset: Callable[..., Any]) -> str:
    config = preset(network.preset, **network.fields)
    mean = ", ".join(f"{value:g}" for value in network.processor["image_mean"])
    return ", ".join([*(f"{key} {getattr(config, key)}" for key in SAID), f"mean {mean}"])
