"""Emissions in, hypotheses out: the open segment is decoded, and ended where the speaker pauses."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from asr.ctc import BLANK_ID
from asr.decoding import Decoder, Span
from asr.decoding import Path as TokenPath
from asr.decoding.beam import BeamSearch
from asr.decoding.confidence import Calibration, Judge
from asr.decoding.times import WordTimes
from asr.rules import EndpointRules
from asr.runtime import ModelConfig
from asr.transcript import Alternative, Seconds, Segment, Word

LogProbs = NDArray[np.float32]

# A last word that is likely to get another token would only flicker, and waits so many seconds after the one before.
GROWING_SECONDS = 0.12  # where no language model knows it
DOUBTFUL_SECONDS = 0.2  # where it is not what the language model expects; one that is waits for nothing
EXPECTED = 3.0  # nats of language model and hot-words from which on a word is, with PER_LENGTH
PER_LENGTH = 6.0  # nats times the logarithm of its tokens: the more there are, the fewer words begin with them


@dataclass(frozen=True)
class Hypothesis:
    """What a stream has understood: a partial one may still change, a final one is a whole segment and stays.

    `start` and `end` are seconds from the start of the stream, those of the first and the last word. `committed` is how
    many of the words, from the first on, stay as they are: later hypotheses of the segment begin with them too.
    alternatives: of a final hypothesis where they were asked for, the likeliest readings, best first; the first is the
    hypothesis itself.
    """

    text: str
    is_final: bool
    start: Seconds
    end: Seconds
    words: tuple[Word, ...]
    committed: int = 0
    alternatives: tuple[Alternative, ...] = ()

    @property
    def segment(self) -> Segment:
        """The segment of these words, of which there must be one at least."""
        return Segment.of(self.words, self.alternatives)


class _Spoken(NamedTuple):
    """A word with its first and last emission, counted from the start of its segment."""

    text: str
    first: int
    last: int
    confidence: float
    end: int  # of its tokens in the path; one that follows there begins another word


class Segmenter:
    """Emissions to hypotheses: decodes the open segment and decides, once a chunk, whether it ends."""

    _state: Any  # the decoder's
    _found: TokenPath | None  # the best one in it, where it was asked for
    _read: tuple[NDArray[np.int64], list[Span]]  # tokens and the words that they say

    def __init__(
        self,
        config: ModelConfig,
        tokens: list[str],
        decoder: Decoder,
        rules: EndpointRules,
        nbest: int = 1,
        judge: Judge | None = None,
    ) -> None:
        """nbest: readings that a final hypothesis lists, none where it is 1; judge: default as the model's config."""
        self.rules = rules
        self.nbest = nbest
        self.duration: Seconds = math.inf  # of the stream, known when it has ended
        self._decoder = decoder
        self._tokens = tokens
        self._emission_seconds = config.emission_seconds
        self._times = WordTimes.from_config(config.times, config.delay_seconds, config.emission_seconds)
        kind = "beam" if isinstance(decoder, BeamSearch) else "greedy"
        self._judge = judge or Judge(tokens, Calibration.from_config(config.confidence.get(kind)))
        self._silence, self._idle, self._longest, self._recent = (
            max(1, round(seconds / self._emission_seconds))
            for seconds in (rules.silence_seconds, rules.idle_seconds, rules.max_seconds, rules.cut_seconds)
        )  # emissions
        self._origin: Seconds = 0.0  # in the stream, of the first emission
        self._begin = 0  # emission at which the segment begins, from the origin on
        self._spoken_until: Seconds = 0.0  # end of the last final word
        self._restart(np.zeros((0, len(self._tokens)), np.float32))

    def hear(self, log_probs: LogProbs) -> None:
        """Emissions that do not complete a chunk, shape = (emissions, vocabulary): they decide nothing yet."""
        self._log_probs.append(log_probs)
        self._length += len(log_probs)
        self._state = self._decoder.step(log_probs, self._state)
        self._found = None

    def step(self, log_probs: LogProbs) -> list[Hypothesis]:
        """Emissions that complete a chunk, shape = (emissions, vocabulary), to the final hypothesis, if one is over."""
        self.hear(log_probs)
        self._judge.observe(self._decoder, self._state, self._length)
        if self._length < self._longest and self._decoder.pause(self._state) < min(self._silence, self._idle):
            return []  # as no hypothesis has been silent for so long, the best one has not
        path = self._path
        spoken = int(path.frames[-1]) + 1 if len(path.frames) else 0
        if self._length - spoken >= (self._silence if spoken else self._idle):
            return self.flush()
        if self._length >= self._longest:
            return self._cut(self._words(path, is_final=True))
        return []

    def partial(self) -> Hypothesis | None:
        """The words of the open segment so far; one that is being spelled waits until nothing is added to it."""
        words = self._words(self._path)[: len(self._shown())]
        return self._hypothesis(words, committed=self._committed(words))

    def partial_text(self) -> str:
        """The text of `partial`, for which no confidence is needed."""
        return " ".join(span.text for span in self._shown())

    def move(self, origin: Seconds) -> None:
        """The next emission is that of a later time in the stream; the segment before must have been flushed."""
        self._origin, self._begin = origin, 0
        self._restart(self._log_probs[0][:0])

    def flush(self) -> list[Hypothesis]:
        """Ends the open segment: its words, if there are any."""
        return self._close(self._words(self._path, is_final=True), self._length)

    def exchange(self, decoder: Decoder) -> None:
        """Goes on with a decoder that differs in its hot-words alone."""
        if isinstance(decoder, BeamSearch) and isinstance(self._decoder, BeamSearch):
            self._state = decoder.adopt(self._state, self._decoder)
        self._decoder = decoder
        self._read = (np.zeros(0, np.int64), [])

    def _shown(self) -> list[Span]:
        """The words of a partial hypothesis."""
        path, spans = self._path, self._spans(self._path)
        if not spans or spans[-1].end < len(path.tokens):
            return spans
        age = self._length - 1 - int(path.frames[-1])
        return spans[:-1] if age < round(_wait(path, spans[-1]) / self._emission_seconds) else spans

    def _cut(self, words: list[_Spoken]) -> list[Hypothesis]:
        """Ends a long segment in its longest late pause; what follows the pause begins the next one."""
        earliest = self._length - self._recent
        pauses = [
            (after.first - before.last, i)
            for i, (before, after) in enumerate(pairwise(words), 1)
            if before.last >= earliest
        ]
        if not pauses:
            return self._close(words, self._length)
        _, i = max(pauses)
        pause = slice(words[i - 1].last + 1, words[i].first + 1)
        blank = self._emissions()[pause, BLANK_ID]
        return self._close(words[:i], pause.start + int(blank.argmax()))

    def _close(self, words: list[_Spoken], at: int) -> list[Hypothesis]:
        """Makes `words` final and goes on from emission `at` of the segment."""
        final = self._hypothesis(words, committed=len(words), is_final=True)
        if final and self.nbest > 1:
            final = replace(final, alternatives=self._alternatives(at))
        self._spoken_until = final.end if final else self._spoken_until
        self._begin += at
        self._restart(self._emissions()[at:].copy())
        return [final] if final else []

    def _restart(self, log_probs: LogProbs) -> None:
        self._log_probs = [log_probs]  # of the open segment
        self._judge.restart()
        self._length = len(log_probs)
        self._state = self._decoder.step(log_probs, self._decoder.start())
        self._found = None
        self._read = (np.zeros(0, np.int64), [])

    def _emissions(self) -> LogProbs:
        """All of the open segment, joined once."""
        if len(self._log_probs) > 1:
            self._log_probs = [np.concatenate(self._log_probs)]
        return self._log_probs[0]

    def _spans(self, path: TokenPath) -> list[Span]:
        """The words of a path; its tokens are mostly those that were read last."""
        if path.tokens is not self._read[0]:
            same = np.array_equal(path.tokens, self._read[0])
            self._read = path.tokens, self._read[1] if same else self._decoder.words(path.tokens)
        return self._read[1]

    @property
    def _path(self) -> TokenPath:
        """The best one of the open segment."""
        if self._found is None:
            self._found = self._decoder.best(self._state)[0]
        return self._found

    def _words(self, path: TokenPath, is_final: bool = False) -> list[_Spoken]:
        """Tokens gathered into words, each with its confidence."""
        spans = self._spans(path)
        if not spans:
            return []
        confidences = self._judge.confidences(self._decoder, self._state, self._emissions(), path, is_final, spans)
        frames = path.frames.tolist()
        return [
            _Spoken(text, frames[begin], frames[end - 1], confidence, end)
            for (text, begin, end), confidence in zip(spans, confidences, strict=True)
        ]

    def _alternatives(self, at: int) -> tuple[Alternative, ...]:
        """The likeliest readings of the segment up to emission `at`, each text once."""
        found: dict[str, Alternative] = {}
        for path in self._decoder.best(self._state, self.nbest):
            words = self._timed([word for word in self._words(path, is_final=True) if word.first < at])
            text = " ".join(word.text for word in words)
            found.setdefault(text, Alternative(text, path.score, words))
        return tuple(found.values())

    def _committed(self, words: list[_Spoken]) -> int:
        """How many of the open segment's words will be in its final hypothesis, wherever that is cut."""
        stable = self._decoder.stable(self._state)
        earliest_cut = self._longest - self._recent
        return sum(word.end < stable and word.last < earliest_cut for word in words)

    def _hypothesis(self, spoken: list[_Spoken], committed: int, is_final: bool = False) -> Hypothesis | None:
        words = self._timed(spoken)
        if not words:
            return None
        return Hypothesis(" ".join(w.text for w in words), is_final, words[0].start, words[-1].end, words, committed)

    def _timed(self, spoken: list[_Spoken]) -> tuple[Word, ...]:
        """Words with times in the stream: in order, not before those already final, not after the end."""
        first = [word.first * self._emission_seconds for word in spoken]
        last = [word.last * self._emission_seconds for word in spoken]
        spans = self._times.spans(first, last)
        origin = self._origin + self._begin * self._emission_seconds
        starts, ends = ([min(max(at + origin, self._spoken_until), self.duration) for at in times] for times in spans)
        return tuple(
            Word(word.text, start, end, word.confidence) for word, start, end in zip(spoken, starts, ends, strict=True)
        )


def _wait(path: TokenPath, word: Span) -> Seconds:
    """How long the last word of a path is held back from partial hypotheses."""
    before = path.fused[word.begin - 1] if word.begin else 0.0
    added = float(path.fused[word.end - 1] - before)
    if added == 0:
        return GROWING_SECONDS
    return 0.0 if added + PER_LENGTH * math.log(word.end - word.begin) > EXPECTED else DOUBTFUL_SECONDS
