"""The report of an evaluation as one HTML page that loads nothing from elsewhere: plots in SVG, pictures inside.

Names of files, labels and reasons come from strangers: every text goes through `escape`.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from effnet_np.images.thumbnail import thumbnail
from effnet_np.inference.metrics import Bin, Rate, calibration_error
from effnet_np.printable import printable

if TYPE_CHECKING:
    from effnet_np.inference.evaluate import Evaluation, Pair

CONFUSIONS, EXAMPLES = 12, 3  # shown, with so many pictures each
MISTAKES, DIFFERING, FAILED = 12, 24, 1000
MATRIX = 40  # classes up to which the whole matrix of confusions is drawn
COLOURS = ("#2563a8", "#c05a1c")  # of the first model and of the second
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1100px; margin: 2em auto; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; } svg { max-width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: #222; } .row { display: flex; flex-wrap: wrap; gap: 1.5em; }
table { border-collapse: collapse; font-size: 14px; }
th, td { text-align: left; padding: 2px 12px 2px 0; border-bottom: 1px solid #ddd; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; } .verdict { font-size: 1.1em; font-weight: 600; }
figure { margin: 0; width: 150px; font-size: 12px; overflow-wrap: anywhere; } figure img { display: block; }
.pictures { display: flex; flex-wrap: wrap; gap: 10px; margin: .5em 0 1em; } .note { color: #666; }
"""


def escape(text: object) -> str:
    return html.escape(printable(text))


def page(runs: Sequence[Evaluation], compared: Pair | None = None) -> str:
    """The whole page, for one model or several."""
    pictures = _Pictures()
    body = [_summary(runs)]
    if compared is not None:
        body.append(_difference(compared, pictures))
    body.append(
        '<h2 id="calibration">Calibration</h2><p class="note">Of the pictures that a model is 80% sure of, 80% should be '
        "right: then the bars end on the diagonal. The area of a dot grows with the number of pictures.</p>"
        f'<div class="row">{"".join(_reliability(run, number) for number, run in enumerate(runs))}</div>'
    )
    for run in runs:
        title = f" of {escape(run.model)}" if len(runs) > 1 else ""
        body += [
            _confusions(run, pictures, title),
            _mistakes(run, pictures, title),
            _classes(run, title),
            _left_out(run, title),
        ]
    names = escape(" and ".join(run.model for run in runs))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{names} on {escape(runs[0].source)}</title><style>{STYLE}</style></head>\n<body>\n"
        f"<h1>{names} on {escape(runs[0].source)}</h1>\n" + "\n".join(part for part in body if part) + "\n</body>\n</html>"
    )


def _summary(runs: Sequence[Evaluation]) -> str:
    head = (
        "model",
        "pictures",
        "top-1",
        "95% interval",
        "top-5",
        "95% interval",
        "cross entropy",
        "ECE",
        "temperature",
        "pictures a second",
    )
    rows = []
    for run in runs:
        cells = [
            escape(run.model),
            str(len(run.paths)),
            *_rate_cells(run.top1),
            *(_rate_cells(run.top5) if run.top5 else ("", "")),
        ]
        cells += [f"{run.cross_entropy:.3f}", f"{run.calibration_error:.3f}"]
        cells += [f"{run.temperature:.3f}" if run.temperature is not None else "", f"{len(run.paths) / run.seconds:.1f}"]
        rows.append(cells)
    remarks = "".join(
        f'<p class="note">{escape(remark)}</p>' for remark in dict.fromkeys(r for run in runs for r in run.remarks)
    )
    return _table(head, rows) + f'<p class="note">Classes are named by {escape(runs[0].naming)}.</p>{remarks}{_intervals(runs)}'


def _rate_cells(rate: Rate) -> tuple[str, str]:
    low, high = rate.interval
    return f"{rate.value:.2%}", f"{low:.2%} to {high:.2%}"


def _table(head: Iterable[str], rows: Iterable[Sequence[str]], first: int = 1) -> str:
    """Cells are HTML already; from the column `first` on they are numbers."""
    kind = [' class="number"' if number >= first else "" for number in range(99)]
    header = "".join(f'<th scope="col"{kind[n]}>{title}</th>' for n, title in enumerate(head))
    body = "".join("<tr>" + "".join(f"<td{kind[n]}>{cell}</td>" for n, cell in enumerate(row)) + "</tr>" for row in rows)
    return f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"


def _intervals(runs: Sequence[Evaluation]) -> str:
    """Each rate as a dot in its interval, on one axis from 0 to 100%."""
    rates = [
        (f"{run.model}, {name}", rate, COLOURS[n % 2])
        for n, run in enumerate(runs)
        for name, rate in (("top-1", run.top1), ("top-5", run.top5))
        if rate is not None
    ]
    width, left, line = 900, 220, 26
    height = line * len(rates) + 40

    def x(value: float) -> float:
        return left + value * (width - left - 30)

    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="Rates with their 95% intervals">']
    for tick in range(0, 11, 2):
        at = x(tick / 10)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="6" y2="{height - 26}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{at:.1f}" y="{height - 8}" text-anchor="middle">{tick * 10}%</text>')
    for number, (name, rate, colour) in enumerate(rates):
        y, (low, high) = 18 + line * number, rate.interval
        parts.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{escape(name[-32:])}</text>')
        parts.append(f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="4"/>')
        title = f"<title>{escape(name)}: {rate.right} of {rate.total}, {rate}</title>"
        parts.append(f'<circle cx="{x(rate.value):.1f}" cy="{y}" r="6" fill="{colour}">{title}</circle>')
    return "".join(parts) + "</svg>"


# -- calibration ------------------------------------------------------------------------------------------------------


def _reliability(run: Evaluation, number: int) -> str:
    """The diagram as it is and, where a temperature was fitted, as it is with it."""
    drawn = [_diagram(run.reliability, f"{run.model}: ECE {run.calibration_error:.3f}", COLOURS[number % 2])]
    if run.calibrated is not None:
        title = f"{run.model} at temperature {run.temperature:.2f}: ECE {calibration_error(run.calibrated):.3f}"
        drawn.append(_diagram(run.calibrated, title, COLOURS[number % 2]))
    return "".join(drawn)


def _diagram(rows: Sequence[Bin], title: str, colour: str) -> str:
    size, left, top = 300, 50, 30
    most = max(row.count for row in rows)

    def x(value: float) -> float:
        return left + value * size

    def y(value: float) -> float:
        return top + (1 - value) * size

    parts = [
        f'<svg viewBox="0 0 {left + size + 20} {top + size + 50}" width="{left + size + 20}" role="img" '
        f'aria-label="Reliability diagram: {escape(title)}"><text x="{left}" y="16">{escape(title)}</text>'
    ]
    for tick in range(0, 6):
        value = tick / 5
        parts.append(f'<line x1="{x(0)}" x2="{x(1)}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.0%}</text>')
        parts.append(f'<text x="{x(value):.1f}" y="{y(0) + 18}" text-anchor="middle">{value:.0%}</text>')
    for row in rows:
        if row.count:
            wide = (row.high - row.low) * size - 1
            box = f'x="{x(row.low):.1f}" y="{y(row.accuracy):.1f}" width="{wide:.1f}" height="{row.accuracy * size:.1f}"'
            words = (
                f"{row.low:.0%} to {row.high:.0%}: {row.count} pictures, {row.accuracy:.1%} right, {row.confidence:.1%} sure"
            )
            parts.append(f'<rect {box} fill="{colour}" opacity="0.45"><title>{words}</title></rect>')
            radius = 2 + 6 * math.sqrt(row.count / most)
            parts.append(f'<circle cx="{x(row.confidence):.1f}" cy="{y(row.accuracy):.1f}" r="{radius:.1f}" fill="{colour}"/>')
    parts.append(f'<line x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}" stroke="#555" stroke-dasharray="5 4"/>')
    parts.append(f'<text x="{x(0.5)}" y="{y(0) + 40}" text-anchor="middle">how sure the model is</text>')
    turned = f'transform="rotate(-90 12 {y(0.5)})" text-anchor="middle"'
    return "".join(parts) + f'<text x="12" y="{y(0.5)}" {turned}>how often it is right</text></svg>'


# -- where it errs ----------------------------------------------------------------------------------------------------


class _Pictures:
    """Thumbnails, each made once, as data inside of the page."""

    def __init__(self) -> None:
        self.made: dict[str, str] = {}

    def figure(self, path: str, caption: str) -> str:
        """caption: HTML."""
        if path not in self.made:
            try:
                data = base64.b64encode(thumbnail(path)).decode()
                self.made[path] = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(path)}">'
            except (OSError, ValueError, TypeError, MemoryError):  # moved or damaged since it was judged
                self.made[path] = "(cannot be shown)"
        name = escape(path.replace("\\", "/").rsplit("/", 1)[-1])
        return f'<figure>{self.made[path]}<figcaption title="{escape(path)}">{name}<br>{caption}</figcaption></figure>'


def _confusions(run: Evaluation, pictures: _Pictures, title: str) -> str:
    if not run.confusions:
        return f"<h2>Confusions{title}</h2><p>None: every picture is right.</p>"
    parts = [f"<h2>Confusions{title}</h2>", _matrix(run)]
    for truth, taken, count in run.confusions[:CONFUSIONS]:
        where = np.flatnonzero((run.truth == truth) & (run.top[:, 0] == taken))
        where = where[np.argsort(-run.confidence[where], kind="stable")][:EXAMPLES]
        shown = "".join(pictures.figure(run.paths[n], f"{run.confidence[n]:.0%} sure") for n in where.tolist())
        words = f"<b>{escape(run.labels[truth])}</b> taken for <b>{escape(run.labels[taken])}</b>: {count}"
        parts.append(f'<div>{words}<div class="pictures">{shown}</div></div>')
    left = len(run.confusions) - CONFUSIONS
    return "".join(parts) + (f'<p class="note">and {left} rarer ones, in the JSON report</p>' if left > 0 else "")


def _matrix(run: Evaluation) -> str:
    """Rows: the right class; columns: the answer. Right answers lie on the diagonal."""
    shown = [row.index for row in run.classes]
    if len(shown) > MATRIX:
        return ""
    place = np.zeros(max(shown) + 1, int)
    place[shown] = np.arange(len(shown))
    counts = np.zeros((len(shown), len(shown)), int)
    np.add.at(counts, (place[run.truth], place[run.top[:, 0]]), 1)
    cell, left, top = max(16, min(30, 700 // len(shown))), 190, 120
    width, height = left + cell * len(shown) + 60, top + cell * len(shown) + 10
    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="Matrix of confusions">']
    for n, index in enumerate(shown):
        name, at = escape(run.labels[index][:24]), left + cell * (n + 0.5)
        parts.append(f'<text x="{left - 8}" y="{top + cell * (n + 0.5) + 4:.1f}" text-anchor="end">{name}</text>')
        parts.append(f'<text x="{at:.1f}" y="{top - 8}" transform="rotate(-45 {at:.1f} {top - 8})">{name}</text>')
    for a, b in np.argwhere(counts).tolist():
        count, total = int(counts[a, b]), max(1, int(counts[a].sum()))
        share = count / total
        box = f'x="{left + cell * b}" y="{top + cell * a}" width="{cell - 1}" height="{cell - 1}"'
        colour = "#2a7f4f" if a == b else "#c0392b"
        words = f"{escape(run.labels[shown[a]])} as {escape(run.labels[shown[b]])}: {count} of {total}"
        parts.append(f'<rect {box} fill="{colour}" opacity="{0.15 + 0.85 * share:.2f}"><title>{words}</title></rect>')
        white = ' style="fill: #fff"' if share > 0.5 else ""
        middle = f'x="{left + cell * (b + 0.5) - 0.5:.1f}" y="{top + cell * (a + 0.5) + 4:.1f}" text-anchor="middle"'
        parts.append(f"<text {middle}{white}>{count}</text>")
    return "".join(parts) + "</svg>"


def _mistakes(run: Evaluation, pictures: _Pictures, title: str) -> str:
    """The wrong answers that the model was surest of: often the label is what is wrong."""
    wrong = np.flatnonzero(~run.right)
    wrong = wrong[np.argsort(-run.confidence[wrong], kind="stable")][:MISTAKES].tolist()
    if not wrong:
        return ""
    figures = []
    for n in wrong:
        truth, answer = escape(run.labels[int(run.truth[n])]), escape(run.labels[int(run.top[n, 0])])
        figures.append(pictures.figure(run.paths[n], f"{truth}, taken for {answer}, {run.confidence[n]:.0%} sure"))
    note = "The wrong answers that the model was surest of. Look at the label first."
    return f'<h2>Surest mistakes{title}</h2><p class="note">{note}</p><div class="pictures">{"".join(figures)}</div>'


def _classes(run: Evaluation, title: str) -> str:
    """A row a class, those that are recognised least first."""
    ordered = sorted(run.classes, key=lambda row: (not row.recall.total, row.recall.value if row.recall.total else 0))
    rows = []
    for row in ordered:
        shown = [
            f"{rate.value:.1%} ({rate.right} of {rate.total})" if rate.total else "" for rate in (row.recall, row.precision)
        ]
        rows.append([escape(run.labels[row.index]), _bar(row.recall) if row.recall.total else "", *shown])
    table = _table(("class", "95% interval", "recall", "precision"), rows, first=2)
    open_ = " open" if len(rows) <= MATRIX else ""
    return f"<h2>Classes{title}</h2><details{open_}><summary>{len(rows)} classes</summary>{table}</details>"


def _bar(rate: Rate) -> str:
    """A rate in its interval, in a cell of a table."""
    (low, high), colour = rate.interval, COLOURS[0]
    return (
        f'<svg viewBox="0 0 160 14" width="160" role="img" aria-label="{low:.0%} to {high:.0%}">'
        '<rect width="160" height="14" fill="#f0f0f0"/>'
        f'<line x1="{160 * low:.1f}" x2="{160 * high:.1f}" y1="7" y2="7" stroke="{colour}" stroke-width="3"/>'
        f'<circle cx="{160 * rate.value:.1f}" cy="7" r="4" fill="{colour}"/></svg>'
    )


def _left_out(run: Evaluation, title: str) -> str:
    if not run.failed:
        return ""
    rows = [[escape(path), escape(reason)] for path, reason in run.failed[:FAILED]]
    count = len(run.failed)
    words = f"{count} pictures, which count in no number" + (f"; the first {FAILED}" if count > FAILED else "")
    table = _table(("picture", "reason"), rows, first=2)
    return f"<h2>Not judged{title}</h2><details><summary>{words}</summary>{table}</details>"


# -- two models -------------------------------------------------------------------------------------------------------


def _difference(compared: Pair, pictures: _Pictures) -> str:
    first, second = escape(compared.first.model), escape(compared.second.model)
    rows = [
        [f"{first} right", str(compared.both), str(compared.only_first)],
        [f"{first} wrong", str(compared.only_second), str(compared.neither)],
    ]
    table = _table(("", f"{second} right", f"{second} wrong"), rows)
    figures = [
        pictures.figure(path, f"is {escape(truth)}<br>{first}: {escape(one)}<br>{second}: {escape(other)}")
        for path, truth, one, other in compared.differing[:DIFFERING]
    ]
    left = len(compared.differing) - DIFFERING
    more = f'<p class="note">and {left} more, in the JSON report</p>' if left > 0 else ""
    return (
        f'<h2>The two compared</h2><p class="verdict">{escape(compared)}</p>{table}'
        f'<h3>Where they differ</h3><div class="pictures">{"".join(figures) or "nowhere"}</div>{more}'
    )
