"""`effnet-np export`: a checkpoint from the hub, or a folder, as one .h5 file."""

from __future__ import annotations

import argparse
import os

from effnet_np.cli.common import Commands
from effnet_np.printable import printable


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
    from effnet_np.weights.export_hf import export

    hub_options = {"revision": options.revision} if options.revision else {}
    digest = export(options.source, options.output, options.verify, **hub_options)
    size = os.path.getsize(options.output)
    verified = f", logits equal to transformers' on {options.verify}" if options.verify else ""
    print(f"{printable(options.output)}: {size / 1e6:.1f} MB, read back bit by bit{verified}\nsha256 of the tensors: {digest}")
    return 0
