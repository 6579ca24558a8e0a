"""`effnet-np bench`: the kernels measured beside others (kernels/bench.py)."""

from __future__ import annotations

from effnet_np.cli.common import Commands


def add(commands: Commands) -> None:
    from effnet_np.kernels import bench

    beside = "measure the kernels beside NumPy, PyTorch, ONNX Runtime and OpenVINO"
    described = "Measure the kernels beside NumPy, PyTorch, ONNX Runtime and OpenVINO, those that are installed."
    command = commands.add_parser("bench", help=beside, description=described)
    bench.add_arguments(command)
    command.set_defaults(run=bench.run)
