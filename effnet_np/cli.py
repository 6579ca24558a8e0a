"""The command `effnet-np`: classify pictures and explain the answer, look into networks, export checkpoints."""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from effnet_np.image_io import MAX_PIXELS, SUFFIXES
from effnet_np.training import command as finetune_command
from effnet_np.version import __version__

INTERRUPTED = 130  # what a shell reports for Ctrl-C
DESCRIPTION = """EfficientNet in NumPy: say what is on a picture, on a CPU, without PyTorch.

  effnet-np classify photo.jpg               the embedded model, no network needed
  effnet-np classify photos/ --json          a folder, one JSON object a line
  effnet-np explain photo.jpg -o why.png     where in the picture the evidence lies
  effnet-np warmup                           compile the kernels, once: faster answers
  effnet-np summary --model b4               layers, parameters, multiply-adds
  effnet-np export google/efficientnet-b0 -o b0.h5
  effnet-np finetune photos/ -o flowers      a classifier of your own: a folder of pictures for each class
  effnet-np trace photo.jpg -o golden.h5     every activation, by name
  effnet-np compare mine/ golden.h5          the first layer that is wrong, and why"""
MODEL_HELP = "lite0 (embedded), b0 to b7 (Google's, from the hub), a hub id, a folder or an .h5 file (default: %(default)s)"

TRACE = """Write the output of every layer for one picture, by PyTorch's names, in call order; the network's own input is
"pixel_values". A folder's index.txt has a line for each array: kind, name, dtype, layout, number of dimensions,
the dimensions, file. With --inputs and --weights, another implementation can be tested layer by layer:

  effnet-np trace photo.jpg -o golden --format bin --inputs --weights --layers '*.blocks.3.*'"""
COMPARE = """Compare the activations of two runs, layer by layer in the reference's call order; name the first that differs,
and the mistake where it is a known one. The exit status is 1 where anything differs or is missing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; give its exit status: 0, 1 where something failed, 2 for a wrong call, 130 for Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("effnet-np: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, TypeError, ImportError) as error:
        print(f"effnet-np: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="effnet-np", description=DESCRIPTION, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"effnet-np {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = commands.add_parser("classify", help="say what is on pictures", description="Say what is on pictures.")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="a picture, a folder of them, or a pattern: 'photos/*.jpg'")
    command.add_argument("--model", default="lite0", help=MODEL_HELP)
    command.add_argument("--top-k", type=_positive, default=5, metavar="K", help="labels a picture (default: %(default)s)")
    command.add_argument("--batch-size", type=_positive, default=8, metavar="N", help="pictures at a time (default: 8)")
    limit = "refuse larger pictures (default: %(default)s)"
    command.add_argument("--max-pixels", type=_positive, default=MAX_PIXELS, metavar="N", help=limit)
    command.add_argument("--json", action="store_true", help="one JSON object a line, for programs")
    backends = "numpy, numba (compiled kernels), or auto: numba where it is warmed up (default: %(default)s)"
    command.add_argument("--backend", choices=("auto", "numpy", "numba"), default="auto", help=backends)
    command.set_defaults(run=_classify)

    rows = "a row a layer: output shape, parameters, multiply-adds"
    command = commands.add_parser("summary", help=rows, description=f"Print {rows}; and their totals.")
    command.add_argument("--model", default="lite0", help=MODEL_HELP)
    command.add_argument("--image-size", type=_positive, metavar="PIXELS", help="height and width (default: the model's own)")
    command.set_defaults(run=_summary)

    one_file = "write a hub id or folder to one .h5 file"
    command = commands.add_parser("export", help=one_file, description=one_file.capitalize() + ", and read it back to compare.")
    command.add_argument("source", help="a hub id, a short name (b0 to b7, lite0) or a folder as save_pretrained makes it")
    command.add_argument("-o", "--output", required=True, metavar="FILE.h5", help="where to write")
    command.add_argument("--revision", help="branch, tag or commit on the hub")
    command.add_argument("--verify", metavar="PHOTO", help="also compare the logits with transformers on this photograph")
    command.set_defaults(run=_export)

    _add_trace_commands(commands)
    _add_kernel_commands(commands)
    finetune_command.add(commands, MODEL_HELP)
    return parser


def _add_trace_commands(commands: argparse._SubParsersAction) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    pixels_help = "refuse larger pictures (default: %(default)s)"
    drawn = (
        "Draw a picture, where in it the evidence for a class lies (its class activation map), and bars of the first labels."
    )
    command = commands.add_parser("explain", help="draw where in a picture the evidence lies", description=drawn)
    command.add_argument("image", metavar="IMAGE", help="a picture")
    command.add_argument("-o", "--output", required=True, metavar="FILE.png", help="where to write: .png, .jpg or .webp")
    command.add_argument("--model", default="lite0", help=MODEL_HELP)
    command.add_argument("--top-k", type=_positive, default=5, metavar="K", help="labels to show (default: %(default)s)")
    command.add_argument(
        "--class", dest="class_index", type=int, metavar="INDEX", help="the class to show (default: the first)"
    )
    methods = ("cam", "gradcam", "saliency", "integrated-gradients", "occlusion")
    command.add_argument("--method", choices=methods, default="cam", help="how the evidence is found (default: %(default)s)")
    command.add_argument("--layer", metavar="NAME", help="of gradcam: the layer to look at (default: the last)")
    command.add_argument("--max-pixels", type=_positive, default=MAX_PIXELS, metavar="N", help=pixels_help)
    command.set_defaults(run=_explain)

    command = commands.add_parser("trace", help="write every activation, by name", description=TRACE, formatter_class=raw)
    command.add_argument("image", metavar="IMAGE", help="a picture")
    command.add_argument(
        "-o", "--output", required=True, metavar="PATH", help="a file that ends in .h5 or .npz, or a new folder"
    )
    several = "only these layers, a pattern such as '*.blocks.3.*'; may be given several times"
    command.add_argument("--layers", action="append", metavar="GLOB", help=several)
    kinds = "h5, npz, or a folder of npy, txt or bin files (default: as PATH ends, else npy)"
    command.add_argument("--format", choices=("h5", "npz", "npy", "txt", "bin"), help=kinds)
    layouts = "of activations with four dimensions (default: %(default)s)"
    command.add_argument("--layout", choices=("NCHW", "NHWC"), default="NCHW", help=layouts)
    command.add_argument("--inputs", action="store_true", help="each layer's inputs too, so that it can be tested alone")
    command.add_argument("--weights", action="store_true", help="the layers' weights too")
    command.add_argument("--model", default="lite0", help=MODEL_HELP)
    command.add_argument("--max-pixels", type=_positive, default=MAX_PIXELS, metavar="N", help=pixels_help)
    command.set_defaults(run=_trace)

    first = "name the first layer in which two traces differ"
    command = commands.add_parser("compare", help=first, description=COMPARE, formatter_class=raw)
    command.add_argument("ours", help="what is judged: a file or folder, as `trace` writes it or another program")
    command.add_argument("theirs", help="the reference: a file or folder")
    command.add_argument("--layers", action="append", metavar="GLOB", help=several)
    tolerance = "largest error that is OK, relative to the layer's largest number in the reference (default: 1e-4)"
    command.add_argument("--tolerance", type=float, metavar="X", help=tolerance)
    command.add_argument("--all", action="store_true", help="print every layer")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument(
        "-o", "--output", action="append", metavar="REPORT", default=[], help="also write .html, .json or .txt"
    )
    command.set_defaults(run=_compare)


def _add_kernel_commands(commands: argparse._SubParsersAction) -> None:
    from effnet_np.kernels import bench

    ahead = "compile the kernels for this CPU, and keep them on disk"
    command = commands.add_parser("warmup", help=ahead, description=ahead.capitalize() + ": later answers are faster.")
    command.set_defaults(run=_warmup)
    beside = "measure the kernels beside NumPy, PyTorch, ONNX Runtime and OpenVINO"
    command = commands.add_parser("bench", help=beside, description=beside.capitalize() + ", those that are installed.")
    bench.add_arguments(command)
    command.set_defaults(run=bench.run)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


# -- classify ---------------------------------------------------------------------------------------------------------


def _classify(options: argparse.Namespace) -> int:
    from effnet_np.classify import get_runner, predict, preprocess

    paths, failed = _expand(options.images)
    for name, reason in failed:
        _report_failure(name, reason, options.json)
    if not paths:
        return 1
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"effnet-np: {message}", file=sys.stderr)
        model = get_runner(options.model, options.backend)
    for chunk in _chunks(_progress(paths), options.batch_size):
        inputs, errors = {}, {}
        for path in chunk:
            try:
                inputs[path] = preprocess(model, path, options.max_pixels)
            except (OSError, ValueError) as error:
                errors[path] = str(error)
        predictions = dict(zip(inputs, predict(model, list(inputs.values()), options.top_k) if inputs else [], strict=True))
        for path in chunk:  # in the order they were given, those that failed included
            if path in predictions:
                _print_predictions(path, predictions[path], options.json)
            else:
                failed.append((path, errors[path]))
                _report_failure(path, errors[path], options.json)
    if failed and len(paths) + len(failed) > 1:
        print(f"effnet-np: {len(failed)} could not be classified", file=sys.stderr)
    return 1 if failed else 0


def _expand(names: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Folders and patterns -> the pictures in them, sorted; and what stands for no picture, with the reason."""
    paths: list[str] = []
    failed: list[tuple[str, str]] = []
    for name in names:
        if os.path.isdir(name):
            found = sorted(str(entry) for entry in Path(name).iterdir() if entry.suffix.lower() in SUFFIXES)
            reason = f"{name}: the folder holds no pictures ({', '.join(SUFFIXES)})"
        elif not os.path.exists(name) and glob.has_magic(name):
            found = sorted(path for path in glob.glob(name, recursive=True) if os.path.isfile(path))
            reason = f"{name}: no file fits this pattern (folders do not count)"
        else:
            found, reason = [name], ""
        paths += found
        if not found:
            failed.append((name, reason))
    return paths, failed


def _progress(paths: list[str]) -> Iterable[str]:
    """The paths, with a bar on stderr where they are many and a person looks at it while the output goes elsewhere."""
    if len(paths) > 8 and sys.stderr.isatty() and not sys.stdout.isatty():
        try:
            from tqdm import tqdm

            return tqdm(paths, unit="picture")
        except ImportError:
            return _counted(paths)
    return paths


def _counted(paths: list[str]) -> Iterator[str]:
    for index, path in enumerate(paths):
        print(f"\r{index + 1} of {len(paths)} pictures", end="", file=sys.stderr, flush=True)
        yield path
    print(file=sys.stderr)


def _chunks(paths: Iterable[str], size: int) -> Iterator[list[str]]:
    chunk: list[str] = []
    for path in paths:
        chunk.append(path)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _print_predictions(name: str, predictions: list[dict], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"file": name, "predictions": predictions}, ensure_ascii=False), flush=True)
        return
    print(name)
    for prediction in predictions:
        print(f"  {prediction['score']:6.1%}  {prediction['label']}", flush=True)


def _report_failure(name: str, reason: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"file": name, "error": reason}, ensure_ascii=False), flush=True)
    print(f"effnet-np: {reason if name in reason else f'{name}: {reason}'}", file=sys.stderr)


# -- summary and export -----------------------------------------------------------------------------------------------


def _summary(options: argparse.Namespace) -> int:
    from effnet_np.architecture import PRESETS
    from effnet_np.hf_config import EfficientNetConfig
    from effnet_np.summary import summary

    name = options.model
    config = EfficientNetConfig.preset(name) if name in PRESETS else EfficientNetConfig.from_pretrained(name)
    size = options.image_size or config.image_size
    print(summary(config, (config.num_channels, size, size)))
    return 0


def _export(options: argparse.Namespace) -> int:
    from effnet_np.weights.export_hf import export

    hub_options = {"revision": options.revision} if options.revision else {}
    digest = export(options.source, options.output, options.verify, **hub_options)
    size = os.path.getsize(options.output)
    verified = f", logits equal to transformers' on {options.verify}" if options.verify else ""
    print(f"{options.output}: {size / 1e6:.1f} MB, read back bit by bit{verified}\nsha256 of the tensors: {digest}")
    return 0


def _warmup(options: argparse.Namespace) -> int:
    try:
        from effnet_np.kernels.warmup import warmup
    except ImportError as error:
        raise ImportError(f"warmup needs Numba ({error}): pip install 'effnet_np[numba]'") from error
    return warmup()


# -- looking inside ---------------------------------------------------------------------------------------------------


def _explain(options: argparse.Namespace) -> int:
    from effnet_np.explain import explain, save_explanation

    chosen = {"top_k": options.top_k, "class_index": options.class_index, "max_pixels": options.max_pixels}
    chosen |= {"method": options.method, "layer": options.layer}
    picture = explain(options.image, options.model, **chosen)
    save_explanation(picture, options.output)
    print(f"{options.output}: {picture.width} x {picture.height} pixels")
    return 0


def _trace(options: argparse.Namespace) -> int:
    from effnet_np.classify import get_model, preprocess
    from effnet_np.trace import Trace

    model = get_model(options.model)
    pixel_values = preprocess(model, options.image, options.max_pixels)[None]
    with Trace(model, options.layers or "*", inputs=options.inputs, weights=options.weights) as trace:
        model(pixel_values)
    trace.save(options.output, options.format, options.layout)
    counts = f"{len(trace)} outputs, {sum(map(len, trace.inputs.values()))} inputs, {len(trace.weights)} weights"
    print(f"{options.output}: {counts}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from effnet_np.compare import compare

    result = compare(options.ours, options.theirs, layers=options.layers or "*", tolerance=options.tolerance)
    for path in options.output:
        result.save(path)
    print(result.to_json() if options.json else result.to_text() if options.all else result)
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
