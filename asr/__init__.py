"""Streaming speech recognition on a plain CPU.

    import asr

    recognizer = asr.load()
    print(recognizer.transcribe("talk.mp3").text)

    stream = recognizer.stream(sample_rate=48_000)
    for samples in microphone:
        for hypothesis in stream.accept(samples):
            print(hypothesis.text, "(final)" if hypothesis.is_final else "...")

Importing this package costs nothing; what it gives is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asr.decoding.hotwords import Hotwords
    from asr.errors import ASRError
    from asr.recognizer import Recognizer, Stream, load
    from asr.segmenter import EndpointRules, Hypothesis
    from asr.transcript import Alternative, Segment, Transcript, Word
    from asr.vad import GateRules

__version__ = "0.1.0"

__all__ = [
    "ASRError",
    "Alternative",
    "EndpointRules",
    "GateRules",
    "Hotwords",
    "Hypothesis",
    "Recognizer",
    "Segment",
    "Stream",
    "Transcript",
    "Word",
    "load",
]

_HOMES = {
    "asr.decoding.hotwords": ("Hotwords",),
    "asr.errors": ("ASRError",),
    "asr.recognizer": ("Recognizer", "Stream", "load"),
    "asr.segmenter": ("EndpointRules", "Hypothesis"),
    "asr.transcript": ("Alternative", "Segment", "Transcript", "Word"),
    "asr.vad": ("GateRules",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
