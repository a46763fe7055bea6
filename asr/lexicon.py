"""How words sound: pronunciations in phones of one letter each, the one-letter form of ARPABET."""

from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from asr.errors import ASRError

if TYPE_CHECKING:
    from asr.graphones import Graphones

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
REMEMBERED = 4096  # unlisted sounds whose spelling is kept at hand
GUESSES = 2  # pronunciations of a word that is not listed
MOST_SOUNDS = 16  # of a text whose words have several


class Lexicon:
    """Words with their pronunciations: of a word the commonest first, and of words that sound alike too.

    Those that are not listed are pronounced and spelled by a model of spelling, where there is one.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]], graphones: str | Path | None = None) -> None:
        """pairs: of a word and its phones, one letter each; a word or a sound may come several times.

        graphones: file of a model of spelling, which is read when it is first needed.
        """
        self.pairs = list(pairs)
        self._graphones_file = graphones
        self._spelled = lru_cache(maxsize=REMEMBERED)(self._spell)
        self._sounds: dict[str, list[str]] = {}
        self._words: dict[str, str] = {}
        for word, sound in self.pairs:
            self._sounds.setdefault(word, []).append(sound)
            self._words.setdefault(sound, word)

    @classmethod
    def load(cls, path: str | Path) -> "Lexicon":
        """Reads a text file with a word, a tab and its phones on every line; the commonest words stand first.

        A model of spelling beside it, graphones.bin, belongs to it.
        """
        graphones = Path(path).with_name(GRAPHONES_FILE)
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
            pairs = [(word, sound) for word, sound in (line.split("\t") for line in lines)]
            return cls(pairs, graphones if graphones.exists() else None)
        except OSError as error:
            raise ASRError(f"cannot read the lexicon {path}: {error.strerror}; make one with `asr lexicon`") from None
        except ValueError:
            raise ASRError(f"{path} is no lexicon; every line must be a word, a tab and its phones") from None

    def save(self, path: str | Path) -> None:
        """Writes what `load` reads, the model of spelling too."""
        Path(path).write_text("".join(f"{word}\t{sound}\n" for word, sound in self.pairs), encoding="utf-8")
        if self._graphones_file:
            beside = Path(path).with_name(GRAPHONES_FILE)
            if beside.resolve() != Path(self._graphones_file).resolve():
                beside.write_bytes(Path(self._graphones_file).read_bytes())

    @cached_property
    def _graphones(self) -> "Graphones | None":
        from asr.graphones import Graphones

        return Graphones.load(self._graphones_file) if self._graphones_file else None

    def sounds(self, word: str) -> Sequence[str]:
        """How a word sounds, in one way or several; in none, if it is not listed and there is no model of spelling."""
        if word not in self._sounds and self._graphones and any(letter != "'" for letter in word):
            guesses = self._graphones.pronounce(word, GUESSES)
            self._sounds[word] = ["".join(PHONES[phone] for phone in phones) for phones in guesses]
        return self._sounds.get(word, ())

    def sounds_of_text(self, text: str) -> list[list[str]]:
        """How a text sounds, a list of its words' sounds for each way; ASRError where a word is not listed."""
        ways = [self.sounds(word) for word in text.split()]
        if not all(ways):
            missing = next(word for word, way in zip(text.split(), ways, strict=True) if not way)
            raise ASRError(f"the lexicon has no pronunciation of {missing!r}; add a line for it")
        return [list(way) for _, way in zip(range(MOST_SOUNDS), product(*ways), strict=False)]

    def text(self, sound: str) -> str:
        """The commonest word that sounds so, or else its likeliest spelling, or else the phones themselves."""
        return self._words.get(sound) or self._spelled(sound)

    def _spell(self, sound: str) -> str:
        spelled = self._graphones.spell([NAMES[phone] for phone in sound]) if self._graphones else ""
        return spelled or sound.lower()
