"""`effnet-np summary`: a row a layer."""

from __future__ import annotations

import argparse

from effnet_np.cli.common import MODEL_HELP, Commands, positive


def add(commands: Commands) -> None:
    rows = "a row a layer: output shape, parameters, multiply-adds"
    command = commands.add_parser("summary", help=rows, description=f"Print {rows}; and their totals.")
    command.add_argument("--model", default="lite0", help=MODEL_HELP)
    command.add_argument("--image-size", type=positive, metavar="PIXELS", help="height and width (default: the model's own)")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from effnet_np.hf_config import EfficientNetConfig
    from effnet_np.inspection.summary import summary
    from effnet_np.presets import PRESETS

    name = options.model
    config = EfficientNetConfig.preset(name) if name in PRESETS else EfficientNetConfig.from_pretrained(name)
    size = options.image_size or config.image_size
    print(summary(config, (config.num_channels, size, size)))
    return 0
