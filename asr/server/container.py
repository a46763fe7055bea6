"""Ogg, WebM and whatever else FFmpeg reads as it comes, such as a browser records it, to samples."""

import asyncio
import contextlib
import queue
from collections.abc import Callable, Coroutine
from typing import Any, Self

from asr.audio import read_container
from asr.server.session import Pcm

BLOCK_SECONDS = 0.1
MOST_MESSAGES = 16  # that wait to be decoded


class ContainerReader:
    """Decodes on a thread of its own, and hands the samples to `take`, a coroutine function on the event loop."""

    def __init__(self, sample_rate: float, take: Callable[[Pcm], Coroutine[Any, Any, None]]) -> None:
        self._rate = sample_rate
        self._take = take
        self._bytes: queue.Queue[bytes] = queue.Queue(MOST_MESSAGES)
        self._rest = b""

    async def __aenter__(self) -> Self:
        self._decoding = asyncio.create_task(asyncio.to_thread(self._decode, asyncio.get_running_loop()))
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._decoding.cancel()
        with contextlib.suppress(queue.Empty):
            while True:
                self._bytes.get_nowait()
        self._bytes.put_nowait(b"")  # the thread takes it for the end, wherever it is

    async def feed(self, data: bytes) -> None:
        """Hands bytes over; waits while many wait. ASRError where the container cannot be read."""
        while True:
            if self._decoding.done():
                return await self._decoding
            try:
                return self._bytes.put_nowait(data)
            except queue.Full:
                await asyncio.wait([self._decoding], timeout=BLOCK_SECONDS)

    async def finish(self) -> None:
        """There are no more bytes; waits for the last samples. ASRError where the container cannot be read."""
        await self.feed(b"")
        await self._decoding

    def read(self, size: int) -> bytes:
        """For FFmpeg: up to `size` bytes, none at the end."""
        if not self._rest:
            self._rest = self._bytes.get()
            if not self._rest:
                self._bytes.put(b"")  # FFmpeg may ask again
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece

    def _decode(self, loop: asyncio.AbstractEventLoop) -> None:
        for samples in read_container(self, self._rate, BLOCK_SECONDS):
            asyncio.run_coroutine_threadsafe(self._take(samples), loop).result()
