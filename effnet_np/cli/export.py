"""`effnet-np export`: a checkpoint from the hub, or a folder, as one .h5 file, and the proof that nothing changed."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from effnet_np.checkpoints import hub
from effnet_np.checkpoints.h5_writer import save_h5
from effnet_np.cli.common import Commands
from effnet_np.inference.stream import preprocess
from effnet_np.model import EfficientNetForImageClassification
from effnet_np.printable import printable

VERIFY_TOLERANCE = 1e-4  # of the largest logit


def add(commands: Commands) -> None:
    one_file = "write a hub id or folder to one .h5 file"
    described = "Write a hub id or folder to one .h5 file, and read it back to compare."
    command = commands.add_parser("export", help=one_file, description=described)
    command.add_argument("source", help="a hub id, a short name (b0 to b7, lite0) or a folder as save_pretrained makes it")
    command.add_argument("-o", "--output", required=True, metavar="FILE.h5", help="where to write")
    command.add_argument("--revision", help="branch, tag or commit on the hub")
    command.add_argument("--verify", metavar="PHOTO", help="also compare the logits with transformers on this photograph")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    hub_options = {"revision": options.revision} if options.revision else {}
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
    path = hub.resolve(source, weights=True, **hub_options)
    model = EfficientNetForImageClassification.from_pretrained(path)
    if verify is not None:  # first: a checkpoint that fails must not replace a good file
        compare_with_hf(model, path, verify)
    digest = save_h5(model, output, source=os.fspath(source), revision=_revision(path, hub_options))
    _compare_bits(model, output)
    return digest


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
