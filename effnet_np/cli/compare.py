"""`effnet-np compare`: the first layer that differs between two traces, and why."""

from __future__ import annotations

import argparse

from effnet_np.cli.common import LAYERS_HELP, Commands

DESCRIPTION = """Compare the activations of two runs, layer by layer in the reference's call order; name the first that differs,
and the mistake where it is a known one. The exit status is 1 where anything differs, is missing, or is nearly zero
in the reference, which shows nothing. "pixel_values", what a network is given, is compared if both have it."""


def add(commands: Commands) -> None:
    first = "name the first layer in which two traces differ"
    command = commands.add_parser(
        "compare", help=first, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("ours", help="what is judged: a file or folder, as `trace` writes it or another program")
    command.add_argument("theirs", help="the reference: a file or folder")
    command.add_argument("--layers", action="append", metavar="GLOB", help=LAYERS_HELP)
    tolerance = "largest error that is OK, relative to the layer's largest number in the reference (default: 1e-4)"
    command.add_argument("--tolerance", type=float, metavar="X", help=tolerance)
    partial = "layers that one side lacks are no failure: for a port that merges layers, or has only some of them"
    command.add_argument("--allow-missing", action="store_true", help=partial)
    command.add_argument("--all", action="store_true", help="print every layer")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument(
        "-o", "--output", action="append", metavar="REPORT", default=[], help="also write .html, .json or .txt"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from effnet_np.inspection.compare import compare

    result = compare(options.ours, options.theirs, layers=options.layers or "*", tolerance=options.tolerance)
    for path in options.output:
        result.save(path)
    print(result.to_json() if options.json else result.to_text() if options.all else result)
    harmless = ("OK", "MISSING") if options.allow_missing else ("OK",)
    shown = any(row.status == "OK" for row in result.rows)
    return 0 if shown and all(row.status in harmless for row in result.rows) else 1
