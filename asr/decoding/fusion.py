"""Scores that join the acoustic ones in a search: words of an n-gram model, looked ahead through a letter tree."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from asr.ctc import BLANK_ID
from asr.decoding.lm import SPECIALS, UNKNOWN_ID, Ids, NgramModel
from asr.errors import ASRError
from asr.tokenizer import BOUNDARY

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


class Lexicon:
    """A letter tree over the words of a language model; every node is a prefix of at least one word.

    Letters are bytes of UTF-8. Nodes are numbered by depth, then in the order of the words. One node beyond the tree,
    `outside`, stands for all prefixes of no word.
    """

    def __init__(self, lm: NgramModel) -> None:
        words = np.array([word.encode() for word in lm.words[len(SPECIALS) :]])
        order = np.argsort(words, kind="stable")
        letter = words[order].view(np.uint8).reshape(len(words), -1).T.copy()  # (depth, word), zero after the end
        ids = order + len(SPECIALS)

        # A sorted word makes a new node for each letter after what it shares with the word before it.
        shared = np.zeros(len(words), np.int64)
        shared[1:] = (letter[:, 1:] != letter[:, :-1]).argmax(axis=0)
        new = (np.arange(len(letter))[:, None] >= shared) & (letter > 0)
        depth, column = np.nonzero(new)
        node = np.zeros((len(letter) + 1, len(words)), np.int32)  # of each word's prefix of so many letters
        node[depth + 1, column] = np.arange(len(depth)) + 1
        node = np.maximum.accumulate(node, axis=1)
        self._keys = node[depth, column].astype(np.int64) << 8 | letter[depth, column]  # ascending; of nodes 1, 2 ...

        self.outside = len(depth) + 1
        self.word = np.full(self.outside + 1, UNKNOWN_ID)  # the word that each node completes
        self.word[node[(letter > 0).sum(axis=0), np.arange(len(words))]] = ids

        log_prob = lm.unigrams()
        self.best = np.full(self.outside + 1, log_prob[UNKNOWN_ID])  # the best unigram log-probability below each node
        for level, is_new, nodes in zip(letter, new, node[1:], strict=True):
            first = np.flatnonzero(is_new)
            reaching = np.where(level > 0, log_prob[ids], -np.inf)
            self.best[nodes[first]] = np.maximum.reduceat(reaching, first)

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
        self, lm: NgramModel, tokens: Sequence[str], lm_weight: float, word_bonus: float, oov_penalty: float
    ) -> None:
        self._lm, self._lexicon = lm, Lexicon(lm)
        self._weight, self._bonus, self._penalty = lm_weight, word_bonus, oov_penalty
        self._ahead = self._word_score(self._lexicon.best.astype(np.float64), self._lexicon.outside)
        self._ahead[ROOT] = 0.0

        self._spelled = Letters(tokens)

    def start(self) -> Ids:
        """Language-model context and letter-tree node at the start of an utterance, shape = (2,)."""
        return np.array([self._lm.start, ROOT])

    def extend(self, state: Ids, tokens: Ids) -> tuple[NDArray[np.float64], Ids]:
        """What each token adds, shape = (n,), and the states after it, shape = (n, 2)."""
        context, node = state[:, 0].copy(), state[:, 1].copy()
        score = -self._ahead[node]
        begins = self._spelled.begins[tokens]
        ends = np.flatnonzero(begins & (node != ROOT))
        if len(ends):
            score[ends], context[ends] = self._completed(context[ends], node[ends])
        node[begins] = ROOT
        for depth in range(self._spelled.letters.shape[1]):
            going = np.flatnonzero(self._spelled.lengths[tokens] > depth)
            if len(going) == 0:
                break
            node[going] = self._lexicon.child(node[going], self._spelled.letters[tokens[going], depth])
        return score + self._ahead[node], np.stack([context, node], axis=1)

    def final(self, state: Ids) -> NDArray[np.float64]:
        """What the words still open add if the text ends here, shape = (n,)."""
        score = np.zeros(len(state))
        is_open = np.flatnonzero(state[:, 1] != ROOT)
        score[is_open], _ = self._completed(state[is_open, 0], state[is_open, 1])
        return score

    def losses(self, letters: Ids) -> NDArray[np.float64]:
        """What words lose by being outside the vocabulary, in nats.

        letters: of each word, shape = (words, most letters), zero after the end. Result: of each word's prefixes of 0,
        1, 2 ... letters while it is open, then of the whole word when it is complete, shape = (words, letters + 2).
        """
        node = np.full(len(letters), ROOT)
        lost = np.zeros((len(letters), letters.shape[1] + 2), bool)
        for depth, letter in enumerate(letters.T):
            node = np.where(letter > 0, self._lexicon.child(node, letter), node)
            lost[:, depth + 1] = node == self._lexicon.outside
        lost[:, -1] = self._lexicon.word[node] == UNKNOWN_ID
        return lost * self._penalty

    def _completed(self, context: Ids, node: Ids) -> tuple[NDArray[np.float64], Ids]:
        """What replaces the look-ahead at each node when its word ends there, and the contexts that follow."""
        word = self._lexicon.word[node]
        log_prob, following = self._lm.score(context, word)
        return self._word_score(log_prob.astype(np.float64), word == UNKNOWN_ID) - self._ahead[node], following

    def _word_score(self, log_prob: NDArray[np.float64], unknown: NDArray[np.bool_] | int) -> NDArray[np.float64]:
        score = self._weight * log_prob + self._bonus
        score[unknown] -= self._penalty
        return score
