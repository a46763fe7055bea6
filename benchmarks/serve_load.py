"""How many live streams a server carries, and how late they hear of what they sent.

    python benchmarks/serve_load.py tests/data --streams 10 50 100 200 300

starts `asr serve` and, from a second process, opens so many WebSockets at a time, each of which sends real speech in
real time. A chunk's latency is from the sending of the last sample that an event is about to the event; that of a word
is from its end in the audio to the first event that shows it, and so holds what model and search wait for. The table
has a row for each number of streams; --json writes it to a file. With --url servers that run already share the streams.
The processor time that a second of audio costs says what an idle machine would carry, where this one is not idle.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parent.parent
RATE = 16_000  # Hz
SUFFIXES = (".flac", ".ogg", ".wav")


@dataclass
class Heard:
    """What one stream measured, in seconds."""

    chunks: list[float] = field(default_factory=list)
    words: list[float] = field(default_factory=list)
    lost: float = 0.0
    refused: str = ""


@dataclass
class Row:
    """One number of streams."""

    streams: int
    refused: int
    lost_seconds: float
    chunk_p50: float
    chunk_p99: float
    word_p50: float
    word_p90: float
    server_ms: float  # of processor time for a second of audio


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path, help="folder of recordings")
    parser.add_argument("--streams", type=int, nargs="+", default=[10, 50, 100, 200, 300])
    parser.add_argument("--seconds", type=float, default=20.0, help="of every stream")
    parser.add_argument("--chunk", type=float, default=0.1, help="seconds of a message")
    parser.add_argument("--model", default="en")
    parser.add_argument("--greedy", action="store_true")
    parser.add_argument("--url", nargs="+", help="of servers that run already, instead of starting one")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    pcm = speech(args.speech)
    options = ["--model", args.model, *(["--greedy"] if args.greedy else [])]
    with server(options, max(args.streams)) if not args.url else running(args.url) as (urls, pid):
        print("streams  refused  lost s   chunk p50 / p99      word p50 / p90     CPU for 1 s")
        rows = []
        for streams in args.streams:
            row = asyncio.run(measure(urls, pid, pcm, streams, args.seconds, args.chunk))
            rows.append(row)
            print(
                f"{row.streams:7} {row.refused:8} {row.lost_seconds:7.2f} {row.chunk_p50:8.3f} / {row.chunk_p99:.3f} s"
                f"  {row.word_p50:8.3f} / {row.word_p90:.3f} s {row.server_ms:9.1f} ms",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def speech(folder: Path) -> np.ndarray:
    """All 16 kHz recordings of a folder, one after the other, as 16-bit samples."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)[:100]
    read = [soundfile.read(path, dtype="int16") for path in paths]
    return np.concatenate([samples for samples, rate in read if rate == RATE and samples.ndim == 1])


@contextmanager
def server(options: list[str], streams: int) -> Iterator[tuple[list[str], int | None]]:
    """A server of its own."""
    command = [
        sys.executable,
        str(ROOT / "run_asr.py"),
        "serve",
        "--port",
        "0",
        "--max-streams",
        str(streams),
        *options,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        line = next((line for line in process.stderr if "serving at" in line), "")
        yield [line.split()[2]], process.pid
    finally:
        process.terminate()
        process.wait()


@contextmanager
def running(urls: list[str]) -> Iterator[tuple[list[str], int | None]]:
    """Servers that others run."""
    yield urls, None


async def measure(urls: list[str], pid: int | None, pcm: np.ndarray, streams: int, seconds: float, chunk: float) -> Row:
    """One row, of streams that begin at any place in the speech and at any moment of a chunk."""
    choice = random.Random(streams)
    cpu = _cpu(pid)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        tasks = []
        for number in range(streams):
            offset = choice.randrange(len(pcm))
            samples = np.roll(pcm, -offset)[: int(seconds * RATE)] if len(pcm) < 10**7 else pcm[offset:]
            tasks.append(one(session, urls[number % len(urls)], samples, choice.uniform(0, 2), chunk))
        heard = await asyncio.gather(*tasks)
    audio = streams * seconds
    chunks = np.array([late for h in heard for late in h.chunks] or [np.nan])
    words = np.array([late for h in heard for late in h.words] or [np.nan])
    (chunk_p50, chunk_p99), (word_p50, word_p90) = np.quantile(chunks, (0.5, 0.99)), np.quantile(words, (0.5, 0.9))
    return Row(
        streams,
        refused=sum(bool(h.refused) for h in heard),
        lost_seconds=round(sum(h.lost for h in heard), 3),
        chunk_p50=round(float(chunk_p50), 3),
        chunk_p99=round(float(chunk_p99), 3),
        word_p50=round(float(word_p50), 3),
        word_p90=round(float(word_p90), 3),
        server_ms=round(1000 * (_cpu(pid) - cpu) / audio, 1),
    )


async def one(session: aiohttp.ClientSession, url: str, samples: np.ndarray, wait: float, chunk: float) -> Heard:
    """One stream in real time."""
    await asyncio.sleep(wait)
    heard = Heard()
    async with session.ws_connect(url.replace("http", "ws", 1) + "/v1/stream", compress=0) as socket:
        await socket.send_str(json.dumps({"type": "start", "sample_rate": RATE}))
        first = await socket.receive_json()
        if first["type"] != "ready":
            return Heard(refused=first["code"])
        start = time.monotonic()
        sending = asyncio.create_task(send(socket, samples, start, chunk))
        await listen(socket, heard, start, chunk, len(samples) / RATE)
        await sending
    return heard


async def send(socket: aiohttp.ClientWebSocketResponse, samples: np.ndarray, start: float, chunk: float) -> None:
    """Sends every chunk at the moment at which its last sample would have been spoken."""
    size = int(chunk * RATE)
    for begin in range(0, len(samples), size):
        piece = samples[begin : begin + size]
        await asyncio.sleep(max(0.0, start + (begin + len(piece)) / RATE - time.monotonic()))
        await socket.send_bytes(piece.tobytes())
    await socket.send_str('{"type": "finish"}')


async def listen(
    socket: aiohttp.ClientWebSocketResponse, heard: Heard, start: float, chunk: float, seconds: float
) -> None:
    """Notes when what is heard of."""
    shown: list[tuple[float, list[str]]] = []  # texts of the open segment, with the moments at which they came
    heard.lost = seconds
    async for message in socket:
        event: dict[str, Any] = json.loads(message.data)
        now = time.monotonic() - start
        if event["type"] == "done":
            heard.lost = seconds - event["seconds"]
        elif event["type"] == "error":
            heard.refused = event["code"]
        else:
            sent = min(seconds, -(-event["heard"] // chunk) * chunk)  # when the chunk of that second was sent
            if event["heard"] < seconds:
                heard.chunks.append(max(0.0, now - sent))
            shown.append((now, event["text"].split()))
        if event["type"] == "final":
            for i, word in enumerate(event["words"]):
                came = next(moment for moment, texts in shown if texts[i : i + 1] == [word["text"]])
                heard.words.append(came - word["end"])
            shown.clear()


def _cpu(pid: int | None) -> float:
    """Seconds of processor that a process has used."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


if __name__ == "__main__":
    main()
