"""CTC prefix beam search (Graves, 2012; Hannun et al., 2014) over all hypotheses and tokens of a frame at once."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from asr.ctc import BLANK_ID
from asr.decoding import Path, Recent, Span
from asr.decoding.fusion import Scorer, WordScorer
from asr.decoding.hotwords import Hotwords, HotwordScorer
from asr.decoding.kernel import kernel
from asr.decoding.lm import NgramModel
from asr.decoding.state import (
    ALL_FIELDS,
    EMPTY_TRACE,
    ENTRY,
    FIRST_OF_HOTWORDS,
    FIRST_OF_WORDS,
    HYPOTHESIS,
    RANKED,
    BeamState,
    Hypotheses,
    Ranked,
    Trace,
    heads,
)
from asr.decoding.tree import LetterTree
from asr.decoding.words import Reader, Spelled
from asr.errors import ASRError
from asr.lexicon import Lexicon
from asr.tokenizer import BOUNDARY, CHARACTERS

Ids = NDArray[np.int64]
Scores = NDArray[np.float64]
Keys = NDArray[np.uint64]

SETTLE_EVERY = 16  # frames between two times at which what is old is settled and the trace compacted
LIKELY = 9.0  # nats behind the best hypothesis within which others count for confidence
NOTHING = -np.inf


@dataclass(frozen=True)
class BeamConfig:
    """Width of the search and weights of the language model; nats are natural-log units of probability."""

    beam: int = 32  # hypotheses kept after a frame, at most
    beam_threshold: float = 12.0  # nats behind the best hypothesis at which another one is dropped
    tokens: int = 12  # tokens tried in a frame, at most, besides the blank
    token_threshold: float = 7.0  # nats behind the best token of a frame at which another one is not tried
    horizon: int = 32  # frames after which a token is settled as the best hypothesis has it, others are dropped
    lm_weight: float = 0.5  # factor on the language model's log-probabilities
    word_bonus: float = 0.5  # nats for every word, against the model's liking for few words
    oov_penalty: float = 5.0  # nats against every word outside the vocabulary
    hotword_boost: float = 13.5  # nats for a hot phrase that names no boost, less log(number of phrases)
    prior_weight: float = 0.0  # share of a token's log prior taken off its log-probability (Sak et al., 2015)
    prior: tuple[float, ...] = ()  # log of each token's mean probability in the model's emissions

    def __post_init__(self) -> None:
        for name, given in vars(self).items():
            if name != "prior" and not isinstance(given, int | float):
                raise ASRError(f"the decoder's {name} is {given!r}; it must be a number")
        object.__setattr__(self, "prior", tuple(self.prior))
        for name, low in (
            ("beam", 1),
            ("tokens", 1),
            ("beam_threshold", 0),
            ("token_threshold", 0),
            ("horizon", 1),
            ("prior_weight", 0),
        ):
            value = getattr(self, name)
            if not value >= low:
                raise ASRError(f"the decoder's {name} is {value}; it must be {low} or more")


class BeamSearch:
    """Prefix beam search; a scorer, if given, adds its scores to the acoustic ones.

    Two cuts are made per frame: tokens far behind the best token are not tried (token_threshold), and hypotheses far
    behind the best one or beyond the width are dropped (beam_threshold, beam). A frame whose only promising token is
    the blank, the most common kind, costs next to nothing; each token that it leaves untried is less probable than the
    blank by a factor of at least exp(token_threshold).
    """

    def __init__(
        self, config: BeamConfig | None = None, scorer: Scorer | None = None, tokens: Sequence[str] = ()
    ) -> None:
        """tokens: what they spell, by which `best` tells texts apart; without them they are characters, and every
        token sequence is one text."""
        self.config = config or BeamConfig()
        self.scorer = scorer
        self.tokens = list(tokens)
        words = self._words
        self._columns = words.columns if isinstance(words, WordScorer) else np.arange(len(self.tokens))
        self._tokens = [self.tokens[i] for i in self._columns] if tokens else []  # as the scorer tells them apart
        self._ends = np.array([token == BOUNDARY for token in self._tokens], bool)
        self._reader: Reader = words if isinstance(words, WordScorer) else Spelled(self._tokens or CHARACTERS)
        self._prior = np.array(self.config.prior or (0.0,)) * self.config.prior_weight
        self._prior_of_tokens = self._prior[self._columns] if self.config.prior and tokens else self._prior
        first = FIRST_OF_HOTWORDS if isinstance(scorer, HotwordScorer) else FIRST_OF_WORDS
        self._fields = slice(first, ALL_FIELDS if words else FIRST_OF_WORDS)  # those of this scorer
        limits = (self.config.beam, self.config.beam_threshold, self.config.tokens, self.config.token_threshold)
        self._kernel = kernel(scorer, (*limits, self.config.horizon, SETTLE_EVERY))

    @classmethod
    def with_language_model(
        cls,
        lm: NgramModel,
        tokens: Sequence[str],
        config: BeamConfig | None = None,
        lexicon: Lexicon | None = None,
        tree: LetterTree | None = None,
    ) -> "BeamSearch":
        """A search over a model's tokens with a word n-gram model; tree: of its words, if that is at hand."""
        config = config or BeamConfig()
        if config.prior and len(config.prior) != len(tokens):
            raise ASRError(
                f"the decoder's prior has {len(config.prior)} numbers and the model {len(tokens)} tokens; tune it again"
            )
        scorer = WordScorer(lm, tokens, config.lm_weight, config.word_bonus, config.oov_penalty, lexicon, tree)
        return cls(config, scorer, tokens)

    def hotwords(
        self, boosts: Mapping[str, float | None], spellings: Callable[[str], Sequence[Sequence[int]]]
    ) -> Hotwords:
        """Prepares phrases for this search and others that differ in their hot-words alone.

        boosts: of each normalised phrase in nats, None for the usual one; spellings: of a phrase in token ids. The
        usual one is hotword_boost less the logarithm of the number of phrases: of many phrases each is less likely to
        be said, and more of them sound like what is said.
        """
        words = self._words if isinstance(self._words, WordScorer) else None
        usual = max(0.0, self.config.hotword_boost - float(np.log(max(1, len(boosts)))))
        given = {phrase: usual if boost is None else boost for phrase, boost in boosts.items()}
        return Hotwords(given, spellings, self._tokens, words)

    def with_hotwords(self, hotwords: Hotwords | None) -> "BeamSearch":
        """The same search with these hot-words in place of any others."""
        words = self._words
        return BeamSearch(self.config, HotwordScorer(hotwords, words) if hotwords else words, self.tokens)

    def weighted(self, lm_weight: float) -> "BeamSearch":
        """The same search, without hot-words, with another weight of the language model, if it has one."""
        words = self._words
        other = words.weighted(lm_weight) if isinstance(words, WordScorer) else words
        return BeamSearch(replace(self.config, lm_weight=lm_weight), other, self.tokens)

    @property
    def _words(self) -> Scorer | None:
        """The scorer without hot-words."""
        return self.scorer.base if isinstance(self.scorer, HotwordScorer) else self.scorer

    def adopt(self, state: BeamState, before: "BeamSearch") -> BeamState:
        """A state of the search `before`, which differs in its hot-words alone, as a state of this one.

        Phrases already said keep what they have earned, and one that is open counts by the hot-words of this search.
        """
        hypotheses = state.hypotheses.copy()
        if isinstance(before.scorer, HotwordScorer):
            added, _ = before.scorer.take_back(hypotheses["scorer"][:, before._fields])
            hypotheses["fused"] += added
            hypotheses["scorer"][:, FIRST_OF_HOTWORDS] = 0
        if isinstance(self.scorer, HotwordScorer):
            entries = _follow(state.trace, heads(hypotheses))
            live = np.where(entries >= 0, np.append(state.trace["token"], 0)[entries], -1)
            words = hypotheses["scorer"][:, FIRST_OF_WORDS : self._fields.stop]
            added, scorer = self.scorer.take_up(state.committed["token"], live, words)
            hypotheses["fused"] += added
            hypotheses["scorer"][:, self._fields] = scorer
        return replace(state, hypotheses=hypotheses)

    def start(self) -> BeamState:
        """State before the first frame: the empty prefix."""
        empty = np.zeros(1, HYPOTHESIS)
        empty["key"] = 1
        empty["label"] = empty["best_label"] = NOTHING
        empty["head_blank"] = empty["head_label"] = -1
        if self.scorer:
            empty["scorer"][:, self._fields] = self.scorer.start()
        return BeamState(0, empty, EMPTY_TRACE, EMPTY_TRACE)

    def step(self, log_probs: NDArray[np.float32], state: BeamState) -> BeamState:
        """State after the next emissions, natural-log probabilities of shape = (frames, tokens)."""
        scores = log_probs - self._prior
        if len(self._columns) > scores.shape[1]:
            scores = scores.take(self._columns, axis=1)
        if self._kernel and self._kernel.takes(scores):
            return self._kernel.step(scores, state)
        for emission in scores:
            state = self._advance(emission, state)
            if state.frame % SETTLE_EVERY == 0:
                state = _compact(self._settle(state))
        return state

    def best(self, state: BeamState, n: int = 1) -> list[Path]:
        """The n best hypotheses, best first, as if the audio and the last word ended here; the state stays as it is.

        Each has another text. Those that differ in nothing but a boundary after the last word are one, which has their
        probability together.
        """
        paths: dict[Hashable, Path] = {}
        for score, row in self._merged(state.hypotheses, n > 1).tolist():
            path = self._path(state, row, score)
            if n == 1:
                return [path]
            paths.setdefault(self._text(path), path)
            if len(paths) == n:
                break
        return list(paths.values())

    def _merged(self, hypotheses: Hypotheses, all: bool) -> Ranked:
        """The hypotheses that differ in more than a last boundary, best first; only the best one unless `all`."""
        if self._kernel:
            return self._kernel.merged(hypotheses, self._ends, all)
        scores = self._final_scores(hypotheses)
        ends = self._ends[hypotheses["last"]] if self.tokens else np.zeros(len(scores), bool)
        key = np.where(ends, hypotheses["parent_key"], hypotheses["key"])
        ranked = np.argsort(-scores, kind="stable")
        _, best = np.unique(np.stack([key[ranked], ends[ranked]]), axis=1, return_index=True)
        ranked = ranked[np.sort(best)]  # of boundaries after words that sound alike, the best one
        _, first, group = np.unique(key[ranked], return_index=True, return_inverse=True)
        found = np.empty(len(first), RANKED)
        found["score"], found["row"] = NOTHING, ranked[first]
        np.logaddexp.at(found["score"], group, scores[ranked])
        return found[np.lexsort((found["row"], -found["score"]))]

    def _path(self, state: BeamState, row: int, score: float) -> Path:
        if self._kernel:
            tokens, frames, log_probs, fused = self._kernel.path(state, row)
        else:
            hypothesis = state.hypotheses[row : row + 1]
            entries = _follow(state.trace, heads(hypothesis))[0]
            path = np.concatenate([state.committed, state.trace[entries]])
            tokens, frames, log_probs, fused = (path[of].copy() for of in ("token", "frame", "log_prob", "fused"))
            if self.scorer and len(fused):
                fused[-1] += self._final(hypothesis)[0]
        prior = self._prior_of_tokens[tokens] if self.config.prior else 0.0
        return Path(tokens, frames, log_probs + prior, score, fused)

    def pause(self, state: BeamState) -> int:
        """Frames since the last token, or the start, of the live hypothesis that has had none for longest."""
        last = self._kernel.oldest(state.hypotheses) if self._kernel else int(heads(state.hypotheses).min())
        trace = state.trace if last >= 0 else state.committed
        return state.frame - 1 - int(trace["frame"][last]) if len(trace) else state.frame

    def recent(self, state: BeamState, since: int) -> Recent:
        """The tokens that each likely hypothesis emits from frame `since` on, after the one before them."""
        scores = self._final_scores(state.hypotheses)
        likely = np.flatnonzero(scores >= scores.max() - LIKELY)
        weights = np.exp(scores[likely] - scores.max())
        tokens, frames = self._since(state, heads(state.hypotheses)[likely], since)
        return Recent(tokens, frames, weights / weights.sum())

    def _since(self, state: BeamState, last: Ids, since: int) -> tuple[Ids, Ids]:
        """Tokens and frames of the paths to these entries of the trace, shape = (n, longest), -1 in gaps."""
        if self._kernel:
            return self._kernel.recent(state, last, since)
        trace = state.trace
        entries = _follow(trace, last, since)
        settled = state.committed["frame"]
        old = np.arange(max(0, int(np.searchsorted(settled, since)) - 1), len(settled))
        oldest = entries[np.arange(len(last)), (entries >= 0).argmax(axis=1)] if entries.shape[1] else last
        reaches = np.append(trace["parent"], -1)[oldest] < 0  # what is settled
        whole = reaches & (np.append(trace["frame"], since)[oldest] >= since)
        past = np.where(whole[:, None], old, -1)
        tokens, frames = (
            np.concatenate([np.append(state.committed[name], -1)[past], np.append(trace[name], -1)[entries]], axis=1)
            for name in ("token", "frame")
        )
        return tokens, frames

    def _text(self, path: Path) -> Hashable:
        """What tells a path from others."""
        if not self.tokens:
            return tuple(path.tokens.tolist())
        return tuple(word.text for word in self.words(path.tokens))

    def stable(self, state: BeamState) -> int:
        """How many leading tokens all live hypotheses share; no later emission can change these."""
        if self._kernel:
            return len(state.committed) + self._kernel.stable(state.trace, state.hypotheses)
        entries = _follow(state.trace, heads(state.hypotheses))
        if entries.shape[1] == 0:
            return len(state.committed)
        lengths = (entries >= 0).sum(axis=1)
        begin = (entries.shape[1] - lengths)[:, None] + np.arange(lengths.min())
        tokens = state.trace["token"][np.take_along_axis(entries, begin, axis=1)]
        agree = (tokens == tokens[0]).all(axis=0)
        return len(state.committed) + int(np.logical_and.accumulate(agree).sum())

    def words(self, tokens: Ids) -> list[Span]:
        """The words that a path's tokens say."""
        words = self._reader.words(tokens.tolist())
        if isinstance(self.scorer, HotwordScorer):
            letters = [self._tokens[token] for token in tokens]
            sounds = ["".join(letters[begin:end]).removeprefix(BOUNDARY) for _, begin, end in words]
            return self.scorer.hotwords.written(words, sounds)
        return words

    def _final(self, hypotheses: Hypotheses) -> Scores:
        """What the scorer adds if the text ends here, shape = (n,)."""
        if self._kernel:
            return self._kernel.final(hypotheses)
        return self.scorer.final(hypotheses["scorer"][:, self._fields]) if self.scorer else np.zeros(len(hypotheses))

    def _final_scores(self, hypotheses: Hypotheses) -> Scores:
        return np.logaddexp(hypotheses["blank"], hypotheses["label"]) + hypotheses["fused"] + self._final(hypotheses)

    def _settle(self, state: BeamState) -> BeamState:
        """Drops hypotheses that differ from the best one in a token older than the horizon.

        Two prefixes that differ in one old token keep their distance for ever, because both go on alike: without this,
        near-ties from long ago would fill the beam and nothing would ever be committed.
        """
        hypotheses, trace = state.hypotheses, state.trace
        best = int(np.argmax(self._final_scores(hypotheses)))
        chain = _follow(trace, heads(hypotheses)[best : best + 1])[0]
        settled = chain[trace["frame"][chain] < state.frame - self.config.horizon]
        if len(settled) == 0:
            return state
        ends = np.concatenate([hypotheses["head_blank"], hypotheses["head_label"]])
        chains = _follow(trace, ends)
        lengths = (chains >= 0).sum(axis=1)
        first = chains.shape[1] - lengths  # column of the oldest entry of each path
        long_enough = np.flatnonzero(lengths >= len(settled))
        start = chains[long_enough[:, None], first[long_enough, None] + np.arange(len(settled))]
        same = np.zeros(len(ends), bool)
        same[long_enough] = (trace["token"][start] == trace["token"][settled]).all(axis=1)

        # Paths that agree in tokens may do so at other frames: all now take the times of the best one.
        longer = np.flatnonzero(same & (lengths > len(settled)))
        following = chains[longer, first[longer] + len(settled)]
        in_order = trace["frame"][following] > trace["frame"][settled[-1]]
        same[longer[~in_order]] = False  # it has one more token older than the horizon than the best one
        trace = trace.copy()
        trace["parent"][following[in_order]] = settled[-1]
        hypotheses = hypotheses.copy()
        ends = np.where(same & (lengths == len(settled)), settled[-1], ends)
        hypotheses["head_blank"], hypotheses["head_label"] = ends.reshape(2, -1)
        same[best] = True  # also where its other alignment is out of order
        return replace(state, hypotheses=hypotheses[same[: len(hypotheses)]], trace=trace)

    def _tokens_to_try(self, emission: Scores) -> Ids:
        """Which tokens other than the blank a frame tries, in order."""
        tried = np.asarray(emission >= emission.max() - self.config.token_threshold)
        tried[BLANK_ID] = False
        ranked = np.argsort(-np.where(tried, emission, NOTHING), kind="stable")
        tried[ranked[self.config.tokens :]] = False
        return np.flatnonzero(tried)

    def _advance(self, emission: Scores, state: BeamState) -> BeamState:
        """One frame: every hypothesis stays or takes one of the tokens tried; the best of all those live on."""
        old, trace_size = state.hypotheses, len(state.trace)
        tokens, stayed = self._tokens_to_try(emission), _stay(old, emission)
        n, k = len(old), len(tokens)
        if k == 0:
            return replace(state, frame=state.frame + 1, hypotheses=stayed)

        # Extensions, shape = (n, k). After its own last token a hypothesis needs a blank before the same token again.
        repeats = tokens == old["last"][:, None]
        step = emission[tokens]
        total, likeliest = np.logaddexp(old["blank"], old["label"]), np.maximum(old["best_blank"], old["best_label"])
        extended = np.where(repeats, old["blank"][:, None], total[:, None]) + step
        best = np.where(repeats, old["best_blank"][:, None], likeliest[:, None]) + step
        head = np.where(repeats, old["head_blank"][:, None], heads(old)[:, None])

        # An extension that spells another live hypothesis joins it.
        column = np.full(len(emission), -1)
        column[tokens] = np.arange(k)
        child, parent = np.nonzero(old["parent_key"][:, None] == old["key"])
        at = column[old["last"][child]]
        child, parent, at = child[at >= 0], parent[at >= 0], at[at >= 0]
        stayed["label"][child] = np.logaddexp(stayed["label"][child], extended[parent, at])
        extended[parent, at] = NOTHING
        better = best[parent, at] > stayed["best_label"][child]
        child, parent, at = child[better], parent[better], at[better]
        stayed["best_label"][child] = best[parent, at]
        stayed["head_label"][child] = trace_size + np.arange(len(child))
        joined = _entries(head[parent, at], tokens[at], state.frame, step[at], old["fused"][child])

        # Scores of all candidates; those of extensions that joined another are NOTHING.
        row, at = np.nonzero(extended > NOTHING)
        fused, scorer = old["fused"][row], old["scorer"][row]
        if self.scorer:
            added, scorer[:, self._fields] = self.scorer.extend(scorer[:, self._fields], tokens[at])
            fused = fused + added
        acoustic = extended[row, at]
        scores = np.concatenate([np.logaddexp(stayed["blank"], stayed["label"]) + stayed["fused"], acoustic + fused])
        chosen = np.flatnonzero(scores >= scores.max() - self.config.beam_threshold)
        chosen = np.sort(chosen[np.argsort(-scores[chosen], kind="stable")[: self.config.beam]])
        keep, chosen = chosen[chosen < n], chosen[chosen >= n] - n

        row, at = row[chosen], at[chosen]
        new = np.zeros(len(chosen), HYPOTHESIS)
        new["key"], new["parent_key"] = _extend_key(old["key"][row], tokens[at]), old["key"][row]
        new["last"], new["label"], new["best_label"] = tokens[at], acoustic[chosen], best[row, at]
        new["blank"] = new["best_blank"] = NOTHING
        new["fused"], new["scorer"] = fused[chosen], scorer[chosen]
        new["head_blank"] = new["head_label"] = trace_size + len(joined) + np.arange(len(new))
        entries = _entries(head[row, at], tokens[at], state.frame, step[at], fused[chosen])
        return replace(
            state,
            frame=state.frame + 1,
            hypotheses=np.concatenate([stayed[keep], new]),
            trace=np.concatenate([state.trace, joined, entries]),
        )


def _entries(parent: Ids, token: Ids, frame: int, log_prob: Scores, fused: Scores) -> Trace:
    found = np.empty(len(parent), ENTRY)
    for name, values in zip(ENTRY.names or (), (parent, token, frame, log_prob, fused), strict=True):
        found[name] = values
    return found


def _stay(old: Hypotheses, emission: Scores) -> Hypotheses:
    """Every hypothesis takes a blank or its last token once more."""
    stayed, again = old.copy(), emission[old["last"]]
    stayed["blank"] = np.logaddexp(old["blank"], old["label"]) + emission[BLANK_ID]
    stayed["label"] += again
    stayed["best_blank"] = np.maximum(old["best_blank"], old["best_label"]) + emission[BLANK_ID]
    stayed["best_label"] += again
    stayed["head_blank"] = heads(old)
    return stayed


def _extend_key(key: Keys, token: Ids) -> Keys:
    """Hash of a prefix from that of its parent and its last token; mixed as in SplitMix64 (Steele et al., 2014)."""
    z = key + (token.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _follow(trace: Trace, heads: Ids, since: int = 0) -> Ids:
    """Trace entries of each path, oldest first, shape = (n, longest); -1 fills the front of shorter ones.

    since: where a path is left after the first entry before this frame.
    """
    columns = []
    while (heads >= 0).any():
        columns.append(heads)
        heads = np.where((heads >= 0) & (trace["frame"][heads] >= since), trace["parent"][heads], -1)
    return np.stack(columns[::-1], axis=1) if columns else np.zeros((len(heads), 0), np.int64)


def _compact(state: BeamState) -> BeamState:
    """Forgets trace entries that no hypothesis needs, and commits those that all of them share."""
    trace, hypotheses = state.trace, state.hypotheses
    ends = np.concatenate([hypotheses["head_blank"], hypotheses["head_label"]])
    parents = trace["parent"].tolist()
    needed = [False] * len(parents)
    onward = [0] * (len(parents) + 1)  # paths that part or end after each entry; the last one is entry -1
    for head in set(ends.tolist()):
        onward[head] = 2  # a path may end here, so the shared part ends here too
        if head >= 0:
            needed[head] = True
    only: dict[int, int] = {}  # what follows an entry that has one way on
    for entry in range(len(parents) - 1, -1, -1):
        if needed[entry]:
            parent = parents[entry]
            onward[parent] += 1
            only[parent] = entry
            if parent >= 0:
                needed[parent] = True

    shared: list[int] = []
    entry = -1
    while onward[entry] == 1:
        entry = only[entry]
        shared.append(entry)
        needed[entry] = False

    kept = np.flatnonzero(needed)
    new_index = np.full(len(trace) + 1, -1)  # the last one is that of entry -1
    new_index[kept] = np.arange(len(kept))
    left, hypotheses = trace[kept], hypotheses.copy()
    left["parent"] = new_index[left["parent"]]
    for name in ("head_blank", "head_label"):
        hypotheses[name] = new_index[hypotheses[name]]
    committed = np.concatenate([state.committed, trace[np.array(shared, np.int64)]])
    return BeamState(state.frame, hypotheses, left, committed)
