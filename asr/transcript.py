"""What was said and when, and one writer per file format; times are seconds from the start of the audio."""

import json
import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self, TextIO

from asr.errors import ASRError

Seconds = float

LINE_WIDTH = 42  # characters of a subtitle line
CUE_LINES = 2
CUE_SECONDS = 6.0  # longest that a subtitle stays
CUE_GAP = 1.0  # a pause of this many seconds begins a new subtitle
DISTANCE_COST = 0.1  # seconds of pause that make up for a second further from the middle of what is divided


@dataclass(frozen=True)
class Word:
    """One word. `confidence` is from 0 to 1: the geometric mean of its tokens' probabilities."""

    text: str
    start: Seconds
    end: Seconds
    confidence: float


@dataclass(frozen=True)
class Alternative:
    """One reading of a segment. `score` is in nats and compares readings of one segment, nothing else."""

    text: str
    score: float
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Segment:
    """Words between two endpoints. `confidence` is the mean over its words, weighted by their letters.

    alternatives: where they were asked for, the likeliest readings, best first; the first is that of the segment.
    """

    text: str
    start: Seconds
    end: Seconds
    confidence: float
    words: tuple[Word, ...]
    alternatives: tuple[Alternative, ...] = ()

    @classmethod
    def of(cls, words: tuple[Word, ...], alternatives: tuple[Alternative, ...] = ()) -> "Segment":
        """The segment of at least one word."""
        letters = [len(word.text) for word in words]
        confidence = sum(w.confidence * n for w, n in zip(words, letters, strict=True)) / sum(letters)
        text = " ".join(word.text for word in words)
        return cls(text, words[0].start, words[-1].end, confidence, words, alternatives)


@dataclass(frozen=True)
class Transcript:
    """Everything that was said in a recording of `duration` seconds."""

    segments: tuple[Segment, ...]
    duration: Seconds = 0.0

    @property
    def text(self) -> str:
        """All words in one line."""
        return " ".join(segment.text for segment in self.segments)

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of all segments, in order."""
        return tuple(word for segment in self.segments for word in segment.words)


class Writer:
    """Writes the segments of one recording to a text stream as they come; `close` writes what belongs at the end."""

    def __init__(self, out: TextIO, model: str = "") -> None:
        """model: name of the one that heard this, for the formats that tell it."""
        self.out = out
        self.model = model
        self.begin()

    @classmethod
    @contextmanager
    def open(cls, path: str | Path, model: str = "") -> Iterator[Self]:
        """A writer of the file `path`, which appears, or is replaced, whole at the end and not at all after an error.

        Raises ASRError where the file cannot be written.
        """
        path = Path(path)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        with _explained(path):
            out = part.open("w", encoding="utf-8", newline="\n")
        try:
            with out:
                writer = cls(out, model)
                yield writer
                writer.close()
            with _explained(path):
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def begin(self) -> None:
        """Writes what belongs before the first segment."""

    def write(self, segment: Segment) -> None:
        """Writes one segment; they come in order of time."""
        raise NotImplementedError

    def close(self) -> None:
        """Writes what belongs after the last segment; the stream stays open."""


class TextWriter(Writer):
    """One line of text per segment; of one with alternatives these, with scores in front, and an empty line."""

    def write(self, segment: Segment) -> None:
        for alternative in segment.alternatives:
            self.out.write(f"{alternative.score:9.3f}\t{_one_line(alternative.text)}\n")
        if segment.alternatives:
            self.out.write("\n")
        elif segment.text:
            self.out.write(f"{_one_line(segment.text)}\n")


class TsvWriter(Writer):
    """One row per segment: start and end in seconds, text; tab-separated under a header."""

    def begin(self) -> None:
        self.out.write("start\tend\ttext\n")

    def write(self, segment: Segment) -> None:
        if segment.text:
            self.out.write(f"{segment.start:.3f}\t{segment.end:.3f}\t{_one_line(segment.text)}\n")


class JsonWriter(Writer):
    """One object with `model`, `text`, `segments` and `words`; it is whole, and so written, only at the end."""

    def begin(self) -> None:
        self._segments: list[Segment] = []

    def write(self, segment: Segment) -> None:
        self._segments.append(segment)

    def close(self) -> None:
        transcript = Transcript(tuple(self._segments))
        segments = [asdict(segment) for segment in transcript.segments]
        for segment in segments:
            if not segment["alternatives"]:
                del segment["alternatives"]
        words = [asdict(word) for word in transcript.words]
        whole = {"model": self.model, "text": transcript.text, "segments": segments, "words": words}
        json.dump(_rounded(whole), self.out, ensure_ascii=False, indent=1)
        self.out.write("\n")


class SubtitleWriter(Writer):
    """Cues of at most CUE_LINES lines; none is empty and none begins before the one before it has ended."""

    decimal_mark: str

    def begin(self) -> None:
        self._count = 0
        self._free = 0  # milliseconds; where the next cue may begin

    def write(self, segment: Segment) -> None:
        for text, start, end in _cues(segment):
            begin = max(self._free, _milliseconds(start))
            self._free = max(begin + 1, _milliseconds(end))
            self._count += 1
            lines = textwrap.wrap(text, LINE_WIDTH, break_long_words=False, break_on_hyphens=False)
            times = f"{self.timestamp(begin)} --> {self.timestamp(self._free)}"
            self.out.write(self.cue(times, self.escape("\n".join(lines))))

    def timestamp(self, milliseconds: int) -> str:
        """Hours, minutes, seconds and thousandths."""
        seconds, thousandths = divmod(milliseconds, 1000)
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours:02}:{minutes:02}:{seconds:02}{self.decimal_mark}{thousandths:03}"

    def cue(self, times: str, text: str) -> str:
        """One cue with the empty line that ends it."""
        raise NotImplementedError

    def escape(self, text: str) -> str:
        """Text without what the format takes for its own marks."""
        raise NotImplementedError


class SrtWriter(SubtitleWriter):
    """SubRip subtitles."""

    decimal_mark = ","

    def cue(self, times: str, text: str) -> str:
        return f"{self._count}\n{times}\n{text}\n\n"

    def escape(self, text: str) -> str:
        return text.replace("-->", "->")


class VttWriter(SubtitleWriter):
    """WebVTT subtitles."""

    decimal_mark = "."

    def begin(self) -> None:
        super().begin()
        self.out.write("WEBVTT\n\n")

    def cue(self, times: str, text: str) -> str:
        return f"{times}\n{text}\n\n"

    def escape(self, text: str) -> str:
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


WRITERS: dict[str, type[Writer]] = {
    "txt": TextWriter,
    "json": JsonWriter,
    "srt": SrtWriter,
    "vtt": VttWriter,
    "tsv": TsvWriter,
}


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ASRError(f"cannot write {path}: {error.strerror}; choose another output folder") from error


def _cues(segment: Segment) -> Iterator[tuple[str, Seconds, Seconds]]:
    """Text, start and end of the subtitles of a segment; none of them is empty."""
    words = [word for word in segment.words if word.text.strip()]
    if words:
        for part in _divided(words):
            yield _one_line(" ".join(word.text for word in part)), part[0].start, part[-1].end
    elif text := _one_line(segment.text):
        yield text, segment.start, segment.end


def _divided(words: list[Word]) -> Iterator[list[Word]]:
    """Words divided where they pause, and otherwise in halves, until each part fits a subtitle."""
    pauses = [after.start - before.end for before, after in pairwise(words)]
    text = " ".join(word.text for word in words)
    fits = (
        len(textwrap.wrap(text, LINE_WIDTH, break_long_words=False)) <= CUE_LINES
        and words[-1].end - words[0].start <= CUE_SECONDS
        and max(pauses, default=0.0) < CUE_GAP
    )
    if fits or len(words) == 1:
        yield words
        return
    middle = (words[0].start + words[-1].end) / 2
    merits = [
        (pause >= CUE_GAP, pause - abs(word.start - middle) * DISTANCE_COST, -abs(2 * i - len(words)))
        for i, (pause, word) in enumerate(zip(pauses, words[1:], strict=True), 1)
    ]
    at = 1 + merits.index(max(merits))
    yield from _divided(words[:at])
    yield from _divided(words[at:])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _milliseconds(seconds: Seconds) -> int:
    return max(0, round(seconds * 1000))


def _rounded(value: object) -> object:
    """Numbers to thousandths, in any nesting."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
