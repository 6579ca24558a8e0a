"""`effnet-np warmup`: compile the kernels ahead."""

from __future__ import annotations

import argparse

from effnet_np.cli.common import Commands


def add(commands: Commands) -> None:
    ahead = "compile the kernels for this CPU, and keep them on disk"
    described = "Compile the kernels for this CPU, and keep them on disk: later answers are faster."
    command = commands.add_parser("warmup", help=ahead, description=described)
    command.add_argument("--training", action="store_true", help="those that learn (finetune), too")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        from effnet_np.kernels.warmup import warmup
    except ImportError as error:
        raise ImportError(f"warmup needs Numba ({error}): pip install 'effnet_np[numba]'") from error
    return warmup(training=options.training)
