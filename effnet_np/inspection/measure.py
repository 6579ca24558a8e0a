"""Two arrays, one row: how far a layer of ours is from the reference's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

NEARLY_ZERO = 1e-6  # a layer whose largest number is below this proves nothing
PIECE = 1 << 20  # numbers at a time: float64 copies of a whole layer would take four times its memory
MOST_SORTED = 8 << 20  # numbers of a layer of which it is also said whether a few channels or rows alone are wrong
AXES = {2: ("pictures", "features"), 4: ("pictures", "channels", "rows", "columns")}


@dataclass
class Row:
    """One layer. Errors are None where they cannot be computed; `relative` is of the reference's largest number."""

    name: str
    status: str  # OK, DIFF, SHAPE, MISSING, NAN, or ZERO: both sides vanish, so that nothing is shown
    shape: tuple[int, ...] | None  # of the reference; of ours where the reference lacks the layer
    absolute: float | None = None
    relative: float | None = None
    cosine: float | None = None
    note: str = ""


def measure(name: str, ours: np.ndarray | None, theirs: np.ndarray | None, tolerance: float) -> Row:
    """Compare one layer. NaN and infinity come first: a comparison with NaN is never true, and so never an error either."""
    if ours is None or theirs is None:
        present = theirs if ours is None else ours
        side = "ours" if ours is None else "the reference"
        return Row(name, "MISSING", None if present is None else present.shape, note=f"{side} has no such layer")
    if ours.shape != theirs.shape:
        return Row(name, "SHAPE", theirs.shape, note=f"ours has shape {ours.shape}")
    for side, array in (("ours", ours), ("the reference", theirs)):
        note = _not_finite(array)
        if note:
            return Row(name, "NAN", theirs.shape, note=f"{side}: {note}")
    a, b = ours.reshape(-1), theirs.reshape(-1)
    absolute = scale = largest = product = square_a = square_b = 0.0
    worst = 0
    with np.errstate(all="ignore"):  # the squares of large numbers are infinite
        for start in range(0, a.size, PIECE):
            x, y = (array[start : start + PIECE].astype(np.float64) for array in (a, b))
            error = np.abs(x - y)
            if float(error.max()) > absolute:
                absolute, worst = float(error.max()), start + int(error.argmax())
            largest, scale = max(largest, float(np.abs(x).max())), max(scale, float(np.abs(y).max()))
            product, square_a, square_b = product + float(x @ y), square_a + float(x @ x), square_b + float(y @ y)
    relative = absolute / scale if scale else (0.0 if absolute == 0 else math.inf)
    lengths = math.sqrt(square_a) * math.sqrt(square_b)
    cosine = product / lengths if lengths else float(absolute == 0)
    status = "OK" if relative <= tolerance else "DIFF"
    if a.size and max(scale, largest) < NEARLY_ZERO:
        status = "ZERO"
    note = _where(ours, theirs, worst, tolerance * scale) if status == "DIFF" else ""
    return Row(name, status, theirs.shape, absolute, relative, cosine, note)


def _where(ours: np.ndarray, theirs: np.ndarray, worst: int, limit: float) -> str:
    """Where the largest error is, and whether those above the limit are of a few channels, rows, columns or pictures alone."""
    place = np.unravel_index(worst, ours.shape)
    at = ", ".join(map(str, map(int, place)))
    notes = [f"the largest error at ({at}): ours {ours[place]:.6g}, the reference {theirs[place]:.6g}"]
    if ours.ndim not in AXES or ours.size > MOST_SORTED or ours.dtype.kind != "f":
        return notes[0]
    with np.errstate(all="ignore"):
        error = np.subtract(ours, theirs)
        wrong = np.abs(error, out=error) > limit
    for axis, kind in enumerate(AXES[wrong.ndim]):
        indices = np.flatnonzero(wrong.any(axis=tuple(other for other in range(wrong.ndim) if other != axis)))
        if len(indices) <= wrong.shape[axis] // 2:
            some = ", ".join(map(str, indices[:8].tolist())) + (", ..." if len(indices) > 8 else "")
            notes.append(f"only {len(indices)} of {wrong.shape[axis]} {kind} differ: {some}")
    return "; ".join(notes)


def nearly_zero(array: np.ndarray) -> bool:
    return float(np.abs(array).max(initial=0)) < NEARLY_ZERO


def _not_finite(array: np.ndarray) -> str:
    if array.dtype.kind != "f":
        return ""
    flat = array.reshape(-1)
    bad = [start + np.flatnonzero(~np.isfinite(flat[start : start + PIECE])) for start in range(0, flat.size, PIECE)]
    count = sum(map(len, bad))
    if not count:
        return ""
    first = next(int(indices[0]) for indices in bad if len(indices))
    where = tuple(int(index) for index in np.unravel_index(first, array.shape))
    return f"{count} of {array.size} numbers are NaN or infinite, the first at {where}"
