"""Files that grow while one listens: they hold everything said until now, however the program ends."""

import io
import json
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import soundfile

from asr.audio import Resampler
from asr.cli import UsageError
from asr.errors import ASRError
from asr.transcript import WRITERS, JsonWriter, Segment

SOUNDS = {".flac": "PCM_16", ".wav": "PCM_16", ".ogg": "VORBIS"}  # suffix: how samples are stored
RECORD_SECONDS = 1.0  # of sound, at most, that are not in the file yet


class Saved:
    """A transcript in a new file; every segment is in it once `write` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("xb", buffering=0)
        except FileExistsError:
            raise _taken(path) from None
        except OSError as error:
            raise _unwritable(path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def write(self, segment: Segment) -> None:
        """Writes one segment; they come in order of time. ASRError where that fails, as on a full disk."""
        raise NotImplementedError

    def close(self) -> None:
        """Writes what belongs at the end and closes the file."""
        self._file.close()

    def _put(self, data: bytes) -> None:
        try:
            while data:  # a nearly full disk takes a part
                data = data[self._file.write(data) :]
        except OSError as error:
            raise _unwritable(self.path, error) from error


class SavedLines(Saved):
    """A format to which segments are appended: txt, srt, vtt, tsv."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._text = io.StringIO()
        self._writer = WRITERS[_format(path)](self._text)
        self._append()

    def write(self, segment: Segment) -> None:
        self._writer.write(segment)
        self._append()

    def close(self) -> None:
        self._writer.close()
        self._append()
        super().close()

    def _append(self) -> None:
        self._put(self._text.getvalue().encode())
        self._text.seek(0)
        self._text.truncate()


class SavedJson(Saved):
    """JSON that is valid after every segment: until the end it has `segments` alone, then `text` and `words` too."""

    TAIL = b"\n]}\n"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._segments: list[Segment] = []
        self._put(b'{"segments": [' + self.TAIL)

    def write(self, segment: Segment) -> None:
        text = json.dumps(asdict(segment), ensure_ascii=False)
        comma = ",\n" if self._segments else "\n"
        self._segments.append(segment)
        self._file.seek(-len(self.TAIL), io.SEEK_END)
        self._put(comma.encode() + text.encode() + self.TAIL)

    def close(self) -> None:
        super().close()
        with JsonWriter.open(self.path) as writer:
            for segment in self._segments:
                writer.write(segment)


class Recording:
    """A new sound file of what is heard: mono, 16 bits, at one rate also where the microphone changes its own."""

    def __init__(self, path: Path, sample_rate: int) -> None:
        self.path = path
        self._rate = sample_rate
        self._held = 0.0  # seconds in soundfile's buffer
        if path.exists():
            raise _taken(path)
        try:
            self._file = soundfile.SoundFile(path, "w", sample_rate, 1, SOUNDS[path.suffix.lower()])
        except soundfile.LibsndfileError as error:
            raise ASRError(f"cannot write {path}: {error.error_string} choose another place for --record") from error
        self._resampler = Resampler(sample_rate, sample_rate)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._write(self._resampler.flush())
        self._file.close()

    def at(self, sample_rate: int) -> None:
        """What comes from now on has this rate, Hz."""
        self._write(self._resampler.flush())
        self._resampler = Resampler(sample_rate, self._rate)

    def write(self, samples: np.ndarray) -> None:
        """samples: float32 (n,), clipped to -1 and 1."""
        self._write(self._resampler.step(samples))

    def _write(self, samples: np.ndarray) -> None:
        try:
            self._file.write(np.clip(samples, -1.0, 1.0))
            self._held += len(samples) / self._rate
            if self._held >= RECORD_SECONDS:
                self._file.flush()
                self._held = 0.0
        except soundfile.LibsndfileError as error:
            raise ASRError(f"cannot write {self.path}: {error.error_string} choose another disk") from error


def saved(path: Path) -> Saved:
    """A growing transcript in the format that the suffix names."""
    return SavedJson(path) if _format(path) == "json" else SavedLines(path)


def check(path: Path, option: str, suffixes: set[str]) -> None:
    """UsageError unless `path`, of this option, has one of the suffixes and names no file yet."""
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{option} {path} has a suffix that names no format; wanted {', '.join(sorted(suffixes))}")
    if path.exists():
        raise _taken(path)


def _format(path: Path) -> str:
    return path.suffix[1:].lower()


def _taken(path: Path) -> UsageError:
    return UsageError(f"{path} exists already, and what was said cannot be said again: choose another name")


def _unwritable(path: Path, error: OSError) -> ASRError:
    return ASRError(f"cannot write {path}: {error.strerror}; choose another place")
