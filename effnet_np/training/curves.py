"""A picture of how a run went: loss and accuracy by epoch, and which classes were taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

INK, QUIET, PAPER, GRID = (34, 34, 34), (100, 100, 100), (255, 255, 255), (230, 230, 230)
TRAIN, VAL = (140, 140, 140), (193, 68, 14)
WIDTH, HEIGHT, MARGIN = 520, 260, 70  # of a panel, in pixels


def draw_history(history: dict[str, Any]) -> Image:
    """What history.json holds -> a PIL image (RGB): two curves on the left, the matrix of confusions on the right."""
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    title, text = PIL.ImageFont.load_default(20), PIL.ImageFont.load_default(14)
    classes, confusions = history["classes"], np.array(history["confusions"])
    names = max(PIL.ImageFont.load_default(14).getlength(name[:24]) for name in classes)
    cell = max(12, min(44, 560 // len(classes)))
    matrix_left = WIDTH + 3 * MARGIN + round(names)
    canvas = PIL.Image.new(
        "RGB",
        (matrix_left + max(cell * len(classes), 320) + MARGIN, max(2 * HEIGHT + 4 * MARGIN, cell * len(classes) + 3 * MARGIN)),
        PAPER,
    )
    draw = PIL.ImageDraw.Draw(canvas)
    epochs, best = history["epochs"], history["epochs"].index(history["best"])
    for number, kind in enumerate(("loss", "accuracy")):
        top = MARGIN + number * (HEIGHT + 2 * MARGIN)
        draw.text((MARGIN, top - 38), kind.capitalize(), INK, title)
        curves = {"train": TRAIN, "val": VAL}
        _curves(
            draw, text, (MARGIN, top), {color: [e[f"{part}_{kind}"] for e in epochs] for part, color in curves.items()}, best
        )
    draw.text((MARGIN, canvas.height - 34), "grey: the pictures learnt from;", TRAIN, text)
    draw.text((MARGIN + 205, canvas.height - 34), "red: those judged by; the line: the epoch that is kept", VAL, text)
    accuracy = history["best"]["val_accuracy"]
    draw.text((matrix_left, MARGIN - 38), f"{accuracy:.1%} right: a row the class, a column the answer", INK, title)
    for row, name in enumerate(classes):
        y = MARGIN + row * cell
        draw.text((matrix_left - 8, y + cell // 2), name[:24], INK, text, anchor="rm")
        for column, count in enumerate(confusions[row]):
            share = count / max(1, confusions[row].sum())
            box = (matrix_left + column * cell, y, matrix_left + (column + 1) * cell - 2, y + cell - 2)
            full = TRAIN if row == column else VAL
            draw.rectangle(box, fill=tuple(round(245 + (f - 245) * share**0.5) for f in full))
            if count and cell >= 20:
                draw.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), str(count), INK, text, anchor="mm")
    return canvas


def _curves(draw: Any, font: Any, corner: tuple[int, int], curves: dict[tuple, Sequence[float]], best: int) -> None:
    """Lines over the epochs, each of a colour, with the least and the greatest number at the axis."""
    left, top = corner
    numbers = [number for line in curves.values() for number in line if np.isfinite(number)] or [0.0]
    low, high = min(numbers), max(numbers)
    span, count = (high - low) or 1.0, max(map(len, curves.values()))
    for share in (0.0, 0.5, 1.0):
        y = top + HEIGHT * (1 - share)
        draw.line((left, y, left + WIDTH, y), GRID)
        draw.text((left - 8, y), f"{low + share * span:.3g}", QUIET, font, anchor="rm")

    def across(index: int) -> float:
        return left + WIDTH * index / max(1, count - 1)

    draw.line((across(best), top, across(best), top + HEIGHT), VAL)
    draw.text((left, top + HEIGHT + 8), "1", QUIET, font)
    draw.text((left + WIDTH, top + HEIGHT + 8), f"{count} epochs", QUIET, font, anchor="ra")
    for colour, line in curves.items():
        points = [
            (across(i), top + HEIGHT * (1 - (number - low) / span)) for i, number in enumerate(line) if np.isfinite(number)
        ]
        draw.line(points, colour, 2)
        if len(points) == 1:
            draw.ellipse((points[0][0] - 2, points[0][1] - 2, points[0][0] + 2, points[0][1] + 2), colour)
