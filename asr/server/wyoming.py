"""Wyoming, Home Assistant's protocol for voice, over TCP."""

import asyncio
import json
import logging
import socket
from dataclasses import replace
from functools import partial
from typing import Any

from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, Eventable, async_write_event
from wyoming.info import AsrModel, AsrProgram, Attribution, Describe, Info
from wyoming.ping import Ping, Pong

import asr
from asr.errors import ASRError
from asr.segmenter import Hypothesis
from asr.server.pcm import PcmReader
from asr.server.refusal import Refusal
from asr.server.service import Service
from asr.server.session import Session
from asr.server.settings import StreamSettings, hotwords

log = logging.getLogger(__name__)

LONGEST_LINE = 2**16  # bytes of an event's header
DTYPES = {1: "u1", 2: "<i2", 4: "<i4"}  # bytes of a sample: NumPy's name of its type
HOME = "https://www.home-assistant.io/integrations/wyoming"


class _Gone(Exception):
    """The client has closed, or vanished."""


async def listen(service: Service, listening: socket.socket) -> asyncio.Server:
    """A server of the protocol; clients are served until it is closed."""
    return await asyncio.start_server(partial(_serve, service), sock=listening, limit=LONGEST_LINE)


async def take(service: Service, connection: socket.socket) -> None:
    """Serves a connection that somebody else has accepted."""
    protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader(LONGEST_LINE), partial(_serve, service))
    await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, connection)


async def _serve(service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _Client(reader, writer, service).serve()


class _Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, service: Service) -> None:
        self._reader, self._writer, self._service = reader, writer, service
        self._hotwords: dict[str, float | None] = {}

    async def serve(self) -> None:
        """One client, from its first event to its last."""
        try:
            with self._service.patience() as self._patience:
                while True:
                    await self._answer(await self._receive())
        except (_Gone, ConnectionError):
            pass
        except ASRError as error:
            refusal = error if isinstance(error, Refusal) else Refusal("bad_audio", str(error))
            await self._refuse(refusal)
        except Exception:
            log.exception("a stream failed")
            await self._refuse(Refusal("failure", "the server has failed; its log says more"))
        finally:
            self._writer.transport.abort() if self._writer.transport.get_write_buffer_size() else self._writer.close()

    async def _answer(self, event: Event) -> None:
        if Describe.is_type(event.type):
            await self._send(_info(self._service))
        elif Ping.is_type(event.type):
            await self._send(Pong(text=Ping.from_event(event).text))
        elif Transcribe.is_type(event.type):
            wanted = Transcribe.from_event(event)
            self._hotwords = hotwords(wanted.transcript_names or []) | hotwords(wanted.transcript_terms or [])
        elif AudioStart.is_type(event.type):
            await self._transcribe(event)

    async def _transcribe(self, start: Event) -> None:
        """The audio of one command, up to its end, and its transcript."""
        width, settings = _format(start, self._hotwords)
        self._hotwords = {}
        with self._service.place("wyoming"):
            async with self._service.session(settings) as session:
                await self._send(TranscriptStart(language="en"))
                texts: list[str] = []
                try:
                    await self._listen(session, PcmReader(DTYPES[width], settings.channels), start, texts)
                finally:
                    await self._tell(await session.rest(), texts)
                await self._send(Transcript(" ".join(texts), language="en"))
                await self._send(TranscriptStop())

    async def _listen(self, session: Session, pcm: PcmReader, start: Event, texts: list[str]) -> None:
        while not AudioStop.is_type((event := await self._receive()).type):
            if not AudioChunk.is_type(event.type):
                raise Refusal("bad_message", f"{event.type} came between audio-start and audio-stop")
            if any(event.data.get(key, value) != value for key, value in start.data.items() if key != "timestamp"):
                raise Refusal("bad_audio", "an audio-chunk has another format than audio-start said")
            await self._tell(await session.accept(pcm.read(event.payload or b"")), texts)
        pcm.close()

    async def _tell(self, hypotheses: list[Hypothesis], texts: list[str]) -> None:
        """Sends what is final, and notes it."""
        for final in (hypothesis for hypothesis in hypotheses if hypothesis.is_final):
            await self._send(TranscriptChunk(" " * bool(texts) + final.text))
            texts.append(final.text)

    async def _receive(self) -> Event:
        """The next event, as wyoming.event.async_read_event reads it, but with bounds on its length and its time."""
        with self._patience:
            try:
                line = await self._reader.readline()
            except ValueError:
                raise Refusal("too_large", f"the header of an event is longer than {LONGEST_LINE} bytes") from None
            if not line.endswith(b"\n"):
                raise _Gone
            header = _object(line)
            kind, data = header.get("type"), header.get("data", {})
            if not isinstance(kind, str) or not isinstance(data, dict):
                raise Refusal("bad_message", "an event has no type, or data that is no object")
            if more := await self._read(header.get("data_length")):
                data = {**data, **_object(more)}
            return Event(kind, data, await self._read(header.get("payload_length")))

    async def _read(self, length: object) -> bytes:
        if length is None:
            return b""
        if isinstance(length, bool) or not isinstance(length, int) or not 0 <= length <= self._service.limits.message:
            raise Refusal(
                "too_large", f"a part of an event has {length!r} bytes; it may have {self._service.limits.message}"
            )
        try:
            return await self._reader.readexactly(length)
        except asyncio.IncompleteReadError:
            raise _Gone from None

    async def _send(self, message: Eventable) -> None:
        try:
            async with asyncio.timeout(self._service.limits.send_seconds):
                await async_write_event(message.event(), self._writer)
        except TimeoutError:
            raise Refusal("slow_reader", "the client does not read what the server sends") from None

    async def _refuse(self, refusal: Refusal) -> None:
        self._service.metrics.refusals.labels(refusal.code).inc()
        if refusal.code != "slow_reader":
            try:
                await self._send(Error(text=str(refusal), code=refusal.code))
            except (ConnectionError, Refusal):
                log.debug("the client did not hear why it was refused")


def _format(start: Event, phrases: dict[str, float | None]) -> tuple[int, StreamSettings]:
    """Bytes of a sample, and the settings of a stream in the format of audio-start."""
    width, rate, channels = (start.data.get(key) for key in ("width", "rate", "channels"))
    if isinstance(width, bool) or not isinstance(width, int) or width not in DTYPES:
        raise Refusal("bad_setting", f"audio-start has a width of {width!r} bytes; it must be 1, 2 or 4")
    checked = StreamSettings.parse({"sample_rate": rate, "channels": channels})
    return width, replace(checked, hotwords=phrases, partials=False)


def _info(service: Service) -> Info:
    config = service.recognizer.model.config
    made_by = Attribution(name="asr", url=HOME)
    model = AsrModel(
        name=config.name,
        attribution=made_by,
        installed=True,
        description=f"streaming model {config.name}",
        version=config.version,
        languages=["en"],
    )
    program = AsrProgram(
        name="asr",
        attribution=made_by,
        installed=True,
        description="streaming speech recognition",
        version=asr.__version__,
        models=[model],
        supports_transcript_streaming=True,
    )
    return Info(asr=[program])


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Refusal("bad_message", "an event is no JSON object")
    return value
