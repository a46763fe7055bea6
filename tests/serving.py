"""A server on a free port and a loop of its own, for tests of what its clients see."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

import asr
from asr.server.app import Place, Server
from asr.server.settings import Limits

DATA = Path(__file__).parent / "data"
CLIP = DATA / "27-124992-0008.flac"  # which the bundled model knows well
LONG_CLIP = DATA / "19-198-0001.flac"


@contextmanager
def serving(recognizer: asr.Recognizer, **place: Any) -> Iterator[Server]:
    """A server that runs until the block ends; keywords are those of Place, and of Limits."""
    names = Limits.__dataclass_fields__.keys() & place.keys()
    limits = Limits(**{name: place.pop(name) for name in names})
    ready: Future[tuple[Server, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def main() -> None:
        server = Server(recognizer, Place(port=0, limits=limits, **place))
        await server.start()
        stop = asyncio.Event()
        ready.set_result((server, asyncio.get_running_loop(), stop))
        await stop.wait()
        await server.stop()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    server, loop, stop = ready.result(60)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        assert not thread.is_alive()


def samples(path: Path) -> tuple[np.ndarray, int]:
    """The 16-bit samples of a recording, and their rate."""
    return soundfile.read(path, dtype="int16")


def expected(recognizer: asr.Recognizer, path: Path) -> asr.Transcript:
    """What `transcribe` makes of the 16-bit samples of a recording."""
    return recognizer.transcribe(*samples(path))
