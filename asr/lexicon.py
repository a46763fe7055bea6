"""How words sound: pronunciations in phones of one letter each, the one-letter form of ARPABET."""

import zlib
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from asr.errors import ASRError

if TYPE_CHECKING:
    from asr.graphones import Graphones

Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int32]

# The 39 phones of CMUdict, without stress, by its own names.
PHONES = {
    **{"AA": "a", "AE": "@", "AH": "A", "AO": "c", "AW": "W", "AY": "Y", "B": "b", "CH": "C", "D": "d", "DH": "D"},
    **{"EH": "E", "ER": "R", "EY": "e", "F": "f", "G": "g", "HH": "h", "IH": "I", "IY": "i", "JH": "J", "K": "k"},
    **{"L": "l", "M": "m", "N": "n", "NG": "G", "OW": "o", "OY": "O", "P": "p", "R": "r", "S": "s", "SH": "S"},
    **{"T": "t", "TH": "T", "UH": "U", "UW": "u", "V": "v", "W": "w", "Y": "y", "Z": "z", "ZH": "Z"},
}
NAMES = {letter: name for name, letter in PHONES.items()}
LEXICON_FILE = "lexicon.txt"
GRAPHONES_FILE = "graphones.bin"
REMEMBERED = 2**14  # words and sounds that are kept at hand
MULTIPLIER = 0x9E3779B97F4A7C15  # of hashes of words and sounds
GUESSES = 2  # pronunciations of a word that is not listed
MOST_SOUNDS = 16  # of a text whose words have several


class Lexicon:
    """Words with their pronunciations: of a word the commonest first, and of words that sound alike too.

    Those that are not listed are pronounced and spelled by a model of spelling, where there is one.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]] = (), graphones: str | Path | None = None) -> None:
        """pairs: of a word and its phones, one letter each; a word or a sound may come several times.

        graphones: file of a model of spelling, which is read when it is first needed.
        """
        self._lines = _Lines("".join(f"{word}\t{sound}\n" for word, sound in pairs).encode())
        self._graphones_file = graphones
        self._sounds = lru_cache(maxsize=REMEMBERED)(self._find_sounds)
        self._spelled = lru_cache(maxsize=REMEMBERED)(self._spell)

    @classmethod
    def load(cls, path: str | Path) -> "Lexicon":
        """Reads a text file with a word, a tab and its phones on every line; the commonest words stand first.

        A model of spelling beside it, graphones.bin, belongs to it.
        """
        graphones = Path(path).with_name(GRAPHONES_FILE)
        lexicon = cls(graphones=graphones if graphones.exists() else None)
        try:
            lexicon._lines = _Lines(Path(path).read_bytes())
        except OSError as error:
            raise ASRError(f"cannot read the lexicon {path}: {error.strerror}; make one with `asr lexicon`") from None
        except ValueError:
            raise ASRError(f"{path} is no lexicon; every line must be a word, a tab and its phones") from None
        return lexicon

    def save(self, path: str | Path) -> None:
        """Writes what `load` reads, the model of spelling too."""
        Path(path).write_bytes(self._lines.text)
        if self._graphones_file:
            beside = Path(path).with_name(GRAPHONES_FILE)
            if beside.resolve() != Path(self._graphones_file).resolve():
                beside.write_bytes(Path(self._graphones_file).read_bytes())

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every word with its phones, in the order of the file."""
        lines = (line.split("\t") for line in self._lines.text.decode().splitlines())
        return [(word, sound) for word, sound in lines]

    @property
    def checksum(self) -> int:
        """Of words and phones, by which what was derived from them is known."""
        return zlib.crc32(self._lines.text)

    @cached_property
    def _graphones(self) -> "Graphones | None":
        from asr.graphones import Graphones

        return Graphones.load(self._graphones_file) if self._graphones_file else None

    def sounds(self, word: str) -> Sequence[str]:
        """How a word sounds, in one way or several; in none, if it is not listed and there is no model of spelling."""
        return self._sounds(word)

    def _find_sounds(self, word: str) -> Sequence[str]:
        listed = self._lines.sounds_of(word)
        if listed or not any(letter != "'" for letter in word) or not self._graphones:
            return listed
        guesses = self._graphones.pronounce(word, GUESSES)
        return ["".join(PHONES[phone] for phone in phones) for phones in guesses]

    def sounds_of_text(self, text: str) -> list[list[str]]:
        """How a text sounds, a list of its words' sounds for each way; ASRError where a word is not listed."""
        ways = [self.sounds(word) for word in text.split()]
        if not all(ways):
            missing = next(word for word, way in zip(text.split(), ways, strict=True) if not way)
            raise ASRError(f"the lexicon has no pronunciation of {missing!r}; add a line for it")
        return [list(way) for _, way in zip(range(MOST_SOUNDS), product(*ways), strict=False)]

    def text(self, sound: str) -> str:
        """The commonest word that sounds so, or else its likeliest spelling, or else the phones themselves."""
        return self._spelled(sound)

    def _spell(self, sound: str) -> str:
        if listed := self._lines.words_of(sound):
            return listed[0]
        spelled = self._graphones.spell([NAMES[phone] for phone in sound]) if self._graphones else ""
        return spelled or sound.lower()


class _Lines:
    """The text of a lexicon, in which lines are found by hashes: dictionaries would take twenty times the memory."""

    def __init__(self, text: bytes) -> None:
        text.decode()
        self.text = text.replace(b"\r\n", b"\n")
        if self.text and not self.text.endswith(b"\n"):
            self.text += b"\n"
        letters = np.frombuffer(self.text, np.uint8)
        self._tabs, self._ends = (np.flatnonzero(letters == ord(mark)).astype(np.int32) for mark in "\t\n")
        self._begins = np.append(0, self._ends + 1)[:-1].astype(np.int32)
        if len(self._tabs) != len(self._ends) or not ((self._begins <= self._tabs) & (self._tabs < self._ends)).all():
            raise ValueError("a line is something else than a word, a tab and its phones")

    def sounds_of(self, word: str) -> list[str]:
        """The second halves of the lines that begin with a word, in order."""
        lines = _found(self._by_word, word)
        return [sound for first, sound in map(self._line, lines) if first == word]

    def words_of(self, sound: str) -> list[str]:
        """The first halves of the lines that end with a sound, in order."""
        lines = _found(self._by_sound, sound)
        return [word for word, second in map(self._line, lines) if second == sound]

    def _line(self, number: int) -> list[str]:
        return self.text[self._begins[number] : self._ends[number]].decode().split("\t")

    @cached_property
    def _by_word(self) -> tuple[Hashes, Numbers]:
        return self._hashed(self._begins, self._tabs)

    @cached_property
    def _by_sound(self) -> tuple[Hashes, Numbers]:
        return self._hashed(self._tabs + 1, self._ends)

    def _hashed(self, begins: Numbers, ends: Numbers) -> tuple[Hashes, Numbers]:
        """Hashes of a part of each line in ascending order, and the number of each one's line."""
        letters = np.frombuffer(self.text, np.uint8)
        hashes = np.zeros(len(begins), np.uint64)
        lengths = ends - begins
        longer = np.arange(len(begins))
        for depth in range(int(lengths.max(initial=0))):
            longer = longer[lengths[longer] > depth]
            hashes[longer] = hashes[longer] * np.uint64(MULTIPLIER) + letters[begins[longer] + depth]
        order = np.argsort(hashes, kind="stable").astype(np.int32)
        return hashes[order], order


def _found(table: tuple[Hashes, Numbers], key: str) -> list[int]:
    """Numbers of the lines with the hash of a key, ascending."""
    hashes, lines = table
    wanted = 0
    for letter in key.encode():
        wanted = (wanted * MULTIPLIER + letter) % 2**64
    begin, end = (np.searchsorted(hashes, np.uint64(wanted), side) for side in ("left", "right"))
    return lines[begin:end].tolist()
