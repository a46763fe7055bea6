"""The engine of a server: each stream hears what it would hear alone, and larger pieces serve it when many wait."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

import asr
from asr.segmenter import Hypothesis
from asr.server.engine import MOST_AT_EASE, MOST_MORE, Engine
from asr.server.metrics import Metrics

CLIPS = sorted(path for path in (Path(__file__).parent / "data").iterdir() if path.suffix in (".flac", ".ogg"))[:3]


def held(begun: threading.Event, freed: threading.Event) -> Iterator[Any]:
    """Steps of a stream that hold the thread until they are freed."""
    begun.set()
    freed.wait()
    yield from ()


def nothing() -> Iterator[Any]:
    """Steps of a stream for which nothing is to be decoded."""
    yield from ()


def test_the_more_streams_wait_the_larger_are_their_pieces(tiny_model: Path) -> None:
    async def wanted() -> list[int]:
        engine = Engine(asr.load(tiny_model).model, Metrics())
        begun, freed, found = threading.Event(), threading.Event(), [engine.more]
        engine.submit(held(begun, freed), lambda *_: None)  # type: ignore[arg-type]
        await asyncio.to_thread(begun.wait)
        for _ in range(MOST_MORE + 1):
            for _ in range(MOST_AT_EASE):
                engine.submit(nothing(), lambda *_: None)  # type: ignore[arg-type]
            found.append(engine.more)
        freed.set()
        engine.close()
        return [*found, engine.more]

    assert asyncio.run(wanted()) == [0, *range(1, MOST_MORE + 1), MOST_MORE, 0]


def test_streams_side_by_side_hear_what_each_hears_alone() -> None:
    recognizer = asr.load("en")
    clips = [soundfile.read(path, dtype="float32")[0] for path in CLIPS]
    alone = []
    for clip in clips:
        stream = recognizer.stream(16_000, partials=False)
        alone.append([hypothesis.text for hypothesis in [*stream.accept(clip), *stream.finish()]])

    async def together() -> list[list[str]]:
        engine = Engine(recognizer.model, Metrics())
        loop = asyncio.get_running_loop()

        async def run(steps: Any) -> list[str]:
            done: asyncio.Future[list[Hypothesis]] = loop.create_future()

            def report(hypotheses: list[Hypothesis], error: Exception | None) -> None:
                assert error is None
                done.set_result(hypotheses)

            engine.submit(steps, report)
            return [hypothesis.text for hypothesis in await done]

        async def hear(clip: np.ndarray, size: int) -> list[str]:
            stream, texts = recognizer.stream(16_000, partials=False), []
            for begin in range(0, len(clip), size):
                texts += await run(stream.accepting(clip[begin : begin + size]))
            return texts + await run(stream.finishing())

        found = await asyncio.gather(*(hear(clip, size) for clip, size in zip(clips, (700, 4000, 9000), strict=True)))
        engine.close()
        return found

    assert asyncio.run(together()) == alone
