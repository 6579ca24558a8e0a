"""`effnet-np trace`: every activation by name, for another implementation to be tested with."""

from __future__ import annotations

import argparse
from typing import Any

from effnet_np.cli.common import (
    LAYERS_HELP,
    MODEL_HELP,
    PIXELS_HELP,
    Commands,
    add_architecture,
    architecture,
    picture,
    positive,
    seed,
)
from effnet_np.images.io import MAX_PIXELS
from effnet_np.printable import printable

DESCRIPTION = """Write the output of every layer for one picture, by PyTorch's names, in call order; the network's own input is
"pixel_values". A folder's index.txt has a line for each array: kind, name, dtype, layout, number of dimensions,
the dimensions, file; and its layers.txt a line for each layer: name, kind, kernel, stride, padding before and after,
groups, eps, activation. With --inputs and --weights, another implementation can be tested layer by layer:

  effnet-np trace photo.jpg -o golden --format bin --inputs --weights --layers '*.blocks.3.*'

Without a picture and without a network, with squeeze-excite, on random numbers:

  effnet-np trace --model b0 --random 0 -o golden --format bin --inputs --weights"""


def add(commands: Commands) -> None:
    command = commands.add_parser(
        "trace",
        help="write every activation, by name",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("image", nargs="?", metavar="IMAGE", help="a picture")
    ready = "an array (N, C, H, W) of floats in place of a picture: what the network itself is given"
    command.add_argument("--input", metavar="FILE.npy", help=ready)
    path = "a file that ends in .h5 or .npz, or a new folder"
    command.add_argument("-o", "--output", required=True, metavar="PATH", help=path)
    command.add_argument("--layers", action="append", metavar="GLOB", help=LAYERS_HELP)
    kinds = "h5, npz, or a folder of npy, txt or bin files (default: as PATH ends, else npy)"
    command.add_argument("--format", choices=("h5", "npz", "npy", "txt", "bin"), help=kinds)
    layouts = "of activations with four dimensions (default: %(default)s)"
    command.add_argument("--layout", choices=("NCHW", "NHWC"), default="NCHW", help=layouts)
    command.add_argument("--inputs", action="store_true", help="each layer's inputs too, so that it can be tested alone")
    command.add_argument("--weights", action="store_true", help="the layers' weights too")
    back = "the gradients too, of the loss with --label: of these layers' outputs and parameters, and of the pixels"
    command.add_argument("--gradients", action="store_true", help=back)
    right = "the class that the loss takes for the right one (default: the one with the highest score)"
    command.add_argument("--label", metavar="CLASS", help=right)
    command.add_argument("--model", default="lite0", help=MODEL_HELP)
    add_architecture(command)
    drawn = "random weights that keep activations alive, for the network that MODEL is; without a picture, random pixels too"
    command.add_argument("--random", type=seed, metavar="SEED", help=drawn)
    command.add_argument("--max-pixels", type=positive, default=MAX_PIXELS, metavar="N", help=PIXELS_HELP)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from effnet_np.tracing.trace import Trace

    if options.input is not None and options.image is not None:
        raise ValueError("give a picture or --input FILE.npy, not both")
    if options.input is options.image is options.random is None:
        raise ValueError("give a picture, --input FILE.npy, or --random SEED")
    model = _traced_model(options)
    pixel_values = _traced_input(options, model)
    with Trace(model, options.layers or "*", inputs=options.inputs, weights=options.weights) as trace:
        output = model(pixel_values)
    if options.gradients:
        trace.gradients = _traced_gradients(options, model, pixel_values, output.logits, trace.wants)
    trace.save(options.output, options.format, options.layout)
    counts = f"{len(trace)} outputs, {sum(map(len, trace.inputs.values()))} inputs, {len(trace.weights)} weights"
    counts += f", {len(trace.gradients)} gradients" if options.gradients else ""
    print(f"{printable(options.output)}: {counts}")
    return 0


def _traced_model(options: argparse.Namespace) -> Any:
    """The model that is named, or one of its architecture with random weights."""
    from effnet_np import EfficientNetConfig, EfficientNetForImageClassification, EfficientNetImageProcessor
    from effnet_np.inference.classify import get_model
    from effnet_np.presets import PRESETS
    from effnet_np.tracing.trace import enliven

    name = options.model
    if options.random is None:
        return get_model(name, **architecture(options))
    named = {} if name in PRESETS else architecture(options)
    config = EfficientNetConfig.preset(name) if name in PRESETS else EfficientNetConfig.from_pretrained(name, **named)
    model = EfficientNetForImageClassification(config, initialize=False)
    enliven(model, options.random)
    if options.image is not None:  # only a picture needs one
        known = EfficientNetImageProcessor.preset if name in PRESETS else EfficientNetImageProcessor.from_pretrained
        model.image_processor = known(name, **named)
    return model


def _traced_input(options: argparse.Namespace, model: Any) -> Any:
    """(N, C, H, W): from a picture, from a file of numbers, or random."""
    import numpy as np

    from effnet_np.inference.stream import preprocess
    from effnet_np.tracing.trace_files import load_npy

    if options.image is not None:
        return preprocess(model, picture(options.image), options.max_pixels)[None]
    if options.input is not None:
        return load_npy(options.input)
    size = model.config.image_size
    return np.random.default_rng(options.random).standard_normal((1, model.config.num_channels, size, size), np.float32)


def _traced_gradients(options: argparse.Namespace, model: Any, pixel_values: Any, logits: Any, wants: Any) -> dict[str, Any]:
    """Of the loss, by name, the last layer's first; those of the layers that are asked for."""
    import numpy as np

    from effnet_np.inference.classify import find_class
    from effnet_np.inspection.compare_gradients import in_backward_order
    from effnet_np.training.backward import backward

    labels = logits.argmax(axis=1)
    if options.label is not None:
        labels = np.full(len(logits), find_class(model.config, options.label))
    found = in_backward_order(backward(model, pixel_values, labels, activations="*"))
    return {name: gradient for name, gradient in found.items() if wants(name) or wants(name.rpartition(".")[0])}
