"""`POST /v1/audio/transcriptions`, as OpenAI has it: a recording in a form, its text in one answer or as events."""

import asyncio
import contextlib
import io
import json
import tempfile
from collections.abc import AsyncIterator, Generator, Iterable
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
from aiohttp import BodyPartReader, web

from asr.audio import duration, read_blocks
from asr.errors import ASRError
from asr.segmenter import Hypothesis
from asr.server.events import Events
from asr.server.patience import Patience
from asr.server.refusal import Refusal
from asr.server.service import Service
from asr.server.session import Session
from asr.server.settings import LONGEST_PHRASE, StreamSettings, hotwords
from asr.transcript import WRITERS, Seconds, Segment, Transcript

FORMATS = {
    "json": "application/json",
    "verbose_json": "application/json",
    "text": "text/plain",
    "srt": "text/plain",
    "vtt": "text/vtt",
}
GRANULARITIES = ("segment", "word")
WITHOUT_EFFECT = ("model", "temperature", "include", "chunking_strategy")
LONGEST_FIELD = 100_000  # bytes of a field that is no file
BLOCK_SECONDS = 2.0  # of the recording that is in memory at once


@dataclass
class Form:
    """What a request asks for."""

    response_format: str = "json"
    granularities: list[str] = field(default_factory=list)
    stream: bool = False
    progress: bool = False
    prompt: str = ""
    file_name: str = ""


async def handle(request: web.Request, service: Service) -> web.StreamResponse:
    """One recording; a Refusal where it cannot be taken."""
    with service.place("http"), tempfile.NamedTemporaryFile(prefix="asr-") as file:
        with service.patience() as patience:
            form = await _form(request, service, patience, file)
        rate = service.recognizer.model.config.features.sample_rate
        settings = StreamSettings(sample_rate=rate, hotwords=_prompted(form.prompt), partials=False)
        async with service.session(settings) as session:
            recording = _Recording(file, form.file_name, session)
            if form.stream:
                return await _stream(request, service, recording, form)
            segments = [h.segment async for found in recording.hypotheses() for h in found if h.is_final]
            return _answer(Transcript(tuple(segments), session.seconds), form)


async def _form(request: web.Request, service: Service, patience: Patience, file: IO[bytes]) -> Form:
    """Reads the form, and its file into `file`, block by block."""
    if request.content_type != "multipart/form-data":
        raise Refusal("bad_message", f"the body is {request.content_type}; send a form, multipart/form-data")
    form = Form()
    try:
        reader = await request.multipart()
        while True:
            with patience:
                part = await reader.next()
            if part is None:
                break
            if not isinstance(part, BodyPartReader) or not part.name:
                raise Refusal("bad_message", "the form has a part without a name")
            if part.name == "file":
                form.file_name = part.filename or "the file"
                await _save(part, service, patience, file)
            else:
                _set(form, part.name, await _text(part, patience))
    except (ValueError, RuntimeError, web.HTTPException, ConnectionError) as error:
        if isinstance(error, Refusal):
            raise
        raise Refusal("bad_message", "the body is no whole form of the type multipart/form-data") from error
    if not form.file_name:
        raise Refusal("bad_setting", "the form has no file; send the recording as the field file", "file")
    return form


async def _save(part: BodyPartReader, service: Service, patience: Patience, file: IO[bytes]) -> None:
    size = file.tell()
    while True:
        with patience:
            block = await part.read_chunk(2**18)
        if not block:
            return
        size += len(block)
        if size > service.limits.upload:
            raise Refusal("too_large", f"the recording is larger than {service.limits.upload} bytes", "file")
        await asyncio.to_thread(file.write, block)


async def _text(part: BodyPartReader, patience: Patience) -> str:
    data = bytearray()
    while True:
        with patience:
            block = await part.read_chunk()
        if not block:
            return data.decode(errors="replace")
        data += block
        if len(data) > LONGEST_FIELD:
            raise Refusal("bad_setting", f"the field is longer than {LONGEST_FIELD} bytes", part.name)


def _set(form: Form, name: str, value: str) -> None:
    """Notes one field; Refusal where it is unknown or cannot be."""
    name = name.removesuffix("[]")
    if name == "response_format":
        form.response_format = _one_of(name, value, FORMATS)
    elif name == "timestamp_granularities":
        form.granularities.append(_one_of(name, value, GRANULARITIES))
    elif name in ("stream", "progress"):
        setattr(form, name, _one_of(name, value.lower(), ("true", "false")) == "true")
    elif name == "prompt":
        form.prompt = value
    elif name == "language":
        _one_of(name, value.lower().partition("-")[0], ("en", "english", ""))
    elif name not in WITHOUT_EFFECT:
        raise Refusal("bad_setting", f'the field "{name}" is unknown', name)


def _one_of(name: str, value: str, known: Iterable[str]) -> str:
    if value not in known:
        listed = ", ".join(filter(None, known))
        raise Refusal("bad_setting", f'"{name}" is {value[:100]!r}; it must be one of {listed}', name)
    return value


def _prompted(prompt: str) -> dict[str, float | None]:
    """Hot-words of a prompt: what stands between its commas, where it has any; other prompts have no effect."""
    phrases = [phrase.strip() for phrase in prompt.split(",")] if "," in prompt else []
    usable = [p for p in phrases if 0 < len(p) <= LONGEST_PHRASE and all(c.isalpha() or c in " '-" for c in p)]
    return hotwords([phrase for phrase in usable if phrase.isascii()])


class _Recording:
    """A recording in a file, as hypotheses."""

    def __init__(self, file: IO[bytes], name: str, session: Session) -> None:
        self._file, self._name, self._session = file, name, session
        self.duration: Seconds | None = None
        self.done: Seconds = 0.0

    async def hypotheses(self) -> AsyncIterator[list[Hypothesis]]:
        """Block by block; Refusal where the file cannot be read on, after the hypotheses of what comes before."""
        blocks = self._blocks()
        failure: Refusal | None = None
        try:
            while (block := await self._next(blocks)) is not None:
                yield await self._session.accept(block)
                self.done = self._session.seconds
        except Refusal as refusal:
            failure = refusal
        yield await self._session.rest()
        if failure:
            raise failure

    async def _next(self, blocks: Generator[np.ndarray, None, None]) -> np.ndarray | None:
        try:
            return await asyncio.to_thread(next, blocks, None)
        except ASRError as error:
            raise Refusal("bad_audio", str(error).replace(self._file.name, self._name), "file") from None

    def _blocks(self) -> Generator[np.ndarray, None, None]:
        self._file.flush()
        with contextlib.suppress(ASRError):
            self.duration = duration(self._file.name)
        rate = self._session.stream.sample_rate
        yield from read_blocks(self._file.name, None, rate, BLOCK_SECONDS)


def _answer(transcript: Transcript, form: Form) -> web.Response:
    content_type = FORMATS[form.response_format]
    if form.response_format == "json":
        return web.json_response({"text": transcript.text})
    if form.response_format == "verbose_json":
        return web.json_response(_verbose(transcript, form.granularities or ["segment"]))
    if form.response_format == "text":
        return web.Response(text=transcript.text + "\n", content_type=content_type)
    return web.Response(text=_written(transcript.segments, form.response_format), content_type=content_type)


def _written(segments: Iterable[Segment], name: str) -> str:
    out = io.StringIO()
    writer = WRITERS[name](out)
    for segment in segments:
        writer.write(segment)
    writer.close()
    return out.getvalue()


def _verbose(transcript: Transcript, granularities: list[str]) -> dict[str, Any]:
    verbose: dict[str, Any] = {
        "task": "transcribe",
        "language": "english",
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
    }
    if "word" in granularities:
        verbose["words"] = [
            {"word": w.text, "start": round(w.start, 3), "end": round(w.end, 3)} for w in transcript.words
        ]
    if "segment" in granularities:
        verbose["segments"] = [_segment(number, segment) for number, segment in enumerate(transcript.segments)]
    return verbose


def _segment(number: int, segment: Segment) -> dict[str, Any]:
    """A segment as OpenAI's clients know it; what only Whisper has is filled with what says nothing."""
    return {
        "id": number,
        "seek": 0,
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": round(float(np.log(max(segment.confidence, 1e-6))), 4),
        "compression_ratio": 1.0,
        "no_speech_prob": 0.0,
    }


async def _stream(request: web.Request, service: Service, recording: _Recording, form: Form) -> web.StreamResponse:
    """The text as server-sent events."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    texts: list[str] = []
    events = Events(partials=False)

    async def send(event: dict[str, Any]) -> None:
        async with asyncio.timeout(service.limits.send_seconds):
            await response.write(f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode())

    blocks = recording.hypotheses()
    first = await anext(blocks)  # a file that cannot be read at all is refused with a status
    await response.prepare(request)
    try:
        async for found in _chained(first, blocks):
            for final in (hypothesis for hypothesis in found if hypothesis.is_final):
                await send({"type": "transcript.text.delta", "delta": " " * bool(texts) + final.text})
                texts.append(final.text)
                if form.progress:
                    for event in events.of([final], recording.done):
                        await send({**event, "type": "asr.final"})
            if form.progress:
                await send({"type": "asr.progress", "seconds": recording.done, "duration": recording.duration})
        await send({"type": "transcript.text.done", "text": " ".join(texts)})
    except Refusal as refusal:
        service.metrics.refusals.labels(refusal.code).inc()
        await send(error_body(refusal) | {"type": "error"})
    except TimeoutError:
        service.metrics.refusals.labels("slow_reader").inc()
        if request.transport:
            request.transport.abort()
    return response


async def _chained(first: list[Hypothesis], rest: AsyncIterator[list[Hypothesis]]) -> AsyncIterator[list[Hypothesis]]:
    yield first
    async for found in rest:
        yield found


def error_body(refusal: Refusal) -> dict[str, Any]:
    """A refusal in the shape that OpenAI's clients raise."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(refusal.kind.status, "server_error" if refusal.kind.status >= 500 else "invalid_request_error")
    return {"error": {"message": str(refusal), "type": kind, "param": refusal.param, "code": refusal.code}}
