"""What all protocols of a server share: one recogniser, its engine, the places of streams, and the end of it all."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache

from asr.recognizer import Recognizer
from asr.server.census import Census
from asr.server.engine import Engine
from asr.server.metrics import Metrics
from asr.server.patience import Patience
from asr.server.refusal import Refusal
from asr.server.session import Session
from asr.server.settings import Limits, StreamSettings

WEIGHTS_KEPT = 8  # language-model weights whose tables are kept for the next stream that wants them


class Service:
    """The streams of one server; used on one event loop."""

    def __init__(self, recognizer: Recognizer, limits: Limits | None = None, census: Census | None = None) -> None:
        self.recognizer = recognizer
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self.draining = False  # no new streams; those that live may go on
        self.ending = False  # these end too
        self._engine = Engine(recognizer.model, self.metrics)
        self._census = census or Census()
        self._left = asyncio.Event()  # a place has been left
        self._draining_until: asyncio.Timeout | None = None
        self._patient: set[Patience] = set()  # with each client
        self._weighted = lru_cache(WEIGHTS_KEPT)(recognizer.weighted)

    @property
    def streams(self) -> int:
        """That are live now, in all processes of the server."""
        return self._census.total

    def check_open(self) -> None:
        """Refusal where the server goes down."""
        if self.draining:
            raise Refusal("shutdown", "the server goes down; try again in a moment")

    @contextmanager
    def place(self, protocol: str) -> Iterator[None]:
        """One of the places that there are for streams; Refusal where all are taken or the server goes down."""
        self.check_open()
        if not self._census.enter(self.limits.streams):
            raise Refusal("overloaded", f"all {self.limits.streams} places are taken; try again in a moment")
        self.metrics.streams.labels(protocol).inc()
        try:
            yield
        finally:
            self._census.leave()
            self.metrics.streams.labels(protocol).dec()
            self._left.set()

    @asynccontextmanager
    async def session(self, settings: StreamSettings) -> AsyncIterator[Session]:
        """A stream of these settings; Refusal where they cannot be."""
        recognizer = self.recognizer if settings.lm_weight is None else await self._reweighted(settings.lm_weight)
        slow = bool(settings.hotwords)
        stream = await asyncio.to_thread(settings.open, recognizer) if slow else settings.open(recognizer)
        session = Session(stream, self._engine, self.metrics, self.limits.stream_seconds)
        try:
            yield session
        finally:
            session.abandon()

    @contextmanager
    def patience(self) -> Iterator[Patience]:
        """That with one client."""
        patience = Patience(self.limits.idle_seconds)
        self._patient.add(patience)
        if self.ending:
            patience.end()
        try:
            yield patience
        finally:
            patience.close()
            self._patient.discard(patience)

    async def drain(self, seconds: float) -> None:
        """Takes no new streams, and returns when none is left or after `seconds`."""
        self.draining = True
        try:
            async with asyncio.timeout(seconds) as self._draining_until:
                await self._emptied()
        except TimeoutError:
            pass
        finally:
            self._draining_until = None

    async def end(self, seconds: float) -> None:
        """Ends the streams that live, each with its last words; returns when none is left or after `seconds`."""
        self.draining = self.ending = True
        for patience in self._patient:
            patience.end()
        await self.drain(seconds)

    def hurry(self) -> None:
        """Waits no longer for streams to end by themselves."""
        if self._draining_until:
            self._draining_until.reschedule(asyncio.get_running_loop().time())

    def close(self) -> None:
        """Ends the engine."""
        self._engine.close()

    async def _emptied(self) -> None:
        while self._census.own:
            self._left.clear()
            await self._left.wait()

    async def _reweighted(self, lm_weight: float) -> Recognizer:
        return await asyncio.to_thread(self._weighted, round(lm_weight, 2))
