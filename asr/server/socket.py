"""A WebSocket with bounds: on messages, on silence, on clients that do not read; and a clear end."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import WSMessage, WSMsgType, web

from asr.errors import ASRError
from asr.server.patience import Patience
from asr.server.refusal import Refusal
from asr.server.service import Service

log = logging.getLogger(__name__)

PING_SECONDS = 20.0  # between two pings; a peer that answers none has vanished


class Gone(Exception):
    """The client has closed, or vanished."""


class Socket:
    """One client's WebSocket."""

    def __init__(
        self, response: web.WebSocketResponse, request: web.Request, service: Service, patience: Patience
    ) -> None:
        self.response = response
        self._request = request
        self._service = service
        self._patience = patience

    @classmethod
    @asynccontextmanager
    async def accept(
        cls, request: web.Request, service: Service, protocols: Sequence[str] = (), *, explain: bool = True
    ) -> AsyncIterator["Socket"]:
        """The socket of a request; an error in the block closes it, and is told as an event where `explain` is set.

        Refusal while it is still HTTP, which a balancer understands, where the server takes no new streams.
        """
        service.check_open()
        response = web.WebSocketResponse(
            protocols=protocols, heartbeat=PING_SECONDS, max_msg_size=service.limits.message, compress=False
        )
        await response.prepare(request)
        with service.patience() as patience:
            socket = cls(response, request, service, patience)
            try:
                yield socket
                await socket._close(1000)
            except Gone:
                pass
            except ASRError as error:
                refusal = error if isinstance(error, Refusal) else Refusal("bad_audio", str(error))
                await socket._refuse(refusal, explain)
            except Exception:
                log.exception("a stream failed")
                await socket._refuse(Refusal("failure", "the server has failed; its log says more"), explain)

    async def receive(self) -> WSMessage:
        """The next text or binary message. Refusal where none comes in time; Gone where none will."""
        with self._patience:
            message = await self.response.receive()
        if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
            raise Gone
        return message

    async def send(self, event: dict[str, Any]) -> None:
        """Sends an object as JSON; Refusal where the client does not read, Gone where it is away."""
        try:
            async with asyncio.timeout(self._service.limits.send_seconds):
                await self.response.send_str(json.dumps(event, ensure_ascii=False))
        except TimeoutError:
            raise Refusal("slow_reader", "the client does not read what the server sends") from None
        except ConnectionError:
            raise Gone from None

    async def _refuse(self, refusal: Refusal, explain: bool) -> None:
        self._service.metrics.refusals.labels(refusal.code).inc()
        if refusal.code == "slow_reader":
            return self._abort()
        try:
            if explain:
                await self.send({"type": "error", "code": refusal.code, "message": str(refusal)})
        except (Gone, Refusal):
            return self._abort()
        await self._close(refusal.kind.close, str(refusal))

    async def _close(self, code: int, reason: str = "") -> None:
        try:
            async with asyncio.timeout(self._service.limits.send_seconds):
                await self.response.close(code=code, message=reason.encode()[:120])
        except TimeoutError:
            self._abort()

    def _abort(self) -> None:
        """Drops the connection with all that waits to be read."""
        if self._request.transport:
            self._request.transport.abort()


def json_object(message: WSMessage) -> dict[str, Any]:
    """The object that a text message holds; Refusal where it is none."""
    try:
        value = json.loads(message.data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Refusal("bad_message", "a text message is no JSON object")
    return value
