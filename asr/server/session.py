"""One client's stream on the event loop: audio in, hypotheses out, the engine in between."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial

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
        self._held: deque[tuple[Seconds, Pcm]] = deque()  # with the moments at which they came
        self._held_samples = 0
        self._fed = self._decoded = 0  # samples
        self._working = self._finishing = self._over = False
        self._results: deque[list[Hypothesis]] = deque()
        self._error: Exception | None = None
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []  # for what, and who

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
        self._fed += len(samples)
        self._held.append((time.monotonic(), samples))
        self._held_samples += len(samples)
        self._start()
        await self._until(self._has_room)

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
            await self._until(lambda: bool(self._results) or self._over)
            while self._results:
                yield self._taken()
            if self._error:
                raise self._error
            if self._over:
                return

    def finish(self) -> None:
        """There is no more audio."""
        self._finishing = True
        self._start()

    def abandon(self) -> None:
        """Nobody wants the rest; what the engine has begun, it ends."""
        self._over = True
        self._held.clear()
        self._held_samples = 0
        self._changed()

    async def _settled(self) -> list[Hypothesis]:
        found: list[Hypothesis] = []
        while True:
            await self._until(lambda: bool(self._results) or not self._working)
            while self._results:
                found += self._taken()
            if self._error:
                raise self._error
            if not self._working:
                return found

    def _taken(self) -> list[Hypothesis]:
        found = self._results.popleft()
        self._changed()
        return found

    def _has_room(self) -> bool:
        few = self._held_samples <= HELD_SECONDS * self.stream.sample_rate and len(self._results) <= MOST_RESULTS
        return few or self._over

    async def _until(self, holds: Callable[[], bool]) -> None:
        if holds():
            return
        waiter = holds, self._loop.create_future()
        self._waiting.append(waiter)
        try:
            await waiter[1]
        finally:
            self._waiting.remove(waiter)

    def _changed(self) -> None:
        for holds, waiter in self._waiting:
            if not waiter.done() and holds():
                waiter.set_result(None)

    def _start(self) -> None:
        """Gives the engine its next piece of work, if it has none of this stream and there is some."""
        if self._working or self._over or not (self._finishing or self._held_samples >= self._enough()):
            return
        self._working = True
        since = self._sufficed()
        samples = self._next_samples()
        steps: Steps = self.stream.finishing() if samples is None else self.stream.accepting(samples)
        self._engine.submit(steps, partial(self._done, 0 if samples is None else len(samples), since))

    def _enough(self) -> int:
        """Samples for which the engine is called."""
        return self.stream.wanted + self.stream.piece * self._engine.more

    def _sufficed(self) -> Seconds:
        """When enough of the samples held had come for something to be decoded."""
        count, wanted = 0, self.stream.wanted
        for moment, samples in self._held:
            count += len(samples)
            if count >= wanted:
                return moment
        return time.monotonic()

    def _next_samples(self) -> Pcm | None:
        """As many of the samples held as the engine takes at a time, None where there are none."""
        if not self._held:
            return None
        wanted, moment = int(JOB_SECONDS * self.stream.sample_rate), self._held[-1][0]
        held = np.concatenate([samples for _, samples in self._held]) if len(self._held) > 1 else self._held[0][1]
        self._held.clear()
        if len(held) > wanted:
            self._held.append((moment, held[wanted:]))
        self._held_samples = len(held) - len(held[:wanted])
        return held[:wanted]

    def _done(self, count: int, since: float, hypotheses: list[Hypothesis], error: Exception | None) -> None:
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
        self._changed()
