"""Scores that join the acoustic ones in a search: words of an n-gram model, looked ahead through a letter tree."""

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from asr.ctc import BLANK_ID
from asr.decoding import Span
from asr.decoding.lm import SPECIALS, UNKNOWN_ID, Ids, NgramModel
from asr.decoding.words import Spelled
from asr.errors import ASRError
from asr.lexicon import Lexicon
from asr.tokenizer import BOUNDARY

MOST_HOMOPHONES = 8  # words that sound alike, the likeliest, that a search tells apart
REMEMBERED = 4096  # sounds whose nodes are kept at hand
NO_CONTEXT = 0  # of an n-gram model
ROOT = 0  # letter-tree node before the first letter of a word


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


class LetterTree:
    """A tree over spelled words; every node is a prefix of at least one spelling, in letters or in phones.

    Letters are bytes of UTF-8. Nodes are numbered by depth, then in the order of the spellings. One node beyond the
    tree, `outside`, stands for all prefixes of no word.
    """

    def __init__(self, spellings: Sequence[str], words: Ids, log_prob: NDArray[np.float32]) -> None:
        """words: id of each spelling's word; log_prob: unigram log-probability of each word id."""
        # Those that are spelled alike stand together, the likeliest first.
        rank = np.lexsort((-log_prob[words],))
        every, words = np.array([s.encode() for s in spellings])[rank], words[rank]
        rank = np.argsort(every, kind="stable")
        every, words = every[rank], words[rank]
        first = np.flatnonzero(np.append(True, every[1:] != every[:-1]))
        spelled = every[first]
        letter = spelled.view(np.uint8).reshape(len(spelled), -1).T.copy()  # (depth, spelling), zero after the end

        # A sorted spelling makes a new node for each letter after what it shares with the one before it.
        shared = np.zeros(len(spelled), np.int64)
        shared[1:] = (letter[:, 1:] != letter[:, :-1]).argmax(axis=0)
        new = (np.arange(len(letter))[:, None] >= shared) & (letter > 0)
        depth, column = np.nonzero(new)
        node = np.zeros((len(letter) + 1, len(spelled)), np.int32)  # of each spelling's prefix of so many letters
        node[depth + 1, column] = np.arange(len(depth)) + 1
        node = np.maximum.accumulate(node, axis=1)
        self._keys = node[depth, column].astype(np.int64) << 8 | letter[depth, column]  # ascending; of nodes 1, 2 ...

        self.outside = len(depth) + 1
        leaf = node[(letter > 0).sum(axis=0), np.arange(len(spelled))]
        self._words = words
        self._first = np.zeros(self.outside + 1, np.int64)
        self._first[leaf] = first
        self.count = np.zeros(self.outside + 1, np.int64)  # words that each node completes
        self.count[leaf] = np.diff(np.append(first, len(words)))

        self.best = np.full(self.outside + 1, log_prob[UNKNOWN_ID])  # the best unigram log-probability below each node
        for level, is_new, nodes in zip(letter, new, node[1:], strict=True):
            begins = np.flatnonzero(is_new)
            reaching = np.where(level > 0, log_prob[words[first]], -np.inf)
            self.best[nodes[begins]] = np.maximum.reduceat(reaching, begins)

    def tables(self) -> tuple[Ids, NDArray[np.uint8], Ids, Ids, Ids]:
        """The tree as arrays over its nodes, and its words.

        The first child of each node, all children of a node being in a row, shape = (nodes + 1,); the letter that leads
        to it; the index of its first word; how many words it completes; the words.
        """
        parents = np.bincount(self._keys >> 8, minlength=self.outside + 1)
        children = np.append(1, 1 + np.cumsum(parents))
        letter = np.zeros(self.outside + 1, np.uint8)
        letter[1 : self.outside] = self._keys & 0xFF
        return children, letter, self._first, self.count, self._words

    def word(self, node: Ids, rank: Ids) -> Ids:
        """The word of this rank, from 0, among those that each node completes, or else <unk>, shape = (n,)."""
        known = rank < self.count[node]
        return np.where(known, self._words[np.where(known, self._first[node] + rank, 0)], UNKNOWN_ID)

    def find(self, spelling: str) -> int:
        """The node of a spelling."""
        node = np.array([ROOT])
        for letter in spelling.encode():
            node = self.child(node, np.array([letter]))
        return int(node[0])

    def child(self, node: Ids, letter: Ids) -> Ids:
        """The node one letter further, shape = (n,)."""
        key = node << 8 | letter
        at = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
        return np.where(self._keys[at] == key, at + 1, self.outside)


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
    ) -> None:
        """lexicon: of pronunciations, where tokens are phones; otherwise they are letters of words."""
        self._lm = lm
        if lexicon:
            known = dict(zip(lm.words, range(len(lm.words)), strict=True))
            pairs = [(known[word], sound) for word, sound in lexicon.pairs if word in known]
            ids, spellings = np.array([i for i, _ in pairs]), [sound for _, sound in pairs]
        else:
            ids, spellings = np.arange(len(SPECIALS), len(lm.words)), lm.words[len(SPECIALS) :]
        self.tree = LetterTree(spellings, ids, lm.unigrams())
        self._weight, self._bonus, self._penalty = lm_weight, word_bonus, oov_penalty
        self._ahead = self._look_ahead()

        # Words that sound alike end in boundaries of their own, so that a hypothesis goes on with each of them.
        ranks = min(MOST_HOMOPHONES, int(self.tree.count.max())) if lexicon else 1
        boundary = tokens.index(BOUNDARY) if ranks > 1 else BLANK_ID
        self.columns = np.append(np.arange(len(tokens)), np.full(ranks - 1, boundary))
        self._rank = np.append(np.zeros(len(tokens), np.int64), np.arange(1, ranks))
        self._ranks, self._lexicon = ranks, lexicon
        self._letters = Letters([tokens[i] for i in self.columns])
        self._spelled = Spelled([tokens[i] for i in self.columns])
        self._node = lru_cache(maxsize=REMEMBERED)(self.tree.find)

    def weighted(self, lm_weight: float) -> "WordScorer":
        """The same with another weight of the language model."""
        other = copy.copy(self)
        other._weight = lm_weight
        other._ahead = other._look_ahead()
        return other

    def tables(self) -> tuple:
        """What `extend` looks things up in, in the order of parse_words in _kernel.c."""
        letters = self._letters
        return (
            *(letters.begins, letters.lengths, letters.letters, self._rank),
            *(*self.tree.tables(), self._ahead, self._lm.tables()),
            *(self._lexicon is not None, self._weight, self._bonus, self._penalty),
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
        nodes = np.array([self._node(span.text) for span in spans])
        rank = np.array([self._rank[tokens[span.end]] if span.end < len(tokens) else 0 for span in spans])
        ids = self.tree.word(nodes, rank)
        if spans[-1].end == len(tokens) and self.tree.count[nodes[-1]] > 1:
            ids[-1] = self._likeliest(ids[:-1], nodes[-1])
        return [
            span._replace(text=self._lm.spelling(i) if i != UNKNOWN_ID else self._lexicon.text(span.text))
            for span, i in zip(spans, ids.tolist(), strict=True)
        ]

    def _likeliest(self, before: Ids, node: int) -> int:
        """Of the words that a node completes, the one to follow those before it."""
        context = np.array([self._lm.start if len(before) < self._lm.order - 1 else NO_CONTEXT])
        for word in before[max(0, len(before) - self._lm.order + 1) :]:
            context = self._lm.score(context, word[None])[1]
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
