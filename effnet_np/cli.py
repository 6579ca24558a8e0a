"""The command `effnet-np`: classify pictures and explain the answer, look into networks, export checkpoints."""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effnet_np.image_io import MAX_PIXELS, SUFFIXES
from effnet_np.printable import printable
from effnet_np.training import command as finetune_command
from effnet_np.version import __version__

INTERRUPTED = 130  # what a shell reports for Ctrl-C
DESCRIPTION = """EfficientNet in NumPy: say what is in a picture, on a CPU, without PyTorch.

  effnet-np classify photo.jpg               the embedded model, no network needed
  effnet-np classify photos/ -r --json       a folder and those below it, one JSON object per line
  effnet-np explain photo.jpg -o why.png     where in the picture the evidence lies
  effnet-np warmup                           compile the kernels, once: faster answers
  effnet-np summary --model b4               layers, parameters, multiply-adds
  effnet-np export google/efficientnet-b0 -o b0.h5
  effnet-np finetune photos/ -o flowers      a classifier of your own: a folder of pictures for each class
  effnet-np trace photo.jpg -o golden.h5     every activation, by name
  effnet-np compare mine/ golden.h5          the first layer that is wrong, and why"""
CLASSIFY = """Say what is in pictures: for each its name, then the labels with the highest scores.

An IMAGE is a file, a folder (hidden files are left out), a pattern such as 'photos/*.jpg', or - for stdin.
A picture that cannot be read is named on stderr, the others are answered, and the exit status is 1."""
MODEL_HELP = "lite0 (embedded), b0 to b7 (Google's, from the hub), a hub id, a folder or an .h5 file (default: %(default)s)"
PROCESSOR_HELP = "the preprocessing: b0 to b7, lite0, a folder or a preprocessor_config.json (default: the model's own)"
PIXELS_HELP = "refuse pictures of more pixels than this (default: %(default)s)"

TRACE = """Write the output of every layer for one picture, by PyTorch's names, in call order; the network's own input is
"pixel_values". A folder's index.txt has a line for each array: kind, name, dtype, layout, number of dimensions,
the dimensions, file; and its layers.txt a line for each layer: name, kind, kernel, stride, padding before and after,
groups, eps, activation. With --inputs and --weights, another implementation can be tested layer by layer:

  effnet-np trace photo.jpg -o golden --format bin --inputs --weights --layers '*.blocks.3.*'

Without a picture and without a network, with squeeze-excite, on random numbers:

  effnet-np trace --model b0 --random 0 -o golden --format bin --inputs --weights"""
COMPARE = """Compare the activations of two runs, layer by layer in the reference's call order; name the first that differs,
and the mistake where it is a known one. The exit status is 1 where anything differs, is missing, or is nearly zero
in the reference, which shows nothing. "pixel_values", what a network is given, is compared if both have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; give its exit status: 0, 1 where something failed, 2 for a wrong call, 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):  # a terminal's encoding may lack a letter of a file's name
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except MemoryError as error:
        _say(f"there is not enough memory{f': {error}' if str(error) else ''}")
    except (OSError, ValueError, TypeError, ImportError) as error:
        _say(error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        _say(f"{type(error).__name__}: {error} ({where}): a fault of effnet_np's own, please report it")
    return 1


def _say(text: object) -> None:
    """To stderr, for a person."""
    print(f"effnet-np: {printable(text, keep=chr(10))}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="effnet-np", description=DESCRIPTION, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"effnet-np {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    _add_classify_command(commands)
    _add_explain_command(commands)

    rows = "a row a layer: output shape, parameters, multiply-adds"
    command = commands.add_parser("summary", help=rows, description=f"Print {rows}; and their totals.")
    command.add_argument("--model", default="lite0", help=MODEL_HELP)
    command.add_argument("--image-size", type=_positive, metavar="PIXELS", help="height and width (default: the model's own)")
    command.set_defaults(run=_summary)

    one_file = "write a hub id or folder to one .h5 file"
    described = "Write a hub id or folder to one .h5 file, and read it back to compare."
    command = commands.add_parser("export", help=one_file, description=described)
    command.add_argument("source", help="a hub id, a short name (b0 to b7, lite0) or a folder as save_pretrained makes it")
    command.add_argument("-o", "--output", required=True, metavar="FILE.h5", help="where to write")
    command.add_argument("--revision", help="branch, tag or commit on the hub")
    command.add_argument("--verify", metavar="PHOTO", help="also compare the logits with transformers on this photograph")
    command.set_defaults(run=_export)

    _add_trace_commands(commands)
    _add_kernel_commands(commands)
    finetune_command.add(commands, MODEL_HELP)
    return parser


def _add_classify_command(commands: argparse._SubParsersAction) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    command = commands.add_parser("classify", help="say what is in pictures", description=CLASSIFY, formatter_class=raw)
    command.add_argument("images", nargs="+", metavar="IMAGE", help="a picture, a folder, a pattern, or - for stdin")
    command.add_argument("-r", "--recursive", action="store_true", help="also look into the folders below a folder")
    command.add_argument("--model", default="lite0", help=MODEL_HELP)
    command.add_argument("--processor", metavar="NAME", help=PROCESSOR_HELP)
    command.add_argument("--top-k", type=_positive, default=5, metavar="K", help="labels per picture (default: %(default)s)")
    command.add_argument(
        "--batch-size", type=_positive, default=8, metavar="N", help="pictures at a time (default: %(default)s)"
    )
    command.add_argument("--max-pixels", type=_positive, default=MAX_PIXELS, metavar="N", help=PIXELS_HELP)
    command.add_argument("--json", action="store_true", help="one JSON object per picture and line, for programs")
    backends = "numpy, numba (compiled kernels), or auto: numba where it is warmed up (default: %(default)s)"
    command.add_argument("--backend", choices=("auto", "numpy", "numba"), default="auto", help=backends)
    command.add_argument("--threads", type=_positive, metavar="N", help="of the compiled kernels (default: one per core)")
    command.set_defaults(run=_classify)


def _add_explain_command(commands: argparse._SubParsersAction) -> None:
    drawn = (
        "Draw a picture, where in it the evidence for a class lies (its class activation map), and bars of the first labels."
    )
    command = commands.add_parser("explain", help="draw where in a picture the evidence lies", description=drawn)
    command.add_argument("image", metavar="IMAGE", help="a picture, or - for stdin")
    command.add_argument("-o", "--output", required=True, metavar="FILE.png", help="where to write: .png, .jpg or .webp")
    command.add_argument("--model", default="lite0", help=MODEL_HELP)
    command.add_argument("--processor", metavar="NAME", help=PROCESSOR_HELP)
    command.add_argument("--top-k", type=_positive, default=5, metavar="K", help="labels to show (default: %(default)s)")
    by_name = "the class to show, by index or by name: 281, tabby (default: the one with the highest score)"
    command.add_argument("--class", dest="class_index", metavar="CLASS", help=by_name)
    methods = ("cam", "gradcam", "saliency", "integrated-gradients", "occlusion")
    command.add_argument("--method", choices=methods, default="cam", help="how the evidence is found (default: %(default)s)")
    command.add_argument("--layer", metavar="NAME", help="of gradcam: the layer to look at (default: the last)")
    command.add_argument("--max-pixels", type=_positive, default=MAX_PIXELS, metavar="N", help=PIXELS_HELP)
    command.set_defaults(run=_explain)


def _add_trace_commands(commands: argparse._SubParsersAction) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    pixels_help = PIXELS_HELP
    command = commands.add_parser("trace", help="write every activation, by name", description=TRACE, formatter_class=raw)
    command.add_argument("image", nargs="?", metavar="IMAGE", help="a picture")
    ready = "an array (N, C, H, W) of floats in place of a picture: what the network itself is given"
    command.add_argument("--input", metavar="FILE.npy", help=ready)
    path = "a file that ends in .h5 or .npz, or a new folder"
    command.add_argument("-o", "--output", required=True, metavar="PATH", help=path)
    several = "only these layers, a pattern such as '*.blocks.3.*'; may be given several times"
    command.add_argument("--layers", action="append", metavar="GLOB", help=several)
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
    drawn = "random weights that keep activations alive, for the network that MODEL is; without a picture, random pixels too"
    command.add_argument("--random", type=_seed, metavar="SEED", help=drawn)
    command.add_argument("--max-pixels", type=_positive, default=MAX_PIXELS, metavar="N", help=pixels_help)
    command.set_defaults(run=_trace)

    first = "name the first layer in which two traces differ"
    command = commands.add_parser("compare", help=first, description=COMPARE, formatter_class=raw)
    command.add_argument("ours", help="what is judged: a file or folder, as `trace` writes it or another program")
    command.add_argument("theirs", help="the reference: a file or folder")
    command.add_argument("--layers", action="append", metavar="GLOB", help=several)
    tolerance = "largest error that is OK, relative to the layer's largest number in the reference (default: 1e-4)"
    command.add_argument("--tolerance", type=float, metavar="X", help=tolerance)
    partial = "layers that one side lacks are no failure: for a port that merges layers, or has only some of them"
    command.add_argument("--allow-missing", action="store_true", help=partial)
    command.add_argument("--all", action="store_true", help="print every layer")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument(
        "-o", "--output", action="append", metavar="REPORT", default=[], help="also write .html, .json or .txt"
    )
    command.set_defaults(run=_compare)


def _add_kernel_commands(commands: argparse._SubParsersAction) -> None:
    from effnet_np.kernels import bench

    ahead = "compile the kernels for this CPU, and keep them on disk"
    described = "Compile the kernels for this CPU, and keep them on disk: later answers are faster."
    command = commands.add_parser("warmup", help=ahead, description=described)
    command.set_defaults(run=_warmup)
    beside = "measure the kernels beside NumPy, PyTorch, ONNX Runtime and OpenVINO"
    described = "Measure the kernels beside NumPy, PyTorch, ONNX Runtime and OpenVINO, those that are installed."
    command = commands.add_parser("bench", help=beside, description=described)
    bench.add_arguments(command)
    command.set_defaults(run=bench.run)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 19):
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, got {text!r}")
    return int(text)


# -- classify ---------------------------------------------------------------------------------------------------------


def _classify(options: argparse.Namespace) -> int:
    from effnet_np.classify import answers, get_runner

    found = _expand(options.images, options.recursive)
    for remark in found.remarks:
        _say(remark)
    for name, reason in found.failed:
        _report_failure(name, reason, options.json)
    if not found.paths:
        return 1
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _say(message)
        if options.backend == "numba":
            _compile_if_cold()
        runner = get_runner(options.model, options.backend, options.threads, options.processor)
    sources = (_picture(path) for path in found.paths)
    results = answers(runner, sources, options.top_k, options.batch_size, max_pixels=options.max_pixels)
    failed = len(found.failed)
    with closing(_Progress(len(found.paths))) as progress:
        for path, result in zip(found.paths, results, strict=True):
            with progress.answer():
                if isinstance(result, Exception):
                    failed += 1
                    _report_failure(path, str(result) or type(result).__name__, options.json)
                else:
                    _print_predictions(path, result, options.json)
    if failed and len(found.paths) + len(found.failed) > 1:
        _say(f"{failed} could not be classified")
    return 1 if failed else 0


def _picture(name: str) -> Any:
    """What stands for a picture on the command line: a path, or "-" for stdin."""
    return sys.stdin.buffer if name == "-" else name


def _compile_if_cold() -> None:
    """Compile the kernels with a progress bar where their machine code is not on disk: half a minute of silence looks dead."""
    try:
        from effnet_np.kernels import library
        from effnet_np.kernels.warmup import warmup
    except ImportError:  # no Numba: `get_runner` says what to install
        return
    if not library.kernels_cached():
        _say("compiling the kernels for this CPU, once, which takes up to a minute")
        warmup()


# -- pictures by name -------------------------------------------------------------------------------------------------


@dataclass
class _Found:
    paths: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)  # what stands for no picture, with the reason
    remarks: list[str] = field(default_factory=list)  # what was left out


def _expand(names: Iterable[str], recursive: bool) -> _Found:
    """Folders and patterns -> the pictures in them, sorted."""
    found = _Found()
    for name in names:
        if os.path.isdir(name):
            _expand_folder(name, recursive, found)
        elif not os.path.exists(name) and glob.has_magic(name) and "://" not in name:
            paths = sorted(path for path in glob.glob(name, recursive=True) if os.path.isfile(path))
            found.paths += paths
            if not paths:
                found.failed.append((name, f"{name}: no file fits this pattern (folders do not count)"))
        else:
            found.paths.append(name)
    return found


def _expand_folder(name: str, recursive: bool, found: _Found) -> None:
    """The folder's pictures by their suffixes, folder by folder; hidden files are no pictures, and not mentioned."""
    paths: list[str] = []
    others: Counter[str] = Counter()
    left_out = 0
    unreadable: list[OSError] = []
    for folder, below, files in os.walk(name, onerror=unreadable.append):
        below[:] = sorted(entry for entry in below if not entry.startswith("."))
        for file in sorted(file for file in files if not file.startswith(".")):
            suffix = Path(file).suffix.lower()
            if suffix in SUFFIXES:
                paths.append(os.path.join(folder, file))
            else:
                others[suffix or "without a suffix"] += 1
        left_out += sum(not recursive or os.path.islink(os.path.join(folder, entry)) for entry in below)
        if not recursive:
            break
    found.paths += paths
    found.failed += [(str(error.filename), f"{error.filename}: {error.strerror}") for error in unreadable]
    hint = "" if recursive or not left_out else f"; -r looks into the {_count(left_out, 'folder')} below"
    if not paths and not unreadable:
        found.failed.append((name, f"{name}: the folder holds no pictures ({', '.join(SUFFIXES)}){hint}"))
    elif hint:
        found.remarks.append(f"{name}{hint.replace(';', ':', 1)}")
    elif left_out:
        found.remarks.append(f"{name}: {_count(left_out, 'linked folder')} below not followed")
    if paths and others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        found.remarks.append(f"{name}: skipped {_count(others.total(), 'file')} of unknown kind ({kinds})")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


# -- answers ----------------------------------------------------------------------------------------------------------


class _Progress:
    """Answers counted on stderr where a person looks at it: by tqdm's bar if that is installed, else in a line."""

    def __init__(self, total: int):
        self.total, self.done = total, 0
        self.shown = total > 1 and sys.stderr.isatty()
        self.bar: Any = None
        if self.shown:
            try:
                from tqdm import tqdm

                self.bar = tqdm(total=total, unit="picture", file=sys.stderr)
            except ImportError:
                self._show()

    @contextmanager
    def answer(self) -> Iterator[None]:
        """An answer is printed inside of this: the bar makes place for it, and counts it."""
        if self.bar is not None:
            with self.bar.external_write_mode(file=sys.stdout):
                yield
            self.bar.update()
            return
        if self.shown:
            print("\r" + " " * 40, end="\r", file=sys.stderr, flush=True)
        yield
        self.done += 1
        self._show()

    def _show(self) -> None:
        if self.shown:
            print(f"\r{self.done} of {self.total} pictures", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.shown:
            print(file=sys.stderr)


def _print_predictions(name: str, predictions: list[dict], as_json: bool) -> None:
    if as_json:
        _print_json(name, predictions=[prediction | {"label": _text(prediction["label"])} for prediction in predictions])
        return
    lines = [f"  {prediction['score']:6.1%}  {printable(prediction['label'])}" for prediction in predictions]
    print("\n".join([printable(name), *lines]), flush=True)


def _report_failure(name: str, reason: str, as_json: bool) -> None:
    if as_json:
        _print_json(name, error=_text(reason))
    print(f"effnet-np: {printable(reason if name in reason else f'{name}: {reason}')}", file=sys.stderr, flush=True)


def _print_json(name: str, **fields: Any) -> None:
    """One object in ASCII, so that no terminal obeys it; of a name that is not UTF-8 the bytes, in hexadecimal, too."""
    record: dict[str, Any] = {"file": _text(name)}
    if record["file"] != name:
        record["file_bytes"] = os.fsencode(name).hex()
    print(json.dumps(record | fields), flush=True)


def _text(label: Any) -> Any:
    """Text as UTF-8 can hold it; a label may also be a number."""
    return label.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if isinstance(label, str) else label


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
    print(f"{printable(options.output)}: {size / 1e6:.1f} MB, read back bit by bit{verified}\nsha256 of the tensors: {digest}")
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

    chosen = {"class_index": options.class_index, "image_processor": options.processor, "max_pixels": options.max_pixels}
    chosen |= {"method": options.method, "layer": options.layer}
    picture = explain(_picture(options.image), options.model, options.top_k, **chosen)
    save_explanation(picture, options.output)
    print(f"{printable(options.output)}: {picture.width} x {picture.height} pixels")
    return 0


def _trace(options: argparse.Namespace) -> int:
    from effnet_np.trace import Trace

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


def _traced_gradients(options: argparse.Namespace, model: Any, pixel_values: Any, logits: Any, wants: Any) -> dict[str, Any]:
    """Of the loss, by name, the last layer's first; those of the layers that are asked for."""
    import numpy as np

    from effnet_np.classify import find_class
    from effnet_np.training.backward import backward
    from effnet_np.training.compare import in_backward_order

    labels = logits.argmax(axis=1)
    if options.label is not None:
        labels = np.full(len(logits), find_class(model.config, options.label))
    found = in_backward_order(backward(model, pixel_values, labels, activations="*"))
    return {name: gradient for name, gradient in found.items() if wants(name) or wants(name.rpartition(".")[0])}


def _traced_model(options: argparse.Namespace) -> Any:
    """The model that is named, or one of its architecture with random weights."""
    from effnet_np import EfficientNetConfig, EfficientNetForImageClassification, EfficientNetImageProcessor
    from effnet_np.architecture import PRESETS
    from effnet_np.classify import get_model
    from effnet_np.trace import enliven

    name = options.model
    if options.random is None:
        return get_model(name)
    config = EfficientNetConfig.preset(name) if name in PRESETS else EfficientNetConfig.from_pretrained(name)
    model = EfficientNetForImageClassification(config, initialize=False)
    enliven(model, options.random)
    if options.image is not None:  # only a picture needs one
        known = EfficientNetImageProcessor.preset if name in PRESETS else EfficientNetImageProcessor.from_pretrained
        model.image_processor = known(name)
    return model


def _traced_input(options: argparse.Namespace, model: Any) -> Any:
    """(N, C, H, W): from a picture, from a file of numbers, or random."""
    import numpy as np

    from effnet_np.classify import preprocess
    from effnet_np.trace_files import load_npy

    if options.image is not None:
        return preprocess(model, options.image, options.max_pixels)[None]
    if options.input is not None:
        return load_npy(options.input)
    size = model.config.image_size
    return np.random.default_rng(options.random).standard_normal((1, model.config.num_channels, size, size), np.float32)


def _compare(options: argparse.Namespace) -> int:
    from effnet_np.compare import compare

    result = compare(options.ours, options.theirs, layers=options.layers or "*", tolerance=options.tolerance)
    for path in options.output:
        result.save(path)
    print(result.to_json() if options.json else result.to_text() if options.all else result)
    harmless = ("OK", "MISSING") if options.allow_missing else ("OK",)
    shown = any(row.status == "OK" for row in result.rows)
    return 0 if shown and all(row.status in harmless for row in result.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
