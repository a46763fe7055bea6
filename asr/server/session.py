"""One client's stream on the event loop: audio in, hypotheses out, the engine in between."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator

import numpy as np
from numpy.typing import NDArray

from asr.recognizer import Steps, Stream
from asr.segmenter import Hypothesis
from asr.server.engine import Engine
from asr.server.metrics import Metrics
from asr.server.refusal import Refusal
from asr.transcript import Seconds

HELD_SECONDS = 10.0  # of audio that waits for the engine, at most
JOB_SECONDS = 2.0  # of audio that the engine takes of one stream at a time, so that others come in between
MOST_RESULTS = 64  # that wait for a client to read them, at most

Pcm = NDArray[np.generic]  # shape = (n,) or (n, channels), of a type that Stream.accept takes


class Session:
    """A stream that an event loop feeds; nothing in it grows without bound, whoever is slow."""

    def __init__(self, stream: Stream, engine: Engine, metrics: Metrics, longest: Seconds) -> None:
        self.stream = stream
        self._engine = engine
        self._metrics = metrics
        self._longest = longest
        self._loop = asyncio.get_running_loop()
        self._held: deque[Pcm] = deque()
        self._held_samples = 0
        self._since = 0.0  # when the oldest of them came
        self._fed = self._decoded = 0  # samples
        self._working = self._finishing = self._over = False
        self._results: deque[list[Hypothesis]] = deque()
        self._error: Exception | None = None
        self._wake = asyncio.Event()

    @property
    def seconds(self) -> Seconds:
        """Of audio decoded so far."""
        return self._decoded / self.stream.sample_rate

    async def feed(self, samples: Pcm) -> None:
        """Hands samples over; waits while too much waits already. Refusal where the stream grows too long."""
        if not len(samples):
            return
        if (self._fed + len(samples)) / self.stream.sample_rate > self._longest:
            raise Refusal("too_long", f"the stream is longer than {self._longest:g} seconds; begin another one")
        self._since = self._since if self._held else time.monotonic()
        self._fed += len(samples)
        self._held.append(samples)
        self._held_samples += len(samples)
        self._start()
        while not self._over and (
            self._held_samples > HELD_SECONDS * self.stream.sample_rate or len(self._results) > MOST_RESULTS
        ):
            await self._change()

    async def accept(self, samples: Pcm) -> list[Hypothesis]:
        """The hypotheses that samples bring, when all of them are decoded; not for use beside `results`."""
        await self.feed(samples)
        return await self._settled()

    async def rest(self) -> list[Hypothesis]:
        """Finishes the stream: its last hypotheses; not for use beside `results`."""
        self.finish()
        return await self._settled()

    async def results(self) -> AsyncIterator[list[Hypothesis]]:
        """The hypotheses as they come, until the stream is finished; raises what has gone wrong in it."""
        while True:
            while self._results:
                yield self._taken()
            if self._error:
                raise self._error
            if self._over:
                return
            await self._change()

    def finish(self) -> None:
        """There is no more audio."""
        self._finishing = True
        self._start()

    def abandon(self) -> None:
        """Nobody wants the rest; what the engine has begun, it ends."""
        self._over = True
        self._held.clear()
        self._held_samples = 0
        self._wake.set()

    async def _settled(self) -> list[Hypothesis]:
        found: list[Hypothesis] = []
        while True:
            while self._results:
                found += self._taken()
            if self._error:
                raise self._error
            if not self._working:
                return found
            await self._change()

    def _taken(self) -> list[Hypothesis]:
        self._wake.set()
        return self._results.popleft()

    async def _change(self) -> None:
        self._wake.clear()
        await self._wake.wait()

    def _start(self) -> None:
        """Gives the engine its next piece of work, if it has none of this stream and there is some."""
        if self._working or self._over or not (self._held or self._finishing):
            return
        self._working = True
        since, samples = self._since, self._next_samples()
        steps: Steps = self.stream.finishing() if samples is None else self.stream.accepting(samples)
        count = 0 if samples is None else len(samples)

        def report(hypotheses: list[Hypothesis], error: Exception | None) -> None:
            self._loop.call_soon_threadsafe(self._done, hypotheses, error, count, since)

        self._engine.submit(steps, report)

    def _next_samples(self) -> Pcm | None:
        """As many of the samples held as the engine takes at a time, None where there are none."""
        if not self._held:
            return None
        wanted = int(JOB_SECONDS * self.stream.sample_rate)
        held = np.concatenate(self._held) if len(self._held) > 1 else self._held[0]
        self._held.clear()
        if len(held) > wanted:
            self._held.append(held[wanted:])
        self._held_samples = len(held) - len(held[:wanted])
        return held[:wanted]

    def _done(self, hypotheses: list[Hypothesis], error: Exception | None, count: int, since: float) -> None:
        self._working = False
        self._decoded += count
        if count:
            self._metrics.latency.observe(time.monotonic() - since)
            self._metrics.audio.inc(count / self.stream.sample_rate)
        else:
            self._over = True
        if hypotheses:
            self._results.append(hypotheses)
        if error:
            self._error, self._over = error, True
        self._start()
        self._wake.set()
