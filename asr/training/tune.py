"""The decoder's settings, chosen on recordings with known words: emissions are computed once and searched many times.

recognizer = asr.load("exp/model", decoder="greedy")
recordings = record_all(recognizer, read("dev.tsv"))
for result in tune(recordings, recognizer.model.tokenizer, lm, BeamConfig()):
    print(result)  # the last one is the best
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
from numpy.typing import NDArray

from asr.decoding import Decoder
from asr.decoding.beam import BeamConfig, BeamSearch
from asr.decoding.greedy import Greedy, GreedyState
from asr.decoding.lm import NgramModel
from asr.decoding.words import reader
from asr.recognizer import Recognizer
from asr.text import normalize
from asr.tokenizer import Tokenizer
from asr.training.manifest import Utterance

LogProbs = NDArray[np.float32]

# What `tune` tries for each setting, one after the other, from the most to the least weighty.
CHOICES: Mapping[str, Sequence[float]] = {
    "lm_weight": (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0),
    "word_bonus": (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0),
    "oov_penalty": (0.0, 2.0, 4.0, 6.0, 8.0, 12.0),
    "prior_weight": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
}


@dataclass(frozen=True)
class Emissions:
    """One recording: its emissions in the segments that the recogniser ends at pauses, and what is said in it."""

    segments: tuple[LogProbs, ...]
    reference: str
    corpus: str


@dataclass(frozen=True)
class Trial:
    """One setting of the search, its word error rate in all and per corpus (shares), and its cost.

    seconds: of search per second of audio, on one core.
    """

    config: BeamConfig
    wer: float
    corpora: dict[str, float]
    seconds: float

    def __str__(self) -> str:
        corpora = ", ".join(f"{name} {wer:.2%}" for name, wer in self.corpora.items())
        c = self.config
        return (
            f"{self.wer:.2%} ({corpora}) at {self.seconds * 1000:.1f} ms per second: lm_weight {c.lm_weight:g}, "
            f"word_bonus {c.word_bonus:g}, oov_penalty {c.oov_penalty:g}, prior_weight {c.prior_weight:g}, "
            f"beam {c.beam}, thresholds {c.beam_threshold:g} and {c.token_threshold:g}"
        )


class _Recorder(Greedy):
    """A greedy decoder that keeps the emissions of every segment it is given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(reader(tokenizer))
        self.segments: list[list[LogProbs]] = []

    def start(self) -> GreedyState:
        self.segments.append([])
        return super().start()

    def step(self, log_probs: LogProbs, state: GreedyState) -> GreedyState:
        self.segments[-1].append(log_probs)
        return super().step(log_probs, state)


def record(recognizer: Recognizer, utterance: Utterance) -> Emissions:
    """The emissions of an utterance as a stream makes them, cut at the pauses that greedy decoding finds."""
    recorder = _Recorder(recognizer.model.tokenizer)
    Recognizer(recognizer.model, recorder, recognizer.rules).transcribe(utterance.path)
    segments = tuple(np.concatenate(segment) for segment in recorder.segments if segment)
    return Emissions(segments, normalize(utterance.text), utterance.corpus)


def record_all(
    recognizer: Recognizer,
    utterances: Sequence[Utterance],
    kept: Path | None = None,
    progress: Callable[[int, str], None] | None = None,
) -> list[Emissions]:
    """The emissions of all utterances.

    kept: a file that they are taken from where it exists, and put into where it does not. progress: called with how
    many are done and the name of the next.
    """
    if kept and kept.exists():
        return load(kept)
    recordings = []
    for done, utterance in enumerate(utterances):
        if progress:
            progress(done, utterance.path.name)
        recordings.append(record(recognizer, utterance))
    if kept:
        save(kept, recordings)
    return recordings


def save(path: str | Path, recordings: Sequence[Emissions]) -> None:
    """Writes recordings to a file of NumPy arrays."""
    segments = [segment for recording in recordings for segment in recording.segments]
    np.savez(
        path,
        log_probs=np.concatenate(segments),
        frames=[len(segment) for segment in segments],
        segments=[len(recording.segments) for recording in recordings],
        references=np.array([recording.reference for recording in recordings], np.str_),
        corpora=np.array([recording.corpus for recording in recordings], np.str_),
    )


def load(path: str | Path) -> list[Emissions]:
    """Reads what `save` wrote."""
    with np.load(path) as file:
        segments = np.split(file["log_probs"], np.cumsum(file["frames"])[:-1])
        last = np.cumsum(file["segments"])
        return [
            Emissions(tuple(segments[end - count : end]), str(reference), str(corpus))
            for count, end, reference, corpus in zip(
                file["segments"], last, file["references"], file["corpora"], strict=True
            )
        ]


def transcribe(decoder: Decoder, recording: Emissions) -> str:
    """The words that a decoder finds in a recording."""
    texts = []
    for log_probs in recording.segments:
        path = decoder.best(decoder.step(log_probs, decoder.start()))[0]
        texts += [word.text for word in decoder.words(path.tokens)]
    return " ".join(texts)


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Errors per word of the references, as a share."""
    return float(jiwer.wer(list(references), list(hypotheses)))


def trial(
    recordings: Sequence[Emissions],
    tokenizer: Tokenizer,
    lm: NgramModel | None,
    config: BeamConfig,
    emission_seconds: float = 0.04,
) -> Trial:
    """Decodes all recordings with one setting and counts the errors."""
    tokens, lexicon = tokenizer.tokens, tokenizer.lexicon
    decoder = BeamSearch.with_language_model(lm, tokens, config, lexicon) if lm else BeamSearch(config, tokens=tokens)
    began = time.process_time()
    found = [transcribe(decoder, recording) for recording in recordings]
    spent = time.process_time() - began
    frames = sum(len(segment) for recording in recordings for segment in recording.segments)
    references = [recording.reference for recording in recordings]
    corpora = {
        corpus: word_error_rate(
            [r.reference for r in recordings if r.corpus == corpus],
            [text for text, r in zip(found, recordings, strict=True) if r.corpus == corpus],
        )
        for corpus in sorted({recording.corpus for recording in recordings})
    }
    return Trial(config, word_error_rate(references, found), corpora, spent / (frames * emission_seconds))


def token_prior(recordings: Sequence[Emissions]) -> tuple[float, ...]:
    """Log of each token's mean probability over all emissions."""
    emissions = np.concatenate([segment for recording in recordings for segment in recording.segments])
    return tuple(np.log(np.exp(emissions).mean(axis=0)).round(4).tolist())


def tune(
    recordings: Sequence[Emissions],
    tokenizer: Tokenizer,
    lm: NgramModel,
    config: BeamConfig,
    choices: Mapping[str, Sequence[float]] = CHOICES,
    rounds: int = 2,
) -> Iterator[Trial]:
    """Tries every choice of one setting after the other, the best so far being kept; the best trial comes last.

    rounds: how often to go through the settings. The setting with the fewest errors in the mean over the corpora is
    best, so that a large corpus does not decide alone.
    """
    config = replace(config, prior=token_prior(recordings))
    tried: dict[BeamConfig, Trial] = {}

    def attempt(candidate: BeamConfig) -> Trial:
        if candidate not in tried:
            tried[candidate] = trial(recordings, tokenizer, lm, candidate)
        return tried[candidate]

    best = attempt(config)
    yield best
    for _ in range(rounds):
        before = best
        for name, values in choices.items():
            for value in values:
                changed: dict[str, Any] = {name: value}
                candidate = replace(best.config, **changed)
                is_new = candidate not in tried
                result = attempt(candidate)
                if is_new:
                    yield result
                if _mean(result) < _mean(best):
                    best = result
        if best is before:
            break
    yield best


def _mean(result: Trial) -> float:
    return float(np.mean(list(result.corpora.values())))
