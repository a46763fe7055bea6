"""What live streams cost: a chunk's computation, a core's share, silence, and how many streams the cores carry.

    python -m benchmarks.stream [SOURCE] [--model M] [--chunks 40,80,160,320,640] [--json OUT] [--markdown OUT]

First, one stream on one core: processor time of a chunk (median and 99th percentile over all chunks and passes, which
holds nothing that other programs do) and the share of a core. The second table is the share of a core while nobody
speaks, for as long, in blocks of 20 ms as a microphone gives them, with the speech gate and without it. The third is
the most streams whose chunks, sent in real time at random moments, are answered in time: one process a core, each with
an engine as the server's, without a network. "latency" is from the moment at which a chunk is there to its hypotheses.
"""

import asyncio
import heapq
import math
import tempfile
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import apart
from benchmarks.common import Spread, Table, all_cores, guarded, parser, publish, speech

if TYPE_CHECKING:
    from asr.features import Samples
    from asr.recognizer import Recognizer, Stream
    from asr.segmenter import Hypothesis
    from asr.server.engine import Engine

CHUNKS = "40,80,160,320,640"  # ms
BLOCK_SECONDS = 0.02
LEVELS = {"digital silence": 0.0, "quiet room, -70 dB": 3e-4, "noisy room, -46 dB": 5e-3}  # RMS, of full scale
IN_TIME = {160: 120.0, 640: 300.0}  # ms by size of the chunk: the 99th percentile of the latency that is allowed
STEP = 1.06  # streams are counted to within this factor
GRACE_SECONDS = 0.5  # after a trial for its last answers
WARM_SHARE = 0.2  # of a trial, whose latencies do not count


@dataclass(frozen=True)
class Cost:
    """One stream at one size of chunk: processor time of a chunk, ms, and share of a core."""

    chunk_ms: int
    p50_ms: float
    p99_ms: float
    core: Spread


@dataclass(frozen=True)
class Idle:
    """Share of one core that a stream takes in which nobody speaks."""

    sound: str
    gate: float
    no_gate: float


@dataclass(frozen=True)
class Crowd:
    """So many streams at once, and the latency of their chunks in ms."""

    chunk_ms: int
    cores: int
    streams: int
    p50_ms: float
    p99_ms: float


def main() -> None:
    """Prints three tables and writes them where asked."""
    options = parser(__doc__)
    options.add_argument("--chunks", default=CHUNKS, metavar="MS,...", help=f"default: {CHUNKS}")
    options.add_argument("--seconds", type=float, default=60.0, metavar="S", help="of one stream (default: 60)")
    options.add_argument("--passes", type=int, default=5, metavar="N", help="default: 5")
    options.add_argument("--greedy", action="store_true", help="no beam search")
    help = "of each trial of many streams (default: 6); 0 leaves them out"
    options.add_argument("--crowd-seconds", type=float, default=6.0, metavar="S", help=help)
    args = options.parse_args()

    cores = all_cores()
    chunks = [int(chunk) for chunk in args.chunks.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "speech.npy"))
        np.save(path, speech(args, args.seconds))
        given = {"model": args.model, "decoder": "greedy" if args.greedy else "auto", "path": path}
        found = apart.run("benchmarks.stream:alone", cores[:1], chunks=chunks, passes=args.passes, **given)
        costs = [Cost(chunk, p50, p99, Spread.of(shares)) for chunk, p50, p99, shares in found.value["costs"]]
        one = Table("one stream in chunks of", "a chunk, p50, ms", "p99, ms", "of a core, %")
        for cost in costs:
            one.add(f"{cost.chunk_ms} ms", cost.p50_ms, cost.p99_ms, percent(cost.core))
        silent = [Idle(*row) for row in found.value["idle"]]
        rest = idle_table(silent)
        crowds = []
        many = []
        if args.crowd_seconds:
            many.append(Table("many streams in chunks of", "cores", "streams", "latency p50, ms", "p99, ms"))
        for chunk, limit in IN_TIME.items() if many else ():
            share = min(cost.core.median for cost in costs)
            for used in [cores[:1], cores][: len(cores)]:
                crowd = most(chunk, limit, used, round(0.5 / share), args.crowd_seconds, given)
                many[0].add(f"{chunk} ms", len(used), crowd.streams, crowd.p50_ms, crowd.p99_ms)
                crowds.append(crowd)
    publish(args, "stream", [*costs, *silent, *crowds], one, rest, *many, peak_mb=found.peak_mb)


def percent(share: Spread) -> str:
    """A share as a percentage."""
    return str(Spread(100 * share.median, 100 * share.low, 100 * share.high))


def idle_table(rows: list[Idle]) -> Table:
    """The rows, printed."""
    table = Table("nobody speaks", "of a core with the gate, %", "without it, %")
    for row in rows:
        table.add(row.sound, 100 * row.gate, 100 * row.no_gate)
    return table


def alone(model: str, decoder: str, path: str, chunks: list[int], passes: int) -> dict[str, list[list[object]]]:
    """The fields of Cost for each size of chunk, and those of Idle."""
    import asr

    recognizer = asr.load(model, decoder=decoder)
    samples = np.load(path)
    rate = recognizer.model.config.features.sample_rate
    list(spent(recognizer, samples[: 2 * rate], rate, 0.1))  # what is done once only
    costs: list[list[object]] = []
    for chunk in chunks:
        taken = [spent(recognizer, samples, rate, chunk / 1000) for _ in range(passes)]
        p50, p99 = (1000 * np.percentile(taken, [50, 99])).tolist()
        costs.append([chunk, p50, p99, (np.sum(taken, axis=1) / (len(samples) / rate)).tolist()])
    return {"costs": costs, "idle": idle(recognizer, len(samples) / rate)}


def spent(recognizer: "Recognizer", samples: "Samples", rate: int, seconds: float) -> list[float]:
    """Processor seconds of each chunk of a stream."""
    stream = recognizer.stream(rate)
    times = []
    for chunk in blocks(samples, round(seconds * rate)):
        began = time.process_time()
        stream.accept(chunk)
        times.append(time.process_time() - began)
    return times


def blocks(samples: "Samples", size: int) -> list["Samples"]:
    """Samples in pieces of a size."""
    return [samples[begin : begin + size] for begin in range(0, len(samples), size)]


def idle(recognizer: "Recognizer", seconds: float) -> list[list[object]]:
    """The fields of Idle: what time without speech costs, by its noise."""
    import asr
    from asr.recognizer import Recognizer

    gated = Recognizer(recognizer.model, recognizer.decoder, recognizer.rules, asr.GateRules())
    rate = recognizer.model.config.features.sample_rate
    rows: list[list[object]] = []
    for sound, level in LEVELS.items():
        samples = np.random.default_rng(1).normal(0, level, round(seconds * rate)).astype(np.float32)
        costs = [sum(spent(heard, samples, rate, BLOCK_SECONDS)) / seconds for heard in (gated, recognizer)]
        rows.append([sound, *costs])
    return rows


def most(chunk_ms: int, limit: float, cores: list[int], guess: int, seconds: float, given: dict[str, str]) -> Crowd:
    """The largest crowd whose latency is within the limit, ms; none of its streams where one a core is too many."""

    def trial(each: int) -> Crowd:
        found = crowd(chunk_ms, cores, each, seconds, given)
        if found.p99_ms <= limit:
            return found
        again = crowd(chunk_ms, cores, each, seconds, given)  # other programs may have come in between
        return min(found, again, key=lambda found: found.p99_ms)

    each = max(1, guess)
    found = trial(each)
    good, bad = (found, None) if found.p99_ms <= limit else (None, each)
    while good is None or bad is None or bad > max(STEP * each, each + 1):
        if good is None and bad == 1:
            return replace(found, streams=0)
        number = bad // 2 if good is None and bad else math.ceil(1.5 * each) if bad is None else (each + bad) // 2
        found = trial(number)
        if found.p99_ms <= limit:
            good, each = found, number
        else:
            bad = number
    return good


def crowd(chunk_ms: int, cores: list[int], each: int, seconds: float, given: dict[str, str]) -> Crowd:
    """So many streams on each of the cores."""
    arguments = {**given, "chunk_ms": chunk_ms, "streams": each, "seconds": seconds}
    processes = [apart.Process("benchmarks.stream:latencies", arguments, [core]) for core in cores]
    heard = [late for process in processes for late in process.result().value]
    p50, p99 = (1000 * np.percentile(heard, [50, 99])).tolist()
    return Crowd(chunk_ms, len(cores), each * len(cores), p50, p99)


def latencies(**arguments: Any) -> list[float]:
    """As `listened`."""
    return asyncio.run(listened(**arguments))


async def listened(model: str, decoder: str, path: str, chunk_ms: int, streams: int, seconds: float) -> list[float]:
    """Seconds from when a chunk is there to its hypotheses, for the chunks of so many streams but the first ones."""
    import asr
    from asr.server.engine import Engine
    from asr.server.metrics import Metrics

    recognizer = asr.load(model, decoder=decoder)
    rate = recognizer.model.config.features.sample_rate
    samples = np.load(path)
    engine = Engine(recognizer.model, Metrics())
    choice = np.random.default_rng(1)
    period = chunk_ms / 1000
    size = round(period * rate)
    again = np.concatenate([samples, samples[:size]])
    speakers = []
    for offset in choice.integers(len(samples), size=streams):
        speakers.append(Speaker(recognizer.stream(rate), engine, again, int(offset), size))
    start = time.monotonic() + period
    due = [(start + wait, number) for number, wait in enumerate(choice.uniform(0, period, streams))]
    heapq.heapify(due)
    while due[0][0] < start + seconds:
        await asyncio.sleep(max(0.0, due[0][0] - time.monotonic()))
        now = time.monotonic()
        while due[0][0] <= now:
            moment, number = due[0]
            speakers[number].speak(moment)
            heapq.heapreplace(due, (moment + period, number))
    await asyncio.sleep(GRACE_SECONDS)
    engine.close()
    warm = start + WARM_SHARE * seconds
    return [late for speaker in speakers for moment, late in speaker.latencies() if moment > warm]


class Speaker:
    """A stream whose chunks go to the engine one after the other, as a session of the server sends them."""

    def __init__(self, stream: "Stream", engine: "Engine", samples: "Samples", offset: int, size: int) -> None:
        self._stream, self._engine = stream, engine
        self._samples, self._place, self._size = samples, offset, size  # its last chunk is its first one again
        self._waiting: deque[float] = deque()  # moments from which chunks are there that are not answered yet
        self._heard: list[tuple[float, float]] = []

    def speak(self, moment: float) -> None:
        """The next chunk is there."""
        self._waiting.append(moment)
        if len(self._waiting) == 1:
            self._send()

    def latencies(self) -> list[tuple[float, float]]:
        """When each chunk was there, and how long it has waited for its answer, until now where there is none."""
        now = time.monotonic()
        return self._heard + [(moment, now - moment) for moment in self._waiting]

    def _send(self) -> None:
        chunk = self._samples[self._place : self._place + self._size]
        self._place = (self._place + self._size) % (len(self._samples) - self._size)
        self._engine.submit(self._stream.accepting(chunk), self._answered)

    def _answered(self, hypotheses: "list[Hypothesis]", error: Exception | None) -> None:
        if error:
            raise error
        moment = self._waiting.popleft()
        self._heard.append((moment, time.monotonic() - moment))
        if self._waiting:
            self._send()


if __name__ == "__main__":
    guarded(main)
