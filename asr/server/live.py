"""The server's own WebSocket protocol, as PROTOCOL.md has it."""

import asyncio
from contextlib import AsyncExitStack

from aiohttp import WSMessage, WSMsgType, web

from asr.server.container import ContainerReader
from asr.server.events import Events
from asr.server.pcm import PcmReader
from asr.server.refusal import Refusal
from asr.server.service import Service
from asr.server.session import Session
from asr.server.settings import CONTAINER, PCM, StreamSettings
from asr.server.socket import Socket, json_object

SUBPROTOCOL = "asr"


async def handle(request: web.Request, service: Service) -> web.StreamResponse:
    """One client, from its first message to its last."""
    async with Socket.accept(request, service, (SUBPROTOCOL,)) as socket:
        with service.place("asr"):
            await _serve(socket, service)
    return socket.response


async def _serve(socket: Socket, service: Service) -> None:
    first: WSMessage | None = await socket.receive()
    model = service.recognizer.model.config
    settings = StreamSettings()
    if first and first.type == WSMsgType.TEXT:
        settings = _start(first)
        first = None
    if settings.encoding == CONTAINER:
        settings = StreamSettings(**{**vars(settings), "sample_rate": model.features.sample_rate})
    async with service.session(settings) as session:
        ready = {"type": "ready", "model": model.name, "version": model.version}
        await socket.send({**ready, "sample_rate": settings.sample_rate})
        events = Events(partials=settings.partials, words=settings.words)
        reading = asyncio.create_task(_read(socket, session, settings, first))
        try:
            async for hypotheses in session.results():
                for event in events.of(hypotheses, session.seconds):
                    await socket.send(event)
            if failure := await reading:
                raise failure
            await socket.send({"type": "done", "seconds": round(session.seconds, 3)})
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def _read(
    socket: Socket, session: Session, settings: StreamSettings, first: WSMessage | None
) -> Exception | None:
    """Feeds what comes and finishes the session in any case; what ended it, where that was not the client's wish."""
    try:
        async with AsyncExitStack() as stack:
            if settings.encoding == CONTAINER:
                container = ContainerReader(session.stream.sample_rate, session.feed)
                await stack.enter_async_context(container)
            else:
                pcm = PcmReader(PCM[settings.encoding], settings.channels)
            while True:
                message = first or await socket.receive()
                first = None
                if message.type == WSMsgType.TEXT:
                    _finish(message)
                    break
                if settings.encoding == CONTAINER:
                    await container.feed(message.data)
                else:
                    await session.feed(pcm.read(message.data))
            if settings.encoding == CONTAINER:
                await container.finish()
            else:
                pcm.close()
    except Exception as error:
        return error
    finally:
        session.finish()
    return None


def _start(message: WSMessage) -> StreamSettings:
    values = json_object(message)
    if values.pop("type", None) != "start":
        raise Refusal("bad_message", 'the first text message must be {"type": "start", ...}')
    return StreamSettings.parse(values)


def _finish(message: WSMessage) -> None:
    if json_object(message) != {"type": "finish"}:
        raise Refusal("bad_message", 'after "start" the only text message is {"type": "finish"}')
