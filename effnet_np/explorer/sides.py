"""Two side by side: the differences by layer between a run and a trace from a file, another model, or another picture.

Rows, statuses and hints are those of `compare`. It is asked part by part, so that no more than a part's arrays are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from effnet_np.explorer import what_if
from effnet_np.explorer.recording import ALIAS, count_parts, part_of, run_part
from effnet_np.explorer.session import Run, Session
from effnet_np.inspection.compare import TOLERANCE, compare
from effnet_np.inspection.measure import Row, measure
from effnet_np.inspection.report import Comparison, to_dict
from effnet_np.tracing.trace import INPUT, Trace

KINDS = "trace, model:NAME or picture:KEY"


def other_run(session: Session, query: dict[str, str], beside: str) -> Run | None:
    """The run that stands beside, or None for the trace. Raises ValueError, KeyError."""
    kind, _, which = beside.partition(":")
    if kind == "model":
        return session.run(which, query["picture"])
    if kind == "picture":
        return session.run(query["model"], which, query.get("changes", ""))
    if beside != "trace":
        raise ValueError(f"beside must be {KINDS}, got {beside!r:.80}")
    return None


def differences(session: Session, run: Run, other: Run | Trace, port: bool) -> dict[str, Any]:
    """`to_dict` of the comparison; of each row also the layer of ours that it opens, and its channel that differs most.

    port: the other side is what is judged, and the run is the reference.
    """
    result = Comparison([], TOLERANCE)
    found = _with_trace(session, run, other, result, port) if isinstance(other, Trace) else _with_run(session, run, other)
    more = []
    for row, opens, ours, theirs in found:
        result.rows.append(row)
        more.append({"opens": opens, "channel": _channel(ours, theirs) if row.status == "DIFF" else 0})
    if not result.rows:
        raise ValueError("there is nothing to compare: the two have no layer in common")
    answer = to_dict(result)
    answer["layers"] = [layer | extra for layer, extra in zip(answer["layers"], more, strict=True)]
    return answer


Found = Iterator[tuple[Row, str, np.ndarray | None, np.ndarray | None]]


def _with_run(session: Session, run: Run, other: Run) -> Found:
    """Every operation of the one, and what the other computed under that name."""
    for name in dict.fromkeys([INPUT, *run.operations, *other.operations]):
        with session.lock:
            ours, theirs = (_output(session, side, name) for side in (run, other))
        yield measure(name, ours, theirs, TOLERANCE), name if ours is not None else "", ours, theirs


def _output(session: Session, run: Run, name: str) -> np.ndarray | None:
    if name != INPUT and name not in run.operations:
        return None
    return session.output(run, name)[1][None]


def _with_trace(session: Session, run: Run, trace: Trace, result: Comparison, port: bool) -> Found:
    names: dict[int, list[str]] = {}
    for name in trace:
        names.setdefault(_part(run, name), []).append(name)
    for name in names.get(-1, []):
        yield measure(name, *_sides(None, trace[name], port), TOLERANCE), "", None, None
    for part in range(count_parts(run.model)):
        if part not in names:
            continue
        with session.lock:
            ours, opens = _traced(run, part)
        rows = _compared(ours, trace, names[part], result, port)
        for row in rows:
            yield row, opens.get(row.name, ""), ours.get(row.name), trace[row.name]


def _sides(ours: Any, theirs: Any, port: bool) -> tuple[Any, Any]:
    return (theirs, ours) if port else (ours, theirs)


def _compared(ours: Trace, trace: Trace, names: list[str], result: Comparison, port: bool) -> list[Row]:
    """The rows of one part. Once the first wrong layer is known, with its hints, the rest is measured."""
    if result.first_divergence is not None:
        return [measure(name, *_sides(ours.get(name), trace[name], port), TOLERANCE) for name in names]
    found = compare(
        *_sides(ours, Trace.of({name: trace[name] for name in names}, trace.inputs, trace.weights), port), layers=names
    )
    result.hints += found.hints
    result.notes += found.notes
    order = {name: place for place, name in enumerate(names if trace.ordered else ours)}
    return sorted(found.rows, key=lambda row: order.get(row.name, len(order)))


def _part(run: Run, name: str) -> int:
    try:
        return 0 if name == INPUT else part_of(run.model, name)
    except KeyError:
        return -1


def _traced(run: Run, part: int) -> tuple[Trace, dict[str, str]]:
    """A part's trace with all that a hint may need, under every name; and the operation that each name opens."""
    recording = run.record(part)
    given = run.given(part)
    with what_if.changed(run.model, run.changes), Trace(run.model, inputs=True, weights=True) as trace:
        run_part(run.model, part, given)
    outputs = dict(trace)
    if part == 0:
        outputs = {INPUT: given, **outputs}
    opens = {name: recording.alias.get(name, name) for name in (*outputs, *recording.operations)}
    for alias, name in ALIAS.items():
        if name in outputs:
            array = outputs[name]
            outputs[alias] = array.reshape(array.shape[:2]) if alias.endswith("pooler_output") else array
            opens[alias] = recording.alias.get(name, name)
    return Trace.of(outputs, trace.inputs, trace.weights), opens


def _channel(ours: np.ndarray | None, theirs: np.ndarray | None) -> int:
    """The channel with the largest difference."""
    if ours is None or theirs is None or ours.shape != theirs.shape or ours.ndim < 2:
        return 0
    return int(np.abs(ours[0].astype(np.float64) - theirs[0]).reshape(ours.shape[1], -1).max(1).argmax())


def plane_beside(session: Session, run: Run, other: Run | Trace, name: str, channel: int) -> dict[str, Any]:
    """One channel of the other side, {"data": (H * W,)}, or {"note": why there is none}."""
    ours = session.output(run, name)[1]
    theirs: np.ndarray | None = None
    if isinstance(other, Trace):
        recording = session.recording(run, part_of(run.model, name)) if name != INPUT else None
        names = [name, *(alias for alias, operation in (recording.alias if recording else {}).items() if operation == name)]
        known = next((each for each in names if each in other), None)
        theirs = None if known is None else other[known][0]
    elif name == INPUT or name in other.operations:
        theirs = session.output(other, name)[1]
    if theirs is None:
        return {"note": f"The other side has no {name}."}
    if theirs.size != ours.size or len(theirs) != len(ours):
        return {"note": f"The other side's {name} is {' x '.join(map(str, theirs.shape))}."}
    if not 0 <= channel < len(ours):
        raise ValueError(f"{name} has channels 0 to {len(ours) - 1}")
    return {"data": theirs[channel].reshape(-1).astype(np.float32)}
