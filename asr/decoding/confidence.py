"""How likely each word is right: evidence of emissions, search and language model on one calibrated scale."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from asr.ctc import BLANK_ID
from asr.decoding import Decoder, Path, Recent, Span, kernel
from asr.errors import ASRError
from asr.tokenizer import BOUNDARY

# What speaks for a word; the more of it, the better.
EVIDENCE = (
    "share",  # log-odds of the word among the live hypotheses, a little after it was spoken
    "share around",  # that of the words beside it too, less and less
    "language",  # nats that language model and hot-words add for it
    "language around",
    "fit",  # mean log-probability of its alignment's frames, blanks included
    "worst",  # log-probability of its least likely token
    "clarity",  # of its least clear frame: the negative entropy of the emission
    "haste",  # less the emissions that it takes per token
    "long",  # tokens beyond SHORT
)
MARGIN = 4  # emissions beside a word that belong to it where no other token is nearer
EVERY = 16  # emissions from one look at the live hypotheses to the next
AGE = 8  # emissions after which a word is looked up among them: rivals have come up, and have not died out yet
MOST_ODDS = 1e3  # to which a share counts
SHORT = 3  # tokens
REACH = 4  # words on either side that are around a word
FADING = 0.6  # what each of them counts of the one before it
CLIP = 3.0  # standard deviations from the mean up to which evidence counts

Values = NDArray[np.float64]
Ids = NDArray[np.int64]

FADED: Values = np.power(FADING, np.arange(REACH + 1), dtype=np.float64)


@dataclass(frozen=True)
class Calibration:
    """A map from evidence to the probability that a word is right, which never falls as evidence grows.

    Log-odds are bias + sum of weight * (evidence - mean) / deviation, over the kinds of evidence in the order of the
    fields. Logistic regression, as Platt (1999) calibrates scores; `asr calibrate` fits it.
    """

    bias: float
    evidence: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    weight: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("evidence", "mean", "deviation", "weight"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        sizes = {len(self.evidence), len(self.mean), len(self.deviation), len(self.weight)}
        if unknown := [name for name in self.evidence if name not in EVIDENCE]:
            raise ASRError(
                f"the calibration of confidence has unknown evidence {unknown[0]!r}; calibrate the model again"
            )
        numbers = np.array([self.bias, *self.mean, *self.deviation, *self.weight], np.float64)
        fitting = len(self.evidence) > 0 and len(sizes) == 1 and np.isfinite(numbers).all()
        if not fitting or min(self.deviation, default=1.0) <= 0 or min(self.weight, default=0.0) < 0:
            raise ASRError("the calibration of confidence does not hold together; calibrate the model again")

    @classmethod
    def from_config(cls, values: Mapping[str, Any] | None) -> "Calibration | None":
        """That of a model's config.json, None where it has none; ASRError where it cannot be used."""
        try:
            return cls(**values) if values else None
        except ASRError:
            raise
        except (TypeError, ValueError) as error:
            raise ASRError(
                f"the calibration of confidence cannot be used: {error}; calibrate the model again"
            ) from None

    def to_config(self) -> dict[str, Any]:
        """For a model's config.json."""
        return asdict(self)

    def probabilities(self, evidence: Values) -> Values:
        """Of being right, shape = (words,), from all kinds of EVIDENCE, shape = (kinds, words).

        What is NaN counts as average.
        """
        mean, deviation, weight = self._columns
        values = evidence[self._rows]
        known = np.where(np.isnan(values), mean, values)
        standard = np.minimum(np.maximum((known - mean) / deviation, -CLIP), CLIP)
        return np.asarray(1 / (1 + np.exp(-(self.bias + (weight * standard).sum(axis=0)))))

    @cached_property
    def _rows(self) -> list[int]:
        """Of those kinds of EVIDENCE that count."""
        return [EVIDENCE.index(name) for name in self.evidence]

    @cached_property
    def _columns(self) -> tuple[Values, Values, Values]:
        mean, deviation, weight = (np.array(of)[:, None] for of in (self.mean, self.deviation, self.weight))
        return mean, deviation, weight


class _Words(NamedTuple):
    """Words in hypotheses, shape = (words,) each: what they say as a number, where, and in which hypothesis."""

    key: NDArray[np.uint64]
    first: Ids  # emission of the first token
    last: Ids
    row: Ids


class _Look(NamedTuple):
    """The live hypotheses' words that ended before emission `until`, as seen `AGE` emissions later."""

    until: int
    words: _Words
    weights: Values


class Judge:
    """Gives the words of a segment their confidence; looks at the live hypotheses as they pass.

    Without a calibration a confidence is the geometric mean of the probabilities of the word's tokens.
    """

    def __init__(self, tokens: Sequence[str], calibration: Calibration | None) -> None:
        self._calibration = calibration
        self._boundary = tokens.index(BOUNDARY) if BOUNDARY in tokens else -1
        self._begins = np.array([token.startswith(BOUNDARY) for token in tokens])
        self._watches = calibration is not None and any(name.startswith("share") for name in calibration.evidence)
        self.restart()

    def restart(self) -> None:
        """A new segment begins."""
        self._looks: list[_Look] = []
        self._known: dict[tuple[int, ...], float] = {}
        self._clarity = np.zeros(0, np.float32)

    def observe(self, decoder: Decoder, state: Any, emissions: int) -> None:
        """Looks at the decoder's state after so many emissions of the segment, if it is time to."""
        seen = self._looks[-1].until if self._looks else 0
        if self._watches and emissions - seen >= EVERY + AGE:
            self._looks.append(self._look(decoder, state, seen, emissions - AGE))

    def confidences(
        self,
        decoder: Decoder,
        state: Any,
        log_probs: NDArray[np.float32],
        path: Path,
        final: bool,
        spans: Sequence[Span],
    ) -> list[float]:
        """One for each of the path's words.

        log_probs: all emissions of the segment, shape = (emissions, vocabulary). final: the words said last are looked
        up as well; otherwise what is not known of them counts as average. spans: the words, as the decoder reads them.
        """
        if not spans:
            return []
        if self._calibration is None:
            return [min(1.0, float(np.exp(path.log_probs[begin:end].mean()))) for _, begin, end in spans]
        evidence = self.evidence(decoder, state, log_probs, path, final, spans)
        found: list[float] = self._calibration.probabilities(evidence).tolist()
        return found

    def evidence(
        self,
        decoder: Decoder,
        state: Any,
        log_probs: NDArray[np.float32],
        path: Path,
        final: bool,
        spans: Sequence[Span],
    ) -> Values:
        """Every kind of EVIDENCE for the path's words, shape = (kinds, words); NaN where it is not known."""
        share = self._shares(decoder, state, len(log_probs), path, spans, final)
        edges = np.array([edge for _, begin, end in spans for edge in (begin, end)], np.int64)
        given = (log_probs, self._clarities(log_probs), path, edges, share, FADED, self._boundary)
        found = kernel.evidence(*given)
        return _evidence(*given) if found is None else found

    def _clarities(self, log_probs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Negative entropy of each emission, worked out once; shape = (emissions,)."""
        seen = len(self._clarity)
        if seen < len(log_probs):
            new = log_probs[seen:]
            self._clarity = np.append(self._clarity, (np.exp(new) * new).sum(axis=1))
        return self._clarity[: len(log_probs)]

    def _shares(
        self, decoder: Decoder, state: Any, emissions: int, path: Path, spans: Sequence[Span], final: bool
    ) -> Values:
        """Log-odds of each word's share, shape = (words,)."""
        if not self._watches:
            return np.full(len(spans), np.nan)
        looks = self._looks
        if final:
            seen = looks[-1].until if looks else 0
            looks = [*looks, self._look(decoder, state, seen, emissions + 1)]
        seen_until = [look.until for look in looks]
        tokens, frames = path.tokens.tolist(), path.frames.tolist()
        keys: dict[int, int] = {}  # of the path's words by their first emissions, where they are wanted
        found = []
        for _, begin, end in spans:
            first, last = frames[begin], frames[end - 1]
            look = bisect_right(seen_until, last)
            if look == len(looks):
                found.append(np.nan)
                continue
            said = (first, last, *tokens[begin : end + 1])
            odds = self._known.get(said)
            if odds is None:
                keys = keys or self._keys(path)
                odds = _log_odds(_share(looks[look], keys[first], first, last))
                if look < len(self._looks):
                    self._known[said] = odds
            found.append(odds)
        return np.array(found)

    def _keys(self, path: Path) -> dict[int, int]:
        """The key of each word by its first emission."""
        words = self._words(path.tokens[None], path.frames[None], 0)
        return dict(zip(words.first.tolist(), words.key.tolist(), strict=True))

    def _look(self, decoder: Decoder, state: Any, begin: int, until: int) -> _Look:
        """Words whose last token is at an emission from `begin` on and before `until`."""
        since = begin - 2 * EVERY
        recent: Recent = decoder.recent(state, since)
        words = self._words(recent.tokens, recent.frames, since)
        chosen = (words.last >= begin - MARGIN) & (words.first <= until + MARGIN)
        kept = _Words(words.key[chosen], words.first[chosen], words.last[chosen], words.row[chosen])
        return _Look(until, kept, recent.weights)

    def _words(self, tokens: Ids, frames: Ids, since: int) -> _Words:
        """The words in rows of tokens, which -1 stands for where there is none.

        A word of which a token before emission `since` may be missing is left out.
        """
        found = kernel.words(tokens, frames, self._begins, self._boundary, since)
        if found is not None:
            return _Words(found[:, 0].view(np.uint64), found[:, 1], found[:, 2], found[:, 3])
        order = np.argsort(tokens >= 0, axis=1, kind="stable")  # gaps first
        tokens, frames = np.take_along_axis(tokens, order, axis=1), np.take_along_axis(frames, order, axis=1)
        there = tokens >= 0
        begins = self._begins[np.minimum(tokens, len(self._begins) - 1)]
        lone = there & ((tokens == self._boundary) | (tokens >= len(self._begins)))
        in_word = there & ~lone
        starts = in_word & (begins | ~_before(in_word)) & (begins | _before(there) | (frames >= since))
        number = np.cumsum(starts, axis=1)
        width = tokens.shape[1] + 1
        # A boundary that stands for one of several words which sound alike belongs to the word before it.
        counted = (in_word | (lone & (tokens != self._boundary))) & (number > 0)
        row, column = np.nonzero(counted)
        group = row * width + number[row, column]
        first_of = np.flatnonzero(np.diff(group, prepend=-1))
        if len(first_of) == 0:
            nothing = np.zeros(0, np.int64)
            return _Words(nothing.astype(np.uint64), nothing, nothing, nothing)
        place = np.arange(len(group)) - np.repeat(first_of, np.diff(np.append(first_of, len(group))))
        key = np.add.reduceat(_mixed(tokens[row, column], place), first_of)
        at = np.where(in_word[row, column], frames[row, column], -1)
        return _Words(key, frames[row, column][first_of], np.maximum.reduceat(at, first_of), row[first_of])


def _evidence(
    log_probs: NDArray[np.float32],
    clarity: NDArray[np.float32],
    path: Path,
    edges: Ids,
    share: Values,
    fading: Values,
    boundary: int,
) -> Values:
    """The evidence for words, shape = (kinds of EVIDENCE, words).

    log_probs: shape = (emissions, vocabulary); clarity: of each emission; edges: where the tokens of each word begin
    and end in the path; share: log-odds; fading: what a word counts for others, by how far they are apart; boundary:
    token of a word's end.
    """
    emissions, vocabulary = log_probs.shape
    frames, count = path.frames, len(path.tokens)
    tokens = np.where(path.tokens < vocabulary, path.tokens, boundary)
    begin, end = edges[::2], edges[1::2]
    before, after = np.maximum(begin - 1, 0), np.minimum(end, count - 1)
    first, last = frames[begin], frames[end - 1]
    around = np.empty(len(edges), np.int64)
    low, high = around[::2], around[1::2]  # the frames from the token before a word on, and up to the one after it
    low[:] = np.where(begin > 0, frames[before], np.maximum(first - MARGIN, 0))
    high[:] = np.where(end < count, frames[after], np.minimum(last + MARGIN, emissions - 1)) + 1

    # Between two tokens an alignment has blanks, or the token once more.
    aligned = log_probs[:, BLANK_ID].astype(np.float64)
    current = np.searchsorted(frames, np.arange(emissions), side="right") - 1
    spoken = np.flatnonzero(current >= 0)
    again = log_probs[spoken, tokens[current[spoken]]]
    aligned[spoken] = np.logaddexp(aligned[spoken], again)
    aligned[frames] = log_probs[frames, tokens]
    total = np.zeros(emissions + 1)
    np.cumsum(aligned, out=total[1:])
    fused = path.fused
    language = fused[after] - np.where(begin > 0, fused[before], 0.0)
    share_around, language_around = _around(np.stack([share, language]), fading)
    return np.stack(
        [
            *(share, share_around, language, language_around),
            (total[high] - total[low]) / (high - low),
            np.minimum.reduceat(np.append(path.log_probs, 0.0), edges)[::2],
            np.minimum.reduceat(np.append(clarity, 0.0), around)[::2],
            -(last + 1 - first) / (end - begin),
            np.maximum(end - begin - SHORT, 0).astype(np.float64),
        ]
    )


def _around(values: Values, fading: Values) -> Values:
    """Mean over each word and those beside it, shape = (kinds, words); what is not known does not count."""
    padded = np.pad(values, ((0, 0), (REACH, REACH)), constant_values=np.nan)
    total, count = np.zeros((2, *values.shape))
    for apart in range(-REACH, REACH + 1):
        beside = padded[:, REACH + apart : REACH + apart + values.shape[1]]
        known = np.isfinite(beside)
        total += fading[abs(apart)] * np.where(known, beside, 0.0)
        count += fading[abs(apart)] * known
    return np.divide(total, count, out=np.full(values.shape, np.nan), where=count > 0)


def _share(look: _Look, key: int, first: int, last: int) -> float:
    """Share of the live hypotheses that have this word at this place or overlapping it."""
    words = look.words
    same = (words.key == np.uint64(key)) & (words.first <= last + 1) & (words.last >= first - 1)
    rows = np.flatnonzero(np.bincount(words.row[same]))  # unlike np.unique, this does not import numpy.ma
    return float(look.weights[rows].sum())


def _log_odds(share: float) -> float:
    return math.log((share + 1 / MOST_ODDS) / (1 - min(share, 1.0) + 1 / MOST_ODDS))


def _before(values: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Each row moved by one column, False first."""
    moved = np.zeros_like(values)
    moved[:, 1:] = values[:, :-1]
    return moved


def _mixed(tokens: Ids, place: Ids) -> NDArray[np.uint64]:
    """A number for each token at its place in a word, by SplitMix64; a word's key is their sum."""
    z = (tokens.astype(np.uint64) << np.uint64(16)) + place.astype(np.uint64) + np.uint64(1)
    z = z * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
