"""The command `effnet-np`: a file a command, each with `add(commands)`, which says what it takes, and what it runs."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from effnet_np.cli import bench, classify, compare, evaluate, explain, explore, export, finetune, models, summary, trace, warmup
from effnet_np.cli.common import Parser, say
from effnet_np.version import __version__

INTERRUPTED = 130  # what a shell reports for Ctrl-C
DESCRIPTION = """EfficientNet in NumPy: say what is in a picture, on a CPU, without PyTorch.

  effnet-np classify photo.jpg               the embedded model, no network needed
  effnet-np classify photos/ -r --json       a folder and those below it, one JSON object per line
  effnet-np explain photo.jpg -o why.png     where in the picture the evidence lies
  effnet-np explore photo.jpg                the network in a browser, every number a click away
  effnet-np warmup                           compile the kernels, once: faster answers
  effnet-np summary --model b4               layers, parameters, multiply-adds
  effnet-np models                           what loads by a short name, and what of it is here
  effnet-np export google/efficientnet-b0 -o b0.h5
  effnet-np finetune photos/ -o flowers      a classifier of your own: a folder of pictures for each class
  effnet-np evaluate val/ --model flowers    how good it is, on pictures of known class
  effnet-np trace photo.jpg -o golden.h5     every activation, by name
  effnet-np compare mine/ golden.h5          the first layer that is wrong, and why"""
COMMANDS = (classify, explain, explore, summary, models, export, finetune, evaluate, trace, compare, warmup, bench)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; give its exit status: 0, 1 where something failed, 2 for a wrong call, 130 for Ctrl-C."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):  # a terminal's encoding may lack a letter of a file's name
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if not (sys.argv[1:] if arguments is None else arguments):
        parser().print_help(sys.stderr)
        return 2
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except MemoryError as error:
        say(f"there is not enough memory{f': {error}' if str(error) else ''}")
    except (OSError, ValueError, TypeError, ImportError) as error:
        say(error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        say(f"{type(error).__name__}: {error} ({where}): a fault of effnet_np's own, please report it")
    return 1


def _open_closed_streams() -> None:
    """What a shell closed (`>&-`) leads nowhere. Otherwise a file that is written may get its number, and an error's text."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "w" if number else "r", encoding="utf-8"))


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    whole = Parser(prog="effnet-np", description=DESCRIPTION, formatter_class=raw)
    whole.add_argument("--version", action="version", version=f"effnet-np {__version__}")
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return whole
