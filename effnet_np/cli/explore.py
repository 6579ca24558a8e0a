"""`effnet-np explore`: the network in a browser, every number a click away."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import sys
from pathlib import Path
from typing import Any

from effnet_np.cli.common import MODEL_HELP, PROCESSOR_HELP, Commands, add_architecture, architecture, picture, positive
from effnet_np.printable import printable

DESCRIPTION = """Open a page in the browser that shows the network at work on a picture: its answer, every layer's channels, and
of any number the sum that made it, back to the pixels. The page is served by this command, on this machine, to this
browser alone, until Ctrl-C. It needs: pip install 'effnet_np[explore]'

  effnet-np explore photo.jpg --against golden.h5     beside a trace: the first layer that differs
  effnet-np explore photo.jpg -o page.html            one file that opens without a server"""
MAX_PIXELS = 20_000_000


def add(commands: Commands) -> None:
    command = commands.add_parser(
        "explore",
        help="look into the network in a browser",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "image", nargs="?", metavar="PHOTO", help="a picture, or - for stdin; others can be dropped on the page"
    )
    command.add_argument("--model", default="lite0", help=MODEL_HELP)
    command.add_argument("--processor", metavar="NAME", help=PROCESSOR_HELP)
    add_architecture(command)
    beside = "what to look at beside it: a trace (as `trace` writes it, or another program), or another model"
    command.add_argument("--against", metavar="TRACE", help=beside)
    command.add_argument("-o", "--output", metavar="FILE.html", help="write a page that needs no server, and end")
    command.add_argument("--port", type=int, default=0, metavar="N", help="of the server (default: a free one)")
    command.add_argument("--no-browser", action="store_true", help="print the address, and open nothing")
    limit = "refuse pictures of more pixels than this (default: %(default)s)"
    command.add_argument("--max-pixels", type=positive, default=MAX_PIXELS, metavar="N", help=limit)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        from effnet_np.explorer.server import Explorer
    except ImportError as error:
        raise ImportError(f"explore needs starlette and uvicorn ({error}): pip install 'effnet_np[explore]'") from error
    if options.output is not None and options.image is None:
        raise ValueError("a page as a file shows one picture: effnet-np explore photo.jpg -o page.html")
    if not 0 <= options.port < 65536:
        raise ValueError(f"--port must be a number below 65536, got {options.port}")
    _one_heap()
    session, opening, trace = _session(options)
    if options.image is not None:
        session.add_picture(_read(options.image), Path(options.image).name)
    if options.output is not None:
        return _export(session, options.output)
    explorer = Explorer(session, opening, trace, options.port)
    print(
        f"{explorer.address}\nThe address is for this browser alone: whoever has it sees what you see. Ctrl-C ends it.",
        flush=True,
    )
    _start(session, explorer.address, not options.no_browser)
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        explorer.serve()
    return 0


def _one_heap() -> None:
    """glibc would give each thread of the server a heap, and keep there what was freed: B4 took 130 MB more."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX of malloc.h


def _session(options: argparse.Namespace) -> tuple[Any, dict[str, Any], Any]:
    """The models, what the page is told at its opening, and the trace that stands beside, if there is one."""
    from effnet_np.explorer.session import Session
    from effnet_np.inference.classify import get_model

    models, trace = {options.model: get_model(options.model, options.processor, **architecture(options))}, None
    if options.against is not None:
        trace, model = _against(options.against)
        if model is not None:
            models[options.against] = model
    return Session(models, options.max_pixels), {"against": None if trace is None else Path(options.against).name}, trace


def _against(source: str) -> tuple[Any, Any]:
    """(trace, None) or (None, model): a path that can be read as a trace is one."""
    from effnet_np.inference.classify import get_model
    from effnet_np.tracing.trace import Trace

    if not Path(source).exists():
        return None, get_model(source)
    try:
        return Trace.load(source), None
    except ValueError as no_trace:
        try:
            return None, get_model(source)
        except ValueError as no_model:
            raise ValueError(f"{source} is neither a trace ({no_trace}) nor a model ({no_model})") from no_model


def _read(name: str) -> bytes:
    """The bytes of a picture; which picture they are is judged as for every other."""
    if name == "-":
        return picture(name).read()
    path = Path(name)
    if not path.exists():
        raise FileNotFoundError(f"there is no picture {name}")
    if not path.is_file():
        raise ValueError(f"{name} is a folder, a pipe or a device, not a picture")
    return path.read_bytes()


def _export(session: Any, output: str) -> int:
    from effnet_np.explorer.export import export

    size = export(session, output)
    print(f"{printable(output)}: {size / 1e6:.1f} MB, opens without a server")
    return 0


def _start(session: Any, address: str, browser: bool) -> None:
    """The browser, and the first answer, which is ready when the browser asks for it."""
    import threading
    import webbrowser

    def first_answer() -> None:
        with session.lock:
            model = next(iter(session.models))
            for key in list(session.pictures):
                session.run(model, key)
            session.kernels(model)

    threading.Thread(target=first_answer, daemon=True).start()
    if browser and not webbrowser.open(address):
        print("no browser could be opened: open the address above", file=sys.stderr)
