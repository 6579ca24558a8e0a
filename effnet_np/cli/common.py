"""What the commands share: words to a person, kinds of arguments, texts of help."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from effnet_np.printable import printable

MODEL_HELP = "lite0 (embedded), b0 to b7 (Google's, from the hub), a hub id, a folder or an .h5 file (default: %(default)s)"
PROCESSOR_HELP = "the preprocessing: b0 to b7, lite0, a folder or a preprocessor_config.json (default: the model's own)"
ARCHITECTURE_HELP = "another library's name for the network, where the file does not say it, as tf_efficientnet_b0"
PIXELS_HELP = "refuse pictures of more pixels than this (default: %(default)s)"
DASK_HELP = "do it on a Dask cluster: its scheduler's address (tcp://host:8786), or local: processes on this machine"
LAYERS_HELP = "only these layers, a pattern such as '*.blocks.3.*'; may be given several times"
Commands = argparse._SubParsersAction  # what a command adds itself to


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors repeat what was typed, or what the shell put in for `*`: names of files from strangers."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def say(text: object) -> None:
    """To stderr, for a person. Lines that follow are indented, so that no name with a line break makes a line of its own."""
    lines = printable(text, keep="\n").replace("\n", "\n  ")
    print(f"effnet-np: {lines}", file=sys.stderr, flush=True)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def seed(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 19):
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, got {text!r}")
    return int(text)


def add_architecture(command: argparse.ArgumentParser) -> None:
    """The option that says what a file of another library's weights does not."""
    command.add_argument("--architecture", metavar="NAME", help=ARCHITECTURE_HELP)


def architecture(options: argparse.Namespace) -> dict[str, str]:
    """It, as the functions that load a model take it."""
    return {"architecture": options.architecture} if options.architecture else {}


def picture(name: str) -> Any:
    """What stands for a picture on the command line: a path, or "-" for stdin."""
    return sys.stdin.buffer if name == "-" else name
