"""The server: its addresses, who may use them, and how it starts and ends."""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from asr.errors import ASRError
from asr.recognizer import Recognizer
from asr.server import live, transcriptions, vosk
from asr.server.access import Access
from asr.server.census import Census
from asr.server.refusal import Refusal
from asr.server.service import Service
from asr.server.settings import Limits

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
WEB, PROTOCOL = HERE / "web", HERE / "PROTOCOL.md"
CLOSING_SECONDS = 15.0  # for the last words of streams that are ended
BACKLOG = 512  # connections that wait to be accepted, at most

# The page has no script, style or connection that is not its own.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; "
    "media-src 'self' blob:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Place:
    """Where a server listens and whom it answers."""

    host: str = "127.0.0.1"
    port: int = 8300
    wyoming_port: int | None = None
    token: str | None = None
    origins: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    drain_seconds: float = 0.0  # after being told to stop, for streams to end by themselves
    workers: int = 1  # processes


class Server:
    """A running server; made by `start` or, where somebody else listens, by `prepare`; ended by `stop`."""

    def __init__(self, recognizer: Recognizer, place: Place, census: Census | None = None) -> None:
        self.service = Service(recognizer, place.limits, census)
        self._place = place
        self._runner = web.AppRunner(
            make_app(self.service, Access(place.token, place.origins)),
            access_log=None,
            handle_signals=False,
            handler_cancellation=True,
            shutdown_timeout=1.0,
        )
        self._wyoming: asyncio.Server | None = None

    async def start(self) -> None:
        """Listens; ASRError where an address cannot be had."""
        try:
            self.listening = listen(self._place)
        except ASRError:
            self.service.close()
            raise
        await self.prepare()
        await web.SockSite(self._runner, self.listening.http).start()
        if self.listening.wyoming:
            from asr.server import wyoming

            self._wyoming = await wyoming.listen(self.service, self.listening.wyoming)

    async def prepare(self) -> None:
        """Is ready for connections."""
        await self._runner.setup()

    async def take(self, connection: socket.socket, *, is_wyoming: bool = False) -> None:
        """Serves a connection that somebody else has accepted."""
        if is_wyoming:
            from asr.server import wyoming

            await wyoming.take(self.service, connection)
        elif self._runner.server is None:
            connection.close()
        else:
            await asyncio.get_running_loop().connect_accepted_socket(self._runner.server, connection)

    @property
    def port(self) -> int:
        """That the HTTP server listens at."""
        return self.listening.port

    @property
    def wyoming_port(self) -> int | None:
        """That Wyoming is spoken at, if at all."""
        return self.listening.wyoming_port

    async def stop(self) -> None:
        """Lets live streams end, then ends them with their last words, then closes."""
        await self.service.drain(self._place.drain_seconds)
        await self.service.end(CLOSING_SECONDS)
        if self._wyoming:
            self._wyoming.close()
        await self._runner.cleanup()
        self.service.close()


@dataclass(frozen=True)
class Listening:
    """The sockets of a server."""

    http: socket.socket
    wyoming: socket.socket | None

    @property
    def port(self) -> int:
        """That of HTTP."""
        return int(self.http.getsockname()[1])

    @property
    def wyoming_port(self) -> int | None:
        """That of Wyoming, if it is spoken."""
        return int(self.wyoming.getsockname()[1]) if self.wyoming else None


def listen(place: Place) -> Listening:
    """Listens at a place; ASRError where its addresses cannot be had."""
    http = _listen(place.host, place.port, "--port")
    try:
        wyoming = None if place.wyoming_port is None else _listen(place.host, place.wyoming_port, "--wyoming-port")
    except ASRError:
        http.close()
        raise
    return Listening(http, wyoming)


def _listen(host: str, port: int, option: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ASRError(
            f"cannot listen at {host}, port {port}: {error.strerror or error}; choose another {option}"
        ) from None


async def serve(recognizer: Recognizer, place: Place, ready: Callable[[Listening], None]) -> None:
    """Serves until SIGINT or SIGTERM; a second one skips the wait for live streams."""
    server = Server(recognizer, place)
    await server.start()
    stopping = asyncio.Event()

    def stop() -> None:
        if stopping.is_set():
            server.service.hurry()
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    settle()
    ready(server.listening)
    await stopping.wait()
    await server.stop()


def settle() -> None:
    """Spares the garbage collector what is loaded and stays: each look through all of it would delay the streams."""
    gc.collect()
    gc.freeze()


def make_app(service: Service, access: Access) -> web.Application:
    """The application of all HTTP addresses."""
    app = web.Application(middlewares=[_guard(service, access)], client_max_size=service.limits.message)
    pages = frozenset(path.name for path in WEB.iterdir() if path.is_file()) if WEB.is_dir() else frozenset()

    async def root(request: web.Request) -> web.StreamResponse:
        if request.headers.get(hdrs.UPGRADE, "").lower() == "websocket":
            access.check(request, is_public=False)
            return await vosk.handle(request, service)
        return _page("index.html")

    async def page(request: web.Request) -> web.StreamResponse:
        if request.match_info["name"] not in pages:  # a name to look up, never a path to follow
            raise web.HTTPNotFound
        return _page(request.match_info["name"])

    async def healthz(request: web.Request) -> web.Response:
        if service.draining:
            return web.json_response({"status": "draining", "streams": service.streams}, status=503)
        figures = {"streams": service.streams, "max_streams": service.limits.streams}
        return web.json_response({"status": "ok", **figures})

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=service.metrics.text(), headers={"Content-Type": service.metrics.content_type})

    async def docs(request: web.Request) -> web.Response:
        return web.Response(
            text=PROTOCOL.read_text(encoding="utf-8"), headers={"Content-Type": "text/plain; charset=utf-8"}
        )

    app.router.add_get("/", root)
    app.router.add_get("/v1/stream", partial(live.handle, service=service))
    app.router.add_post("/v1/audio/transcriptions", partial(transcriptions.handle, service=service))
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/docs", docs)
    app.router.add_get("/{name}", page)
    return app


def _page(name: str) -> web.FileResponse:
    return web.FileResponse(WEB / name, headers=PAGE_HEADERS)


def _guard(service: Service, access: Access) -> Middleware:
    """Checks every request, and answers refusals in the shape that OpenAI's clients raise."""
    guarded = ("/v1/", "/metrics")

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            access.check(request, is_public=not request.path.startswith(guarded))
            return await handler(request)
        except ConnectionError:  # the client has left before it was answered
            return web.Response()
        except Refusal as refusal:
            service.metrics.refusals.labels(refusal.code).inc()
            headers = {"Retry-After": "5"} if refusal.kind.status in (429, 503) else {}
            body = transcriptions.error_body(refusal)
            return web.json_response(body, status=refusal.kind.status, headers=headers)

    return guard
