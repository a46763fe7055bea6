"""Whatever a client does, the server stays up, others hear what they would have heard, and memory returns."""

import asyncio
import contextlib
import gc
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

import asr
from asr.server.app import Server
from tests.serving import CLIP, LONG_CLIP, expected, samples, serving

HANDSHAKE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
MASK = b"\1\2\3\4"
PAUSE = 0.5  # seconds that a silent client, or one that does not read, is given here
MIB = 2**20


@pytest.fixture(scope="module")
def recognizer() -> asr.Recognizer:
    return asr.load("en")


@pytest.fixture(scope="module")
def server(recognizer: asr.Recognizer) -> Iterator[Server]:
    with serving(recognizer, wyoming_port=0, idle_seconds=5.0, streams=600) as running:
        yield running


def raw(server: Server, data: bytes, port: int | None = None, *, to_end: bool = True) -> bytes:
    """What the server answers to bytes, until it closes."""
    with socket.create_connection(("127.0.0.1", port or server.port), timeout=30) as connection:
        connection.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while to_end and (block := connection.recv(2**16)):
                answer += block
        return answer


def frame(opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True, reserved: int = 0) -> bytes:
    """A frame of RFC 6455 as a client sends it, or should not."""
    head = bytes([fin << 7 | reserved << 4 | opcode])
    size = len(payload)
    length = bytes([masked << 7 | size]) if size < 126 else bytes([masked << 7 | 126]) + struct.pack(">H", size)
    mixed = bytes(byte ^ MASK[i % 4] for i, byte in enumerate(payload)) if masked else payload
    return head + length + (MASK if masked else b"") + mixed


def witness(server: Server) -> str:
    """What an honest client hears, that sends little by little."""
    spoken, _ = samples(CLIP)

    async def speak() -> str:
        async with connect(f"ws://127.0.0.1:{server.port}/v1/stream") as client:
            data = spoken.tobytes()
            for begin in range(0, len(data), 6400):
                await client.send(data[begin : begin + 6400])
                await asyncio.sleep(0)
            await client.send('{"type": "finish"}')
            events = [json.loads(message) async for message in client]
            return " ".join(event["text"] for event in events if event["type"] == "final")

    return asyncio.run(speak())


@contextlib.contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[None]:
    """Does something again and again beside the block."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            work()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def memory() -> float:
    """MiB that this process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


@pytest.mark.parametrize(
    "data",
    [
        b"\0\1\2 no HTTP at all\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Type: text/plain\r\n"
        b"Connection: close\r\n\r\nhello",
        b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\n\r\nhello",
        HANDSHAKE + frame(2, b"\0" * 320, masked=False) + frame(8, b""),
        HANDSHAKE + frame(3, b"reserved opcode"),
        HANDSHAKE + frame(2, b"reserved bits", reserved=7),
        HANDSHAKE + frame(0, b"a continuation of nothing"),
        HANDSHAKE + frame(9, b"p" * 200),
        HANDSHAKE + frame(1, b"\xff\xfe no UTF-8"),
        HANDSHAKE + frame(8, b"\0"),
        HANDSHAKE + frame(1, b"{", fin=False) + frame(1, b"again"),
    ],
)
def test_malformed_bytes_end_one_connection_only(data: bytes, server: Server) -> None:
    raw(server, data)
    assert b'{"status": "ok"' in raw(server, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"no JSON\n", b"bad_message"),
        (b"[1]\n", b"bad_message"),
        (b'{"type": 3}\n', b"bad_message"),
        (b"{" * 100_000, b"too_large"),
        (b'{"type": "audio-chunk", "payload_length": 99999999999}\n', b"too_large"),
        (b'{"type": "audio-chunk", "payload_length": -1}\n', b"too_large"),
        (b'{"type": "audio-start", "data": {"rate": 16000, "width": 3, "channels": 1}}\n', b"bad_setting"),
        (b'{"type": "audio-start", "data": {"rate": 1e99, "width": 2, "channels": 1}}\n', b"bad_setting"),
        (b'{"type": "audio-start"}\n', b"bad_setting"),
        (
            b'{"type": "audio-start", "data": {"rate": 16000, "width": 2, "channels": 1}}\n'
            b'{"type": "audio-chunk", "data": {"rate": 8000, "width": 2, "channels": 1}, "payload_length": 2}\nab',
            b"bad_audio",
        ),
        (
            b'{"type": "audio-start", "data": {"rate": 16000, "width": 2, "channels": 1}}\n'
            b'{"type": "audio-chunk", "data": {"rate": 16000, "width": 2, "channels": 1}, "payload_length": 3}\nabc'
            b'{"type": "audio-stop"}\n',
            b"bad_audio",
        ),
        (b'{"type": "transcribe", "data": {"transcript_names": 3}}\n', b"bad_setting"),
    ],
)
def test_malformed_events_of_wyoming_get_their_error(data: bytes, answer: bytes, server: Server) -> None:
    assert answer in raw(server, data, server.wyoming_port)


def test_five_hundred_come_and_go(server: Server, recognizer: asr.Recognizer) -> None:
    """Without a handshake, without a word, in mid-frame and in mid-speech; nobody says goodbye."""
    speech = frame(2, samples(CLIP)[0].tobytes()[:40_000])
    visits = [b"", HANDSHAKE[:50], HANDSHAKE, HANDSHAKE + speech[:1000], HANDSHAKE + speech]
    wanted = expected(recognizer, CLIP).text

    def visit(times: int) -> None:
        for i in range(times):
            raw(server, visits[i % len(visits)], to_end=False)

    visit(50)  # what stays is now there
    assert witness(server) == wanted
    before = memory()
    with meanwhile(lambda: visit(10)):
        for _ in range(3):
            assert witness(server) == wanted
    visit(500)
    assert witness(server) == wanted
    assert memory() - before < 40
    assert server.service.streams == 0


def test_who_sends_nothing_is_let_go(recognizer: asr.Recognizer) -> None:
    with serving(recognizer, wyoming_port=0, idle_seconds=PAUSE) as server:
        silent = HANDSHAKE + frame(2, samples(CLIP)[0].tobytes()[:40_000])
        assert b'"idle"' in raw(server, silent)
        assert b"idle" in raw(server, b"", server.wyoming_port)
        unfinished = (
            b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\nConnection: close\r\n"
            b'Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\nContent-Disposition: form-data; name="file"; '
            b'filename="a.wav"\r\n\r\nRIFF'
        )
        assert b'"idle"' in raw(server, unfinished)
        assert server.service.streams == 0


def test_who_does_not_read_is_let_go() -> None:
    speech = samples(LONG_CLIP)[0].tobytes()
    with serving(asr.load("en", decoder="greedy"), send_seconds=PAUSE, idle_seconds=60.0) as server:
        server.listening.http.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # which what it accepts inherits
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.settimeout(60)
            deaf.connect(("127.0.0.1", server.port))
            deaf.sendall(HANDSHAKE)
            frames = b"".join(frame(2, speech[begin : begin + 32_000]) for begin in range(0, len(speech), 32_000))
            with pytest.raises(ConnectionError):
                deaf.sendall(frames * 400)
        assert b'asr_refusals_total{code="slow_reader"} 1.0' in server.service.metrics.text()


def test_one_who_sends_an_hour_at_once_delays_nobody(server: Server, recognizer: asr.Recognizer) -> None:
    """Audio far faster than real time is taken as it can be, and held in bounds."""
    wanted = expected(recognizer, CLIP).text

    async def flood() -> float:
        async with connect(f"ws://127.0.0.1:{server.port}/v1/stream") as client:
            silence = bytes(MIB)
            sent = 0

            async def send() -> None:
                nonlocal sent
                while True:
                    await client.send(silence)
                    sent += len(silence)

            sending = asyncio.create_task(send())
            assert await asyncio.to_thread(witness, server) == wanted
            sending.cancel()
            return sent / MIB

    before = memory()
    assert asyncio.run(flood()) > 1
    assert memory() - before < 60
