"""`effnet-np models`: the published networks that load by a short name, and what is on this machine of them."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from effnet_np.cli.common import Commands


def add(commands: Commands) -> None:
    known = "list the models that have a short name: where from, how large, how accurate, whether they are here"
    command = commands.add_parser("models", help=known, description=known.capitalize() + ".")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from effnet_np.inference.models import models

    found = models()
    if options.json:
        print(json.dumps([asdict(entry) for entry in found], indent=1))
        return 0
    print(f"{'name':6} {'image':>5} {'parameters':>10} {'top-1':>6}  {'licence':10}  here  source")
    for entry in found:
        here = "yes" if entry.here else "no"
        size, count = entry.image_size, f"{entry.parameters / 1e6:.1f}M"
        print(f"{entry.name:6} {size:>5} {count:>10} {entry.top1:>5}%  {entry.license:10}  {here:4}  {entry.source}")
    print("other libraries' checkpoints are read from a file or a folder: see weights/README.md")
    return 0
