"""Recordings transcribed by the workers of a Ray cluster, for `asr transcribe --ray`."""

import logging
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import Any

from asr.errors import ASRError
from asr.transcript import Segment

RETRIES = 10  # of a recording whose worker has died; it is heard again from its start
CONNECT_SECONDS = 10.0
LOCAL = "local"  # address of a cluster of this machine alone, for as long as the command runs


@contextmanager
def transcribe(
    address: str, recordings: Sequence[Path], options: dict[str, Any], nbest: int
) -> "Iterator[list[Heard]]":
    """Begins with all recordings, each a task of one core; what each gives can be waited for in any order.

    address: of a running cluster, "auto" for that of this machine, or "local". options: of `asr.load`. The workers need
    this package, the model and the recordings at the same paths. ASRError where there is no such cluster.
    sys.stdout is standard error until the end: Ray prints there, even while it shuts down, of workers that are lost.
    """
    import ray

    _check(address)
    with redirect_stdout(sys.stderr):
        try:
            ray.init(None if address == LOCAL else address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ASRError(f"there is no Ray cluster at {address}: {str(error).splitlines()[0]}") from None
        try:
            task = ray.remote(num_cpus=1, max_retries=RETRIES)(_transcribe)
            yield [Heard(task.remote(str(path.resolve()), sorted(options.items()), nbest), ray) for path in recordings]
        finally:
            ray.shutdown()


def _check(address: str) -> None:
    """ASRError where nothing listens at HOST:PORT; Ray itself would wait for minutes."""
    host, colon, port = address.rpartition(":")
    if "//" in address or not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ASRError(f"there is no Ray cluster at {address}: {error.strerror or error}") from None


class Heard:
    """What a worker makes of one recording."""

    def __init__(self, reference: Any, ray: Any) -> None:
        self._reference = reference
        self._ray = ray

    def segments(self) -> Iterator[Segment]:
        """Waits for it; ASRError, after the segments before it, where the recording cannot be read on."""
        try:
            segments, failure = self._ray.get(self._reference)
        except self._ray.exceptions.RayError as error:
            raise ASRError(f"the cluster has lost a recording for good: {str(error).splitlines()[0]}") from None
        yield from segments
        if failure:
            raise ASRError(failure)


def _transcribe(path: str, options: list[tuple[str, Any]], nbest: int) -> tuple[list[Segment], str | None]:
    """On a worker: the segments of a recording, and what ended it early."""
    segments: list[Segment] = []
    try:
        for segment in _recognizer(tuple(options)).segments(path, nbest=nbest):
            segments.append(segment)
    except ASRError as error:
        return segments, str(error)
    return segments, None


@lru_cache(maxsize=1)
def _recognizer(options: tuple[tuple[str, Any], ...]) -> Any:
    """Loaded once in each worker."""
    import asr

    return asr.load(**dict(options))
