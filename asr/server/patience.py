"""How long a server waits for a client that sends nothing."""

import asyncio
from types import TracebackType

from asr.server.refusal import Refusal
from asr.transcript import Seconds


class Patience:
    """Bounds every wait for one client: `with patience: ...`, in one task at a time.

    Messages come by the hundred and time-outs hardly ever, so a wait only notes when it began, and a single timer looks
    at that when the wait could be over. Refusal where a wait is too long, or `end` was called.
    """

    def __init__(self, longest: Seconds) -> None:
        self._longest = longest
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Task[object] | None = None
        self._since: Seconds = 0.0
        self._expired = self._ended = False
        self._timer = self._loop.call_later(longest, self._look)

    def __enter__(self) -> None:
        self._waiting, self._since = asyncio.current_task(), self._loop.time()
        if self._ended:
            self._loop.call_soon(self._expire)  # what has come already may still be taken

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        waiting, self._waiting = self._waiting, None
        if self._expired and waiting and not waiting.uncancel() and isinstance(error, asyncio.CancelledError):
            raise self._refusal() from None

    def end(self) -> None:
        """Waits no longer, now and ever."""
        self._ended = True
        self._expire()

    def close(self) -> None:
        """The client is gone."""
        self._timer.cancel()

    def _look(self) -> None:
        since = self._since if self._waiting else self._loop.time()
        if since + self._longest <= self._loop.time():
            self._expire()
        else:
            self._timer = self._loop.call_at(since + self._longest, self._look)

    def _expire(self) -> None:
        if self._waiting and not self._expired:
            self._expired = True
            self._waiting.cancel()

    def _refusal(self) -> Refusal:
        if self._ended:
            return Refusal("shutdown", "the server goes down; begin again with another one")
        return Refusal("idle", f"nothing came for {self._longest:g} seconds; send audio without such pauses")
