"""Word n-gram language model with back-off: a memory-mapped file, scored in batches; ARPA in and out."""

import json
import mmap
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np
from numpy.typing import NDArray

from asr import compiled
from asr.errors import ASRError

try:
    from asr.decoding import _kernel
except ImportError:  # no compiler where it was installed
    _kernel = None  # type: ignore[assignment]

UNKNOWN, START, END = "<unk>", "<s>", "</s>"
SPECIALS = (UNKNOWN, START, END)  # word ids 0, 1, 2 of every model
OTHER_UNKNOWN = "<UNK>"  # as some ARPA files spell it
UNKNOWN_ID, START_ID, END_ID = range(3)
MAGIC = b"asr-ngram-1\n"
TRAIN_AGAIN = "make one with `asr lm train`"
ALIGNMENT = 64  # bytes
LOW_BITS = 16
LOW = 2**LOW_BITS - 1  # the part of a word id that a 16-bit number holds
MOST_WORDS = 2**24
LN_10 = float(np.log(10.0))
ARPA_NEVER = -99.0  # base 10: the customary probability of <s>, which is never predicted

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
NO_IDS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Level:
    """The n-grams of one order, sorted by (context, word).

    context: index of the first n-1 words in the level below, zero throughout for single words; word: word id;
    log_prob: natural log; backoff: natural log of the weight that applies when this n-gram is a context whose
    continuation is not listed.
    """

    context: Ids
    word: Ids
    log_prob: Floats
    backoff: Floats


@dataclass(frozen=True)
class Coded:
    """Numbers that are looked up by their codes, as an array; the codes have 1, 2 or 4 bytes."""

    codes: NDArray[np.unsignedinteger]
    table: Floats  # what each code stands for

    def __getitem__(self, index: Ids | slice) -> Floats:
        return self.table[self.codes[index]]

    @classmethod
    def exactly(cls, values: Floats) -> "Coded":
        """Every number with a code of its own."""
        return cls(np.arange(len(values), dtype=np.uint32), values.astype(np.float32, copy=False))


@dataclass(frozen=True)
class WordIds:
    """Word ids in three bytes each, or in two where the vocabulary is small, as an array."""

    low: NDArray[np.uint16]
    high: NDArray[np.uint8]  # empty where all ids fit in two bytes

    def __len__(self) -> int:
        return len(self.low)

    def __getitem__(self, index: Ids | slice) -> Ids:
        ids = self.low[index].astype(np.int64)
        if len(self.high):
            ids |= self.high[index].astype(np.int64) << LOW_BITS
        return ids

    @classmethod
    def of(cls, ids: Ids, words: int) -> "WordIds":
        """Ids of a vocabulary of so many words."""
        high = (ids >> LOW_BITS).astype(np.uint8) if words > LOW + 1 else np.zeros(0, np.uint8)
        return cls((ids & LOW).astype(np.uint16), high)


@dataclass(frozen=True)
class Quantised:
    """Values stored as 8-bit or 16-bit codes: equal steps from `low` to `high`, off by at most half a step."""

    codes: NDArray[np.unsignedinteger]
    low: float
    high: float

    @property
    def coded(self) -> "Coded":
        """What the codes stand for."""
        return Coded(self.codes, np.linspace(self.low, self.high, np.iinfo(self.codes.dtype).max + 1, dtype=np.float32))

    @property
    def largest_error(self) -> float:
        """Half a step, in the unit of the values."""
        return (self.high - self.low) / np.iinfo(self.codes.dtype).max / 2

    @classmethod
    def of(cls, values: Floats, code: type[np.unsignedinteger]) -> "Quantised":
        """Quantises to the given code type over the range of the values."""
        steps = np.iinfo(code).max
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
        high = max(high, low + 1e-6)
        return cls(np.rint((values - low) / (high - low) * steps).astype(code), low, high)


class NgramModel:
    """A back-off n-gram model whose contexts are small integers, made for scoring many hypotheses at once.

    Every n-gram has an index: single words first (index = word id), then pairs and so on, each order sorted by context
    and word. Context 0 is the empty one, context i + 1 is n-gram i (of all orders but the highest).
    """

    def __init__(
        self,
        words: Sequence[str] | bytes,
        counts: Sequence[int],
        children: NDArray[np.integer],
        word: WordIds,
        unigram: Coded,
        ngram: Coded,
        backoff: Coded,
        link: NDArray[np.integer],
    ) -> None:
        """children: how many n-grams continue each context but the empty one; word: the last one of each n-gram of two
        words and more, and ngram: its log-probability; link: of each context of three words and more, the longest known
        context without its first word."""
        self.order, self.counts = len(counts), tuple(counts)
        self._words = "\n".join(words).encode() if not isinstance(words, bytes) else words
        self._word, self._unigram, self._ngram, self._backoff, self._link = word, unigram, ngram, backoff, link
        self._contexts = len(children) + 1
        self._kernel = _kernel if compiled.wanted() else None
        self._first = np.empty(self._contexts + 1, np.int32)  # n-gram of each context, ending with their number
        self._first[0] = 0
        self._first[1:] = counts[0]
        np.cumsum(children, dtype=np.int32, out=self._first[2:])
        self._first[2:] += counts[0]
        if not self._first[-1] == sum(counts) == counts[0] + len(word) == counts[0] + len(ngram.codes):
            raise ValueError("the numbers of n-grams do not fit each other")

    @cached_property
    def words(self) -> list[str]:
        """Spelling of each word id."""
        return self._words.decode().split("\n")

    @cached_property
    def _ends(self) -> NDArray[np.int32]:
        """Where the spelling of each word ends."""
        letters = np.frombuffer(self._words + b"\n", np.uint8)
        return np.flatnonzero(letters == ord("\n")).astype(np.int32)

    def spelling(self, word: int) -> str:
        """That of one word id, without those of all others."""
        return self._words[self._ends[word - 1] + 1 if word else 0 : self._ends[word]].decode()

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def ids(self, words: Iterable[str]) -> Ids:
        """Word ids; a word outside the vocabulary is <unk>."""
        return np.array([self._ids.get(word, UNKNOWN_ID) for word in words], np.int64)

    @property
    def vocabulary_checksum(self) -> int:
        """Of words and their log-probabilities, by which what was derived from them is known."""
        return zlib.crc32(self.unigrams().tobytes(), zlib.crc32(self._words))

    @property
    def start(self) -> int:
        """The context at the start of an utterance, after <s>."""
        return START_ID + 1 if self.order > 1 else 0

    def score(self, context: Ids, word: Ids) -> tuple[Floats, Ids]:
        """Natural-log probability of each word after its context, and the context that follows; all shapes = (n,)."""
        if self._kernel is None:
            return self._score(context, word)
        scores = self._kernel.score(self.tables(), *(np.ascontiguousarray(ids, np.int64) for ids in (context, word)))
        return np.frombuffer(scores[0], np.float32), np.frombuffer(scores[1], np.int64)

    def _score(self, context: Ids, word: Ids) -> tuple[Floats, Ids]:
        """`score` without compiled code."""
        log_prob = np.zeros(len(word), np.float32)
        following = np.zeros(len(word), np.int64)
        unscored = np.ones(len(word), bool)
        for _ in range(self.order - 1):
            index, found = self._find(context, word)
            listed = self._ngram[np.where(found, index - self.counts[0], 0)] if len(self._word) else log_prob
            log_prob += np.where(unscored, np.where(found, listed, self._backoff[context]), 0)
            following = np.where(found & (following == 0) & (index + 1 < self._contexts), index + 1, following)
            unscored &= ~found
            context = self._shorter(context)
        log_prob += np.where(unscored, self._unigram[word], 0)
        return log_prob, np.where(following > 0, following, word + 1 if self.order > 1 else 0)

    def _find(self, context: Ids, word: Ids) -> tuple[Ids, NDArray[np.bool_]]:
        """The n-gram of two words and more that continues a context with a word, and whether there is one."""
        singles, last = self.counts[0], max(0, len(self._word) - 1)
        low, end = self._first[context].astype(np.int64), self._first[context + 1].astype(np.int64)
        end[context == 0] = 0
        high, longest = end, int((end - low).max(initial=0))
        if longest <= 0:
            return low, np.zeros(len(low), bool)
        for _ in range(longest.bit_length()):
            middle = (low + high) >> 1
            less = self._word[np.clip(middle - singles, 0, last)] < word
            low, high = np.where(less & (low < high), middle + 1, low), np.where(less, high, middle)
        return low, (low < end) & (self._word[np.clip(low - singles, 0, last)] == word)

    def _shorter(self, context: Ids) -> Ids:
        """The longest known context without the first word."""
        singles, pairs = 1 + self.counts[0], sum(self.counts[:2])
        shorter = np.zeros(len(context), np.int64)
        two = (context >= singles) & (context <= pairs)
        shorter[two] = self._word[context[two] - singles] + 1
        more = context > pairs
        shorter[more] = self._link[context[more] - 1 - pairs]
        return shorter

    def tables(self) -> tuple:
        """What `score` looks things up in, in the order of parse_words in _kernel.c, then the order."""
        values = [
            array for coded in (self._unigram, self._ngram, self._backoff) for array in (coded.codes, coded.table)
        ]
        return self._first, self._word.low, self._word.high, *values, self._link, self.order

    @cached_property
    def most(self) -> float:
        """No word is likelier than this in any context, in nats: usually 0 or less, where back-off weights allow it."""
        listed = max(float(coded.table.max(initial=-np.inf)) for coded in (self._unigram, self._ngram))
        return listed + (self.order - 1) * max(0.0, float(self._backoff.table.max(initial=0.0)))

    def unigrams(self) -> Floats:
        """Natural-log probability of each word on its own, shape = (words,)."""
        return self._unigram[:]

    def log_probs(self, sentences: Sequence[Ids], start: bool = True, end: bool = True) -> list[Floats]:
        """Natural-log probability of every word of each sentence, then of its end if asked for.

        start: begin after <s> rather than in the empty context.
        """
        targets = [np.append(ids, END_ID) if end else ids for ids in sentences]
        results = [np.zeros(len(ids), np.float32) for ids in targets]
        by_length = sorted(range(len(targets)), key=lambda i: -len(targets[i]))
        context = np.full(len(targets), self.start if start else 0)
        for position in range(max(map(len, targets), default=0)):
            live = [i for i in by_length if len(targets[i]) > position]
            word = np.array([targets[i][position] for i in live])
            scores, context = self.score(context[: len(live)], word)
            for i, value in zip(live, scores, strict=True):
                results[i][position] = value
        return results

    @classmethod
    def from_levels(cls, words: Sequence[str], levels: Sequence[Level]) -> "NgramModel":
        """Builds the model from its n-grams, lowest order first; words 0, 1 and 2 are <unk>, <s> and </s>."""
        if tuple(words[:3]) != SPECIALS:
            raise ASRError(
                f"the vocabulary begins with {' '.join(words[:3])!r}; it must begin with {' '.join(SPECIALS)!r}"
            )
        if len(words) > MOST_WORDS:
            raise ASRError(f"the vocabulary has {len(words)} words and a model holds {MOST_WORDS}; keep fewer")
        counts = [len(level.word) for level in levels]
        offsets = np.cumsum([0, *counts])  # of each level
        context = [level.context + offsets[k] + 1 for k, level in enumerate(levels[1:])]
        model = cls(
            words,
            counts,
            np.bincount(np.concatenate([NO_IDS, *context]), minlength=1 + sum(counts[:-1]))[1:],
            WordIds.of(np.concatenate([NO_IDS, *(level.word for level in levels[1:])]), len(words)),
            Coded.exactly(levels[0].log_prob),
            Coded.exactly(np.concatenate([np.zeros(0, np.float32), *(level.log_prob for level in levels[1:])])),
            Coded.exactly(np.concatenate([np.zeros(1, np.float32), *(level.backoff for level in levels[:-1])])),
            np.zeros(0, np.int32),
        )
        for c, level in zip(context[1:-1], levels[2:-1], strict=True):
            # The context without its first word: where the next context leads after this word.
            _, following = model.score(model._shorter(c), level.word)
            model._link = np.concatenate([model._link, following.astype(np.int32)])
        return model

    def save(self, path: str | Path, code: type[np.unsignedinteger] = np.uint8) -> None:
        """Writes the memory-mapped form.

        Single words keep 16 bits of probability; longer n-grams and back-off weights are stored in `code`, off by at
        most half of a 255th of their range (about 0.03 nats) with 8 bits.
        """
        children = np.diff(self._first[1:])
        unigrams = self.unigrams()
        unigrams[START_ID] = unigrams.min(initial=0, where=np.arange(len(unigrams)) != START_ID)  # never scored
        unigram = Quantised.of(unigrams, np.uint16)
        ngram = Quantised.of(self._ngram[:], code)
        backoff = Quantised.of(self._backoff[:], code)
        sections = {
            "words": np.frombuffer(self._words, np.uint8),
            "children": children.astype(np.uint32 if children.max(initial=0) > LOW else np.uint16),
            "word": self._word.low,
            "word_high": self._word.high,
            "unigram": unigram.codes,
            "ngram": ngram.codes,
            "backoff": backoff.codes,
            "link": self._link,
        }
        ranges = {name: (q.low, q.high) for name, q in (("unigram", unigram), ("ngram", ngram), ("backoff", backoff))}
        with open(path, "wb") as file:
            write_sections(file, MAGIC, {"order": self.order, "counts": self.counts, "ranges": ranges}, sections)

    @classmethod
    def load(cls, path: str | Path) -> "NgramModel":
        """Maps a saved model into memory; ASRError where the file is missing, damaged or something else."""
        try:
            return cls._map(*read_sections(path, MAGIC))
        except OSError as error:
            raise ASRError(f"cannot read the language model {path}: {error.strerror}") from None
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ASRError):
                raise ASRError(f"{path} is not a language model of this program; {TRAIN_AGAIN}") from None
            raise ASRError(f"the language model {path} is damaged or cut short; {TRAIN_AGAIN}") from None

    @classmethod
    def _map(cls, header: dict, section: dict[str, NDArray]) -> "NgramModel":
        coded = {
            name: Quantised(section[name], *header["ranges"][name]).coded for name in ("unigram", "ngram", "backoff")
        }
        word = WordIds(section["word"], section["word_high"])
        words = section["words"].tobytes()
        return cls(words, header["counts"], section["children"], word, **coded, link=section["link"])

    def write_arpa(self, file: TextIO) -> None:
        """Writes the model as ARPA text (base-10 logarithms)."""
        file.write("\\data\\\n")
        file.writelines(f"ngram {k}={count}\n" for k, count in enumerate(self.counts, 1))
        context, word = self._contexts_and_words()
        spelled = [""]  # of each context
        first = 0
        for k, count in enumerate(self.counts, 1):
            file.write(f"\n\\{k}-grams:\n")
            index = np.arange(first, first + count)
            text = [f"{spelled[c]} {self.words[w]}".lstrip() for c, w in zip(context[index], word[index], strict=True)]
            log_prob = (self._unigram[:] if k == 1 else self._ngram[index - self.counts[0]]) / LN_10
            if k == 1:
                log_prob[START_ID] = ARPA_NEVER
            if k < self.order:
                backoff = self._backoff[index + 1] / LN_10
                rows = zip(log_prob, text, backoff, strict=True)
                file.writelines(f"{p:.7g}\t{gram}\t{b:.7g}\n" for p, gram, b in rows)
                spelled += text
            else:
                file.writelines(f"{p:.7g}\t{gram}\n" for p, gram in zip(log_prob, text, strict=True))
            first += count
        file.write("\n\\end\\\n")

    def _contexts_and_words(self) -> tuple[Ids, Ids]:
        context = np.repeat(np.arange(self._contexts), np.diff(self._first))
        return context, np.concatenate([np.arange(self.counts[0]), self._word[:]])

    @classmethod
    def read_arpa(cls, file: TextIO) -> "NgramModel":
        """Reads ARPA text; words keep their spelling, <unk>, <s> and </s> come first whatever their place."""
        try:
            return cls._parse_arpa(file)
        except UnicodeDecodeError:
            raise ASRError("the ARPA file is not UTF-8 text; convert it first") from None
        except (ValueError, IndexError) as error:
            if isinstance(error, ASRError):
                raise
            raise ASRError(f"the ARPA file holds something else where a number belongs: {error}") from None

    @classmethod
    def _parse_arpa(cls, file: TextIO) -> "NgramModel":
        lines = (line.strip().replace(OTHER_UNKNOWN, UNKNOWN) for line in file if not line.isspace())
        counts = _arpa_counts(lines)
        levels: list[Level] = []
        ids: dict[str, int] = {}
        for k, count in enumerate(counts, 1):
            rows = [line.split() for line in islice(lines, count)]
            heading = f"\\{k + 1}-grams:" if k < len(counts) else "\\end\\"
            if any(len(row) not in (k + 1, k + 2) for row in rows) or next(lines, "") != heading:
                raise ASRError(
                    f"the ARPA file does not hold {count} {k}-grams and then {heading}, as its head promises"
                )
            if k == 1:
                ordinary = sorted({row[1] for row in rows} - set(SPECIALS))
                ids = {word: i for i, word in enumerate([*SPECIALS, *ordinary])}
            levels.append(_arpa_level(rows, k, ids, levels))
        return cls.from_levels(list(ids), levels)


def write_sections(file: BinaryIO, magic: bytes, facts: dict[str, object], sections: dict[str, NDArray]) -> None:
    """Writes a line of magic, a line of JSON with some facts, then the aligned arrays that the JSON lists."""
    listing, offset = {}, 0
    for name, array in sections.items():
        listing[name] = {"dtype": array.dtype.str, "count": len(array), "offset": offset}
        offset += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    header = json.dumps({**facts, "sections": listing}).encode()
    header += b" " * (-(len(magic) + len(header) + 1) % ALIGNMENT) + b"\n"
    file.write(magic + header)
    for array in sections.values():
        file.write(array.tobytes())
        file.write(b"\0" * (-array.nbytes % ALIGNMENT))


def read_sections(path: str | Path, magic: bytes) -> tuple[dict, dict[str, NDArray]]:
    """The facts and the arrays of such a file, mapped into memory; ValueError or the like where it is another one."""
    with open(path, "rb") as file:
        if file.readline(len(magic)) != magic:
            raise ASRError(f"{path} is not a file of this program")
        header = json.loads(file.readline())
        start = file.tell()
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return header, {
        name: np.frombuffer(data, s["dtype"], s["count"], start + s["offset"]) for name, s in header["sections"].items()
    }


def _arpa_counts(lines: Iterator[str]) -> list[int]:
    """The number of n-grams of each order; leaves `lines` after the heading of the first order."""
    counts: list[int] = []
    if "\\data\\" not in lines:  # which leaves those after it
        raise ASRError("this is not an ARPA file: it has no line \\data\\")
    for line in lines:
        if line.startswith("ngram "):
            order, count = map(int, line.removeprefix("ngram ").split("="))
            if order != len(counts) + 1 or count < 0:
                raise ASRError(f"the head of the ARPA file has {line!r}; the orders must be 1, 2, 3 ... with counts")
            counts.append(count)
        elif line == "\\1-grams:" and counts:
            return counts
    raise ASRError("the ARPA file has no numbers of n-grams with \\1-grams: after them")


def _arpa_level(rows: list[list[str]], k: int, ids: dict[str, int], below: list[Level]) -> Level:
    if k == 1:  # every special word has a place, whether listed or not
        listed = {row[1] for row in rows}
        rows = rows + [[str(ARPA_NEVER), word] for word in SPECIALS if word not in listed]
    try:
        words = np.array([[ids[word] for word in row[1 : k + 1]] for row in rows], np.int64).reshape(-1, k)
    except KeyError as error:
        raise ASRError(f"the ARPA file has {error} in {k}-grams and not among its 1-grams") from None
    context = np.zeros(len(rows), np.int64)
    size = len(ids)
    for position, level in enumerate(below):
        key, sought = level.context * size + level.word, context * size + words[:, position]
        context = np.minimum(np.searchsorted(key, sought), len(key) - 1)
        if (key[context] != sought).any():
            missing = rows[int(np.flatnonzero(key[context] != sought)[0])]
            raise ASRError(
                f"the ARPA file lists {' '.join(missing[1 : k + 1])!r} but not its first {position + 1} words"
            )
    order = np.lexsort((words[:, -1], context))
    twice = np.flatnonzero((np.diff(context[order]) == 0) & (np.diff(words[order, -1]) == 0))
    if len(twice):
        raise ASRError(f"the ARPA file lists {' '.join(rows[order[twice[0]]][1 : k + 1])!r} twice")
    log_prob = np.array([max(float(row[0]), ARPA_NEVER) for row in rows]) * LN_10
    backoff = np.array([max(float(row[k + 1]), ARPA_NEVER) if len(row) == k + 2 else 0.0 for row in rows]) * LN_10
    if not np.isfinite(log_prob).all() & np.isfinite(backoff).all():
        raise ValueError("nan or inf")
    return Level(
        context[order], words[order, -1], log_prob[order].astype(np.float32), backoff[order].astype(np.float32)
    )
