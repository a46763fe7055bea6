"""How many live streams a server carries on this machine, and how late they hear of what they sent.

    python -m benchmarks.serve_load [SOURCE] [--model M] [--json OUT] [--markdown OUT] [-- OPTION ...]

starts `asr serve` (with the options after `--`) and, from a second process, opens N WebSockets at a time, each of which
sends real speech in real time; N grows and is then halved in on, until the largest is known at which nobody is refused,
no audio is lost and 99 of 100 chunks are answered within --bar seconds. A chunk's latency is from the moment at which
its last sample would have been spoken to the event about it; that of a word of the final text, mistaken or not, is from
its end in the audio to the first event that shows it, and so holds what model and search wait for. A segment that grows
too long is cut before words that have been shown; they count from when they were.

The processor time is that of the server's event loops ("loop"), of its other threads, which recognise ("decode"), and
of this program, which shares the machine, each for a second of one stream. "others" is what further programs took of
all cores in the meantime: figures with much of that are not those of an idle machine. With --streams N ... these
numbers alone are measured; with --url servers that run already share the streams.
"""

import asyncio
import base64
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from asr.audio import SAMPLE_RATE
from benchmarks.apart import Failed
from benchmarks.common import ROOT, Table, all_cores, guarded, parser, publish, speech

RATE = SAMPLE_RATE
SPEECH_SECONDS = 300.0  # of which streams send parts
SLOT = 0.005  # seconds; all messages that are due in a slot are sent at its end
SPREAD = 2.0  # seconds in which the streams of a step begin
NEAR = 0.5  # seconds between the starts of a word in an early and in the final hypothesis, at most, to be the same one
PATIENCE = 5.0  # seconds for the last words
START = json.dumps({"type": "start", "sample_rate": RATE}).encode()
FINISH = b'{"type": "finish"}'
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10  # opcodes of RFC 6455


@dataclass(frozen=True)
class Row:
    """One number of streams; latencies in seconds, processor time in ms for a second of one stream."""

    streams: int
    failed: int  # refused or broken off
    lost_seconds: float
    chunk_p50: float
    chunk_p99: float
    word_p50: float
    word_p90: float
    loop_ms: float
    decode_ms: float
    generator_ms: float
    generator_late: float  # 99th percentile of how late this program sent
    others: float  # share of all cores

    def passes(self, bar: float) -> bool:
        """Whether the server carries so many."""
        return self.failed == 0 and self.lost_seconds == 0 and self.chunk_p99 < bar

    def cells(self) -> list[object]:
        """Those of the table."""
        return [
            self.streams,
            self.failed,
            f"{self.lost_seconds:.2f} s",
            f"{self.chunk_p50:.3f} / {self.chunk_p99:.3f} s",
            f"{self.word_p50:.3f} / {self.word_p90:.3f} s",
            f"{self.loop_ms:.2f} ms",
            f"{self.decode_ms:.2f} ms",
            f"{self.generator_ms:.2f} ms, {1000 * self.generator_late:.0f} ms late",
            f"{100 * self.others:.0f} %",
        ]


COLUMNS = (
    *("streams", "failed", "audio lost", "chunk p50 / p99", "word p50 / p90"),
    *("loop", "decode", "this program", "others"),
)


def main() -> None:
    """Prints the table and the largest number, and writes them where asked."""
    options = parser(__doc__)
    options.add_argument("--streams", type=int, nargs="+", help="measure these, in place of looking for the most")
    options.add_argument("--most", type=int, default=1000, help="streams that are tried (default: 1000)")
    options.add_argument("--bar", type=float, default=0.3, help="seconds for 99 %% of chunks (default: 0.3)")
    options.add_argument("--limit", type=float, default=600, help="seconds after which no other number is tried")
    options.add_argument("--seconds", type=float, default=20.0, help="of every stream (default: 20)")
    options.add_argument("--chunk", type=float, default=0.1, help="seconds of a message (default: 0.1)")
    options.add_argument("--url", nargs="+", help="of servers that run already, instead of starting one")
    own, for_server = split(sys.argv[1:])
    args = options.parse_args(own)
    pcm = (speech(args, SPEECH_SECONDS) * 2**15).clip(-(2**15), 2**15 - 1).astype("<i2").tobytes()
    rows: list[Row] = []
    with server(args.model, for_server, args.most) if not args.url else running(args.url) as (urls, pid):
        table = Table(*COLUMNS)

        def carries(streams: int) -> bool:
            rows.append(asyncio.run(measure(urls, pid, pcm, streams, args.seconds, args.chunk)))
            table.add(*rows[-1].cells())
            return rows[-1].passes(args.bar)

        if args.streams:
            most = max([0, *(streams for streams in args.streams if carries(streams))])
        else:
            most = largest(carries, args.most, time.monotonic() + args.limit)
    result = f"{most} streams on {len(all_cores())} cores: 99 % of chunks within {args.bar:g} s, no audio lost."
    print(result)
    publish(args, "serve_load", rows, table, result, most=most)


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Arguments before "--", and after it."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def largest(carries: Callable[[int], bool], most: int, until: float) -> int:
    """The largest number carried: doubled until one is not, then halved in on to a twentieth, while there is time."""
    low, high, step = 0, None, min(16, most)
    while time.monotonic() < until and low < most and (high is None or high - low > max(1, low // 20)):
        if carries(step):
            low = step
        else:
            high = step
        step = min(2 * low, most) if high is None else (low + high) // 2
    return low


@contextmanager
def server(model: str, options: list[str], streams: int) -> Iterator[tuple[list[str], int | None]]:
    """A server of its own."""
    command = [sys.executable, str(ROOT / "run_asr.py"), "serve", "--port", "0", "--model", model]
    command += ["--max-streams", str(streams), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        said = next((said for said in process.stderr if "serving at" in said), "")
        if not said:
            raise Failed("asr serve did not start; run it by itself to see why")
        yield [said.split()[2]], process.pid
    finally:
        process.terminate()
        process.wait()


@contextmanager
def running(urls: list[str]) -> Iterator[tuple[list[str], int | None]]:
    """Servers that others run."""
    yield urls, None


class Stream(asyncio.Protocol):
    """One WebSocket; notes what comes, and reads it when all is over, so as to take little of the machine."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._held = b""
        self._upgraded = False
        self.came: list[tuple[float, bytes]] = []  # events, with their moments
        self.ready, self.over = asyncio.Event(), asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        self._transport.write(
            f"GET /v1/stream HTTP/1.1\r\nHost: {self._host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def send(self, opcode: int, payload: bytes) -> None:
        """A whole message; its mask is zero, which leaves the payload as it is."""
        size = len(payload)
        length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        self._transport.write(bytes([0x80 | opcode]) + length + b"\0\0\0\0" + payload)

    def data_received(self, data: bytes) -> None:
        self._held += data
        if not self._upgraded:
            _, end, rest = self._held.partition(b"\r\n\r\n")
            if not end:
                return
            self._upgraded, self._held = True, rest
            self.send(TEXT, START)
        now = self._loop.time()
        while (frame := self._frame()) is not None:
            opcode, payload = frame
            if opcode == TEXT:
                self.came.append((now, payload))
                self.ready.set()
            elif opcode == PING:
                self.send(PONG, payload)
            elif opcode == CLOSE:
                self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.ready.set()
        self.over.set()

    def close(self) -> None:
        """Drops the connection."""
        self._transport.abort()

    def _frame(self) -> tuple[int, bytes] | None:
        """The next message of the server, as soon as it is whole."""
        held = self._held
        begin, size = 2, held[1] if len(held) > 1 else 0
        if size >= 126:
            begin = 4 if size == 126 else 10
            size = int.from_bytes(held[2:begin], "big")
        if len(held) < 2 or len(held) < begin + size:
            return None
        self._held = held[begin + size :]
        return held[0] & 0x0F, held[begin : begin + size]


async def measure(urls: list[str], pid: int | None, pcm: bytes, streams: int, seconds: float, chunk: float) -> Row:
    """One row, of streams that begin at any place in the speech and at any moment of a chunk."""
    loop, choice = asyncio.get_running_loop(), random.Random(streams)
    places = [(parts.hostname or "", parts.port or 80) for parts in map(urlsplit, urls)]
    opened: list[Stream] = []
    for number in range(streams):
        host, port = places[number % len(places)]
        _, stream = await loop.create_connection(partial(Stream, f"{host}:{port}"), host, port)
        opened.append(stream)
    await asyncio.gather(*(stream.ready.wait() for stream in opened))
    slots = round(chunk / SLOT)
    pieces = round(seconds / chunk)
    size = round(chunk * RATE) * 2
    starts = [choice.randrange(round(SPREAD / SLOT)) for _ in opened]  # slots
    offsets = [2 * choice.randrange((len(pcm) - pieces * size) // 2) for _ in opened]
    due: list[list[int]] = [[i for i, start in enumerate(starts) if start % slots == phase] for phase in range(slots)]
    late = []
    before, origin = _Processor.read(pid), loop.time() + 0.05
    for slot in range(slots, max(starts) + slots * (pieces + 1) + 1):
        if chosen := due[slot % slots]:
            await asyncio.sleep(max(0.0, origin + slot * SLOT - loop.time()))
            late.append(loop.time() - origin - slot * SLOT)
        for i in chosen:
            piece = (slot - starts[i]) // slots - 1
            begin = offsets[i] + piece * size
            if 0 <= piece < pieces:
                opened[i].send(BINARY, pcm[begin : begin + size])
            elif piece == pieces:
                opened[i].send(TEXT, FINISH)
    used = _Processor.read(pid) - before
    await asyncio.wait([asyncio.ensure_future(s.over.wait()) for s in opened], timeout=PATIENCE)
    for stream in opened:
        stream.close()
    heard = [_heard(s.came, origin + start * SLOT, chunk, seconds) for s, start in zip(opened, starts, strict=True)]
    chunks, words = ([late for one in heard for late in getattr(one, name)] or [np.nan] for name in ("chunks", "words"))
    per_second = 1000 / (streams * seconds)
    return Row(
        streams,
        failed=sum(one.failed for one in heard),
        lost_seconds=round(sum(one.lost for one in heard), 3),
        chunk_p50=_quantile(chunks, 0.5),
        chunk_p99=_quantile(chunks, 0.99),
        word_p50=_quantile(words, 0.5),
        word_p90=_quantile(words, 0.9),
        loop_ms=round(used.loop * per_second, 3),
        decode_ms=round(used.decode * per_second, 3),
        generator_ms=round(used.generator * per_second, 3),
        generator_late=_quantile(late, 0.99),
        others=round(max(0.0, used.busy - used.loop - used.decode - used.generator) / used.all, 3),
    )


@dataclass
class _Heard:
    """What one stream measured, in seconds."""

    chunks: list[float]
    words: list[float]
    lost: float
    failed: bool


def _heard(came: list[tuple[float, bytes]], start: float, chunk: float, seconds: float) -> _Heard:
    """Reads the events of a stream whose audio began at a moment."""
    heard = _Heard([], [], seconds, True)
    shown: list[tuple[float, list[dict[str, Any]]]] = []  # words of open segments and final ones, with when they came
    for came_at, payload in came:
        event: dict[str, Any] = json.loads(payload)
        now = came_at - start
        if event["type"] == "done":
            heard.lost, heard.failed = round(seconds - event["seconds"], 3), False
        elif event["type"] in ("partial", "final"):
            if event["heard"] < seconds:
                sent = -(-round(event["heard"] / chunk, 3) // 1) * chunk  # when the chunk of that second was complete
                heard.chunks.append(max(0.0, now - sent))
            shown.append((now, event["words"]))
        if event["type"] == "final":
            for word in event["words"]:
                heard.words.append(next(at for at, words in shown if _among(word, words)) - word["end"])
    return heard


def _among(word: dict[str, Any], words: list[dict[str, Any]]) -> bool:
    return any(word["text"] == one["text"] and abs(word["start"] - one["start"]) <= NEAR for one in words)


def _quantile(values: list[float], share: float) -> float:
    return round(float(np.quantile(values, share)), 4)


@dataclass(frozen=True)
class _Processor:
    """Seconds of processor used so far: by the server's event loops, its other threads, this program, and by all."""

    loop: float
    decode: float
    generator: float
    busy: float
    all: float

    @classmethod
    def read(cls, pid: int | None) -> "_Processor":
        """pid: of the server, which may have children; None where it is somewhere else."""
        loop = decode = 0.0
        for process in _family(pid) if pid else ():
            for thread in Path(f"/proc/{process}/task").iterdir():
                if int(thread.name) == process:
                    loop += _ticks(thread)
                else:
                    decode += _ticks(thread)
        mine = resource.getrusage(resource.RUSAGE_SELF)
        ticks = [int(field) / 100 for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return cls(loop, decode, mine.ru_utime + mine.ru_stime, sum(ticks) - sum(ticks[3:5]), sum(ticks))

    def __sub__(self, other: "_Processor") -> "_Processor":
        return _Processor(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _family(int(child)))]


def _ticks(thread: Path) -> float:
    used = (thread / "stat").read_text().rpartition(")")[2].split()
    return (int(used[11]) + int(used[12])) / 100


if __name__ == "__main__":
    guarded(main)
