"""Pronunciation lexicon: the words of a vocabulary from a dictionary, by rule, or by graphones, in this order."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from asr import lexicon as sounds
from asr.errors import ASRError
from asr.graphones import Graphones, Phones, check_phones, join_ending, split_ending
from asr.training.derivation import Derivation

MOST_PRONUNCIATIONS = 4  # of one word
HEADSTART = 0.1  # how much likelier than graphones a rule must be, measured on held-out words of CMUdict
ALMOST = 0.5  # graphones give a second pronunciation where it is at least so likely as the first

_WORD = re.compile("[a-z']*[a-z][a-z']*")


def read_dictionary(paths: Iterable[str | Path]) -> dict[str, list[Phones]]:
    """Pronunciations of each word, in the order of the files, from files like CMUdict's.

    A line is a word, then its phones; "(2)" after the word, stress digits and "# ..." are dropped, and so are words
    with signs that no normalised text has (a.m., able-bodied).
    """
    words: dict[str, list[Phones]] = {}
    for path in paths:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise ASRError(f"{path} is not text in UTF-8; name a dictionary such as cmudict.dict") from None
        for number, line in enumerate(lines, 1):
            fields = line.partition("#")[0].split()
            if not fields or line.startswith(";;;"):
                continue
            word = fields[0].lower().partition("(")[0]
            if not _WORD.fullmatch(word):
                continue
            phones = tuple(phone.rstrip("012") for phone in fields[1:])
            try:
                check_phones(phones)
            except ASRError as error:
                raise ASRError(f"{path}, line {number}, {word}: {error}") from None
            said = words.setdefault(word, [])
            if phones not in said:
                said.append(phones)
    if not words:
        raise ASRError("the dictionary holds no words; name a file such as cmudict.dict, a word and its phones a line")
    return words


@dataclass
class Lexicon:
    """The pronunciations of each word, and how many words came from where."""

    pronunciations: dict[str, Sequence[Phones]]
    sources: Counter[str] = field(default_factory=Counter)

    def save(self, path: str | Path, commonness: Mapping[str, float] | None = None) -> None:
        """Writes a model's lexicon: the commonest words first, and of a word the commonest pronunciation."""
        known = commonness or {}
        ordered = sorted(self.pronunciations, key=lambda word: (-known.get(word, -math.inf), word))
        sounds.Lexicon(
            (word, "".join(sounds.PHONES[phone] for phone in phones))
            for word in ordered
            for phones in self.pronunciations[word]
        ).save(path)


def build_lexicon(words: Iterable[str], dictionary: dict[str, list[Phones]], graphones: Graphones) -> Lexicon:
    """Pronounces normalised words; those without a letter are left out."""
    wanted = sorted({word for word in words if _WORD.fullmatch(word)})
    parts = {word: (word, "") if word in dictionary else split_ending(word, dictionary) for word in wanted}
    unknown = sorted({base for base, _ in parts.values()} - dictionary.keys())
    guesses = _guess(unknown, Derivation(dictionary), graphones)
    lexicon = Lexicon({})
    for word, (base, ending) in parts.items():
        said, source = (dictionary[base], "dictionary") if base in dictionary else guesses[base]
        if said:
            lexicon.pronunciations[word] = _finish(said, ending)
            lexicon.sources["rules" if base != word and source == "dictionary" else source] += 1
    return lexicon


def _guess(
    words: Sequence[str], derivation: Derivation, graphones: Graphones
) -> dict[str, tuple[Sequence[Phones], str]]:
    """The pronunciations of words that the dictionary lacks, by rule or by graphones, whichever is surer."""
    guesses: dict[str, tuple[Sequence[Phones], str]] = {}
    for word, candidates in zip(words, graphones.pronounce_all(words, 2), strict=True):
        derived = derivation.derive(word)
        sureness = math.exp(candidates[0].log_prob) if candidates else 0.0
        if derived and derived.share > sureness + HEADSTART:
            guesses[word] = derived.pronunciations, "rules"
        else:
            likely = [candidate for candidate in candidates if candidate.ratio(candidates[0]) >= ALMOST]
            guesses[word] = [candidate.symbols for candidate in likely], "graphones"
    return guesses


def _finish(said: Sequence[Phones], ending: str) -> list[Phones]:
    return list(dict.fromkeys(join_ending(phones, ending) for phones in said))[:MOST_PRONUNCIATIONS]
