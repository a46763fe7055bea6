"""Clients that others have written, unmodified, get the right text: of OpenAI, of Home Assistant, of Vosk."""

import asyncio
import io
import json
import wave
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from vosk.transcriber.transcriber import Transcriber
from websockets.asyncio.client import connect
from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info

import asr
from asr.server.app import Server
from tests.serving import CLIP, DATA, expected, samples, serving

TWO_CLIPS = (CLIP, DATA / "26-495-0007.flac")


@pytest.fixture(scope="module")
def recognizer() -> asr.Recognizer:
    return asr.load("en")


@pytest.fixture(scope="module")
def server(recognizer: asr.Recognizer) -> Iterator[Server]:
    with serving(recognizer, wyoming_port=0) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)


# OpenAI


@pytest.mark.parametrize("path", TWO_CLIPS, ids=lambda path: path.stem)
def test_openai_hears_what_transcribe_hears(path: Path, client: openai.OpenAI, recognizer: asr.Recognizer) -> None:
    answer = client.audio.transcriptions.create(model="en", file=path)
    assert answer.text == recognizer.transcribe(path).text


def test_openai_words_and_segments(client: openai.OpenAI, recognizer: asr.Recognizer) -> None:
    wanted = recognizer.transcribe(CLIP)
    answer = client.audio.transcriptions.create(
        model="en",
        file=CLIP,
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
        language="en",
        temperature=0.2,
    )
    assert answer.duration == pytest.approx(wanted.duration, abs=0.001)
    assert answer.segments
    assert answer.words
    assert [segment.text for segment in answer.segments] == [segment.text for segment in wanted.segments]
    found = [(word.word, word.start, word.end) for word in answer.words]
    assert found == [(word.text, round(word.start, 3), round(word.end, 3)) for word in wanted.words]


def test_openai_subtitles_and_text(client: openai.OpenAI, recognizer: asr.Recognizer) -> None:
    wanted = recognizer.transcribe(CLIP)
    answers = {
        name: client.audio.transcriptions.create(model="en", file=CLIP, response_format=name)
        for name in ("text", "srt", "vtt")
    }
    assert answers["text"] == wanted.text + "\n"
    assert answers["srt"].startswith("1\n00:00:00,")
    assert answers["vtt"].startswith("WEBVTT\n\n00:00:00.")
    for name in ("srt", "vtt"):
        spoken = [line for line in answers[name].splitlines() if line and "-->" not in line and not line.isdigit()]
        assert " ".join(spoken).removeprefix("WEBVTT ") == wanted.text


def test_openai_stream(client: openai.OpenAI, recognizer: asr.Recognizer) -> None:
    events = list(client.audio.transcriptions.create(model="en", file=CLIP, stream=True))
    wanted = recognizer.transcribe(CLIP).text
    assert "".join(event.delta for event in events if event.type == "transcript.text.delta") == wanted
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == wanted


def test_progress_of_a_page(client: openai.OpenAI) -> None:
    extra = {"progress": "true"}
    stream = client.audio.transcriptions.create(model="en", file=CLIP, stream=True, extra_body=extra)
    events = [event.model_dump() for event in stream]
    progress = [event for event in events if event["type"] == "asr.progress"]
    assert progress[-1]["seconds"] == progress[-1]["duration"] == pytest.approx(6.935)
    assert [event["segment"] for event in events if event["type"] == "asr.final"] == [0]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"file": ("talk.txt", b"no recording at all")}, "file"),
        ({"file": ("talk.wav", b"")}, "file"),
        ({"file": CLIP, "response_format": "docx"}, "response_format"),
        ({"file": CLIP, "language": "fr"}, "language"),
        ({"file": CLIP, "extra_body": {"colour": "red"}}, "colour"),
        ({"file": CLIP, "timestamp_granularities": ["letter"]}, "timestamp_granularities"),
    ],
)
def test_openai_raises_what_the_server_says(options: dict[str, Any], param: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.transcriptions.create(model="en", **options)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert "/tmp" not in caught.value.message


def test_openai_errors_of_a_busy_server(recognizer: asr.Recognizer) -> None:
    def transcribe(server: Server, key: str = "secret", file: Any = CLIP) -> object:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=key, max_retries=0)
        return client.audio.transcriptions.create(model="en", file=file)

    with serving(recognizer, token="secret", upload=100_000, streams=1) as server:
        with pytest.raises(openai.AuthenticationError):
            transcribe(server, key="wrong")
        with pytest.raises(openai.APIStatusError) as caught:
            transcribe(server)
        assert caught.value.status_code == 413
        assert transcribe(server, file=DATA / "1993-147964-0002.ogg")

        async def while_another_speaks() -> None:
            headers = {"Authorization": "Bearer secret"}
            async with connect(f"ws://127.0.0.1:{server.port}/v1/stream", additional_headers=headers) as socket:
                await socket.send('{"type": "start"}')
                await socket.recv()
                with pytest.raises(openai.RateLimitError) as caught:
                    await asyncio.to_thread(transcribe, server)
                assert caught.value.response.headers["Retry-After"]

        asyncio.run(while_another_speaks())


def test_a_damaged_recording_is_heard_up_to_the_damage(client: openai.OpenAI) -> None:
    whole = (DATA / "19-198-0001.flac").read_bytes()
    events = client.audio.transcriptions.create(model="en", file=("x.flac", whole[:-60_000]), stream=True)
    texts: list[str] = []
    with pytest.raises(openai.APIError, match=r"x\.flac can be read for .* s only"):
        texts += [event.delta for event in events if event.type == "transcript.text.delta"]


# Home Assistant


async def command(server: Server, path: Path, names: list[str] | None = None) -> list[Event]:
    """What a client of Wyoming hears of one command."""
    spoken, rate = samples(path)
    async with AsyncTcpClient("127.0.0.1", server.wyoming_port or 0) as client:
        await client.write_event(Transcribe(language="en", transcript_names=names).event())
        await client.write_event(AudioStart(rate, 2, 1).event())
        for begin in range(0, len(spoken), 1024):
            audio = spoken[begin : begin + 1024].tobytes()
            await client.write_event(AudioChunk(rate, 2, 1, audio, timestamp=begin * 1000 // rate).event())
        await client.write_event(AudioStop().event())
        events: list[Event] = []
        while not events or not (TranscriptStop.is_type(events[-1].type) or Error.is_type(events[-1].type)):
            event = await client.read_event()
            assert event
            events.append(event)
        return events


def test_wyoming_tells_what_it_is(server: Server) -> None:
    async def describe() -> Info:
        async with AsyncTcpClient("127.0.0.1", server.wyoming_port or 0) as client:
            await client.write_event(Describe().event())
            event = await client.read_event()
            assert event
            return Info.from_event(event)

    program = asyncio.run(describe()).asr[0]
    assert program.supports_transcript_streaming
    assert [model.languages for model in program.models] == [["en"]]


@pytest.mark.parametrize("path", TWO_CLIPS, ids=lambda path: path.stem)
def test_wyoming_transcribes(path: Path, server: Server, recognizer: asr.Recognizer) -> None:
    events = asyncio.run(command(server, path))
    wanted = expected(recognizer, path)
    assert TranscriptStart.is_type(events[0].type)
    assert [event.data["text"] for event in events if Transcript.is_type(event.type)] == [wanted.text]
    chunks = [TranscriptChunk.from_event(event).text for event in events if TranscriptChunk.is_type(event.type)]
    assert "".join(chunks) == wanted.text
    assert len(chunks) == len(wanted.segments)


# Vosk


class FromFile(Transcriber):
    """The server client of the vosk package without its own model, which it would download and not use."""

    def __init__(self, server: str) -> None:
        self.args = Namespace(server=server, output_type="txt")


@pytest.mark.parametrize("path", TWO_CLIPS, ids=lambda path: path.stem)
def test_vosk_transcribes(path: Path, server: Server, recognizer: asr.Recognizer, tmp_path: Path) -> None:
    spoken, rate = samples(path)
    assert rate == 16_000
    (tmp_path / "pcm").write_bytes(spoken.tobytes())

    async def transcribe() -> str:
        process = await asyncio.create_subprocess_exec("cat", str(tmp_path / "pcm"), stdout=asyncio.subprocess.PIPE)
        client = FromFile(f"ws://127.0.0.1:{server.port}")
        result, _ = await client.recognize_stream_server(process)
        await process.wait()
        return client.format_result(result)

    wanted = [segment.text for segment in expected(recognizer, path).segments]
    assert asyncio.run(transcribe()).split("\n")[:-1] == wanted


def test_vosk_as_its_own_example_speaks(server: Server, recognizer: asr.Recognizer) -> None:
    """The message exchange of vosk-server's test.py: every chunk is answered once, and the end with a result."""
    spoken, rate = samples(CLIP)
    wanted = expected(recognizer, CLIP)

    async def exchange() -> list[dict[str, Any]]:
        file = io.BytesIO()
        with wave.open(file, "wb") as out:
            out.setparams((1, 2, rate, 0, "NONE", ""))
            out.writeframes(spoken.tobytes())
        answers = []
        with wave.open(io.BytesIO(file.getvalue())) as wav:
            async with connect(f"ws://127.0.0.1:{server.port}/") as socket:
                await socket.send(json.dumps({"config": {"sample_rate": wav.getframerate(), "words": 1}}))
                while data := wav.readframes(int(wav.getframerate() * 0.2)):
                    await socket.send(data)
                    answers.append(json.loads(await socket.recv()))
                await socket.send('{"eof" : 1}')
                answers.append(json.loads(await socket.recv()))
                await socket.wait_closed()
                assert socket.close_code == 1000
        return answers

    answers = asyncio.run(exchange())
    partials = [answer["partial"] for answer in answers if "partial" in answer]
    results = [answer for answer in answers if "text" in answer]
    assert len(partials) > 10
    assert max(partials, key=len).split()[:3] == wanted.text.split()[:3]
    words = [(w["word"], w["start"], w["end"]) for result in results for w in result.get("result", [])]
    assert words == [(w.text, round(w.start, 3), round(w.end, 3)) for w in wanted.words]


def test_vosk_reset_begins_again(server: Server) -> None:
    spoken, _ = samples(CLIP)

    async def exchange() -> list[dict[str, Any]]:
        async with connect(f"ws://127.0.0.1:{server.port}") as socket:
            answers = []
            await socket.send('{"config": {"sample_rate": 16000, "phrase_list": ["oxen", "[unk]"]}}')
            for message in (spoken.tobytes(), '{"reset": 1}', spoken.tobytes(), '{"eof": 1}'):
                await socket.send(message)
                answers.append(json.loads(await socket.recv()))
            return answers

    first, reset, again, end = asyncio.run(exchange())
    assert (first, reset) == (again, end)
    assert reset["text"]


def test_vosk_mistakes_close_the_socket(server: Server) -> None:
    async def close_code(message: str) -> int:
        async with connect(f"ws://127.0.0.1:{server.port}") as socket:
            await socket.send(message)
            await socket.wait_closed()
            return socket.close_code or 0

    for message in ("hello", '{"config": 3}', '{"config": {"sample_rate": -1}}', '{"what": 1}'):
        assert asyncio.run(close_code(message)) == 1008
