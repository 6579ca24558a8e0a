"""A comparison as text, as JSON, and as one HTML page with a plot of error by depth."""

from __future__ import annotations

import html
import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effnet_np.compare import Comparison, Row

SHORT = 12  # rows of the short report
COLOURS = {"OK": "#2a7f4f", "DIFF": "#c0392b", "SHAPE": "#8e44ad", "NAN": "#d35400", "MISSING": "#7f8c8d"}
FLOOR = 1e-9  # an error of zero has no logarithm; it is drawn here


def verdict(result: Comparison) -> str:
    """One sentence: all right, or the first layer that diverges, or what is missing."""
    first, missing = result.first_divergence, sum(row.status == "MISSING" for row in result.rows)
    count = f"{len(result.rows)} layers"
    where = " (each on the reference's own input)" if result.forced else ""
    if first is not None:
        wrong = sum(row.status not in ("OK", "MISSING") for row in result.rows)
        size = first.note if first.relative is None else f"{first.relative:.1e} of the reference's largest number"
        if first.status == "DIFF" and first.note:
            size = first.note
        return f"first divergence: {first.name}: {first.status}, {size}; {wrong} of {count} differ{where}"
    if missing:
        example = next(row for row in result.rows if row.status == "MISSING")
        return f"{missing} of {count} are missing, first {example.name} ({example.note}); the others agree{where}"
    return f"OK: {count} agree to {result.tolerance:.0e} of the reference's largest number{where}"


def to_text(result: Comparison, everything: bool) -> str:
    """The verdict, hints and notes, then all rows, or the first wrong one among its neighbours (the largest errors if none)."""
    rows = result.rows if everything else _interesting(result)
    lines = [verdict(result)]
    lines += [f"hint: {hint}" for hint in result.hints] + [f"note: {note}" for note in result.notes]
    width = max(len(row.name) for row in rows)
    shapes = max(len(_shape(row)) for row in rows)
    header = f"{'layer':<{width}}  {'shape':<{shapes}}  {'absolute':>9}  {'relative':>9}  {'cosine':>10}  status"
    lines += ["", header, "-" * len(header)]
    for row in rows:
        numbers = f"{_number(row.absolute):>9}  {_number(row.relative):>9}  {_cosine(row.cosine):>10}"
        note = f"  {row.note}" if row.note else ""
        lines.append(f"{row.name:<{width}}  {_shape(row):<{shapes}}  {numbers}  {row.status}{note}")
    if len(rows) < len(result.rows):
        lines.append(f"({len(rows)} of {len(result.rows)} layers shown)")
    return "\n".join(lines)


def _interesting(result: Comparison) -> list[Row]:
    first = result.first_divergence
    if first is not None:
        at = result.rows.index(first)
        return result.rows[max(0, at - 3) : at + SHORT - 3]
    missing = [row for row in result.rows if row.status == "MISSING"]
    if missing:
        return missing[:SHORT]
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


def to_json(result: Comparison) -> str:
    return json.dumps(to_dict(result), indent=1, allow_nan=False)


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


def to_html(result: Comparison) -> str:
    """One page that loads nothing from elsewhere; every name and note in it is escaped."""
    first = result.first_divergence
    body = [f'<p class="verdict" style="color: {COLOURS["OK" if result.ok else "DIFF"]}">{html.escape(verdict(result))}</p>']
    body += [f'<p class="hint">Hint: {html.escape(hint)}</p>' for hint in result.hints]
    body += [f"<p>Note: {html.escape(note)}</p>" for note in result.notes]
    body.append(_plot(result))
    titles = ("layer", "shape", "absolute", "relative", "cosine", "status", "note")
    number = ' class="number"'
    head = "".join(f'<th scope="col"{number if 2 <= i <= 4 else ""}>{title}</th>' for i, title in enumerate(titles))
    table = []
    for row in result.rows:
        cells = [f"<td>{html.escape(row.name)}</td><td>{_shape(row)}</td>"]
        cells += [f"<td{number}>{text}</td>" for text in (_number(row.absolute), _number(row.relative), _cosine(row.cosine))]
        cells.append(f'<td style="color: {COLOURS[row.status]}">{row.status}</td><td>{html.escape(row.note)}</td>')
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


def _plot(result: Comparison) -> str:
    """Error by depth: a dot a layer, its relative error on a logarithmic scale; the tolerance is a line."""
    width, height, left, right, top, bottom = 1120, 360, 84, 24, 40, 58
    errors = [min(max(row.relative, FLOOR), 1e3) for row in result.rows if row.relative is not None]
    low = math.floor(math.log10(min([*errors, result.tolerance])))
    high = math.ceil(math.log10(max([*errors, result.tolerance * 10])))
    step = (width - left - right) / max(1, len(result.rows) - 1)

    def x(index: int) -> float:
        return left + index * step

    def y(error: float) -> float:
        return top + (high - math.log10(min(max(error, FLOOR), 1e3))) / (high - low) * (height - top - bottom)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Relative error by depth">']
    for exponent in range(low, high + 1):
        line = y(10.0**exponent)
        mark = "0" if 10.0**exponent <= FLOOR else f"1e{exponent}"
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{line:.1f}" y2="{line:.1f}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{left - 8}" y="{line + 4:.1f}" text-anchor="end">{mark}</text>')
    line = y(result.tolerance)
    parts.append(
        f'<line x1="{left}" x2="{width - right}" y1="{line:.1f}" y2="{line:.1f}" stroke="#555" stroke-dasharray="6 4"/>'
    )
    parts.append(f'<text x="{width - right}" y="{line - 6:.1f}" text-anchor="end">tolerance {result.tolerance:.0e}</text>')
    every = max(1, math.ceil(len(result.rows) / 10 / 10) * 10)
    for index in range(0, len(result.rows), every):
        parts.append(f'<text x="{x(index):.1f}" y="{height - bottom + 20}" text-anchor="middle">{index}</text>')
    centre = (left + width - right) / 2
    parts.append(
        f'<text x="{centre:.0f}" y="{height - 12}" text-anchor="middle">depth: number of the layer, in call order</text>'
    )
    middle = (top + height - bottom) / 2
    turned = f'transform="rotate(-90 20 {middle:.0f})" text-anchor="middle"'
    parts.append(f'<text x="20" y="{middle:.0f}" {turned}>error / largest of the reference</text>')
    drawn = {row.status for row in result.rows}
    for number, status in enumerate(status for status in COLOURS if status in drawn):
        place = left + 110 * number
        parts.append(
            f'<circle cx="{place + 5}" cy="16" r="5" fill="{COLOURS[status]}"/><text x="{place + 16}" y="20">{status}</text>'
        )
    first = result.first_divergence
    label: list[str] = []
    for index, row in enumerate(result.rows):
        error = row.relative
        title = html.escape(f"{index} {row.name}: {row.status} {_number(error)} {row.note}")
        at = (x(index), y(error)) if error is not None else (x(index), float(top))  # what has no error is drawn at the top
        if row.status == "MISSING":
            at = (x(index), float(height - bottom))
        radius = 6 if row is first else 3
        attributes = f'cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius}"'
        parts.append(f'<circle {attributes} fill="{COLOURS[row.status]}"><title>{title}</title></circle>')
        if row is first:
            side = (-10, "end") if at[0] > width / 2 else (10, "start")
            below = 26 if at[1] < top + 20 else -12
            attributes = f'x="{at[0] + side[0]:.1f}" y="{at[1] + below:.1f}" text-anchor="{side[1]}" font-weight="600"'
            text = html.escape(f"first: {row.name}")
            label = [f'<text {attributes} stroke="#fff" stroke-width="4">{text}</text>', f"<text {attributes}>{text}</text>"]
    parts += label  # last, and with a white edge, so that no dot lies on it
    return "".join(parts) + "</svg>"
