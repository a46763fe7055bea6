"""The server's own protocol: the text of `transcribe`, whoever else is connected, and limits that are told."""

import asyncio
import io
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

import asr
from asr.server.app import Server
from tests.serving import CLIP, DATA, LONG_CLIP, expected, samples, serving

Event = dict[str, Any]
Message = bytes | str
FINISH = json.dumps({"type": "finish"})
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def recognizer() -> asr.Recognizer:
    return asr.load("en")


@pytest.fixture(scope="module")
def server(recognizer: asr.Recognizer) -> Iterator[Server]:
    with serving(recognizer) as running:
        yield running


def url(server: Server, path: str = "/v1/stream", scheme: str = "ws") -> str:
    return f"{scheme}://127.0.0.1:{server.port}{path}"


def start(**settings: Any) -> str:
    return json.dumps({"type": "start", **settings})


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[begin : begin + size] for begin in range(0, len(data), size)]


async def talk(server: Server, messages: Sequence[Message], **options: Any) -> tuple[list[Event], int]:
    """All events that messages bring, and the code with which the server closes."""
    async with connect(url(server), **options) as socket:
        events, _ = await asyncio.gather(listen(socket), say(socket, messages))
        return events, socket.close_code or 0


async def say(socket: ClientConnection, messages: Sequence[Message]) -> None:
    with suppress(ConnectionClosed):  # a refusal may come before all is said
        for message in messages:
            await socket.send(message)


async def listen(socket: ClientConnection) -> list[Event]:
    events = []
    with suppress(ConnectionClosed):
        while True:
            events.append(json.loads(await socket.recv()))
    return events


def finals(events: list[Event]) -> list[Event]:
    return [event for event in events if event["type"] == "final"]


def text(events: list[Event]) -> str:
    return " ".join(event["text"] for event in finals(events))


def get(server: Server, path: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url(server, path, "http"), headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("size", [997, 3200, 2**18])
def test_a_stream_gives_what_transcribe_gives(size: int, server: Server, recognizer: asr.Recognizer) -> None:
    spoken, rate = samples(CLIP)
    wanted = expected(recognizer, CLIP)
    messages: list[Message] = [start(sample_rate=rate), *pieces(spoken.tobytes(), size), FINISH]
    events, code = asyncio.run(talk(server, messages))
    assert code == 1000
    assert events[0]["type"] == "ready"
    assert events[-1] == {"type": "done", "seconds": round(len(spoken) / rate, 3)}
    assert [event["text"] for event in finals(events)] == [segment.text for segment in wanted.segments]
    words = [(w["text"], w["start"], w["end"], w["confidence"]) for event in finals(events) for w in event["words"]]
    assert words == [(w.text, round(w.start, 3), round(w.end, 3), round(w.confidence, 3)) for w in wanted.words]


def test_partials_come_before_their_final(server: Server) -> None:
    spoken, _ = samples(CLIP)
    events, _ = asyncio.run(talk(server, [*pieces(spoken.tobytes(), 3200), FINISH]))
    kinds = [event["type"] for event in events]
    assert kinds.count("partial") > 3
    assert kinds.index("partial") < kinds.index("final")
    assert [event["segment"] for event in finals(events)] == list(range(len(finals(events))))
    heard = [event["heard"] for event in events if "heard" in event]
    assert heard == sorted(heard)


def test_many_streams_at_once_hear_each_its_own(server: Server, recognizer: asr.Recognizer) -> None:
    clips = [CLIP, DATA / "26-495-0007.flac", DATA / "1993-147964-0002.ogg", DATA / "1462-170138-0007.ogg"] * 4
    wanted = {path: expected(recognizer, path).text for path in clips}

    async def all_of_them() -> list[str]:
        async def one(path: Path) -> str:
            spoken, rate = samples(path)
            events, _ = await talk(server, [start(sample_rate=rate), *pieces(spoken.tobytes(), 6400), FINISH])
            return text(events)

        return await asyncio.gather(*map(one, clips))

    assert asyncio.run(all_of_them()) == [wanted[path] for path in clips]
    sizes = [line for line in get(server, "/metrics")[1].splitlines() if line.startswith("asr_batch_streams_bucket")]
    alone, every = float(sizes[0].split()[-1]), float(sizes[-1].split()[-1])
    assert alone < every  # some ran together


@pytest.mark.parametrize(
    ("settings", "convert"),
    [
        ({"encoding": "pcm_f32le", "sample_rate": 16_000}, lambda x: (x / 32768).astype("<f4")),
        ({"channels": 2, "sample_rate": 16_000}, lambda x: np.stack([x, x], axis=1)),
    ],
)
def test_other_samples_say_the_same(settings: Event, convert: Any, server: Server, recognizer: asr.Recognizer) -> None:
    spoken, _ = samples(CLIP)
    events, code = asyncio.run(talk(server, [start(**settings), *pieces(convert(spoken).tobytes(), 5000), FINISH]))
    assert (text(events), code) == (expected(recognizer, CLIP).text, 1000)


@pytest.mark.parametrize(("container", "codec"), [("ogg", "libopus"), ("webm", "libopus")])
def test_opus_in_a_container(container: str, codec: str, server: Server, recognizer: asr.Recognizer) -> None:
    spoken, rate = samples(CLIP)
    file = io.BytesIO()
    with av.open(file, "w", container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(spoken[None], layout="mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            output.mux(packet)
    messages: list[Message] = [start(encoding="container"), *pieces(file.getvalue(), 1000), FINISH]
    events, code = asyncio.run(talk(server, messages))
    assert code == 1000
    assert abs(events[-1]["seconds"] - len(spoken) / rate) < 0.1
    wanted, found = expected(recognizer, CLIP).text.split(), text(events).split()
    assert len(set(wanted) & set(found)) >= len(set(wanted)) - 2


def test_settings_reach_the_stream(server: Server, recognizer: asr.Recognizer) -> None:
    spoken, _ = samples(CLIP)
    settings = {"hotwords": ["zebra crossing", {"phrase": "auxin", "boost": 40.0}], "partials": False, "words": False}
    events, _ = asyncio.run(talk(server, [start(**settings), *pieces(spoken.tobytes(), 8000), FINISH]))
    wanted = recognizer.transcribe(spoken, hotwords={"zebra crossing": None, "auxin": 40.0}).text
    assert text(events) == wanted
    assert {event["type"] for event in events} == {"ready", "final", "done"}
    assert all("words" not in event for event in events)

    endpoint = {"silence_seconds": 0.2, "max_seconds": 3.0}
    events, _ = asyncio.run(talk(server, [start(lm_weight=0.0, endpoint=endpoint), spoken.tobytes(), FINISH]))
    assert len(finals(events)) > 1
    assert text(events) != wanted


@pytest.mark.parametrize(
    ("messages", "code", "close"),
    [
        (["hello"], "bad_message", 1008),
        (["[1, 2]"], "bad_message", 1008),
        (["[" * 100_000], "bad_message", 1008),
        ([json.dumps({"type": "finish"})], "bad_message", 1008),
        ([start(), "text where audio belongs"], "bad_message", 1008),
        ([start(), start()], "bad_message", 1008),
        ([start(sample_rate=0)], "bad_setting", 1008),
        ([start(sample_rate=10**400)], "bad_setting", 1008),
        ([start(sample_rate="fast")], "bad_setting", 1008),
        ([start(sample_rate=16000.5)], "bad_setting", 1008),
        ([start(channels=0)], "bad_setting", 1008),
        ([start(encoding="mp3")], "bad_setting", 1008),
        ([start(colour="red")], "bad_setting", 1008),
        ([start(hotwords="@/etc/passwd")], "bad_setting", 1008),
        ([start(hotwords=["@/etc/passwd"] * 2000)], "bad_setting", 1008),
        ([start(hotwords=[{"phrase": "a", "boost": float("inf")}])], "bad_setting", 1008),
        ([start(endpoint={"silence_seconds": -1})], "bad_setting", 1008),
        ([start(lm_weight=99)], "bad_setting", 1008),
        ([start(encoding="pcm_f32le"), np.full(9000, np.nan, "<f4").tobytes()], "bad_audio", 1007),
        ([b"\0" * 1001, FINISH], "bad_audio", 1007),
        ([start(encoding="container"), b"no container at all" * 500, FINISH], "bad_audio", 1007),
    ],
)
def test_each_mistake_gets_its_error(messages: list[Message], code: str, close: int, server: Server) -> None:
    events, closed = asyncio.run(talk(server, messages))
    assert (events[-1]["type"], events[-1]["code"], closed) == ("error", code, close)
    assert events[-1]["message"]
    assert "\n" not in events[-1]["message"]


def test_limits_are_told(recognizer: asr.Recognizer) -> None:
    spoken, _ = samples(CLIP)

    async def one_too_many(server: Server) -> tuple[list[Event], int]:
        async with connect(url(server)) as first:
            await first.send(start())
            await first.recv()
            return await talk(server, [start()])

    with serving(recognizer, streams=1, stream_seconds=2.0, message=2**16, idle_seconds=1.5) as server:
        events, closed = asyncio.run(one_too_many(server))
        assert (events[-1]["code"], closed) == ("overloaded", 1013)
        events, closed = asyncio.run(talk(server, [start(), *pieces(spoken.tobytes(), 6400)]))
        assert (events[-1]["code"], closed) == ("too_long", 1008)
        assert finals(events)  # of what came before
        events, closed = asyncio.run(talk(server, [start(), b"\0" * 2**17]))
        assert closed == 1009
        events, closed = asyncio.run(talk(server, [start()]))
        assert (events[-1]["code"], closed) == ("idle", 1008)
        assert json.loads(get(server, "/healthz")[1]) == {"status": "ok", "streams": 0, "max_streams": 1}
        metrics = get(server, "/metrics")[1]
        for code in ("overloaded", "too_long", "idle"):
            assert f'asr_refusals_total{{code="{code}"}} 1.0' in metrics


def test_a_token_keeps_others_out(recognizer: asr.Recognizer) -> None:
    def status(server: Server, **options: Any) -> int:
        try:
            return asyncio.run(talk(server, [start(), FINISH], **options))[1]
        except InvalidStatus as error:
            return error.response.status_code

    with serving(recognizer, token="secret", origins=("https://ours.example",)) as server:
        assert status(server) == 401
        assert status(server, additional_headers={"Authorization": "Bearer wrong"}) == 401
        assert status(server, additional_headers={"Authorization": "Bearer secret"}) == 1000
        assert status(server, subprotocols=[Subprotocol("asr"), Subprotocol("bearer.secret")]) == 1000
        own = {"subprotocols": [Subprotocol("asr"), Subprotocol("bearer.secret")]}
        assert status(server, origin="https://evil.example", **own) == 403
        assert status(server, origin="https://ours.example", **own) == 1000
        assert status(server, origin=f"http://127.0.0.1:{server.port}", **own) == 1000
        rebound = {"Host": "evil.example", "Authorization": "Bearer secret", "Origin": "http://evil.example"}
        assert get(server, "/metrics", **rebound)[0] == 403
        assert get(server, "/metrics")[0] == 401
        assert get(server, "/metrics", Authorization="Bearer secret")[0] == 200
        assert get(server, "/healthz")[0] == get(server, "/docs")[0] == 200


@pytest.mark.parametrize("path", ["/../setup.cfg", "/%2e%2e/app.py", "/..%2fapp.py", "/app.py", "/web", "/v1/none"])
def test_no_path_comes_from_a_client(path: str, server: Server) -> None:
    assert get(server, path)[0] in (404, 403)


def test_a_playlist_opens_no_file(server: Server, tmp_path: Path) -> None:
    secret = tmp_path / "secret.flac"
    secret.write_bytes(CLIP.read_bytes())
    for playlist in (
        f"ffconcat version 1.0\nfile {secret}\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{secret}\n#EXT-X-ENDLIST\n",
    ):
        messages: list[Message] = [start(encoding="container"), playlist.encode(), FINISH]
        events, _ = asyncio.run(talk(server, messages))
        assert events[-1]["code"] == "bad_audio"
        assert not finals(events)


def test_what_was_said_is_sent_before_the_server_goes(tmp_path: Path) -> None:
    """As a service manager stops it: SIGTERM to the command itself."""
    command = [sys.executable, "run_asr.py", "serve", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr
    address = next(line for line in process.stderr if "serving at" in line).split()[2]
    spoken, _ = samples(LONG_CLIP)

    async def interrupted() -> tuple[list[Event], int]:
        async with connect(address.replace("http", "ws") + "/v1/stream") as socket:
            for piece in pieces(spoken.tobytes()[: 2 * 16_000 * 4], 6400):
                await socket.send(piece)
            events: list[Event] = []
            while not events or events[-1].get("heard", 0) < 3.5:
                events.append(json.loads(await socket.recv()))
            process.send_signal(signal.SIGTERM)
            return events + await listen(socket), socket.close_code or 0

    events, closed = asyncio.run(interrupted())
    assert (events[-1]["code"], closed) == ("shutdown", 1012)
    assert events[-2]["type"] == "final"
    assert process.wait(30) == 0
    assert process.stderr.read() == ""


def test_a_drained_server_sends_nobody_else(recognizer: asr.Recognizer) -> None:
    async def drained(server: Server) -> tuple[int, str, int, list[Event]]:
        async with connect(url(server)) as socket:
            await socket.send(start())
            await socket.recv()
            server.service.draining = True
            status, health = await asyncio.to_thread(get, server, "/healthz")
            with pytest.raises(InvalidStatus) as caught:
                await talk(server, [start()])
            refused = caught.value.response.status_code
            await say(socket, [samples(CLIP)[0].tobytes(), FINISH])
            return status, health, refused, await listen(socket)

    with serving(recognizer) as server:
        status, health, refused, events = asyncio.run(drained(server))
        assert (status, json.loads(health)["status"], refused) == (503, "draining", 503)
        assert events[-1]["type"] == "done"
