"""Word times and confidence, measured on recordings with known words: what `asr calibrate` puts into a model's config.

samples = read_samples(utterance)
heard = [hear(recognizer, recognizer.decoder, utterance, samples, recognizer.emissions(samples)), ...]
times, confidence = fit_times(heard), fit_confidence(heard)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torchaudio.functional import forced_align, merge_tokens

from asr.audio import read_blocks
from asr.ctc import BLANK_ID, frames_needed
from asr.decoding import Decoder, Span
from asr.decoding import Path as TokenPath
from asr.decoding.beam import BeamSearch
from asr.decoding.confidence import CLIP, EVIDENCE, Calibration, Judge
from asr.decoding.greedy import Greedy
from asr.decoding.times import WordTimes
from asr.decoding.words import reader
from asr.errors import ASRError
from asr.features import Samples
from asr.recognizer import Recognizer
from asr.segmenter import Hypothesis, Segmenter
from asr.text import normalize
from asr.tokenizer import Tokenizer
from asr.training.evaluate import calibration_error, partners, roc_area
from asr.training.manifest import Utterance
from asr.transcript import Word

AS_EMITTED = WordTimes(0.0, 0.0, 0.0, 0.0)  # words begin with their first token and end with their last
PAUSES = np.arange(0.16, 0.6, 0.04)  # seconds between two words, of which fitting chooses one
FURTHEST = 0.5  # seconds to which an error of the alignment itself may count in fitting
FOLDS = 5
RIDGE = 1e-3  # of the logistic regression, per word
ALIGNER_RATE = 16_000
PCM_SCALE = 32_767

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Heard:
    """The words that a decoder finds in one recording, shape = (words,) each.

    evidence: shape = (words, kinds of EVIDENCE); first, last: seconds of their first and last tokens as emitted;
    segment: number of the segment they are in; right: whether the reference has them; start, end: when they are said,
    by alignment of the reference, NaN where that is not known. aligned: first and last tokens of all words of the
    reference as `aligned_tokens` has them, shape = (words of the reference, 2), and place: where each word is among
    them, -1 where it is not.
    """

    speaker: str
    corpus: str
    evidence: Values
    first: Values
    last: Values
    segment: NDArray[np.int64]
    right: NDArray[np.bool_]
    start: Values
    end: Values
    aligned: Values
    place: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.right)


@dataclass(frozen=True)
class BoundaryErrors:
    """Absolute errors of word boundaries in seconds, and how many boundaries they are of."""

    median: float
    p90: float
    late: float  # median of the errors with their sign: above 0 where boundaries are given too late
    count: int

    def __str__(self) -> str:
        return (
            f"median {1000 * self.median:.0f} ms, 90 % within {1000 * self.p90:.0f} ms, {1000 * self.late:+.0f} ms late"
        )


class _Witness(Judge):
    """A judge that keeps the evidence of the last words it is asked for."""

    def __init__(self, tokens: Sequence[str]) -> None:
        super().__init__(tokens, None)
        self._watches = True
        self.seen: Values = np.zeros((0, len(EVIDENCE)))

    def confidences(
        self,
        decoder: Decoder,
        state: Any,
        log_probs: NDArray[np.float32],
        path: TokenPath,
        final: bool,
        spans: Sequence[Span],
    ) -> list[float]:
        self.seen = self.evidence(decoder, state, log_probs, path, final, spans).T
        return [1.0] * len(self.seen)


def hear(
    recognizer: Recognizer, decoder: Decoder, utterance: Utterance, samples: Samples, chunks: list[NDArray[np.float32]]
) -> Heard:
    """Decodes a recording's emissions as a stream does, and compares with what is known of it."""
    config = replace(recognizer.model.config, times=AS_EMITTED.to_config(), confidence={})
    witness = _Witness(recognizer.model.tokenizer.tokens)
    segmenter = Segmenter(config, recognizer.model.tokenizer.tokens, decoder, recognizer.rules, judge=witness)
    words: list[Word] = []
    evidence, segments = [np.zeros((0, len(EVIDENCE)))], []

    def finals() -> Iterator[Hypothesis]:
        for chunk in chunks:
            yield from segmenter.step(chunk)
        yield from segmenter.flush()

    for number, final in enumerate(finals()):
        words += final.words
        evidence.append(witness.seen[: len(final.words)])  # a segment may be cut before words that it has heard
        segments += [number] * len(final.words)
    reference = normalize(utterance.text)
    partner = partners(reference, [word.text for word in words])
    spoken = spoken_times(samples, reference)
    start, end = np.full((2, len(words)), np.nan)
    if spoken is not None and len(words):
        known = partner >= 0
        start[known], end[known] = spoken[partner[known]].T
    aligned = aligned_tokens(np.concatenate(chunks), reference, recognizer.model.tokenizer) * config.emission_seconds
    return Heard(
        utterance.speaker,
        utterance.corpus,
        np.concatenate(evidence),
        np.array([word.start for word in words]),
        np.array([word.end for word in words]),
        np.array(segments, np.int64),
        partner >= 0,
        start,
        end,
        aligned,
        partner if len(aligned) else np.full(len(words), -1),
    )


@cache
def _aligner() -> Any:
    import pocketsphinx

    return pocketsphinx.Decoder(lm=None, loglevel="FATAL", samprate=ALIGNER_RATE)


def spoken_times(samples: Samples, reference: str) -> Values | None:
    """Start and end in seconds of each word of a normalised English text, shape = (words, 2), by PocketSphinx.

    Its acoustic model of Gaussian mixtures has nothing in common with ours, and decides every 10 ms. None where its
    dictionary lacks a word or the text does not fit. samples: at ALIGNER_RATE.
    """
    aligner = _aligner()
    words = reference.split()
    if not words or any(aligner.lookup_word(word) is None for word in words):
        return None
    aligner.set_align_text(reference)
    aligner.start_utt()
    aligner.process_raw((np.clip(samples, -1, 1) * PCM_SCALE).astype("<i2").tobytes(), full_utt=True)
    aligner.end_utt()
    if aligner.hyp() is None:
        return None
    found = [(s.start_frame / 100, (s.end_frame + 1) / 100) for s in aligner.seg() if s.word[0] not in "<["]
    return np.array(found) if len(found) == len(words) else None


def aligned_tokens(log_probs: NDArray[np.float32], reference: str, tokenizer: Tokenizer) -> Values:
    """Emissions of the first and last token of each word of a normalised text, shape = (words, 2).

    That is torchaudio's forced alignment of the text to the emissions, shape = (emissions, vocabulary), in the
    pronunciation that fits them best. No words at all where a word has none or the text is too long for them.
    """
    if not reference or tokenizer.unknown(reference):
        return np.zeros((0, 2))
    emitted = torch.from_numpy(np.array(log_probs, np.float32))[None]
    alignments = []
    for tokens in tokenizer.spellings(reference):
        if frames_needed(tokens) <= len(log_probs):
            labels, scores = forced_align(emitted, torch.tensor([tokens]), blank=BLANK_ID)
            alignments.append((float(scores.sum()), tokens, merge_tokens(labels[0], scores[0], BLANK_ID)))
    if not alignments:
        return np.zeros((0, 2))
    _, tokens, found = max(alignments, key=lambda alignment: alignment[0])
    spans = reader(tokenizer).words(tokens)
    return np.array([(found[span.begin].start, found[span.end - 1].start) for span in spans], np.float64)


def fit_times(heard: Sequence[Heard]) -> WordTimes:
    """The delays with the smallest errors in the words that are right; medians, for each length of pause that is tried.

    ASRError where no word could be aligned.
    """
    best, least = None, np.inf
    for pause in PAUSES.tolist():
        late: dict[str, list[Values]] = {"start": [], "onset": [], "end": []}
        for first, last, start, end in _segments(heard):
            paused = first[1:] - last[:-1] > pause
            late["start"].append((first - start)[1:][~paused])
            late["onset"].append((first - start)[np.append(True, paused)])
            late["end"].append((last - end)[np.append(paused, True)])
        delays = {name: _median(np.concatenate(values or [np.zeros(0)])) for name, values in late.items()}
        if any(np.isnan(value) for value in delays.values()):
            continue
        times = WordTimes(**delays, pause=round(pause, 3))
        error = float(np.mean(np.minimum(np.abs(boundary_errors(heard, times)), FURTHEST)))
        if error < least:
            best, least = times, error
    if best is None:
        raise ASRError("too few words could be aligned to measure word times; give more recordings, in English")
    return best


def boundary_errors(heard: Sequence[Heard], times: WordTimes) -> Values:
    """Seconds by which starts and ends of the words that are right are given too late, shape = (boundaries,)."""
    errors = [np.zeros(0)]
    for first, last, start, end in _segments(heard):
        found = np.array(times.spans(first, last))
        errors += [found[0] - start, found[1] - end]
    together = np.concatenate(errors)
    return together[~np.isnan(together)]


def alignment_errors(heard: Sequence[Heard], times: WordTimes) -> Values:
    """As `boundary_errors`, against `aligned_tokens` with the same delays: what the search adds to the error."""
    errors = [np.zeros(0)]
    for h in heard:
        spans = [np.stack(times.spans(first, last)) for first, last, _, _ in _segments([h])]
        known = h.place >= 0
        if known.any():
            said = np.stack(times.spans(*h.aligned.T))
            errors += [*(np.concatenate(spans, axis=1)[:, known] - said[:, h.place[known]])]
    together = np.concatenate(errors)
    return together[np.isfinite(together)]


def summarise(errors: Values) -> BoundaryErrors:
    """Median and 90th percentile."""
    return BoundaryErrors(
        float(np.median(np.abs(errors))),
        float(np.percentile(np.abs(errors), 90)),
        float(np.median(errors)),
        len(errors),
    )


def _segments(heard: Sequence[Heard]) -> Iterator[tuple[Values, Values, Values, Values]]:
    for h in heard:
        bounds = [0, *(np.flatnonzero(np.diff(h.segment)) + 1).tolist(), len(h)]
        for begin, end in pairwise(bounds):
            if end > begin:
                yield h.first[begin:end], h.last[begin:end], h.start[begin:end], h.end[begin:end]


def _median(values: Values) -> float:
    known = values[~np.isnan(values)]
    return round(float(np.median(known)), 3) if len(known) else float("nan")


def fit_confidence(heard: Sequence[Heard]) -> Calibration:
    """Logistic regression of "this word is right" with weights that are not negative.

    ASRError where all words are right, or all wrong.
    """
    x = np.concatenate([h.evidence for h in heard])
    right = np.concatenate([h.right for h in heard]).astype(np.float64)
    if not 0 < right.mean() < 1:
        raise ASRError("confidence needs recordings with words that are right and words that are wrong; give more")
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    used = np.flatnonzero(deviation > 1e-9)
    while True:
        z = np.clip((x[:, used] - mean[used]) / deviation[used], -CLIP, CLIP)

        def loss(parameters: Values, z: Values = z) -> tuple[float, Values]:
            odds = parameters[0] + z @ parameters[1:]
            value = np.logaddexp(0, odds).mean() - (right * odds).mean() + RIDGE * (parameters[1:] ** 2).sum()
            slope = 1 / (1 + np.exp(-odds)) - right
            gradient = np.concatenate([[slope.mean()], z.T @ slope / len(z) + 2 * RIDGE * parameters[1:]])
            return float(value), gradient

        bounds = [(None, None), *[(0.0, None)] * len(used)]
        found = minimize(loss, np.zeros(len(used) + 1), jac=True, method="L-BFGS-B", bounds=bounds).x
        useful = found[1:] > 0.02
        if useful.all():
            break
        used = used[useful]

    def rounded(values: Values) -> tuple[float, ...]:
        return tuple(float(f"{value:.5g}") for value in values.tolist())

    return Calibration(
        round(float(found[0]), 5),
        tuple(EVIDENCE[i] for i in used),
        rounded(mean[used]),
        rounded(deviation[used]),
        rounded(found[1:]),
    )


def probabilities(calibration: Calibration, heard: Sequence[Heard]) -> Values:
    """Of all words, as a calibration has them."""
    x = np.concatenate([h.evidence for h in heard])
    return calibration.probabilities(x.T)


def folds(heard: Sequence[Heard]) -> Iterator[tuple[list[Heard], list[Heard]]]:
    """Recordings to fit on and recordings to measure on; no speaker is in both."""
    speakers = sorted({(h.corpus, h.speaker) for h in heard})
    count = min(FOLDS, len(speakers))
    fold = {speaker: i % count for i, speaker in enumerate(speakers)}
    for number in range(count):
        measured = [h for h in heard if fold[h.corpus, h.speaker] == number]
        fitted = [h for h in heard if fold[h.corpus, h.speaker] != number]
        if fitted and any(len(h) for h in measured):
            yield fitted, measured


@dataclass(frozen=True)
class Quality:
    """How good times and confidence are for the words of one corpus, on speakers that they were not fitted on."""

    words: int
    right: float  # share of them
    boundaries: BoundaryErrors | None  # None where nothing could be aligned
    search: BoundaryErrors | None  # against the alignment of the reference to the same emissions
    calibration_error: float
    roc_area: float

    def __str__(self) -> str:
        return (
            f"{self.words} words, {self.right:.1%} right; boundaries: {self.boundaries or 'not aligned'}; "
            f"against forced alignment: {self.search or 'not aligned'}; "
            f"confidence: calibration error {self.calibration_error:.1%}, ROC area {self.roc_area:.3f}"
        )


def quality(heard: Sequence[Heard]) -> dict[str, Quality]:
    """By corpus, and of all together, by cross-validation over speakers."""
    errors: list[tuple[str, Values, Values]] = []
    judged: list[tuple[str, Values, NDArray[np.bool_]]] = []
    for fitted, measured in folds(heard):
        times, calibration = fit_times(fitted), fit_confidence(fitted)
        for h in measured:
            errors.append((h.corpus, boundary_errors([h], times), alignment_errors([h], times)))
            judged.append((h.corpus, probabilities(calibration, [h]), h.right))
    corpora = sorted({h.corpus for h in heard})
    found = {}
    for name in [*corpora, "all"] if len(corpora) > 1 else corpora:
        probability = np.concatenate([p for corpus, p, _ in judged if name in (corpus, "all")])
        right = np.concatenate([r for corpus, _, r in judged if name in (corpus, "all")])
        boundary = np.concatenate([e for corpus, e, _ in errors if name in (corpus, "all")])
        search = np.concatenate([e for corpus, _, e in errors if name in (corpus, "all")])
        found[name] = Quality(
            len(right),
            float(right.mean()),
            summarise(boundary) if len(boundary) else None,
            summarise(search) if len(search) else None,
            calibration_error(probability, right),
            roc_area(probability, right),
        )
    return found


def decoders(recognizer: Recognizer) -> dict[str, Decoder]:
    """The model's decoders by their names in its config."""
    greedy = {"greedy": Greedy(reader(recognizer.model.tokenizer))}
    beam = {"beam": recognizer.decoder} if isinstance(recognizer.decoder, BeamSearch) else {}
    return {**beam, **greedy}


def read_samples(utterance: Utterance) -> Samples:
    """A recording at ALIGNER_RATE."""
    return np.concatenate(list(read_blocks(utterance.path, target_rate=ALIGNER_RATE)))
