"""`effnet-np bench`: the kernels measured beside others (kernels/bench.py)."""

from __future__ import annotations

import argparse

from effnet_np.cli.common import Commands


def add(commands: Commands) -> None:
    from effnet_np.kernels import bench

    beside = "measure the kernels beside NumPy, PyTorch, ONNX Runtime and OpenVINO"
    described = "Measure the kernels beside NumPy, PyTorch, ONNX Runtime and OpenVINO, those that are installed."
    command = commands.add_parser("bench", help=beside, description=described)
    bench.add_arguments(command)
    learning = "a step of learning beside PyTorch, eager and channels-last, in place of the forward pass"
    command.add_argument("--training", action="store_true", help=learning)
    compiled = "with --training: also beside torch.compile, which needs a C++ compiler"
    command.add_argument("--compile", action="store_true", help=compiled)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.training:
        from effnet_np.training import bench as training

        return training.run(options)
    from effnet_np.kernels import bench

    return bench.run(options)
