"""Pronunciations of words that a dictionary lacks, from words that it has: cordiality from cordial, unseen from seen.

The rules are learned from the dictionary: whenever two of its words share a stem, the change of spelling (+ ity) and
the change of sound (+ AH T IY) are counted, and a rule is as good as the share of the pairs that it gets right.
Reversed words teach prefixes; two words in a row make a compound.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

Phones = tuple[str, ...]
Dictionary = Mapping[str, Sequence[Phones]]  # the pronunciations of each word, the commonest first
Change = tuple[Phones, Phones]  # phones that go and phones that come
Key = tuple[str, str, str, int]  # letters that go, letters that come, last phone of the source, length of the stem

SHORTEST_STEM, LONGEST_STEM = 3, 7  # letters; longer stems count as LONGEST_STEM
MOST_COMING = 5  # letters that a rule may add
SUFFIXES_REPLACED = ("", "e", "y", "or", "er", "ize", "ing", "ed")  # that a suffix may take the place of
SHORTEST_PART = 3  # letters of each part of a compound
LEAST_PAIRS = 3  # to learn a rule from
LEAST_SHARE = 0.5  # of its pairs that a rule must get right
DEPTH = 2  # how many words that are derived themselves may lie between a word and the dictionary


@dataclass(frozen=True)
class Derived:
    """Pronunciations of a word, the commonest first, and the share of cases in which its rules are right."""

    pronunciations: tuple[Phones, ...]
    share: float


class Derivation:
    """Rules learned from a dictionary, and the dictionary they apply to."""

    def __init__(self, dictionary: Dictionary) -> None:
        self._words = dictionary
        reversed_words = {word[::-1]: [phones[::-1] for phones in said] for word, said in dictionary.items()}
        self._suffixes = _Rules(dictionary, SUFFIXES_REPLACED)
        self._prefixes = _Rules(reversed_words, ("",))
        self._compounds = _compound_shares(dictionary)

    def derive(self, word: str) -> Derived | None:
        """What the best rule makes of a word that the dictionary lacks; None where no rule applies."""
        return self._derive(word, DEPTH)

    def _derive(self, word: str, depth: int) -> Derived | None:
        found = [*self._affixed(word, depth), *self._compound(word)]
        return max(found, key=lambda derived: derived.share, default=None)

    def _lookup(self, word: str, depth: int) -> Derived | None:
        if word in self._words:
            return Derived(tuple(self._words[word]), 1.0)
        return self._derive(word, depth - 1) if depth > 1 and len(word) > SHORTEST_STEM else None

    def _affixed(self, word: str, depth: int) -> Iterator[Derived]:
        for rules, way in ((self._suffixes, 1), (self._prefixes, -1)):
            for source, going, coming, stem in rules.sources(word[::way]):
                base = self._lookup(source[::way], depth)
                if base is None:
                    continue
                made, share = [], 0.0
                for phones in base.pronunciations:
                    said, right = rules.apply(phones[::way], going, coming, stem)
                    if said:
                        made.append(said[::way])
                        share = share or right
                if made:
                    yield Derived(tuple(dict.fromkeys(made)), share * base.share)

    def _compound(self, word: str) -> Iterator[Derived]:
        for split in range(SHORTEST_PART, len(word) - SHORTEST_PART + 1):
            first, second = word[:split], word[split:]
            share = self._compounds.get(_part_lengths(first, second), 0.0)
            if share >= LEAST_SHARE and first in self._words and second in self._words:
                yield Derived((self._words[first][0] + self._words[second][0],), share)


class _Rules:
    """Changes at the ends of words: what letters become what letters, and what this does to the phones."""

    def __init__(self, words: Dictionary, going: Sequence[str]) -> None:
        self._changes: dict[Key, tuple[Change, float]] = {}
        self._endings: defaultdict[str, set[str]] = defaultdict(set)  # letters that come: letters that may go for them
        for key, counts in self._count(words, going).items():
            change, right = counts.most_common(1)[0]
            share = (right - 0.5) / counts.total()
            if counts.total() >= LEAST_PAIRS and share >= LEAST_SHARE:
                self._changes[key] = change, share
                self._endings[key[1]].add(key[0])

    @staticmethod
    def _count(words: Dictionary, going: Sequence[str]) -> dict[Key, Counter[Change]]:
        """How often each change of letters goes with each change of phones."""
        seen: defaultdict[Key, Counter[Change]] = defaultdict(Counter)
        for word, said in words.items():
            for stem in range(max(SHORTEST_STEM, len(word) - MOST_COMING), len(word)):
                for gone in going:
                    source = words.get(word[:stem] + gone)
                    if source and gone[:1] != word[stem]:
                        key = gone, word[stem:], source[0][-1], min(stem, LONGEST_STEM)
                        seen[key][_change(source[0], said[0])] += 1
        return seen

    def sources(self, word: str) -> Iterator[tuple[str, str, str, int]]:
        """Spellings that a rule would turn into the word, with the letters that go and come, and the stem's length."""
        for stem in range(max(SHORTEST_STEM, len(word) - MOST_COMING), len(word)):
            for going in self._endings.get(word[stem:], ()):
                yield word[:stem] + going, going, word[stem:], min(stem, LONGEST_STEM)

    def apply(self, phones: Phones, going: str, coming: str, stem: int) -> tuple[Phones, float]:
        """The phones after the change and the rule's share; nothing where no rule fits such phones."""
        change, share = self._changes.get((going, coming, phones[-1], stem), (((), ()), 0.0))
        kept = len(phones) - len(change[0])
        if not share or phones[kept:] != change[0]:
            return (), 0.0
        return phones[:kept] + change[1], share


def _change(before: Phones, after: Phones) -> Change:
    """What differs after the common beginning."""
    same = 0
    for a, b in zip(before, after, strict=False):
        if a != b:
            break
        same += 1
    return before[same:], after[same:]


def _compound_shares(words: Dictionary) -> dict[tuple[int, int], float]:
    """How often words that are two words in a row sound like them, by the lengths of the two."""
    seen: defaultdict[tuple[int, int], list[bool]] = defaultdict(list)
    for word, said in words.items():
        for split in range(SHORTEST_PART, len(word) - SHORTEST_PART + 1):
            first, second = word[:split], word[split:]
            if first in words and second in words:
                seen[_part_lengths(first, second)].append(words[first][0] + words[second][0] in said)
    return {lengths: sum(right) / len(right) for lengths, right in seen.items() if len(right) >= LEAST_PAIRS}


def _part_lengths(first: str, second: str) -> tuple[int, int]:
    return min(len(first), LONGEST_STEM), min(len(second), LONGEST_STEM)
