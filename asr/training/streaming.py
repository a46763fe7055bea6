"""How a stream feels: when a word shows, how often it changes, when it is final, and what a chunk costs.

    table(measure(load("en"), read("dev.tsv"), (80, 160, 320, 640)))

All delays are on the clock of the audio, as on a machine that is never late; the processor time of a chunk is beside
them. Where a word ends acoustically is taken from the likeliest alignment of the reference (`asr.ctc.align`) to the
model's own emissions, less the delays that `asr calibrate` has measured, as for the words of a hypothesis. A word
counts only where it was heard rightly.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import jiwer
import numpy as np

from asr.audio import read_blocks
from asr.ctc import align, word_spans
from asr.decoding.times import WordTimes
from asr.errors import ASRError
from asr.features import Samples, log_mel
from asr.recognizer import Recognizer
from asr.runtime import Model
from asr.segmenter import Hypothesis
from asr.text import normalize
from asr.tokenizer import BOUNDARY
from asr.training.manifest import Utterance
from asr.transcript import Seconds, Word

CHUNKS = (80, 160, 320, 640)  # ms
SILENCE = 2.5  # seconds after each recording, in which its last words become final
NEAR = 0.5  # seconds between the starts of a word in an early and in the final hypothesis, at most, to be the same one


@dataclass(frozen=True)
class Snapshot:
    """All words of a stream after a chunk: those of final hypotheses, then those of the partial one."""

    seconds: Seconds  # of audio heard
    words: tuple[Word, ...]
    final: int  # how many words are final
    committed: int  # how many stay as they are, the final ones among them

    @property
    def texts(self) -> list[str]:
        return [word.text for word in self.words]


@dataclass
class Tally:
    """What was counted at one chunk size."""

    chunk_ms: int
    references: list[str] = field(default_factory=list)
    hypotheses: list[str] = field(default_factory=list)
    different: int = 0  # utterances whose text is not that of the whole recording
    shown: list[Seconds] = field(default_factory=list)  # from the end of each right word until it shows
    committed: list[Seconds] = field(default_factory=list)  # the same until it is committed
    final: list[Seconds] = field(default_factory=list)  # from the end of each utterance's speech until all is final
    changed: int = 0  # words that were shown and then were others or gone
    grown: int = 0  # last words that went on, as "wit" does in "with"
    chunk_seconds: list[float] = field(default_factory=list)  # of processor time
    audio_seconds: Seconds = 0.0


@dataclass(frozen=True)
class Row:
    """One chunk size; delays in seconds as 50th, 90th and 99th percentile, None where nothing was heard rightly."""

    chunk_ms: int
    utterances: int
    different_from_offline: int
    wer: float | None
    shown_delay: tuple[float, ...] | None
    committed_delay: tuple[float, ...] | None
    final_delay: tuple[float, ...] | None
    unstable_words: float | None  # shown and then changed, per final word
    growing_words: float | None  # last words that went on, per final word
    chunk_p50_ms: float
    chunk_p99_ms: float
    rtf: float  # seconds of processor time per second of audio

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def measure(
    recognizer: Recognizer,
    utterances: Iterable[Utterance],
    chunks: Sequence[int] = CHUNKS,
    progress: Callable[[Utterance], None] = lambda utterance: None,
) -> list[Row]:
    """Streams every utterance in chunks of each size (ms), with silence after it, and compares with the whole.

    Raises ASRError where a recording cannot be read, there is none, or the model does not stream.
    """
    config = recognizer.model.config
    if not config.streaming:
        raise ASRError(f"the model {config.name} reads whole segments in both directions; only a streaming one streams")
    rate = config.features.sample_rate
    tallies = [Tally(chunk) for chunk in chunks]
    for utterance in utterances:
        progress(utterance)
        speech = list(read_blocks(utterance.path, target_rate=rate))
        samples = np.concatenate([*speech, np.zeros(round(SILENCE * rate), np.float32)])
        reference = normalize(utterance.text)
        ends = word_ends(recognizer.model, samples, reference)
        whole = recognizer.transcribe(samples, rate).text
        for tally in tallies:
            _count(tally, recognizer, samples, reference, ends, whole)
    if not tallies or not tallies[0].references:
        raise ASRError("there is no utterance to stream; check the manifest and its recordings")
    return [_row(tally) for tally in tallies]


def word_ends(model: Model, samples: Samples, reference: str) -> list[Seconds]:
    """Where each word of a normalised reference ends; empty where it cannot be aligned."""
    config = model.config
    frames = log_mel(samples, config.features)
    length = config.chunk_frames
    state, emissions = model.start(), []
    for begin in range(0, len(frames) - length + 1, length):
        log_probs, state = model.step(frames[None, begin : begin + length], state)
        emissions.append(log_probs[0])
    tokens = model.tokenizer.tokens
    try:
        spans = align(np.concatenate(emissions)[config.lookahead :], model.tokenizer.encode(reference))
    except (ASRError, ValueError):
        return []
    bounds = [(begin, end) for _, begin, end in word_spans(spans, tokens)]
    if len(bounds) != len(reference.split()):
        return []
    starts = [span.start for span in spans if tokens[span.token] != BOUNDARY]
    first = np.array([begin for begin, _ in bounds])
    last = np.array([max(start for start in starts if start < end) for _, end in bounds])
    times = WordTimes.from_config(config.times, config.delay_seconds, config.emission_seconds)
    _, ends = times.spans((first * config.emission_seconds).tolist(), (last * config.emission_seconds).tolist())
    return ends


def _count(
    tally: Tally, recognizer: Recognizer, samples: Samples, reference: str, ends: list[Seconds], whole: str
) -> None:
    snapshots = list(_stream(recognizer, samples, tally))
    words = snapshots[-1].words
    text = " ".join(word.text for word in words)
    tally.references.append(reference)
    tally.hypotheses.append(normalize(text))
    tally.different += text != whole
    tally.audio_seconds += len(samples) / recognizer.model.config.features.sample_rate
    for before, after in pairwise(snapshots):
        changed, grown = flicker(before.texts, after.texts)
        tally.changed += changed
        tally.grown += grown
    if not ends:
        return
    if words:
        complete = next(snapshot for snapshot in snapshots if snapshot.final == len(words))
        tally.final.append(complete.seconds - ends[-1])
    for said, heard in right_words(reference, text):
        tally.shown.append(_first_shown(snapshots, words[heard]) - ends[said])
        committed = next(snapshot for snapshot in snapshots if snapshot.committed > heard)
        tally.committed.append(committed.seconds - ends[said])


def _stream(recognizer: Recognizer, samples: Samples, tally: Tally) -> Iterator[Snapshot]:
    """What stands there after each chunk, and after the end."""
    rate = recognizer.model.config.features.sample_rate
    size = tally.chunk_ms * rate // 1000
    stream = recognizer.stream(rate)
    final: tuple[Word, ...] = ()
    open_words: tuple[Word, ...] = ()
    committed = 0

    def take(hypotheses: list[Hypothesis], seconds: Seconds) -> Snapshot:
        nonlocal final, open_words, committed
        for hypothesis in hypotheses:
            if hypothesis.is_final:
                final, open_words, committed = final + hypothesis.words, (), 0
            else:
                open_words, committed = hypothesis.words, hypothesis.committed
        return Snapshot(seconds, final + open_words, len(final), len(final) + committed)

    for begin in range(0, len(samples), size):
        piece = samples[begin : begin + size]
        began = time.process_time()
        hypotheses = stream.accept(piece)
        tally.chunk_seconds.append(time.process_time() - began)
        yield take(hypotheses, (begin + len(piece)) / rate)
    yield take(stream.finish(), len(samples) / rate)


def flicker(before: list[str], after: list[str]) -> tuple[int, int]:
    """How many shown words have changed, and whether the last one has merely grown (1 or 0)."""
    same = next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )
    gone = len(before) - same
    grown = gone == 1 and same < len(after) and after[same].startswith(before[same])
    return (0, 1) if grown else (gone, 0)


def right_words(reference: str, hypothesis: str) -> list[tuple[int, int]]:
    """Positions in the reference and in the hypothesis of words that were heard rightly."""
    if not reference or not hypothesis:
        return []
    (chunks,) = jiwer.process_words(reference, hypothesis).alignments
    return [
        pair
        for chunk in chunks
        if chunk.type == "equal"
        for pair in zip(
            range(chunk.ref_start_idx, chunk.ref_end_idx), range(chunk.hyp_start_idx, chunk.hyp_end_idx), strict=True
        )
    ]


def _first_shown(snapshots: list[Snapshot], word: Word) -> Seconds:
    return next(
        snapshot.seconds
        for snapshot in snapshots
        if any(shown.text == word.text and abs(shown.start - word.start) <= NEAR for shown in snapshot.words)
    )


def _row(tally: Tally) -> Row:
    words = sum(len(hypothesis.split()) for hypothesis in tally.hypotheses)
    p50, p99 = np.percentile(tally.chunk_seconds, [50, 99]) * 1000
    return Row(
        tally.chunk_ms,
        len(tally.references),
        tally.different,
        float(jiwer.wer(tally.references, tally.hypotheses)) if any(tally.references) else None,
        _percentiles(tally.shown),
        _percentiles(tally.committed),
        _percentiles(tally.final),
        tally.changed / words if words else None,
        tally.grown / words if words else None,
        float(p50),
        float(p99),
        sum(tally.chunk_seconds) / tally.audio_seconds,
    )


def _percentiles(delays: list[Seconds]) -> tuple[float, ...] | None:
    return tuple(np.percentile(delays, [50, 90, 99]).tolist()) if delays else None


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| chunk | WER % | as offline | word shows after, s (p50 / p90 / p99) | word stays after, s "
        "| all is final after, s | words changed | words grown | processor time per chunk, ms (p50 / p99) "
        "| real-time factor |",
        "|-|-|-|-|-|-|-|-|-|-|",
    ]
    lines += [
        f"| {row.chunk_ms} ms | {_share(row.wer)} | {_same(row)} | {_delays(row.shown_delay)} "
        f"| {_delays(row.committed_delay)} | {_delays(row.final_delay)} | {_share(row.unstable_words)} % "
        f"| {_share(row.growing_words)} % | {row.chunk_p50_ms:.1f} / {row.chunk_p99_ms:.1f} | {row.rtf:.4f} |"
        for row in rows
    ]
    return "\n".join(lines)


def _same(row: Row) -> str:
    return "all" if row.different_from_offline == 0 else f"{row.different_from_offline} of {row.utterances} differ"


def _delays(delays: tuple[float, ...] | None) -> str:
    return " / ".join(f"{delay:.2f}" for delay in delays) if delays else "-"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
