"""What the page may ask, by name: each question takes the session and the query's texts, and is answered in JSON or bytes.

The server asks for the page; a page that is saved as a file (export.py) takes the answers with it.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from effnet_np.explorer import sides
from effnet_np.explorer.session import MOST_PICTURES, Run, Session
from effnet_np.tracing.trace import Trace
from effnet_np.version import __version__

MOST_CHANNELS = 256  # in one answer


def encode(value: Any) -> Any:
    """What json cannot: arrays as base64 of their bytes, little-endian."""
    if isinstance(value, np.ndarray):
        little = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        return {"dtype": value.dtype.name, "base64": base64.b64encode(little.tobytes()).decode()}
    if isinstance(value, (np.integer, np.floating)):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no part of an answer")


def to_json(value: Any) -> bytes:
    return json.dumps(value, default=encode, separators=(",", ":")).encode()


class Api:
    """What the page may ask, by name: a method takes the session and the query's texts, and gives JSON or bytes."""

    def __init__(self, session: Session, opening: dict[str, Any], trace: Trace | None = None):
        self.session, self.trace = session, trace
        self.opening = {"first": next(iter(session.pictures), None)} | opening

    def answer(self, name: str, query: dict[str, str]) -> tuple[bytes, str]:
        """(body, media type). Raises KeyError for what there is not, ValueError for what cannot be."""
        if name not in ASKED:
            raise KeyError(f"there is no question {name!r:.40}")
        with contextlib.nullcontext() if name == "compare" else self.session.lock:  # which takes seconds, and the lock by parts
            value = ASKED[name](self, Query(query))
        if isinstance(value, np.ndarray):
            return np.ascontiguousarray(value, "<f4").tobytes(), "application/octet-stream"
        return (value, "image/webp") if isinstance(value, bytes) else (to_json(value), "application/json")

    def run(self, query: Query) -> Run:
        return self.session.run(query["model"], query["picture"], query.get("changes", ""))

    def open(self, query: Query) -> dict[str, Any]:
        facts = {"version": __version__, "models": list(self.session.models), **self.opening}
        return facts | {
            "pictures": [self.about(each) for each in self.session.pictures.values()],
            "most_pictures": MOST_PICTURES,
        }

    def about(self, picture: Any) -> dict[str, Any]:
        return {"key": picture.key, "name": picture.name, "width": picture.width, "height": picture.height}

    def labels(self, query: Query) -> list[str]:
        config = self.session.model(query["model"]).config
        return [str(config.id2label[index])[:200] for index in range(config.num_labels)]

    def picture(self, query: Query) -> bytes:
        return self.session.picture(query["picture"]).webp

    def region(self, query: Query) -> dict[str, Any]:
        run = self.run(query)
        return {"region": run.region, "height": run.pixels.shape[0], "width": run.pixels.shape[1]}

    def answers(self, query: Query) -> dict[str, Any]:
        return self.session.answer(self.run(query))

    def network(self, query: Query) -> dict[str, Any]:
        return self.session.network(self.run(query))

    def layer(self, query: Query) -> dict[str, Any]:
        return self.session.layer(self.run(query), query["name"])

    def planes(self, query: Query) -> np.ndarray:
        channels = query.numbers("channels", MOST_CHANNELS)
        return self.session.planes(self.run(query), query["name"], channels)

    def kernel(self, query: Query) -> dict[str, Any]:
        return self.session.kernel(self.run(query), query["name"], query.number("channel"))

    def number(self, query: Query) -> dict[str, Any]:
        channel, y, x = query.numbers("at", 3)
        return self.session.number(self.run(query), query["name"], (channel, y, x))

    def _beside(self, query: Query) -> Run | Trace:
        other = sides.other_run(self.session, query, query["beside"]) or self.trace
        if other is None:
            raise KeyError("there is no trace beside: start with --against FILE")
        return other

    def compare(self, query: Query) -> dict[str, Any]:
        with self.session.lock:
            run, other = self.run(query), self._beside(query)
        return sides.differences(self.session, run, other, query.get("judged") == "port")

    def beside(self, query: Query) -> dict[str, Any]:
        channel, other = query.number("channel"), self._beside(query)
        return sides.plane_beside(self.session, self.run(query), other, query["name"], channel)

    def cam(self, query: Query) -> dict[str, Any]:
        return self.session.activation_map(self.run(query), query.number("class"))


ASKED: dict[str, Callable[[Api, Query], Any]] = {
    "open": Api.open,
    "labels": Api.labels,
    "picture": Api.picture,
    "region": Api.region,
    "answer": Api.answers,
    "network": Api.network,
    "layer": Api.layer,
    "planes": Api.planes,
    "kernel": Api.kernel,
    "number": Api.number,
    "cam": Api.cam,
    "compare": Api.compare,
    "beside": Api.beside,
}


class Query(dict[str, str]):
    """The texts behind an address's "?"; a KeyError or ValueError says which is missing or wrong."""

    def __missing__(self, key: str) -> str:
        raise ValueError(f"the question needs {key}=")

    def number(self, key: str) -> int:
        return self.numbers(key, 1)[0]

    def numbers(self, key: str, most: int) -> list[int]:
        texts = self[key].split(",")
        if len(texts) > most or not all(text.isascii() and text.isdecimal() and len(text) < 9 for text in texts):
            raise ValueError(f"{key} must be at most {most} whole numbers, got {self[key]!r:.80}")
        return [int(text) for text in texts]
