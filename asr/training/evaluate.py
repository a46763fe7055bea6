"""How well a model hears: error rates with their uncertainty, what it confuses, and how fast it is.

results = [recognise(recognizer, utterance) for utterance in read("dev.tsv")]
print(summary(evaluate(results)))
"""

import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from typing import Any

import jiwer
import numpy as np

from asr.audio import read_blocks
from asr.errors import ASRError
from asr.recognizer import Recognizer, load
from asr.text import normalize
from asr.training.manifest import Utterance

RESAMPLES = 1000  # of the bootstrap
INTERVAL = (2.5, 97.5)  # percentiles
BINS = 10  # of the expected calibration error, of equal width
REPORT_WIDTH = 120  # characters


@dataclass(frozen=True)
class Recognised:
    """An utterance as it was read and as it was heard, both normalised, and the seconds that this took."""

    utterance: Utterance
    reference: str
    hypothesis: str
    audio_seconds: float
    reading_seconds: float  # to decode and resample the recording
    recognition_seconds: float  # from samples to words
    confidences: tuple[float, ...] = ()  # of the hypothesis's words, where they are known

    def to_dict(self) -> dict[str, Any]:
        """Path, corpus, speaker, texts and seconds, as plain values."""
        utterance = {
            "path": str(self.utterance.path),
            "corpus": self.utterance.corpus,
            "speaker": self.utterance.speaker,
        }
        return utterance | {name: value for name, value in asdict(self).items() if name != "utterance"}


@dataclass(frozen=True)
class Score:
    """Errors counted over utterances; rates are shares (0.1 is 10 %), None where there is nothing to compare with."""

    utterances: int
    audio_seconds: float
    words: int  # in the references
    substitutions: int
    deletions: int
    insertions: int
    wer: float | None
    wer_interval: tuple[float, float] | None  # 95 %, by bootstrap over utterances
    cer: float | None


@dataclass(frozen=True)
class Confidence:
    """How far confidence tells which of so many words are right; shares."""

    words: int
    calibration_error: float
    roc_area: float | None  # None where all words are right, or all wrong


@dataclass(frozen=True)
class Evaluation:
    """Scores, the commonest errors with their counts, and real-time factors (seconds of work per second of audio)."""

    overall: Score
    corpora: dict[str, Score]
    substitutions: list[tuple[str, str, int]]  # said, heard, times
    deletions: list[tuple[str, int]]
    insertions: list[tuple[str, int]]
    reading_rtf: float
    recognition_rtf: float
    confidence: Confidence | None = None
    speakers: dict[str, Score] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries of plain values."""
        return asdict(self)


def recognise(recognizer: Recognizer, utterance: Utterance) -> Recognised:
    """Hears one utterance; ASRError where its recording cannot be read."""
    rate = recognizer.model.config.features.sample_rate
    began = time.perf_counter()
    samples = np.concatenate(list(read_blocks(utterance.path, target_rate=rate)))
    read = time.perf_counter()
    transcript = recognizer.transcribe(samples, rate)
    heard = time.perf_counter()
    return Recognised(
        utterance,
        normalize(utterance.text),
        normalize(transcript.text),
        len(samples) / rate,
        read - began,
        heard - read,
        tuple(word.confidence for word in transcript.words),
    )


def recognise_all(
    model: str,
    utterances: Sequence[Utterance],
    jobs: int = 1,
    decoder: str = "auto",
    precision: str = "auto",
    hotwords: tuple[str, ...] = (),
) -> Iterator[Recognised | ASRError]:
    """Hears utterances in order, in `jobs` processes; an error stands in the place of a recording that is unreadable.

    model, decoder, precision, hotwords: as asr.load takes them; ASRError where there is no such model.
    """
    attempt = partial(_attempt, model, decoder, precision, hotwords)
    _load(model, decoder, precision, hotwords)
    if jobs == 1:
        yield from map(attempt, utterances)
        return
    # Not forked: ONNX Runtime's threads do not survive it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        yield from pool.map(attempt, utterances)


@lru_cache(maxsize=1)
def _load(model: str, decoder: str, precision: str, hotwords: tuple[str, ...]) -> Recognizer:
    return load(model, decoder=decoder, precision=precision, hotwords=hotwords)


def _attempt(
    model: str, decoder: str, precision: str, hotwords: tuple[str, ...], utterance: Utterance
) -> Recognised | ASRError:
    try:
        return recognise(_load(model, decoder, precision, hotwords), utterance)
    except ASRError as error:
        return error


def evaluate(results: Sequence[Recognised], commonest: int = 10) -> Evaluation:
    """Scores of all results, of each corpus and of each speaker; the `commonest` errors of each kind."""
    if not results:
        raise ASRError("there is no utterance to evaluate; check the manifest and its recordings")
    seconds = sum(r.audio_seconds for r in results)
    substitutions, deletions, insertions = _confusions(results)
    return Evaluation(
        score(results),
        _by(results, "corpus"),
        [(*pair, count) for pair, count in substitutions.most_common(commonest)],
        deletions.most_common(commonest),
        insertions.most_common(commonest),
        sum(r.reading_seconds for r in results) / seconds,
        sum(r.recognition_seconds for r in results) / seconds,
        _confidence(results),
        _by(results, "speaker"),
    )


def _by(results: Sequence[Recognised], what: str) -> dict[str, Score]:
    """Scores of the results that share an attribute of their utterances, by its values in order."""
    groups: dict[str, list[Recognised]] = {}
    for result in results:
        groups.setdefault(getattr(result.utterance, what), []).append(result)
    return {name: score(groups[name]) for name in sorted(groups)}


def _confidence(results: Sequence[Recognised]) -> Confidence | None:
    known = [r for r in results if r.confidences and len(r.confidences) == len(r.hypothesis.split())]
    if not known:
        return None
    probability = np.concatenate([r.confidences for r in known])
    right = np.concatenate([partners(r.reference, r.hypothesis.split()) for r in known]) >= 0
    area = roc_area(probability, right)
    return Confidence(len(right), calibration_error(probability, right), None if np.isnan(area) else area)


def partners(reference: str, words: list[str]) -> np.ndarray:
    """For each word heard the number of the reference's word that it is, or -1 where it is wrong."""
    partner = np.full(len(words), -1)
    if words and reference:
        for chunk in jiwer.process_words(reference, " ".join(words)).alignments[0]:
            if chunk.type == "equal":
                partner[chunk.hyp_start_idx : chunk.hyp_end_idx] = np.arange(chunk.ref_start_idx, chunk.ref_end_idx)
    return partner


def calibration_error(probability: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error in BINS bins of equal width (Guo et al., 2017): a share; shapes = (words,)."""
    bins = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, probability - right, BINS)
    return float(np.abs(gaps).sum() / len(right))


def roc_area(score: np.ndarray, right: np.ndarray) -> float:
    """Probability that a word that is right scores above one that is wrong, ties half; NaN without both kinds."""
    _, group, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2
    positives = int(right.sum())
    negatives = len(right) - positives
    if not positives or not negatives:
        return float("nan")
    return float((rank[group][right].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def score(results: Sequence[Recognised]) -> Score:
    """Word and character error rates; each counts over all utterances together, as is usual."""
    words = _aligned(results)
    characters = jiwer.process_characters([r.reference for r in results], [r.hypothesis for r in results])
    spoken = characters.hits + characters.substitutions + characters.deletions
    wrong = characters.substitutions + characters.deletions + characters.insertions
    counts = np.array([len(reference) for reference in words.references])
    errors = np.array(
        [
            sum(max(c.ref_end_idx - c.ref_start_idx, c.hyp_end_idx - c.hyp_start_idx) for c in chunks)
            for chunks in ([c for c in chunks if c.type != "equal"] for chunks in words.alignments)
        ]
    )
    return Score(
        len(results),
        sum(r.audio_seconds for r in results),
        int(counts.sum()),
        words.substitutions,
        words.deletions,
        words.insertions,
        float(errors.sum() / counts.sum()) if counts.any() else None,
        interval(errors, counts) if counts.any() else None,
        wrong / spoken if spoken else None,
    )


def interval(errors: np.ndarray, words: np.ndarray, seed: int = 1) -> tuple[float, float]:
    """The 95 % confidence interval of sum(errors) / sum(words) when utterances are drawn anew, with replacement.

    errors, words: shape = (utterances,). Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR
    performance evaluation", ICASSP 2004.
    """
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(words), size=len(words)) for _ in range(RESAMPLES))
    rates = [errors[drawn].sum() / max(1, words[drawn].sum()) for drawn in draws]
    low, high = np.percentile(rates, INTERVAL)
    return float(low), float(high)


def summary(evaluation: Evaluation, speakers: bool = False) -> str:
    """The evaluation as a table, with a row for each of the `speakers` if wanted, and lists for a terminal."""
    rows = evaluation.speakers | evaluation.corpora if speakers else dict(evaluation.corpora)
    if len(evaluation.corpora) > 1:
        rows["all"] = evaluation.overall
    width = max(len(name) for name in rows)
    lines = [f"{'':{width}}  utts  hours   words  WER %          (95 %)  CER %    sub    del    ins"]
    for name, s in rows.items():
        lines.append(
            f"{name:{width}} {s.utterances:5} {s.audio_seconds / 3600:6.2f} {s.words:7} {_percent(s.wer):>6} "
            f"{f'({_range(s)})':>15} {_percent(s.cer):>6} {s.substitutions:6} {s.deletions:6} {s.insertions:6}"
        )
    kinds = {
        "said -> heard": [(f"{said} -> {heard}", count) for said, heard, count in evaluation.substitutions],
        "left out": evaluation.deletions,
        "added": evaluation.insertions,
    }
    lines += ["", *(f"{kind}: {_counted(errors)}" for kind, errors in kinds.items())]
    recognition, reading = evaluation.recognition_rtf, evaluation.reading_rtf
    if c := evaluation.confidence:
        area = "-" if c.roc_area is None else f"{c.roc_area:.3f}"
        lines += ["", f"confidence: {_percent(c.calibration_error)} % calibration error, {area} ROC area"]
    lines += ["", f"real-time factor: {recognition:.4f} recognition, {reading:.4f} reading the audio"]
    return "\n".join(lines)


def versus(evaluations: dict[str, Evaluation]) -> str:
    """Evaluations of the same utterances beside each other, a line each."""
    return "\n".join(
        f"{name}: WER {_percent(e.overall.wer)} % ({_range(e.overall)}), CER {_percent(e.overall.cer)} %, "
        f"real-time factor {e.recognition_rtf:.4f}"
        for name, e in evaluations.items()
    )


def report(results: Sequence[Recognised]) -> str:
    """Every utterance with its words aligned, those with most errors first."""
    blocks = []
    for result in results:
        aligned = _aligned([result])
        errors = aligned.substitutions + aligned.deletions + aligned.insertions
        text = jiwer.visualize_alignment(aligned, show_measures=False, skip_correct=False, line_width=REPORT_WIDTH)
        rows = "\n".join(row.rstrip() for row in text.splitlines()[2:])
        title = f"{result.utterance.path}  {errors} of {len(aligned.references[0])} words wrong"
        blocks.append((errors, f"{title}\n{rows.rstrip()}\n"))
    return "\n".join(block for _, block in sorted(blocks, key=lambda b: -b[0]))


def _aligned(results: Sequence[Recognised]) -> jiwer.WordOutput:
    return jiwer.process_words([r.reference for r in results], [r.hypothesis for r in results])


def _confusions(results: Sequence[Recognised]) -> tuple[Counter[tuple[str, str]], Counter[str], Counter[str]]:
    """How often each word was taken for another, left out, and added."""
    substitutions: Counter[tuple[str, str]] = Counter()
    deletions: Counter[str] = Counter()
    insertions: Counter[str] = Counter()
    words = _aligned(results)
    for said, heard, chunks in zip(words.references, words.hypotheses, words.alignments, strict=True):
        for chunk in chunks:
            reference = said[chunk.ref_start_idx : chunk.ref_end_idx]
            hypothesis = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
            if chunk.type == "substitute":
                substitutions.update(zip(reference, hypothesis, strict=True))
            elif chunk.type == "delete":
                deletions.update(reference)
            elif chunk.type == "insert":
                insertions.update(hypothesis)
    return substitutions, deletions, insertions


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _range(score: Score) -> str:
    return "-".join(_percent(end) for end in score.wer_interval or ())


def _counted(errors: list[tuple[str, int]]) -> str:
    return ", ".join(f"{what} ({count})" for what, count in errors) or "nothing"
