"""A comparison: its rows, and how it is written as text, as JSON, and as one HTML page with a plot of error by depth."""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effnet_np.checkpoints.files import replacing
from effnet_np.inspection.measure import NEARLY_ZERO, Row
from effnet_np.printable import printable

SHORT = 12  # rows of the short report
DIVERGED = ("DIFF", "SHAPE", "NAN")
COLOURS = {"OK": "#2a7f4f", "DIFF": "#c0392b", "SHAPE": "#8e44ad", "NAN": "#d35400", "MISSING": "#7f8c8d", "ZERO": "#b7950b"}
FLOOR, CEILING = 1e-9, 1e3  # an error of zero has no logarithm; what lies beyond is drawn here


@dataclass
class Comparison:
    """What `compare` found: `rows` in call order, `first_divergence`, `hints` for it, `notes`; `str()` is the short report."""

    rows: list[Row]
    tolerance: float
    forced: bool = False
    hints: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def first_divergence(self) -> Row | None:
        """The first row, in call order, whose numbers or shape are wrong; layers that one side lacks do not count."""
        return next((row for row in self.rows if row.status in DIVERGED), None)

    @property
    def ok(self) -> bool:
        """Everything was there on both sides, was right, and was not nearly zero."""
        return all(row.status == "OK" for row in self.rows)

    def __str__(self) -> str:
        return to_text(self, everything=False)

    def to_text(self) -> str:
        """The verdict and every row."""
        return to_text(self, everything=True)

    def to_json(self) -> str:
        """The same as JSON; numbers that JSON lacks (NaN, infinity) are null."""
        return json.dumps(to_dict(self), indent=1, allow_nan=False)

    def to_html(self) -> str:
        """One page with a plot of error by depth; it loads nothing from elsewhere."""
        return to_html(self)

    def save(self, path: str | os.PathLike) -> None:
        """Write the report as the ending of `path` says, .txt, .json or .html: whole, or an OSError and the old file."""
        writers = {".txt": self.to_text, ".json": self.to_json, ".html": self.to_html}
        path = Path(path)
        if path.suffix not in writers:
            raise ValueError(f"a report's name must end in {', '.join(writers)}, got {path.name}")
        text = writers[path.suffix]() + "\n"
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def verdict(result: Comparison) -> str:
    """One sentence: all right, or the first layer that diverges, or what is missing or shows nothing."""
    first = result.first_divergence
    count = f"{len(result.rows)} layers"
    where = " (each on the reference's own input)" if result.forced else ""
    if first is not None:
        wrong = sum(row.status in DIVERGED for row in result.rows)
        size = "" if first.relative is None else f"{first.relative:.1e} of the reference's largest number"
        size = "; ".join(filter(None, (size, first.note)))
        return f"first divergence: {first.name}: {first.status}, {size}; {wrong} of {count} differ{where}"
    faults = []
    for status, what in (("MISSING", "are missing"), ("ZERO", f"are nearly zero (below {NEARLY_ZERO:g}), which shows nothing")):
        rows = [row for row in result.rows if row.status == status]
        if rows:
            note = f" ({rows[0].note})" if rows[0].note else ""
            faults.append(f"{len(rows)} of {count} {what}, first {rows[0].name}{note}")
    if faults:
        others = "; the others agree" if any(row.status == "OK" for row in result.rows) else ""
        return f"{'; '.join(faults)}{others}{where}"
    return f"OK: {count} agree to {result.tolerance:.0e} of the reference's largest number{where}"


def to_text(result: Comparison, everything: bool) -> str:
    """The verdict, hints and notes, then all rows, or the first wrong one among its neighbours (the largest errors if none)."""
    rows = result.rows if everything else _interesting(result)
    lines = [printable(verdict(result))]
    lines += [printable(f"hint: {hint}") for hint in result.hints] + [printable(f"note: {note}") for note in result.notes]
    width = max(len(printable(row.name)) for row in rows)
    shapes = max(len(_shape(row)) for row in rows)
    header = f"{'layer':<{width}}  {'shape':<{shapes}}  {'absolute':>9}  {'relative':>9}  {'cosine':>10}  status"
    lines += ["", header, "-" * len(header)]
    for row in rows:
        numbers = f"{_number(row.absolute):>9}  {_number(row.relative):>9}  {_cosine(row.cosine):>10}"
        note = f"  {printable(row.note)}" if row.note else ""
        lines.append(f"{printable(row.name):<{width}}  {_shape(row):<{shapes}}  {numbers}  {row.status}{note}")
    if len(rows) < len(result.rows):
        lines.append(f"({len(rows)} of {len(result.rows)} layers shown)")
    return "\n".join(lines)


def _interesting(result: Comparison) -> list[Row]:
    first = result.first_divergence
    if first is not None:
        at = result.rows.index(first)
        return result.rows[max(0, at - 3) : at + SHORT - 3]
    missing_or_zero = [row for row in result.rows if row.status != "OK"]
    if missing_or_zero:
        return missing_or_zero[:SHORT]
    worst = sorted(range(len(result.rows)), key=lambda index: -(result.rows[index].relative or 0))[:SHORT]
    return [result.rows[index] for index in sorted(worst)]


def to_dict(result: Comparison) -> dict[str, Any]:
    first = result.first_divergence
    return {
        "ok": result.ok,
        "verdict": verdict(result),
        "first_divergence": None if first is None else first.name,
        "hints": result.hints,
        "notes": result.notes,
        "tolerance": result.tolerance,
        "forced": result.forced,
        "layers": [
            {
                "name": row.name,
                "status": row.status,
                "shape": None if row.shape is None else list(row.shape),
                "absolute": _finite(row.absolute),
                "relative": _finite(row.relative),
                "cosine": _finite(row.cosine),
                "note": row.note,
            }
            for row in result.rows
        ],
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2e}"


def _cosine(value: float | None) -> str:
    return "" if value is None else f"{value:.7f}"


def _shape(row: Row) -> str:
    return "" if row.shape is None else " x ".join(map(str, row.shape))


# -- HTML -------------------------------------------------------------------------------------------------------------

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1180px; margin: 2em auto; }
h1 { font-size: 1.4em; } .verdict { font-size: 1.1em; font-weight: 600; } .hint { background: #fff3cd; padding: .5em 1em; }
svg { width: 100%; height: auto; } svg text { font: 13px system-ui, sans-serif; fill: #222; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; } caption { text-align: left; padding: .5em 0; }
th, td { text-align: left; padding: 2px 10px; border-bottom: 1px solid #ddd; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; } td:first-child { font-family: monospace; }
tr.first { outline: 2px solid #c0392b; }
"""


def _escape(text: str) -> str:
    return html.escape(printable(text))


def to_html(result: Comparison) -> str:
    """One page that loads nothing from elsewhere; every name and note in it is escaped."""
    first = result.first_divergence
    colour = COLOURS["OK" if result.ok else "DIFF"]
    body = [f'<p class="verdict" style="color: {colour}">{_escape(verdict(result))}</p>']
    body += [f'<p class="hint">Hint: {_escape(hint)}</p>' for hint in result.hints]
    body += [f"<p>Note: {_escape(note)}</p>" for note in result.notes]
    body.append(_plot(result))
    titles = ("layer", "shape", "absolute", "relative", "cosine", "status", "note")
    number = ' class="number"'
    head = "".join(f'<th scope="col"{number if 2 <= i <= 4 else ""}>{title}</th>' for i, title in enumerate(titles))
    table = []
    for row in result.rows:
        cells = [f"<td>{_escape(row.name)}</td><td>{_shape(row)}</td>"]
        cells += [f"<td{number}>{text}</td>" for text in (_number(row.absolute), _number(row.relative), _cosine(row.cosine))]
        cells.append(f'<td style="color: {COLOURS[row.status]}">{row.status}</td><td>{_escape(row.note)}</td>')
        mark = ' class="first"' if row is first else ""
        table.append(f"<tr{mark}>{''.join(cells)}</tr>")
    caption = "In call order. Absolute: the largest difference. Relative: of the reference's largest number in that layer."
    body.append(
        f'<div class="table"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(table)}</tbody></table></div>"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Layers compared</title><style>{STYLE}</style></head>\n<body>\n<h1>Layers compared, in call order</h1>\n"
        + "\n".join(body)
        + "\n</body>\n</html>"
    )


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1120, 360, 84, 24, 40, 58  # of the plot, and its margins


def _within(error: float) -> float:
    return min(max(error, FLOOR), CEILING)


def _plot(result: Comparison) -> str:
    """Error by depth: a dot a layer, its relative error on a logarithmic scale; the tolerance is a line."""
    tolerance = _within(result.tolerance)
    errors = [_within(row.relative) for row in result.rows if row.relative is not None]
    low = math.floor(math.log10(min([*errors, tolerance])))
    high = max(low + 1, math.ceil(math.log10(max([*errors, tolerance * 10]))))

    def y(error: float) -> float:
        return TOP + (high - math.log10(_within(error))) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Relative error by depth">']
    for exponent in range(low, high + 1):
        line = y(10.0**exponent)
        mark = "0" if 10.0**exponent <= FLOOR else f"1e{exponent}"
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{line:.1f}" y2="{line:.1f}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{line + 4:.1f}" text-anchor="end">{mark}</text>')
    line, dashes = y(tolerance), 'stroke="#555" stroke-dasharray="6 4"'
    parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{line:.1f}" y2="{line:.1f}" {dashes}/>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{line - 6:.1f}" text-anchor="end">tolerance {result.tolerance:.0e}</text>')
    return "".join(parts + _axes(result) + _dots(result, y)) + "</svg>"


def _x(result: Comparison, index: int) -> float:
    return LEFT + index * (WIDTH - LEFT - RIGHT) / max(1, len(result.rows) - 1)


def _axes(result: Comparison) -> list[str]:
    """Numbers along the depth, what the two directions mean, and what the colours do."""
    parts = []
    every = max(1, math.ceil(len(result.rows) / 10 / 10) * 10)
    for index in range(0, len(result.rows), every):
        parts.append(f'<text x="{_x(result, index):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{index}</text>')
    centre, middle = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    along = "depth: number of the layer, in call order"
    parts.append(f'<text x="{centre:.0f}" y="{HEIGHT - 12}" text-anchor="middle">{along}</text>')
    turned = f'transform="rotate(-90 20 {middle:.0f})" text-anchor="middle"'
    parts.append(f'<text x="20" y="{middle:.0f}" {turned}>error / largest of the reference</text>')
    drawn = {row.status for row in result.rows}
    for number, status in enumerate(status for status in COLOURS if status in drawn):
        place, colour = LEFT + 110 * number, COLOURS[status]
        parts.append(f'<circle cx="{place + 5}" cy="16" r="5" fill="{colour}"/><text x="{place + 16}" y="20">{status}</text>')
    return parts


def _dots(result: Comparison, y: Callable[[float], float]) -> list[str]:
    """A dot a layer; what has no error is drawn at the top, what is missing at the bottom. The first wrong one is named."""
    parts, label = [], []
    first = result.first_divergence
    for index, row in enumerate(result.rows):
        error, x = row.relative, _x(result, index)
        title = _escape(f"{index} {row.name}: {row.status} {_number(error)} {row.note}")
        at = float(HEIGHT - BOTTOM) if row.status == "MISSING" else float(TOP) if error is None else y(error)
        attributes = f'cx="{x:.1f}" cy="{at:.1f}" r="{6 if row is first else 3}"'
        parts.append(f'<circle {attributes} fill="{COLOURS[row.status]}"><title>{title}</title></circle>')
        if row is first:
            side, anchor = (-10, "end") if x > WIDTH / 2 else (10, "start")
            below = 26 if at < TOP + 20 else -12
            attributes = f'x="{x + side:.1f}" y="{at + below:.1f}" text-anchor="{anchor}" font-weight="600"'
            text = _escape(f"first: {row.name}")
            label = [f'<text {attributes} stroke="#fff" stroke-width="4">{text}</text>', f"<text {attributes}>{text}</text>"]
    return parts + label  # last, and with a white edge, so that no dot lies on it
