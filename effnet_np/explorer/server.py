"""The server behind the page: on this machine only, for who has the address, and nobody else.

The address has a token in its path, drawn anew at each start; what does not begin with it is not found. `Guard` lets in only
requests that name this server as their host (a page of the web that has its own name point here names itself) and that come
from its own page or from no page. Files are those of `static/`, read at the start; no path ever reaches the disk.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import socket
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from typing import Any

import anyio
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from effnet_np.explorer import sides
from effnet_np.explorer.session import MOST_PICTURES, Run, Session
from effnet_np.tracing.trace import Trace
from effnet_np.version import __version__

HOST = "127.0.0.1"
UPLOAD_BYTES, UPLOAD_SECONDS = 32 << 20, 30
SILENT_SECONDS = 10  # a connection that has not sent a whole request by then is closed
MOST_CHANNELS = 256  # in one answer
SCRIPTS = ("api.js", "draw.js", "picture.js", "map.js", "layer.js", "number.js", "whatif.js", "sides.js", "page.js")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".jpg": "image/jpeg"}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


# -- who is let in ------------------------------------------------------------------------------------------------------


class Guard:
    """Refuses, before anything is read, what does not come from the page itself; and puts HEADERS on every answer."""

    def __init__(self, app: Any, token: str, hosts: Callable[[], set[str]]):
        self.app, self.token, self.hosts = app, token, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the explorer speaks HTTP alone, not {scope['type']}")

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        refused = self._refused(scope)
        app = self.app if refused is None else Response(refused[1], refused[0], media_type="text/plain")
        await app(scope, receive, send_with_headers)

    def _refused(self, scope: Any) -> tuple[int, str] | None:
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts = self.hosts()
        if len(headers.get("host", [])) != 1 or headers["host"][0] not in hosts:
            return 421, "this server answers under its own address only"
        origins = headers.get("origin", [])
        if any(origin not in {f"http://{host}" for host in hosts} for origin in origins):
            return 403, "this server answers its own page only"
        if any(site not in ("same-origin", "none") for site in headers.get("sec-fetch-site", [])):
            return 403, "this server answers its own page only"
        if scope["method"] not in ("GET", "POST") or (scope["method"] == "POST" and not origins):
            return 405, "not allowed"
        given = scope["path"].split("/")[1]
        if not secrets.compare_digest(given.encode(), self.token.encode()):
            return 404, "not found: the address that effnet-np explore printed has a token in it"
        return None


class Patient(H11Protocol):
    """uvicorn's connection, which is closed when it has not sent a whole request's head in SILENT_SECONDS."""

    _silence: Any = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering:
            self._stop()
        elif self._silence is None:
            self._silence = self.loop.call_later(SILENT_SECONDS, self.transport.close)

    def _stop(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None


# -- what is answered -----------------------------------------------------------------------------------------------------


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


# -- the application --------------------------------------------------------------------------------------------------------


def static_files() -> dict[str, bytes]:
    """The page's own files by name."""
    folder = files("effnet_np.explorer") / "static"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def application(api: Api, token: str, hosts: Callable[[], set[str]]) -> Guard:
    """The page, its files, and what it asks; all below /TOKEN/."""
    known = static_files()

    async def file(request: Request) -> Response:
        name = request.path_params.get("name") or "index.html"
        if name not in known:
            return Response("not found", 404, media_type="text/plain")
        return Response(known[name], media_type=TYPES[name[name.rindex(".") :]])

    async def ask(request: Request) -> Response:
        query = dict(request.query_params)
        return await _answered(partial(api.answer, request.path_params["name"], query))

    async def upload(request: Request) -> Response:
        try:
            with anyio.fail_after(UPLOAD_SECONDS):
                data = await _body(request)
        except (TimeoutError, ClientDisconnect):
            return _error(408, f"the picture did not arrive within {UPLOAD_SECONDS} seconds")
        except ValueError as error:
            return _error(413, str(error))
        name = request.query_params.get("name", "a picture")

        def added() -> tuple[bytes, str]:
            return to_json(api.about(api.session.add_picture(data, name))), "application/json"

        return await _answered(added)

    routes = [
        Route("/", file),
        Route("/api/picture", upload, methods=["POST"]),
        Route("/api/{name:str}", ask),
        Route("/{name:str}", file),
    ]
    return Guard(Starlette(routes=[Mount(f"/{token}", routes=routes)]), token, hosts)


async def _body(request: Request) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > UPLOAD_BYTES:
            raise ValueError(f"a picture may have {UPLOAD_BYTES >> 20} MB here")
    return bytes(data)


async def _answered(function: Callable[[], tuple[bytes, str]]) -> Response:
    """In a thread, so that others are answered meanwhile; an error as a sentence for the page."""
    try:
        body, kind = await run_in_threadpool(function)
        return Response(body, media_type=kind)
    except KeyError as error:
        return _error(404, str(error.args[0]))
    except (ValueError, TypeError, OSError) as error:
        return _error(400, str(error))
    except MemoryError as error:
        return _error(400, f"there is not enough memory: {error}")


def _error(status: int, text: str) -> Response:
    return JSONResponse({"error": text[:500]}, status)


class Explorer:
    """A server that is bound and not yet serving: `address` is where it will answer."""

    def __init__(self, session: Session, opening: dict[str, Any], trace: Trace | None = None, port: int = 0):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self.socket.bind((HOST, port))
        except OSError as error:
            raise OSError(f"port {port} cannot be used: {error.strerror}; without --port a free one is taken") from error
        self.token, self.port = secrets.token_urlsafe(24), self.socket.getsockname()[1]
        hosts = {f"{HOST}:{self.port}", f"localhost:{self.port}"}
        self.address = f"http://{HOST}:{self.port}/{self.token}/"
        self.api = Api(session, opening, trace)
        self.server = uvicorn.Server(
            uvicorn.Config(
                application(self.api, self.token, lambda: hosts),
                http=Patient,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_level="critical",
                access_log=False,
                server_header=False,
                timeout_keep_alive=SILENT_SECONDS,
                timeout_graceful_shutdown=1,
            )
        )

    def serve(self) -> None:
        """Until Ctrl-C, or until `stop` is called in another thread."""
        self.server.run(sockets=[self.socket])

    def stop(self) -> None:
        self.server.should_exit = True
