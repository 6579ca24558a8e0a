"""The command `effnet-np finetune`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time

from effnet_np.cli.common import MODEL_HELP, Commands, add_architecture
from effnet_np.printable import printable
from effnet_np.training.settings import Settings, Watcher

DESCRIPTION = """Teach a network the classes of your own photographs: PHOTOS holds a folder of pictures for each class, or
train/ and val/ with such folders. The answer is a folder that the other commands take:
effnet-np classify a.jpg --model flowers

  effnet-np finetune photos/ -o flowers                     the classifier alone, on features: seconds to minutes
  effnet-np finetune photos/ -o flowers --train last:3      the last three blocks too, on augmented pictures
  effnet-np finetune photos/ -o flowers --train all         everything: the best answers, and the longest wait
  effnet-np finetune photos/ -o flowers --train all --resume     go on after a power cut, to the same bits

Ctrl-C ends it after the step, and the best network so far is kept."""
WIDTH = 24  # characters of the bar


def add(commands: Commands) -> None:
    """Add the command to those of `effnet-np`."""
    raw = argparse.RawDescriptionHelpFormatter
    summary = "teach a network your own classes"
    command = commands.add_parser("finetune", help=summary, description=DESCRIPTION, formatter_class=raw)
    command.add_argument("folder", metavar="PHOTOS", help="a folder with a folder for each class, or with train/ and val/")
    command.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where to write: a new folder")
    command.add_argument("--model", default="lite0", help=MODEL_HELP)
    add_architecture(command)
    command.add_argument("--resume", action="store_true", help="go on with the run that OUTPUT.unfinished holds")
    command.add_argument("--threads", type=int, default=2, metavar="N", help="that read pictures (default: %(default)s)")
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}

    def option(
        name: str, text: str, kind: type = str, metavar: str | None = None, choices: tuple[str, ...] | None = None
    ) -> None:
        default = "" if defaults[name] is None else " (default: %(default)s)"
        flag = f"--{name.replace('_', '-')}"
        command.add_argument(flag, type=kind, default=defaults[name], metavar=metavar, choices=choices, help=f"{text}{default}")

    option("train", "head, last:N (blocks) or all", metavar="WHAT")
    option("epochs", "rounds over the pictures with last:N and all", int, "N")
    option("head_epochs", "rounds of the head, which always learns first", int, "N")
    option("batch_size", "pictures a step", int, "N")
    option("learning_rate", "of the head", float, "X")
    option("body_scale", "times the learning rate: that of the layers below the head", float, "X")
    option("optimizer", "the rule", choices=("adamw", "sgd", "rmsprop"))
    option("weight_decay", "of weights, not of batch norms and biases", float, "X")
    option("schedule", "of the learning rate", choices=("cosine", "staircase", "constant"))
    option("label_smoothing", "share of each answer that is spread over all classes", float, "X")
    option("max_norm", "longest gradient", float, "X")
    option("batch_norm", "keep the statistics that are stored, or learn the pictures' own", choices=("stored", "learning"))
    option("average", "decay of the moving average of the weights that is kept; 0: none", float, "X")
    option("split", "share of the pictures to judge by, without val/", float, "X")
    option("seed", "of all that is random", int, "N")
    option("backend", "what computes the features", choices=("auto", "numpy", "numba"))
    depth = "drop whole branches a picture, as the paper does, and not single numbers, as Hugging Face (default: yes)"
    command.add_argument("--stochastic-depth", action=argparse.BooleanOptionalAction, default=True, help=depth)
    command.add_argument("--no-augment", dest="augment", action="store_false", help="show each picture always the same")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Do it; the exit status is 1 where the run stopped early."""
    from effnet_np.training.finetune import finetune

    settings = {field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)}
    bar = Bar()
    try:
        result = finetune(
            options.folder,
            options.model,
            options.output,
            resume=options.resume,
            threads=options.threads,
            watcher=bar,
            architecture=options.architecture,
            **settings,
        )
    finally:
        bar.end()
    best = result.history["best"]
    print(f"{result.accuracy:.1%} of {len(result.dataset.val)} pictures right ({best['stage']}, epoch {best['epoch']})")
    output = printable(options.output)
    print(f"{output}: the model, history.json, curves.png. Now: effnet-np classify PICTURE --model {output}")
    return 1 if result.history["stopped"] else 0


class Bar(Watcher):
    """Lines and a bar on stderr; where that is no terminal, a line a minute in place of the bar."""

    def __init__(self):
        self.title, self.started, self.first, self.shown, self.drawn = "", 0.0, 0, 0.0, False

    def say(self, text: str) -> None:
        self.end()
        print(text, file=sys.stderr, flush=True)

    def step(self, title: str, done: int, total: int, loss: float | None = None, accuracy: float | None = None) -> None:
        now = time.monotonic()
        kind = title.split()[0]
        if kind != self.title:
            self.end()
            self.title, self.started, self.first = kind, now, done - 1
        terminal = sys.stderr.isatty()
        if done < total and now - self.shown < (0.2 if terminal else 60):
            return
        self.shown = now
        left = (now - self.started) / max(1, done - self.first) * (total - done)
        filled = round(WIDTH * done / total)
        parts = [title, "#" * filled + "." * (WIDTH - filled) if terminal else f"{done / total:.0%}"]
        parts += [f"loss {loss:.3f}"] if loss is not None else []
        parts += [f"accuracy {accuracy:.1%}"] if accuracy is not None else []
        parts += [f"{left / 60:.0f} min left" if left > 90 else f"{left:.0f} s left"] if done < total else []
        line = "  ".join(parts)
        print(f"\r{line:<100}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)
        self.drawn = terminal

    def end(self) -> None:
        """Leave the bar where it is, and go to the next line."""
        if self.drawn:
            print(file=sys.stderr)
            self.drawn = False
