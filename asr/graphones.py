"""Spelling to sound and back: n-grams over graphones, each a letter with the phones that it stands for.

Joint-sequence model after Bisani and Ney, "Joint-sequence models for grapheme-to-phoneme conversion" (2008): every
dictionary word is one sequence of graphones ("x:K.S" is the letter x spoken as K S), found by expectation maximisation;
an n-gram model over those sequences then pronounces or spells a word by searching the likeliest sequence that fits it.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr import lexicon
from asr.decoding.kneser_ney import Corpus
from asr.decoding.kneser_ney import train as train_ngrams
from asr.decoding.lm import END_ID, SPECIALS, START_ID, NgramModel
from asr.errors import ASRError

Ids = NDArray[np.int64]
Doubles = NDArray[np.float64]
Shape = tuple[int, int]  # how many letters and how many phones
Phones = tuple[str, ...]
Pair = tuple[str, Sequence[str]]  # a word and its phones

PHONES = tuple(lexicon.PHONES)
VOICELESS, SIBILANTS = frozenset({"P", "T", "K", "F", "TH"}), frozenset({"S", "Z", "SH", "ZH", "CH", "JH"})
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz'")
# Endings that are spoken by rule; the first phone of these goes after a vowel.
CONTRACTIONS: dict[str, Phones] = {
    "'ll": ("AH", "L"),
    "'ve": ("AH", "V"),
    "'re": ("ER", "R"),
    "'st": ("IH", "S", "T"),
    "'rt": ("ER", "R", "T"),
    "'m": ("AH", "M"),
    "'n": ("AH", "N"),
}
ENDINGS = ("'s", "'d", *CONTRACTIONS)
SHAPES: tuple[Shape, ...] = ((1, 0), (1, 1), (1, 2))
ORDER = 6
PRUNING = 7e-7  # n-grams that raise perplexity by less than this share of it are left out
ITERATIONS = 12  # of expectation maximisation
UNEVEN = 0.1  # what a graphone's first estimate loses for each letter more than phones, or phone more than letters
RARE = 1 / 50_000  # a graphone of fewer words is a slip of the dictionary; the words that need it are left out
BEAM = 8  # hypotheses kept per word and position
MARGIN = 12.0  # nats below the best hypothesis of a word at which others are dropped
MOST_SILENT = 3  # symbols of the other side in a row that may come from nothing
BATCH = 1024  # words searched at once


@dataclass(frozen=True)
class Candidate:
    """One answer of the model.

    symbols: phones of a pronunciation, or letters of a spelling; log_prob: natural log of its probability given the
    question, as far as the beam reached.
    """

    symbols: tuple[str, ...]
    log_prob: float

    def ratio(self, other: "Candidate") -> float:
        """How likely this one is for each time that the other is."""
        return math.exp(self.log_prob - other.log_prob)


class Graphones:
    """A trained model; `pronounce` and `spell` ask it one word, `pronounce_all` and `spell_all` many at once."""

    def __init__(self, model: NgramModel) -> None:
        self.model = model
        halves = [label.split(":") for label in model.words[len(SPECIALS) :]]
        self._letters = [tuple(letters) for letters, _ in halves]
        self._phones = [tuple(filter(None, phones.split("."))) for _, phones in halves]

    @cached_property
    def _by_letters(self) -> "_Table":
        return _Table(self._letters, LETTERS)

    @cached_property
    def _by_phones(self) -> "_Table":
        return _Table(self._phones, PHONES)

    def pronounce(self, word: str, n: int = 1) -> list[list[str]]:
        """The n likeliest pronunciations of a word of a-z and apostrophes, best first; fewer if the beam held fewer."""
        return [list(candidate.symbols) for candidate in self.pronounce_all([word], n)[0]]

    def spell(self, phones: Sequence[str]) -> str:
        """The likeliest spelling of a sequence of phones; "" if there is none."""
        candidates = self.spell_all([phones])[0]
        return "".join(candidates[0].symbols) if candidates else ""

    def pronounce_all(self, words: Sequence[str], n: int = 1, beam: int = BEAM) -> list[list[Candidate]]:
        """The n likeliest pronunciations of each word; possessives and contractions follow their base by rule."""
        parts = [split_ending(check_word(word)) for word in words]
        answers = self._answer([base for base, _ in parts], self._by_letters, self._phones, n, beam)
        return [
            [Candidate(join_ending(candidate.symbols, ending), candidate.log_prob) for candidate in answer]
            for answer, (_, ending) in zip(answers, parts, strict=True)
        ]

    def spell_all(self, pronunciations: Sequence[Sequence[str]], n: int = 1, beam: int = BEAM) -> list[list[Candidate]]:
        """The n likeliest spellings of each sequence of phones."""
        for phones in pronunciations:
            check_phones(phones)
        return self._answer(pronunciations, self._by_phones, self._letters, n, beam)

    def _answer(
        self,
        questions: Sequence[Sequence[str]],
        table: "_Table",
        outputs: Sequence[tuple[str, ...]],
        n: int,
        beam: int,
    ) -> list[list[Candidate]]:
        answers: list[list[Candidate]] = [[] for _ in questions]
        by_length = sorted(range(len(questions)), key=lambda i: len(questions[i]))
        for begin in range(0, len(questions), BATCH):
            batch = by_length[begin : begin + BATCH]
            search = _Search(self.model, table, [questions[i] for i in batch], beam)
            found: list[dict[tuple[str, ...], float]] = [{} for _ in batch]
            for asked, score, graphones in search.run():
                symbols = tuple(symbol for graphone in graphones for symbol in outputs[graphone])
                if symbols:
                    found[asked][symbols] = float(np.logaddexp(found[asked].get(symbols, -math.inf), score))
            for i, scores in zip(batch, found, strict=True):
                total = float(np.logaddexp.reduce(list(scores.values()))) if scores else 0.0
                best = sorted(scores, key=lambda symbols: -scores[symbols])[:n]
                answers[i] = [Candidate(symbols, scores[symbols] - total) for symbols in best]
        return answers

    @classmethod
    def train(
        cls,
        pairs: Iterable[Pair],
        order: int = ORDER,
        pruning: float = PRUNING,
        shapes: Sequence[Shape] = SHAPES,
    ) -> "Graphones":
        """Trains on a dictionary: (word, phones) pairs, several of a word if it has several pronunciations.

        shapes: the numbers of letters and phones that a graphone may have. Pairs that no such sequence of graphones can
        make, or only with rare ones, are left out.
        """
        return cls.from_alignment(align(pairs, shapes), order, pruning)

    @classmethod
    def from_alignment(
        cls, labels: Sequence[Sequence[str]], order: int = ORDER, pruning: float = PRUNING
    ) -> "Graphones":
        """Trains on the graphones of words, as `align` gives them."""
        labels = _drop_rare(labels)
        if not labels:
            raise ASRError("no word of the dictionary can be aligned with its phones; check what the lines hold")
        inventory = sorted({label for sequence in labels for label in sequence})
        ids = {label: i for i, label in enumerate(inventory, len(SPECIALS))}
        stream = [i for sequence in labels for i in (START_ID, *(ids[label] for label in sequence), END_ID)]
        corpus = Corpus([*SPECIALS, *inventory], np.array(stream, np.int64))
        return cls(train_ngrams(corpus, order, pruning))

    def save(self, path: str | Path) -> None:
        """Writes one file, in the form of a language model whose words are graphones."""
        self.model.save(path)

    @classmethod
    def load(cls, path: str | Path) -> "Graphones":
        """Reads what `save` wrote; ASRError if it is missing, damaged or something else."""
        try:
            model = NgramModel.load(path)
        except ASRError:
            raise ASRError(f"{path} cannot be read as a model of spelling; make one with `asr lexicon build`") from None
        if not all(label.count(":") == 1 for label in model.words[len(SPECIALS) :]):
            raise ASRError(f"{path} is a language model of words, not of graphones; make one with `asr lexicon build`")
        return cls(model)


def check_word(word: str) -> str:
    """The word itself; ASRError unless it has a letter and only letters a-z and apostrophes."""
    if not re.fullmatch("[a-z']*[a-z][a-z']*", word):
        raise ASRError(f"{word!r} cannot be pronounced: a word is letters a to z and apostrophes; normalise it first")
    return word


def check_phones(phones: Sequence[str]) -> Sequence[str]:
    """The phones themselves; ASRError unless there is one and all are CMUdict's without stress."""
    unknown = [phone for phone in phones if phone not in PHONES]
    if unknown or not phones:
        found = f"the phone {unknown[0]!r}" if unknown else "no phone"
        raise ASRError(f"{' '.join(phones)!r} holds {found}; wanted are one or more of {' '.join(PHONES)}")
    return phones


def split_ending(word: str, known: Container[str] = ()) -> tuple[str, str]:
    """The word that this one is spoken after, and the ending that `join_ending` adds.

    dog's: dog + 's; boys': boys; goin': going + in'; 'ouse: house + h, provided that `known` holds that word.
    """
    for ending in ENDINGS:
        if re.fullmatch(f"[a-z']*[a-z]{ending}", word):
            return word.removesuffix(ending), ending
    if re.fullmatch("[a-z']*[a-z]in'", word):
        return f"{word[:-1]}g", "in'"
    if word.startswith("'") and f"h{word[1:]}" in known:
        return f"h{word[1:]}", "h"
    return word.rstrip("'"), ""


def join_ending(phones: Phones, ending: str) -> Phones:
    """The phones of a word with an ending that `split_ending` took off."""
    last = phones[-1]
    if ending == "'s":
        return (*phones, "IH", "Z") if last in SIBILANTS else (*phones, "S" if last in VOICELESS else "Z")
    if ending == "'d":
        voiceless = last in VOICELESS or last in ("S", "SH", "CH")
        return (*phones, "IH", "D") if last in ("T", "D") else (*phones, "T" if voiceless else "D")
    if ending in CONTRACTIONS:
        after_vowel = last[0] in "AEIOU"
        added = CONTRACTIONS[ending]
        return phones + (added[1:] if after_vowel else tuple(phone for phone in added if phone != "R"))
    if ending == "in'" and last == "NG":
        return (*phones[:-1], "N")
    if ending == "h" and phones[0] == "HH" and len(phones) > 1:
        return phones[1:]
    return phones


class _Table:
    """The graphones that can stand for each run of up to two symbols of one side."""

    def __init__(self, sides: Sequence[Sequence[str]], symbols: Sequence[str]) -> None:
        self.ids = {symbol: i for i, symbol in enumerate(symbols, 1)}
        self.base = len(symbols) + 1
        self.longest = max(map(len, sides))
        runs = np.array([self._code([self.ids[symbol] for symbol in side]) for side in sides])
        self.graphones = np.argsort(runs, kind="stable") + len(SPECIALS)
        self.counts = np.bincount(runs, minlength=self.base**2)
        self.first = np.cumsum(self.counts) - self.counts

    def _code(self, ids: Sequence[int]) -> int:
        padded = [*ids, 0, 0]
        return padded[0] * self.base + padded[1]

    def encode(self, questions: Sequence[Sequence[str]]) -> Ids:
        """Symbol ids from 1, zero after the end; shape = (questions, longest + 2)."""
        encoded = np.zeros((len(questions), max(map(len, questions)) + 2), np.int64)
        for row, question in zip(encoded, questions, strict=True):
            row[: len(question)] = [self.ids[symbol] for symbol in question]
        return encoded


@dataclass
class _Pool:
    """Hypotheses of all words at one position; all shapes = (n,)."""

    word: Ids
    context: Ids  # of the n-gram model
    score: NDArray[np.float32]  # natural log
    node: Ids  # where its history ends

    def __getitem__(self, chosen: NDArray) -> "_Pool":
        return _Pool(self.word[chosen], self.context[chosen], self.score[chosen], self.node[chosen])

    @staticmethod
    def joined(pools: Sequence["_Pool"]) -> "_Pool":
        return _Pool(
            np.concatenate([pool.word for pool in pools]),
            np.concatenate([pool.context for pool in pools]),
            np.concatenate([pool.score for pool in pools]),
            np.concatenate([pool.node for pool in pools]),
        )


class _Search:
    """Beam search for the likeliest graphones of a batch of questions, from position to position of the known side."""

    def __init__(self, model: NgramModel, table: _Table, questions: Sequence[Sequence[str]], beam: int) -> None:
        self.model, self.table, self.beam = model, table, beam
        self.lengths = np.array([len(question) for question in questions])
        self.symbols = table.encode(questions)
        self.parents: list[Ids] = [np.zeros(1, np.int64)]
        self.graphones: list[Ids] = [np.zeros(1, np.int64)]
        self.nodes = 1

    def run(self) -> Iterator[tuple[int, float, list[int]]]:
        """Of every complete hypothesis: its question, its joint log-probability, its graphones from 0 on."""
        words = len(self.lengths)
        zeros = np.zeros(words, np.int64)
        start = _Pool(np.arange(words), zeros + self.model.start, zeros.astype(np.float32), zeros)
        pools: defaultdict[int, list[_Pool]] = defaultdict(list, {0: [start]})
        done: list[_Pool] = []
        for position in range(int(self.lengths.max()) + 1):
            if position not in pools:
                continue
            pool = self._with_silent(self._prune(_Pool.joined(pools.pop(position))))
            ends = self.lengths[pool.word] == position
            done.append(self._end(pool[ends]))
            pool = pool[~ends]
            first, second = self.symbols[pool.word, position], self.symbols[pool.word, position + 1]
            for taken in range(1, self.table.longest + 1):
                fits = self.lengths[pool.word] >= position + taken
                runs = first * self.table.base + (second if taken == 2 else 0)
                pools[position + taken].append(self._extend(pool[fits], runs[fits]))
        yield from self._traced(_Pool.joined(done))

    def _with_silent(self, pool: _Pool) -> _Pool:
        """Adds hypotheses that go on with graphones of which this side shows nothing."""
        if not self.table.counts[0]:
            return pool
        pools = [pool]
        for _ in range(MOST_SILENT):
            pools.append(self._prune(self._extend(pools[-1], np.zeros(len(pools[-1].word), np.int64))))
        return self._prune(_Pool.joined(pools))

    def _extend(self, pool: _Pool, runs: Ids) -> _Pool:
        """Every hypothesis with every graphone that stands for its run of symbols."""
        counts = self.table.counts[runs]
        parent = np.repeat(np.arange(len(runs)), counts)
        offset = np.arange(len(parent)) - np.repeat(np.cumsum(counts) - counts, counts)
        graphone = self.table.graphones[self.table.first[runs][parent] + offset]
        log_prob, context = self.model.score(pool.context[parent], graphone)
        score = pool.score[parent] + log_prob
        self.parents.append(pool.node[parent])
        self.graphones.append(graphone - len(SPECIALS))
        node = self.nodes + np.arange(len(parent))
        self.nodes += len(parent)
        return _Pool(pool.word[parent], context, score, node)

    def _prune(self, pool: _Pool) -> _Pool:
        """The best hypotheses of each word, best first."""
        order = np.lexsort((-pool.score, pool.word))
        word, score = pool.word[order], pool.score[order]
        first = np.flatnonzero(np.diff(word, prepend=-1))
        best = np.repeat(first, np.diff(np.append(first, len(word))))
        rank = np.arange(len(word)) - best
        return pool[order[(rank < self.beam) & (score > score[best] - MARGIN)]]

    def _end(self, pool: _Pool) -> _Pool:
        log_prob, context = self.model.score(pool.context, np.full(len(pool.word), END_ID))
        return _Pool(pool.word, context, pool.score + log_prob, pool.node)

    def _traced(self, pool: _Pool) -> Iterator[tuple[int, float, list[int]]]:
        parents, graphones = np.concatenate(self.parents).tolist(), np.concatenate(self.graphones).tolist()
        for word, score, end in zip(pool.word.tolist(), pool.score.tolist(), pool.node.tolist(), strict=True):
            sequence, node = [], end
            while node:
                sequence.append(graphones[node])
                node = parents[node]
            yield word, score, sequence[::-1]


def align(pairs: Iterable[Pair], shapes: Sequence[Shape] = SHAPES) -> list[list[str]]:
    """The likeliest graphones of every pair that can be aligned, as labels "letters:phones"."""
    checked = [(check_word(word), check_phones(phones)) for word, phones in pairs]
    groups = [group for group in _groups(checked, shapes) if group.possible]
    codes = _Codes(groups)
    probability = UNEVEN ** np.array([_unevenness(code) for code in codes.known.tolist()])
    for _ in range(ITERATIONS):
        counts = np.zeros_like(probability)
        for group, ids in zip(groups, codes.ids, strict=True):
            group.add_counts(ids, probability, counts)
        probability = counts / counts.sum()
    labels = list(map(_label, codes.known.tolist()))
    return [
        [labels[i] for i in sequence]
        for group, ids in zip(groups, codes.ids, strict=True)
        for sequence in group.best(ids, probability)
    ]


_LETTER_BASE, _PHONE_BASE = len(LETTERS) + 1, len(PHONES) + 1


def _unevenness(code: int) -> int:
    """How far the number of letters is from the number of phones."""
    letters, phones = _label(code).split(":")
    return abs(len(letters) - len(phones.split(".") if phones else ()))


def _label(code: int) -> str:
    letters, phones = divmod(code, _PHONE_BASE**2)
    spelled = [LETTERS[i - 1] for i in divmod(letters, _LETTER_BASE) if i]
    spoken = [PHONES[i - 1] for i in divmod(phones, _PHONE_BASE) if i]
    return f"{''.join(spelled)}:{'.'.join(spoken)}"


def _drop_rare(sequences: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    counts = Counter(label for sequence in sequences for label in sequence)
    least = RARE * len(sequences)
    return [sequence for sequence in sequences if min(counts[label] for label in sequence) >= least]


def _groups(pairs: Sequence[Pair], shapes: Sequence[Shape]) -> list["_Group"]:
    """The pairs by numbers of letters and phones."""
    letter_ids = {letter: i for i, letter in enumerate(LETTERS, 1)}
    phone_ids = {phone: i for i, phone in enumerate(PHONES, 1)}
    by_size: defaultdict[tuple[int, int], list[tuple[list[int], list[int]]]] = defaultdict(list)
    for word, phones in pairs:
        encoded = [letter_ids[letter] for letter in word], [phone_ids[phone] for phone in phones]
        by_size[len(word), len(phones)].append(encoded)
    return [
        _Group(np.array([word for word, _ in group]).T, np.array([phones for _, phones in group]).T, shapes)
        for group in by_size.values()
    ]


class _Codes:
    """Numbers the graphones that occur anywhere in the groups."""

    def __init__(self, groups: Sequence["_Group"]) -> None:
        raw = [group.codes() for group in groups]
        seen = np.zeros(_LETTER_BASE**2 * _PHONE_BASE**2, bool)
        for codes in raw:
            for code in codes.values():
                seen[code] = True
        self.known = np.flatnonzero(seen)
        index = np.cumsum(seen, dtype=np.int32) - 1
        self.ids = [{shape: index[c] for shape, c in codes.items()} for codes in raw]


class _Group:
    """Pairs of the same size in a lattice of cells (letters so far, phones so far).

    letters: shape = (letters, pairs); phones: shape = (phones, pairs); ids from 1.
    """

    def __init__(self, letters: Ids, phones: Ids, shapes: Sequence[Shape]) -> None:
        self.letters, self.phones = letters, phones
        self.height, self.width, self.pairs = len(letters), len(phones), letters.shape[1]
        self.shapes = [(a, b) for a, b in shapes if a <= self.height and b <= self.width]
        self.possible = bool(self._forward(None, None)[-1, -1].all())

    def codes(self) -> dict[Shape, NDArray[np.int32]]:
        """By shape, the code of the graphone that leaves each cell; shape = (letters, phones, pairs)."""
        return {
            (a, b): (
                _run_codes(self.letters, a, _LETTER_BASE)[:, None] * _PHONE_BASE**2
                + _run_codes(self.phones, b, _PHONE_BASE)[None]
            ).astype(np.int32)
            for a, b in self.shapes
        }

    def _forward(self, ids: dict[Shape, NDArray[np.int32]] | None, probability: Doubles | None) -> Doubles:
        """Sums of the probabilities of all ways to each cell, shape = (letters + 1, phones + 1, pairs)."""
        alpha = np.zeros((self.height + 1, self.width + 1, self.pairs if ids else 1))
        alpha[0, 0] = 1
        for i, j, a, b in self._arcs():
            step = probability[ids[a, b][i, j]] if ids is not None and probability is not None else 1.0
            alpha[i + a, j + b] += alpha[i, j] * step
        return alpha

    def _arcs(self) -> list[tuple[int, int, int, int]]:
        """Cell and shape of every arc, so that all arcs into a cell come before those that leave it."""
        return [
            (i, j, a, b)
            for i in range(self.height + 1)
            for j in range(self.width + 1)
            for a, b in self.shapes
            if i + a <= self.height and j + b <= self.width
        ]

    def add_counts(self, ids: dict[Shape, NDArray[np.int32]], probability: Doubles, counts: Doubles) -> None:
        """Adds how often each graphone is expected in these pairs (forward-backward)."""
        alpha = self._forward(ids, probability)
        beta = np.zeros_like(alpha)
        beta[-1, -1] = 1 / np.maximum(alpha[-1, -1], 1e-300)
        seen = {shape: np.zeros(graphone.shape) for shape, graphone in ids.items()}
        for i, j, a, b in reversed(self._arcs()):
            through = probability[ids[a, b][i, j]] * beta[i + a, j + b]
            beta[i, j] += through
            seen[a, b][i, j] = alpha[i, j] * through
        for shape, graphone in ids.items():
            counts += np.bincount(graphone.ravel(), seen[shape].ravel(), len(counts))

    def best(self, ids: dict[Shape, NDArray[np.int32]], probability: Doubles) -> list[list[int]]:
        """The likeliest graphones of each pair (Viterbi)."""
        best = np.zeros((self.height + 1, self.width + 1, self.pairs))
        best[0, 0] = 1
        chosen = np.zeros(best.shape, np.int8)  # the shape of the arc into each cell
        shape_index = {shape: k for k, shape in enumerate(self.shapes)}
        for i, j, a, b in self._arcs():
            through = best[i, j] * probability[ids[a, b][i, j]]
            better = through > best[i + a, j + b]
            best[i + a, j + b][better] = through[better]
            chosen[i + a, j + b][better] = shape_index[a, b]
        return [self._traced(pair, ids, chosen) for pair in range(self.pairs) if best[-1, -1, pair] > 0]

    def _traced(self, pair: int, ids: dict[Shape, NDArray[np.int32]], chosen: NDArray[np.int8]) -> list[int]:
        i, j = self.height, self.width
        sequence = []
        while i or j:
            a, b = shape = self.shapes[chosen[i, j, pair]]
            i, j = i - a, j - b
            sequence.append(int(ids[shape][i, j, pair]))
        return sequence[::-1]


def _run_codes(symbols: Ids, length: int, base: int) -> Ids:
    """The code of the run of `length` symbols at each position where it fits; shape = (positions, pairs)."""
    if length == 0:
        return np.zeros((len(symbols) + 1, symbols.shape[1]), np.int64)
    if length == 1:
        return symbols * base
    return symbols[:-1] * base + symbols[1:]
