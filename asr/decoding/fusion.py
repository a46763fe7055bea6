"""Scores that join the acoustic ones in a search: words of an n-gram model, looked ahead through a letter tree."""

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from asr.ctc import BLANK_ID
from asr.decoding import Span
from asr.decoding.lm import UNKNOWN_ID, Ids, NgramModel
from asr.decoding.tree import ROOT, LetterTree
from asr.decoding.words import Spelled
from asr.errors import ASRError
from asr.lexicon import Lexicon
from asr.tokenizer import BOUNDARY

MOST_HOMOPHONES = 8  # words that sound alike, the likeliest, that a search tells apart
REMEMBERED = 4096  # sounds whose words, and ends of texts whose last word, are kept at hand
NO_CONTEXT = 0  # of an n-gram model


class Scorer(Protocol):
    """Scores token sequences as they grow, many at a time; its state is a row of integers for each of them."""

    def start(self) -> Ids:
        """State before the first token, shape = (fields,)."""
        ...

    def extend(self, state: Ids, tokens: Ids) -> tuple[NDArray[np.float64], Ids]:
        """What each token adds, shape = (n,), in nats, and the states after it, shape = (n, fields)."""
        ...

    def final(self, state: Ids) -> NDArray[np.float64]:
        """What ending here adds, shape = (n,), in nats."""
        ...


class Letters:
    """What tokens spell, as arrays over the tokens.

    begins: whether a token begins with a word boundary, shape = (tokens,); lengths: its letters besides, shape =
    (tokens,); letters: these, as bytes of UTF-8, shape = (tokens, most letters), zero after the end.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        spelled = ["" if i == BLANK_ID else token for i, token in enumerate(tokens)]
        if inside := [token for token in spelled if BOUNDARY in token[1:]]:
            raise ASRError(f"token {inside[0]!r} has a word boundary inside; retrain the pieces within words")
        self.begins = np.array([token.startswith(BOUNDARY) for token in spelled])
        letters = [list(token.removeprefix(BOUNDARY).encode()) for token in spelled]
        self.lengths = np.array([len(row) for row in letters])
        self.letters = np.zeros((len(tokens), max(1, int(self.lengths.max()))), np.int64)
        for row, values in zip(self.letters, letters, strict=True):
            row[: len(values)] = values


class WordScorer:
    """Fuses a word n-gram model into a search over characters or pieces.

    A word counts when the next one begins or the text ends: lm_weight * log P(word | context) + word_bonus, and for a
    word outside the vocabulary that of <unk> less oov_penalty (nats all). Inside a word, the same sum with the best
    unigram probability of the words that begin with these letters stands in for it, and is taken back when it ends.
    """

    def __init__(
        self,
        lm: NgramModel,
        tokens: Sequence[str],
        lm_weight: float,
        word_bonus: float,
        oov_penalty: float,
        lexicon: Lexicon | None = None,
        tree: LetterTree | None = None,
    ) -> None:
        """lexicon: of pronunciations, where tokens are phones; otherwise they are letters of words. tree: of both."""
        self._lm = lm
        self.tree = tree or LetterTree.of(lm, lexicon)
        self._weight, self._bonus, self._penalty = lm_weight, word_bonus, oov_penalty
        self._ahead = self._look_ahead()

        # Words that sound alike end in boundaries of their own, so that a hypothesis goes on with each of them.
        ranks = min(MOST_HOMOPHONES, int(self.tree.count.max())) if lexicon else 1
        boundary = tokens.index(BOUNDARY) if ranks > 1 else BLANK_ID
        self.columns = np.append(np.arange(len(tokens)), np.full(ranks - 1, boundary))
        self._rank = np.append(np.zeros(len(tokens), np.int64), np.arange(1, ranks))
        self._ranked: list[int] = self._rank.tolist()
        self._ranks, self._lexicon = ranks, lexicon
        self._letters = Letters([tokens[i] for i in self.columns])
        self._spelled = Spelled([tokens[i] for i in self.columns])
        self._said = lru_cache(maxsize=REMEMBERED)(self._look_up)
        self._chosen = lru_cache(maxsize=REMEMBERED)(self._likeliest)

    def weighted(self, lm_weight: float) -> "WordScorer":
        """The same with another weight of the language model."""
        other = copy.copy(self)
        other._weight = lm_weight
        other._ahead = other._look_ahead()
        return other

    def tables(self) -> tuple:
        """What `extend` looks things up in, in the order of parse_words in _kernel.c; then bounds of it."""
        letters = self._letters
        return (
            *(letters.begins, letters.lengths, letters.letters, self._rank),
            *(*self.tree.tables, self._ahead, self._lm.tables()),
            *(self._lexicon is not None, self._ranks, self._weight, self._bonus, self._penalty),
            *(float(self._ahead.max()), self._weight * self._lm.most + self._bonus + max(0.0, -self._penalty)),
        )

    def start(self) -> Ids:
        """Language-model context and letter-tree node at the start of an utterance, shape = (2,)."""
        return np.array([self._lm.start, ROOT])

    def extend(self, state: Ids, tokens: Ids) -> tuple[NDArray[np.float64], Ids]:
        """What each token adds, shape = (n,), and the states after it, shape = (n, 2)."""
        context, node = state[:, 0].copy(), state[:, 1].copy()
        score = -self._ahead[node]
        begins = self._letters.begins[tokens]
        ends = np.flatnonzero(begins & (node != ROOT))
        if len(ends):
            score[ends], context[ends] = self._completed(context[ends], node[ends], self._rank[tokens[ends]])
        if self._lexicon:
            score[begins & (state[:, 1] == ROOT)] = -np.inf
        node[begins] = ROOT
        for depth in range(self._letters.letters.shape[1]):
            going = np.flatnonzero(self._letters.lengths[tokens] > depth)
            if len(going) == 0:
                break
            node[going] = self.tree.child(node[going], self._letters.letters[tokens[going], depth])
        return score + self._ahead[node], np.stack([context, node], axis=1)

    def final(self, state: Ids) -> NDArray[np.float64]:
        """What the words still open add if the text ends here, shape = (n,)."""
        score = np.zeros(len(state))
        is_open = np.flatnonzero(state[:, 1] != ROOT)
        if len(is_open):
            choices = np.clip(self.tree.count[state[is_open, 1]], 1, self._ranks)
            first = np.cumsum(choices) - choices
            context, node = state[np.repeat(is_open, choices)].T
            each, _ = self._completed(context, node, np.arange(len(node)) - np.repeat(first, choices))
            score[is_open] = np.maximum.reduceat(each, first)
        return score

    def words(self, tokens: Sequence[int]) -> list[Span]:
        """What tokens say. Of words that sound alike, the boundary tells which it is; the model, where none follows."""
        spans = self._spelled.words(tokens)
        if not self._lexicon or not spans:
            return spans
        last = len(tokens)
        said = [self._said(text, self._ranked[tokens[end]] if end < last else 0) for text, _, end in spans]
        node, _, _ = said[-1]
        if spans[-1].end == last and self.tree.count[node] > 1:
            word = self._chosen(tuple(word for _, word, _ in said[:-1][1 - self._lm.order :]), node)
            said[-1] = node, word, self._lm.spelling(word)
        return [Span(text, begin, end) for (_, begin, end), (_, _, text) in zip(spans, said, strict=True)]

    def _look_up(self, sound: str, rank: int) -> tuple[int, int, str]:
        """Node of what sounds so, and the word of this rank there: its number in the model, and how it is written."""
        node = self.tree.find(sound)
        word = int(self.tree.word(np.array([node]), np.array([rank]))[0])
        if word == UNKNOWN_ID and self._lexicon:
            return node, word, self._lexicon.text(sound)
        return node, word, self._lm.spelling(word)

    def _likeliest(self, before: tuple[int, ...], node: int) -> int:
        """Of the words that a node completes, the one to follow those before it; fewer than an order has are all."""
        context = np.array([self._lm.start if len(before) < self._lm.order - 1 else NO_CONTEXT])
        for word in before:
            context = self._lm.score(context, np.array([word]))[1]
        rank = np.arange(min(self._ranks, self.tree.count[node]))
        words = self.tree.word(np.full(len(rank), node), rank)
        return int(words[self._lm.score(np.repeat(context, len(words)), words)[0].argmax()])

    def knows(self, word: str) -> bool:
        """Whether a word is in the vocabulary of the language model."""
        return int(self._lm.ids([word])[0]) != UNKNOWN_ID

    def losses(self, letters: Ids) -> NDArray[np.float64]:
        """What words lose by being outside the vocabulary, in nats.

        letters: of each word, shape = (words, most letters), zero after the end. Result: of each word's prefixes of 0,
        1, 2 ... letters while it is open, then of the whole word when it is complete, shape = (words, letters + 2).
        """
        node = np.full(len(letters), ROOT)
        lost = np.zeros((len(letters), letters.shape[1] + 2), bool)
        for depth, letter in enumerate(letters.T):
            node = np.where(letter > 0, self.tree.child(node, letter), node)
            lost[:, depth + 1] = node == self.tree.outside
        lost[:, -1] = self.tree.count[node] == 0
        return lost * self._penalty

    def _look_ahead(self) -> NDArray[np.float64]:
        """What stands in for the open word at each node."""
        ahead = self._word_score(self.tree.best.astype(np.float64), self.tree.outside)
        ahead[ROOT] = 0.0
        return ahead

    def _completed(self, context: Ids, node: Ids, rank: Ids) -> tuple[NDArray[np.float64], Ids]:
        """What replaces the look-ahead when a node's word of this rank ends there, and the contexts that follow."""
        word = self.tree.word(node, rank)
        log_prob, following = self._lm.score(context, word)
        score = self._word_score(log_prob.astype(np.float64), word == UNKNOWN_ID) - self._ahead[node]
        score[(rank > 0) & (word == UNKNOWN_ID)] = -np.inf
        return score, following

    def _word_score(self, log_prob: NDArray[np.float64], unknown: NDArray[np.bool_] | int) -> NDArray[np.float64]:
        score = self._weight * log_prob + self._bonus
        score[unknown] -= self._penalty
        return score
