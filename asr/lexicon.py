"""How words sound: pronunciations in phones of one letter each, the one-letter form of ARPABET."""

from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

from asr.errors import ASRError

# The 39 phones of CMUdict, without stress, by its own names.
PHONES = {
    **{"AA": "a", "AE": "@", "AH": "A", "AO": "c", "AW": "W", "AY": "Y", "B": "b", "CH": "C", "D": "d", "DH": "D"},
    **{"EH": "E", "ER": "R", "EY": "e", "F": "f", "G": "g", "HH": "h", "IH": "I", "IY": "i", "JH": "J", "K": "k"},
    **{"L": "l", "M": "m", "N": "n", "NG": "G", "OW": "o", "OY": "O", "P": "p", "R": "r", "S": "s", "SH": "S"},
    **{"T": "t", "TH": "T", "UH": "U", "UW": "u", "V": "v", "W": "w", "Y": "y", "Z": "z", "ZH": "Z"},
}
LEXICON_FILE = "lexicon.txt"
MOST_SOUNDS = 16  # of a text whose words have several


class Lexicon:
    """Words with their pronunciations: of a word the commonest first, and of words that sound alike too."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        """pairs: of a word and its phones, one letter each; a word or a sound may come several times."""
        self.pairs = list(pairs)
        self._sounds: dict[str, list[str]] = {}
        self._words: dict[str, str] = {}
        for word, sound in self.pairs:
            self._sounds.setdefault(word, []).append(sound)
            self._words.setdefault(sound, word)

    @classmethod
    def load(cls, path: str | Path) -> "Lexicon":
        """Reads a text file with a word, a tab and its phones on every line; the commonest words stand first."""
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
            return cls((word, sound) for word, sound in (line.split("\t") for line in lines))
        except OSError as error:
            raise ASRError(f"cannot read the lexicon {path}: {error.strerror}; make one with `asr lexicon`") from None
        except ValueError:
            raise ASRError(f"{path} is no lexicon; every line must be a word, a tab and its phones") from None

    def save(self, path: str | Path) -> None:
        """Writes what `load` reads."""
        Path(path).write_text("".join(f"{word}\t{sound}\n" for word, sound in self.pairs), encoding="utf-8")

    def sounds(self, word: str) -> Sequence[str]:
        """How a word sounds, in one way or several; not at all, if it is not listed."""
        return self._sounds.get(word, ())

    def sounds_of_text(self, text: str) -> list[list[str]]:
        """How a text sounds, a list of its words' sounds for each way; ASRError where a word is not listed."""
        ways = [self._sounds.get(word, ()) for word in text.split()]
        if not all(ways):
            missing = next(word for word, way in zip(text.split(), ways, strict=True) if not way)
            raise ASRError(f"the lexicon has no pronunciation of {missing!r}; add a line for it")
        return [list(way) for _, way in zip(range(MOST_SOUNDS), product(*ways), strict=False)]

    def text(self, sound: str) -> str:
        """The commonest word that sounds so; the phones themselves where there is none."""
        return self._words.get(sound, sound.lower())
