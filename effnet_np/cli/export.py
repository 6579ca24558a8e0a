"""`effnet-np export`: a checkpoint as one .h5 file, or in another library's form, and the proof that nothing changed."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np

from effnet_np.checkpoints import hub
from effnet_np.checkpoints.foreign_writer import foreign_state, save_keras, save_torch
from effnet_np.checkpoints.h5_writer import save_h5
from effnet_np.cli.common import ARCHITECTURE_HELP, Commands
from effnet_np.hf_config import EfficientNetConfig
from effnet_np.identify import expressed, in_hf_terms
from effnet_np.inference.stream import preprocess
from effnet_np.model import EfficientNetForImageClassification
from effnet_np.printable import printable
from effnet_np.weights import keras, timm, torchvision
from effnet_np.weights.dialect import blocks_of

FORMS = {
    "hf": "a folder for transformers",
    "timm": ".safetensors or .pth",
    "torchvision": ".safetensors or .pth",
    "keras-weights": ".weights.h5",
}
VERIFY_TOLERANCE = 1e-4  # of the largest logit


def add(commands: Commands) -> None:
    one_file = "write a checkpoint to one .h5 file, or for another library"
    described = "Write a checkpoint to one .h5 file, or as another library reads it, and read it back to compare."
    command = commands.add_parser("export", help=one_file, description=described)
    command.add_argument("source", help="a hub id, a short name (b0 to b7, lite0), a folder or a file, of another library, too")
    where = "where to write: FILE.h5, or what --to asks for"
    command.add_argument("-o", "--output", required=True, metavar="FILE", help=where)
    forms = "; ".join(f"{name}: {form}" for name, form in FORMS.items())
    command.add_argument("--to", choices=tuple(FORMS), help=f"the library that shall read it ({forms})")
    command.add_argument("--architecture", metavar="NAME", help=ARCHITECTURE_HELP)
    command.add_argument("--revision", help="branch, tag or commit on the hub")
    command.add_argument("--verify", metavar="PHOTO", help="also compare the logits with transformers on this photograph")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    hub_options = {"revision": options.revision} if options.revision else {}
    if options.architecture:
        hub_options["architecture"] = options.architecture
    if options.to:
        if options.verify:
            raise ValueError("--verify compares with transformers, and is for .h5 files: leave it or --to out")
        print(printable(export_to(options.to, options.source, options.output, **hub_options), keep="\n"))
        return 0
    digest = export(options.source, options.output, options.verify, **hub_options)
    size = os.path.getsize(options.output)
    verified = f", logits equal to transformers' on {options.verify}" if options.verify else ""
    print(f"{printable(options.output)}: {size / 1e6:.1f} MB, read back bit by bit{verified}\nsha256 of the tensors: {digest}")
    return 0


def export(source: str | os.PathLike, output: str | os.PathLike, verify: str | os.PathLike | None = None, **hub_options) -> str:
    """Write `source` to the .h5 file `output`, reload it and compare bit by bit; give the sha256 of its tensors.

    verify: a photograph on which the logits must also equal those of transformers on PyTorch, which must be installed.
    Raises ValueError where anything differs; the file is then not left behind.
    """
    output = Path(output)
    if output.suffix not in (".h5", ".hdf5"):
        raise ValueError(f"the output must end in .h5, got {output}")
    architecture = hub_options.pop("architecture", None)
    path = hub.resolve(source, weights=True, **hub_options)
    model = EfficientNetForImageClassification.from_pretrained(path, architecture=architecture)
    if verify is not None:  # first: a checkpoint that fails must not replace a good file
        compare_with_hf(model, path, verify)
    digest = save_h5(model, output, source=os.fspath(source), revision=_revision(path, hub_options))
    _compare_bits(model, output)
    return digest


def export_to(library: str, source: str | os.PathLike, output: str | os.PathLike, **options: Any) -> str:
    """Write `source` in the form of one of FORMS, reload it and compare bit by bit; give a sentence on how to load it.

    Raises ValueError that says what the library cannot express, or where anything differs; nothing is then left behind.
    """
    output = Path(output)
    if output.exists() and library == "hf":
        raise ValueError(f"{output} is there already: --to hf writes a new folder")
    model = EfficientNetForImageClassification.from_pretrained(source, **options)
    state = model.state_dict()
    if library == "hf":
        same = EfficientNetForImageClassification(EfficientNetConfig.from_dict(in_hf_terms(model.config)), initialize=False)
        same.load_state_dict(state)
        same.image_processor = model.image_processor
        same.save_pretrained(output)
        _compare_states(output, state)
        return f"{output}: transformers.EfficientNetForImageClassification.from_pretrained({os.fspath(output)!r})"
    versions = (keras.DIALECT_V2 if model.config.fused_stages else keras.DIALECT) if library == "keras-weights" else None
    dialect = versions or {"timm": timm.DIALECT, "torchvision": torchvision.DIALECT}[library]
    name, count = expressed(model.config, dialect, EfficientNetConfig.preset), model.config.num_labels
    if not count:
        raise ValueError(f"{source} has no classifier, which {library}'s files here have")
    blocks = list(blocks_of(model.config.architecture()))
    theirs = foreign_state(state, dialect, blocks)
    if library == "keras-weights":
        layers = {layer: ours for ours, layer in dialect.modules(blocks).items()}
        save_keras(theirs, output, layers, keras_statistics(model.image_processor, name))
        size = model.config.image_size
        made = f"keras.applications.{name}(weights=None, classes={count}, input_shape=({size}, {size}, 3))"
        call = f"model = {made}; model.load_weights({os.fspath(output)!r})"
    else:
        save_torch(theirs, output)
        function = "timm.create_model" if library == "timm" else "torchvision.models.get_model"
        read = "safetensors.torch.load_file" if output.suffix == ".safetensors" else "torch.load"
        call = f"model = {function}({name!r}, num_classes={count}); model.load_state_dict({read}({os.fspath(output)!r}))"
    _compare_states(output, state, architecture=name)
    return f"{output}: {name} of {dialect.library}, read back bit by bit\n{call}"


def keras_statistics(processor: Any, name: str) -> dict[str, np.ndarray]:
    """What Keras' layer Normalization holds, of pixels from 0 to 1, for a model whose pictures this processor prepares.

    V2's hold constants of their own: nothing, or a ValueError where they are not the processor's.
    """
    if processor is None:
        raise ValueError("Keras normalises inside of its model, and this model does not say how its pictures are prepared")
    black, white = (np.full((1, 1, 3), value, np.uint8) for value in (0, 255))
    options = {"do_resize": False, "do_center_crop": False, "input_data_format": "channels_last", "return_tensors": "np"}
    low, high = (processor(pixel, **options)["pixel_values"].reshape(3).astype(np.float64) for pixel in (black, white))
    std = 255 / (high - low)
    mean = -low * std
    if "V2" not in name:
        numbers = (mean / 255, np.square(std / 255))
        mean, variance = (np.asarray(array, np.float32) for array in numbers)
        return {"mean": mean, "variance": variance, "count": np.zeros((), np.int32)}
    own = keras.DIALECT_V2.networks[name].processor
    if not (np.allclose(mean, own["image_mean"], rtol=1e-5) and np.allclose(std, own["image_std"], rtol=1e-5)):
        theirs = f"mean {own['image_mean']} and std {own['image_std']} of pixels from 0 to 255"
        raise ValueError(f"{name} normalises with {theirs}, and this model's pictures are prepared with {mean} and {std}")
    return {}


def _compare_states(output: Path, state: dict[str, np.ndarray], **options: Any) -> None:
    """The file or folder as a user will load it, against the tensors that were written; Keras counts no batches."""
    reloaded = EfficientNetForImageClassification.from_pretrained(output, **options).state_dict()
    counted = {name for name in state if name.endswith("num_batches_tracked")} if output.suffix == ".h5" else set()
    different = [name for name in state if name not in counted and state[name].tobytes() != reloaded[name].tobytes()]
    if different:
        if output.is_file():
            output.unlink()
        raise ValueError(f"{output} did not read back as it was written ({different[:3]})")


def _revision(path: Path, hub_options: dict) -> str:
    """The commit that the hub's cache names its folders by, or what was asked for."""
    return path.name if path.parent.name == "snapshots" else hub_options.get("revision") or ""


def _compare_bits(model: EfficientNetForImageClassification, output: Path) -> None:
    """The file as a user will load it, against the model that was written."""
    reloaded = EfficientNetForImageClassification.from_pretrained(output)
    ours, theirs = model.state_dict(), reloaded.state_dict()
    different = [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()]
    written = model.config.to_dict() | {"architectures": [type(model).__name__]}
    if different or reloaded.config.to_dict() != written or reloaded.image_processor != model.image_processor:
        output.unlink()
        raise ValueError(f"{output} did not read back as it was written ({different[:3] or 'configuration'}); it was removed")


def compare_with_hf(model: EfficientNetForImageClassification, folder: Path, photo: str | os.PathLike) -> float:
    """Largest difference of the logits on one photograph, relative to the largest logit. Raises ValueError above 1e-4."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ImportError("--verify compares with transformers on PyTorch: pip install torch transformers") from error
    if not model.config.squeeze_expansion_ratio or not folder.is_dir():
        raise ValueError(f"transformers cannot load {folder}, so there is nothing to verify against")
    pixel_values = preprocess(model, photo)[None]
    hf_model = transformers.EfficientNetForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = hf_model(torch.from_numpy(pixel_values)).logits.numpy()
    ours = model(pixel_values).logits
    if not np.isfinite(theirs).all():
        raise ValueError("transformers' logits are not finite: the checkpoint is broken")
    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not difference <= VERIFY_TOLERANCE:
        raise ValueError(f"on {photo} the logits differ from transformers' by {difference:.1e} of the largest one")
    return difference
