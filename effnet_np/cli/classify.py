"""effnet-np classify: pictures by name, by folder, by pattern, by list, in shards or on the web -> what is in them."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from effnet_np.cli.begun import facts_of
from effnet_np.cli.common import ARCHITECTURE_HELP, DASK_HELP, MODEL_HELP, PIXELS_HELP, PROCESSOR_HELP, Commands, positive, say
from effnet_np.cli.outputs import SUFFIXES, Lines, json_line, not_yet, open_output, record_of, text
from effnet_np.cli.progress import Progress
from effnet_np.cli.sources import Entry, Limits, entries, expand
from effnet_np.images.io import MAX_PIXELS
from effnet_np.printable import printable

FEW = 32  # pictures, known beforehand, that are handed out as a list: few ones share all cores
DESCRIPTION = """Say what is in pictures: for each its name, then the labels with the highest scores.

An IMAGE is a file, a folder (hidden files are left out), a pattern such as 'photos/*.jpg', a .tar shard of pictures, an
http(s) address, or -: a picture on stdin, or a list of all of these, one a line or separated by NUL.
A picture that cannot be read is named on stderr, the others are answered, and the exit status is 1."""


def add(commands: Commands) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    command = commands.add_parser("classify", help="say what is in pictures", description=DESCRIPTION, formatter_class=raw)
    command.add_argument("images", nargs="+", metavar="IMAGE", help="a picture, a folder, a pattern, a shard, an address, or -")
    command.add_argument("-r", "--recursive", action="store_true", help="also look into the folders below a folder")
    command.add_argument("--model", default="lite0", help=MODEL_HELP)
    command.add_argument("--processor", metavar="NAME", help=PROCESSOR_HELP)
    command.add_argument("--architecture", metavar="NAME", help=ARCHITECTURE_HELP)
    command.add_argument("--top-k", type=positive, default=5, metavar="K", help="labels per picture (default: %(default)s)")
    command.add_argument("--embed", action="store_true", help="the pooled features of each picture in place of its labels")
    command.add_argument(
        "--batch-size", type=positive, default=8, metavar="N", help="pictures at a time, of NumPy (default: %(default)s)"
    )
    command.add_argument("--max-pixels", type=positive, default=MAX_PIXELS, metavar="N", help=PIXELS_HELP)
    command.add_argument("--json", action="store_true", help="one JSON object per picture and line, for programs")
    into = "write the answers there, a record a picture; by its ending JSON lines, CSV, or Parquet (needs pyarrow)"
    command.add_argument("-o", "--output", type=_output, metavar="FILE", help=f"{into}: {', '.join(SUFFIXES)}")
    command.add_argument("--resume", action="store_true", help="go on with -o's file: what is in it is not done again")
    backends = "numpy, numba (compiled kernels), or auto: numba where it is warmed up (default: %(default)s)"
    command.add_argument("--backend", choices=("auto", "numpy", "numba"), default="auto", help=backends)
    command.add_argument("--threads", type=positive, metavar="N", help="of the compiled kernels (default: one per core)")
    command.add_argument("--dask", metavar="ADDRESS", help=DASK_HELP)
    fetched = "refuse pictures of more bytes than this from addresses and shards (default: %(default)s)"
    command.add_argument("--max-bytes", type=positive, default=50_000_000, metavar="N", help=fetched)
    command.add_argument(
        "--timeout", type=positive, default=30, metavar="S", help="seconds for fetching a picture (default: %(default)s)"
    )
    command.set_defaults(run=run)


def _output(name: str) -> str:
    if Path(name).suffix.lower() not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"must end in {', '.join(SUFFIXES)}, got {name!r}")
    return name


def run(options: argparse.Namespace) -> int:
    if options.resume and not options.output:
        raise ValueError("--resume goes on with the file of -o: name it")
    found = expand(options.images, options.recursive)
    for remark in found.remarks:
        say(remark)
    queue = entries(found, options.recursive, Limits(options.max_bytes, options.timeout), say)
    if not found.names and not options.output:
        for entry in queue:
            _report_failure(entry.name, entry.source.reason, options.json)
        return 1
    runner = _runner(options)
    tally = _Tally()
    with closing(_Sink(options, runner)) as sink, closing(Progress(found.total)) as progress:
        if sink.lines is not None:

            def skipped(failed: bool) -> None:
                tally.skip(failed)
                progress.pass_over()

            queue = not_yet(queue, sink.lines.recorded(), skipped)
        _work(options, runner, queue, found.total, sink, progress, tally)
        if sink.lines is not None:
            sink.lines.finish()
        seconds, look = progress.seconds, progress.shown
    if options.output or look:
        say(tally.summary(seconds, options.output))
    elif tally.failed and tally.done > 1:
        say(f"{tally.failed} could not be classified")
    return 1 if tally.failed else 0


def _runner(options: argparse.Namespace) -> Any:
    from effnet_np.inference.classify import get_model, get_runner

    named = {"architecture": options.architecture} if options.architecture else {}
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(message)
        if options.dask:
            return get_model(options.model, options.processor, **named)
        if options.backend == "numba":
            _compile_if_cold()
        return get_runner(options.model, options.backend, options.threads, options.processor, options.embed, **named)


def _compile_if_cold() -> None:
    """Compile the kernels with a progress bar where their machine code is not on disk: half a minute of silence looks dead."""
    try:
        from effnet_np.kernels import library
        from effnet_np.kernels.warmup import warmup
    except ImportError:  # no Numba: `get_runner` says what to install
        return
    if not library.kernels_cached():
        say("compiling the kernels for this CPU, once, which takes up to a minute")
        warmup()


def _work(
    options: argparse.Namespace,
    runner: Any,
    queue: Iterator[Entry],
    total: int | None,
    sink: _Sink,
    progress: Progress,
    tally: _Tally,
) -> None:
    from effnet_np.inference import cluster
    from effnet_np.inference.stream import stream

    names: deque[str] = deque()  # of the pictures that are on their way

    def sources() -> Iterator[Any]:
        for entry in queue:
            names.append(entry.name)
            yield entry.source

    few = total is not None and total <= FEW
    pictures: Iterable[Any] = list(sources()) if few else sources()
    output = "features" if options.embed else "labels"
    asked = {"top_k": options.top_k, "max_pixels": options.max_pixels}
    with ExitStack() as stack:
        if options.dask:
            client = stack.enter_context(cluster.connect(options.dask, options.threads))
            results = cluster.map(client, pictures, runner, output, backend=options.backend, **asked)
        else:
            results = stream(runner, pictures, output, errors="return", batch_size=options.batch_size, **asked)
        stack.enter_context(closing(results))  # type: ignore[type-var]
        for result in results:
            name, failed = names.popleft(), isinstance(result, Exception)
            with progress.answer(sink.prints or failed):
                if failed:
                    sink.failure(name, str(result) or type(result).__name__)
                else:
                    sink.answer(name, result)
            tally.count(failed)


class _Tally:
    """What has been done, in this run and in those that it goes on from."""

    def __init__(self) -> None:
        self.done = self.failed = self.before = 0

    def count(self, failed: bool) -> None:
        self.done, self.failed = self.done + 1, self.failed + failed

    def skip(self, failed: bool) -> None:
        self.before, self.failed = self.before + 1, self.failed + failed

    def summary(self, seconds: float, output: str | None) -> str:
        before = f" and {self.before} before" if self.before else ""
        rate = f"{self.done / max(seconds, 1e-9):.1f} a second"
        into = f", in {output}" if output else ""
        return f"{self.done} pictures in {seconds:.1f} s, {rate}{before}; {self.failed} could not be classified{into}"


# -- answers ----------------------------------------------------------------------------------------------------------


def _facts(options: argparse.Namespace, runner: Any, kind: str, columns: int) -> dict[str, Any]:
    """What the file of answers is begun with. On a cluster with --backend auto each worker chooses, and nobody knows."""
    from effnet_np.inference.classify import get_model

    named = {"architecture": options.architecture} if options.architecture else {}
    model = get_model(options.model, options.processor, **named)  # the one that was loaded for the runner
    elsewhere = None if options.backend == "auto" else options.backend
    here = None if options.dask else runner
    return facts_of(here, model, text(options.model), options.processor, kind, columns, elsewhere)


class _Sink:
    """Where answers go: a file, or stdout, for people or for programs."""

    def __init__(self, options: argparse.Namespace, runner: Any):
        self.json = options.json or options.embed
        self.embed = options.embed
        self.lines: Lines | None = None
        if options.output:
            config = runner.config
            kind = "embedding" if options.embed else "predictions"
            columns = config.hidden_dim if options.embed else min(options.top_k, config.num_labels)
            self.lines = open_output(options.output, kind, columns, options.resume, _facts(options, runner, kind, columns))
        self.prints = self.lines is None

    def answer(self, name: str, result: Any) -> None:
        if self.embed:
            fields: dict[str, Any] = {"embedding": result.tolist()}
        else:
            fields = {"predictions": [prediction | {"label": text(prediction["label"])} for prediction in result]}
        if self.lines is not None:
            self.lines.write(record_of(name, **fields))
        elif self.json:
            _say_whole(json_line(record_of(name, **fields)))
        else:
            labels = [f"  {prediction['score']:6.1%}  {printable(prediction['label'])}" for prediction in result]
            _say_whole("\n".join([printable(name), *labels]))

    def failure(self, name: str, reason: str) -> None:
        if self.lines is not None:
            self.lines.write(record_of(name, error=text(reason)))
        _report_failure(name, reason, self.json and self.lines is None)

    def close(self) -> None:
        if self.lines is not None:
            self.lines.close()


def _say_whole(lines: str) -> None:
    """In one write: with `python -u`, print makes a second one of the line's end, and Ctrl-C may come before it."""
    print(f"{lines}\n", end="", flush=True)


def _report_failure(name: str, reason: str, as_json: bool) -> None:
    if as_json:
        _say_whole(json_line(record_of(name, error=text(reason))))
    print(f"effnet-np: {printable(reason if name in reason else f'{name}: {reason}')}", file=sys.stderr, flush=True)
