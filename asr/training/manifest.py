"""Utterances with their texts, from a manifest or from folders laid out as LibriSpeech's are."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import soundfile

from asr.errors import ASRError

COLUMNS = ("path", "seconds", "speaker", "corpus", "text")


@dataclass(frozen=True)
class Utterance:
    """One recording with its words."""

    path: Path
    seconds: float
    speaker: str
    corpus: str
    text: str  # as the corpus has it; asr.text.normalize makes it comparable


def read(source: str | Path, root: Path | None = None) -> list[Utterance]:
    """The utterances of a manifest or of a LibriSpeech folder, in their order there.

    A manifest is tab-separated text in UTF-8 with the header path, seconds, speaker, corpus, text; its paths are
    relative to `root`, by default the manifest's own folder. A LibriSpeech folder may be the corpus, a split, a speaker
    or a chapter: SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt beside recordings (https://www.openslr.org/12).

    Raises:
        ASRError: nothing there, or a line that cannot be used; the message names file and line.
    """
    source = Path(source)
    if source.is_dir():
        utterances = [u for transcript in sorted(source.rglob("*.trans.txt")) for u in _read_transcript(transcript)]
        if not utterances:
            raise ASRError(f"{source} holds no *.trans.txt; give a manifest (.tsv) or a LibriSpeech split")
        return utterances
    utterances = list(_read_manifest(source, source.parent if root is None else root))
    if not utterances:
        raise ASRError(f"{source} lists no utterance under its header; add at least one line")
    return utterances


def validate(utterances: Iterable[Utterance]) -> list[str]:
    """What is wrong with utterances, one sentence each: missing recordings, empty texts, recordings named twice."""
    utterances = list(utterances)
    problems = [f"{u.path} does not exist" for u in utterances if not u.path.is_file()]
    problems += [f"{u.path} has no text" for u in utterances if not u.text.strip()]
    times = Counter(u.path for u in utterances)
    problems += [f"{path} is listed {count} times" for path, count in times.items() if count > 1]
    return problems


def _read_manifest(manifest: Path, root: Path) -> Iterator[Utterance]:
    header, *lines = _lines(manifest)
    if tuple(header.split("\t")) != COLUMNS:
        found = ", ".join(header.split("\t"))[:80] or "nothing"
        raise ASRError(f"{manifest}:1 must name the columns {', '.join(COLUMNS)} between tabs, but it has {found}")
    for number, line in enumerate(lines, start=2):
        if not line:
            continue
        row = line.split("\t")
        if len(row) != len(COLUMNS):
            raise ASRError(f"{manifest}:{number} has {len(row)} columns instead of {len(COLUMNS)}; mend the line")
        path, seconds, speaker, corpus, text = row
        yield Utterance(root / path, _seconds(seconds, f"{manifest}:{number}"), speaker, corpus, text)


def _read_transcript(transcript: Path) -> Iterator[Utterance]:
    corpus = transcript.resolve().parent.parent.parent.name
    for number, line in enumerate(_lines(transcript), start=1):
        if not line:
            continue
        name, _, text = line.partition(" ")
        path = transcript.with_name(f"{name}.flac")
        try:
            seconds = soundfile.info(path).duration
        except (OSError, soundfile.LibsndfileError):
            reason = "cannot be read as audio" if path.exists() else "does not exist"
            raise ASRError(
                f"{transcript}:{number} names {path.name}, which {reason}; fetch it again or remove the line"
            ) from None
        yield Utterance(path, seconds, name.partition("-")[0], corpus, text)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise ASRError(f"there is no manifest or folder {path}; check the path") from None
    except OSError as error:
        raise ASRError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ASRError(f"{path} is not UTF-8 text (byte {error.start}); give a manifest (.tsv)") from None


def _seconds(text: str, place: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ASRError(f"{place} gives {text!r} as seconds; it must be a number above 0")
    return seconds
