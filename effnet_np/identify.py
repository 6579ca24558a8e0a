"""Which network another library's checkpoint holds: what the caller or the file says of it, held against names and shapes.

What no file tells, such as timm's padding and eps, is never guessed: where several networks fit, that is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from effnet_np.checkpoints.checkpoint import Foreign
from effnet_np.checkpoints.files import naming
from effnet_np.layer_specs import LayerSpec, layer_specs
from effnet_np.match import Shape
from effnet_np.weights.dialect import Dialect, Network

ANY_SIZE = 1 << 13  # pixels: no shape of a tensor depends on the image
FEW = 12  # names that an error has room for
CLASSIFIER = ("classifier.weight", "classifier.bias")
SAID = ("padding", "batch_norm_eps", "depthwise_padding", "image_size")  # of the configuration, in an error
IMAGENET_CLASSES = 1000


def identify(foreign: Foreign, preset: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
    """(the configuration, the image processor's options) of a foreign network; `preset` is EfficientNetConfig's.

    Raises ValueError where names and shapes fit no known network, or several.
    """
    name = foreign.architecture or _only_one(foreign, fitting(foreign, preset), preset)
    with naming(foreign.path):
        return _described(foreign, foreign.dialect.network(name), preset)


def _described(foreign: Foreign, network: Network, preset: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
    """That network with what the source itself says: its classes, channels, input and preprocessing."""
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


def expressed(config: Any, dialect: Dialect, preset: Callable[..., Any]) -> str:
    """The dialect's name for the network of a configuration. Raises ValueError that says what the dialect cannot express.

    At the configuration's own image size both are the same; at others, zeros may be put elsewhere (see `padding`).
    """
    own = _compared(shapes(config))
    faults: dict[str, list[str]] = {}
    for name, network in dialect.networks.items():
        theirs = preset(network.preset, **(network.fields | {"image_size": config.image_size}))
        if "." in name or _compared(shapes(theirs)) != own:
            continue
        if dialect.built_for_its_input:
            theirs = preset(network.preset, **(network.fields | {"image_size": config.image_size, "padding": "same"}))
        faults[name] = list(differences(config, theirs))
        if not faults[name]:
            return name
    if not faults:
        known = ", ".join(name for name in dialect.networks if "." not in name)
        raise ValueError(f"{dialect.library} has no network of these layers and channels (it has {known})")
    lines = [f"  {name}: {'; '.join(texts)}" for name, texts in faults.items()]
    raise ValueError(f"{dialect.library} cannot express this network exactly:\n" + "\n".join(lines))


def in_hf_terms(config: Any) -> dict[str, Any]:
    """The fields with which Hugging Face's EfficientNet is the same network, at the native image size, or ValueError."""
    zeros = _zeros(config)[1:]  # of the blocks
    odd = [b.index for b, z in zip(config.blocks(), zeros, strict=True) if b.stride == 2 and z == (b.kernel_size // 2,) * 4]
    fields = config.to_dict() | {"padding": "hf", "depthwise_padding": odd}
    faults = config.beyond_hf(("padding",))
    if not faults and _zeros(type(config).from_dict(fields)) != _zeros(config):
        faults = [f"zeros of padding={config.padding!r} at {config.image_size} x {config.image_size} pixels"]
    if faults:
        raise ValueError(f"Hugging Face's EfficientNet cannot express {', '.join(faults)}")
    return fields


def differences(ours: Any, theirs: Any) -> Iterator[str]:
    """What two networks of the same shapes compute differently, in words: "batch_norm_eps 0.001, there 1e-05"."""
    for key in ("batch_norm_eps", "hidden_act", "pooling_type"):
        own, other = (_silu(getattr(config, key)) for config in (ours, theirs))
        if own != other:
            yield f"{key} {own}, there {other}"
    if _zeros(ours) != _zeros(theirs):
        size = f"at its {ours.image_size} x {ours.image_size} pixels"
        yield f"padding {ours.padding!r} puts zeros elsewhere than {theirs.padding!r}, which it has, {size}"
    if any(a.residual != b.residual for a, b in zip(ours.blocks(), theirs.blocks(), strict=True)):
        yield "a block that adds its input is another one there"


def _silu(value: Any) -> Any:
    return "swish" if value == "silu" else value


def _zeros(config: Any) -> list[tuple[int, ...]]:
    """(top, bottom, left, right) of every K x K convolution, for an image of the native size."""
    network, size = config.architecture(), config.image_size
    parts, sizes = [network.stem, *network.blocks], [(size, size), *network.sizes(size, size)]
    return [part.zeros(*before) for part, before in zip(parts, sizes, strict=False)]


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
    library, known = foreign.dialect.library, ", ".join([name for name in foreign.dialect.networks if "." not in name][:FEW])
    if not names:
        raise ValueError(
            f"{foreign.path} is a checkpoint of {library}, by its names, but its tensors are of none of its networks that are "
            f"known here ({known}, ...); to see in what it differs from one of them, say architecture="
        )
    lines = [f"  {name}: {_said(foreign.dialect.network(name), preset)}" for name in names]
    example = f"from_pretrained({foreign.path.name!r}, architecture={names[-1]!r})"
    raise ValueError(
        f"{foreign.path} may be any of {len(names)} networks of {library}, whose tensors have the same names and shapes:\n"
        + "\n".join(lines)
        + f"\nSay which it is, for example {example}, or on the shell --architecture {names[-1]}"
    )


def _said(network: Network, preset: Callable[..., Any]) -> str:
    config = preset(network.preset, **network.fields)
    mean = ", ".join(f"{value:g}" for value in network.processor["image_mean"])
    return ", ".join([*(f"{key} {getattr(config, key)}" for key in SAID), f"mean {mean}"])
