"""A recording on several cores: while one part of it is read, the part before is encoded and the one before decoded."""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future  # takes a hundredth of a second, and short recordings do without

Found = TypeVar("Found")
Encoded = TypeVar("Encoded")

AHEAD = 2  # parts that are under way at most when another one comes


class Overlap(Generic[Found]):
    """Two threads, one that encodes and one that decodes, both in the order in which they are asked to.

    Leaving it as a context ends both threads after what they are busy with; what waits is dropped.
    """

    def __init__(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._encoder, self._decoder = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._pending: deque[Future[list[Found]]] = deque()

    def __enter__(self) -> "Overlap[Found]":
        return self

    def __exit__(self, *_: object) -> None:
        self._encoder.shutdown(wait=False, cancel_futures=True)  # first, as the decoder may wait for it
        self._decoder.shutdown(cancel_futures=True)
        self._encoder.shutdown()

    def encode(self, encode: Callable[[], Encoded], decode: Callable[[Encoded], list[Found]]) -> list[Found]:
        """As `decode`, of what is encoded first, after all that was to be encoded before."""
        encoded = self._encoder.submit(encode)
        return self.decode(lambda: decode(encoded.result()))

    def decode(self, work: Callable[[], list[Found]]) -> list[Found]:
        """Does it when all that was asked for before is done; what earlier work has found meanwhile, or its error."""
        self._pending.append(self._decoder.submit(work))
        return self._found(AHEAD)

    def rest(self) -> list[Found]:
        """Waits until nothing is under way: what has been found."""
        return self._found(0)

    def _found(self, most: int) -> list[Found]:
        found: list[Found] = []
        while self._pending and (len(self._pending) > most or self._pending[0].done()):
            found += self._pending.popleft().result()
        return found
