"""`effnet-np evaluate`: how good a model is, on pictures whose classes are known."""

from __future__ import annotations

import argparse
import warnings
from contextlib import ExitStack, closing

from effnet_np.cli.common import ARCHITECTURE_HELP, DASK_HELP, MODEL_HELP, PIXELS_HELP, PROCESSOR_HELP, Commands, positive, say
from effnet_np.cli.progress import Progress
from effnet_np.images.io import MAX_PIXELS

DESCRIPTION = """Judge a model by pictures whose classes are known: top-1 and top-5 with 95% intervals, classes, confusions,
calibration, speed. PICTURES is a folder with a folder for each class, named by label, by WordNet id (ImageNet's) or by index;
or a list, a line a picture: its name and its label (.csv, .tsv, or text with tabs or a space between them).

  effnet-np evaluate val/ --model flowers                           the numbers, as text
  effnet-np evaluate val/ --model flowers -o report.html            one page with plots and pictures (or .json, .txt)
  effnet-np evaluate val/ --model lite0 --model flowers -o both.html     two models, and McNemar's test
  effnet-np evaluate val/ --backend numpy --backend numba           the same model, computed in two ways"""


def add(commands: Commands) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    summary = "judge a model by pictures of known class"
    command = commands.add_parser("evaluate", help=summary, description=DESCRIPTION, formatter_class=raw)
    command.add_argument(
        "source", metavar="PICTURES", help="a folder of a folder for each class, or a list of files with labels"
    )
    command.add_argument("-o", "--output", metavar="FILE", help="where to write the report: .html, .json or .txt")
    model_help = MODEL_HELP.replace("%(default)s", "lite0") + "; twice, to compare two"
    command.add_argument("--model", action="append", metavar="MODEL", help=model_help)
    command.add_argument("--processor", metavar="NAME", help=PROCESSOR_HELP)
    command.add_argument("--architecture", action="append", metavar="NAME", help=f"{ARCHITECTURE_HELP}; once for each --model")
    backends = "numpy, numba (compiled kernels), or auto: numba where it is warmed up (default: auto); twice, to compare two"
    command.add_argument("--backend", action="append", choices=("auto", "numpy", "numba"), help=backends)
    command.add_argument("--calibrate", action="store_true", help="also fit the temperature that makes confidences honest")
    command.add_argument(
        "--batch-size", type=positive, default=8, metavar="N", help="pictures at a time (default: %(default)s)"
    )
    command.add_argument("--threads", type=positive, metavar="N", help="how many cores to use (default: all)")
    command.add_argument("--max-pixels", type=positive, default=MAX_PIXELS, metavar="N", help=PIXELS_HELP)
    command.add_argument("--dask", metavar="ADDRESS", help=DASK_HELP)
    command.add_argument("--json", action="store_true", help="print the report as JSON")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Evaluate one model or two, print and write the report; 1 where a picture could not be judged."""
    from effnet_np.inference import cluster
    from effnet_np.inference.evaluate import check_ending, evaluate, to_json, to_text, write

    models, backends = options.model or ["lite0"], options.backend or ["auto"]
    if max(len(models), len(backends)) > 2:
        raise ValueError("two are compared, no more: give --model, or --backend, twice at most")
    if options.output:
        check_ending(options.output)  # before the work
    count = max(len(models), len(backends))
    architectures = options.architecture or [None] * len(models)
    if len(architectures) != len(models):
        raise ValueError(f"--architecture must be given once for each --model: {len(models)} times, not {len(architectures)}")
    with ExitStack() as stack:
        client = stack.enter_context(cluster.connect(options.dask, options.threads)) if options.dask else None
        runs = []
        each = zip((models * 2)[:count], (architectures * 2)[:count], (backends * 2)[:count], strict=True)
        for model, architecture, backend in each:
            with warnings.catch_warnings(), closing(_Count()) as seen:
                warnings.showwarning = lambda message, *_: say(message)
                runs.append(
                    evaluate(
                        options.source,
                        model,
                        calibrate=options.calibrate,
                        batch_size=options.batch_size,
                        backend=backend,
                        threads=None if client else options.threads,
                        image_processor=options.processor,
                        max_pixels=options.max_pixels,
                        client=client,
                        progress=seen.show,
                        **({"architecture": architecture} if architecture else {}),
                    )
                )
            if len(backends) == 2:  # the same model, by another way
                runs[-1].model = f"{model} ({backend})"
    compared = runs[0].against(runs[1]) if count == 2 else None
    print(to_json(runs, compared) if options.json else to_text(runs, compared))
    if options.output:
        write(options.output, runs, compared)
        say(f"{options.output} written")
    failed = len({path for run in runs for path, _ in run.failed})
    if failed:
        say(f"{failed} could not be judged")
    return 1 if failed else 0


class _Count:
    """The progress of one evaluation, whose total is known when its first picture is done."""

    def __init__(self) -> None:
        self.progress: Progress | None = None

    def show(self, _done: int, total: int) -> None:
        self.progress = self.progress or Progress(total)
        with self.progress.answer(prints=False):
            pass

    def close(self) -> None:
        if self.progress is not None:
            self.progress.close()
