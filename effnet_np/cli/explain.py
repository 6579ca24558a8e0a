"""`effnet-np explain`: where in a picture the evidence lies."""

from __future__ import annotations

import argparse

from effnet_np.cli.common import (
    MODEL_HELP,
    PIXELS_HELP,
    PROCESSOR_HELP,
    Commands,
    add_architecture,
    architecture,
    picture,
    positive,
)
from effnet_np.images.io import MAX_PIXELS
from effnet_np.printable import printable


def add(commands: Commands) -> None:
    drawn = (
        "Draw a picture, where in it the evidence for a class lies (its class activation map), and bars of the first labels."
    )
    command = commands.add_parser("explain", help="draw where in a picture the evidence lies", description=drawn)
    command.add_argument("image", metavar="IMAGE", help="a picture, or - for stdin")
    command.add_argument("-o", "--output", required=True, metavar="FILE.png", help="where to write: .png, .jpg or .webp")
    command.add_argument("--model", default="lite0", help=MODEL_HELP)
    command.add_argument("--processor", metavar="NAME", help=PROCESSOR_HELP)
    add_architecture(command)
    command.add_argument("--top-k", type=positive, default=5, metavar="K", help="labels to show (default: %(default)s)")
    by_name = "the class to show, by index or by name: 281, tabby (default: the one with the highest score)"
    command.add_argument("--class", dest="class_index", metavar="CLASS", help=by_name)
    command.add_argument("--max-pixels", type=positive, default=MAX_PIXELS, metavar="N", help=PIXELS_HELP)
    methods = ("cam", "gradcam", "saliency", "integrated-gradients", "occlusion")
    command.add_argument("--method", choices=methods, default="cam", help="how the evidence is found (default: %(default)s)")
    command.add_argument("--layer", metavar="NAME", help="of gradcam: the layer to look at (default: the last)")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from effnet_np.inspection.explain import explain, picture_format, save_explanation

    picture_format(options.output)  # before seconds are spent on it
    chosen = {"class_index": options.class_index, "image_processor": options.processor, "max_pixels": options.max_pixels}
    chosen |= {"method": options.method, "layer": options.layer} | architecture(options)
    drawn = explain(picture(options.image), options.model, options.top_k, **chosen)
    save_explanation(drawn, options.output)
    print(f"{printable(options.output)}: {drawn.width} x {drawn.height} pixels")
    return 0
