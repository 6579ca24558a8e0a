"""The server behind the page: on this machine only, for who has the address, and nobody else.

The address has a token in its path, drawn anew at each start; what does not begin with it is not found. `Guard` lets in only
requests that name this server as their host (a page of the web that has its own name point here names itself) and that come
from its own page or from no page; a link elsewhere may open the page, which knows nothing before it asks. Files are those of
`static/`, read at the start; no path ever reaches the disk.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from effnet_np.explorer.api import Api, to_json
from effnet_np.explorer.export import page_as_file, static_files
from effnet_np.explorer.session import Session
from effnet_np.tracing.trace import Trace

HOST = "127.0.0.1"
UPLOAD_BYTES, UPLOAD_SECONDS = 32 << 20, 30
SILENT_SECONDS = 10  # a connection that has not sent a whole request by then is closed
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
        opening = scope["path"] == f"/{self.token}/" and headers.get("sec-fetch-dest") == [
            "document"
        ]  # a link, wherever it stands
        if not opening and any(site not in ("same-origin", "none") for site in headers.get("sec-fetch-site", [])):
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


# -- the application --------------------------------------------------------------------------------------------------------


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

    async def page(request: Request) -> Response:
        """The page as a file, to be kept."""
        query = dict(request.query_params)
        answered = await _answered(lambda: (page_as_file(api, query), "text/html"))
        if answered.status_code == 200:
            answered.headers["content-disposition"] = 'attachment; filename="explorer.html"'
        return answered

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
        Route("/explorer.html", page),
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
        # Said to be TCP, asyncio turns Nagle's algorithm off, which holds the second half of an answer back for 40 ms.
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self.socket.bind((HOST, port))
            self.socket.listen(128)  # from here on who connects waits, and is not turned away
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
