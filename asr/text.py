"""The one text normalisation: training transcripts, references of an evaluation, language-model text and hot-words."""

import re
import unicodedata
from functools import lru_cache

from asr.errors import ASRError

# Read out where they stand as words; St only before a capital letter, because it may also be a street.
ABBREVIATIONS = {
    "mr": "mister",
    "mrs": "missus",
    "dr": "doctor",
    "messrs": "messieurs",
    "mme": "madame",
    "esq": "esquire",
    "etc": "et cetera",
}

# Words that keep a leading apostrophe; any other leading apostrophe is taken for a quotation mark.
ELISIONS = (
    "tis|tisn't|twas|twasn't|twere|twill|twould|twixt|tween|neath|mongst|gainst|pon|bout|cept|spect|em|im|un|ud|ee|er|n|"
    "ave|avin|ad|adn't|asn't|ead|ome|ouse|orse|ope|ow|ole|undred"
)

CURRENCIES = {"£": ("pound", "pounds"), "$": ("dollar", "dollars"), "€": ("euro", "euros")}

# Letters that Unicode does not decompose into a base letter and a mark.
LETTERS = str.maketrans({"æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i", "ß": "ss"})
APOSTROPHES = str.maketrans({"‘": "'", "’": "'", "‛": "'", "ʼ": "'", "′": "'", "`": "'", "´": "'", "_": None})

_ABBREVIATION = re.compile(rf"\b({'|'.join(ABBREVIATIONS)})\b", re.IGNORECASE)
_SAINT = re.compile(r"\bSt\b\.?(?= ?[A-Z])")
_NUMBER = re.compile(r"\bNos?\. ?(?=\d)", re.IGNORECASE)
_DIGIT = re.compile("[0-9]")
_FRACTION = re.compile(r"(\d?)([½¼¾])")
_FRACTIONS = {"½": "a half", "¼": "a quarter", "¾": "three quarters"}
_FIGURE = re.compile(
    r"(?P<currency>[£$€]?)(?P<whole>\d{1,3}(?:,\d{3})+|\d+)(?:\.(?P<decimals>\d+))?"
    r"(?:(?P<percent> ?%)|(?P<ordinal>st|nd|rd|th|(?<=[23])d)\b|(?P<plural>(?<=0)'?s)\b)?"
    r"(?P<scale> (?:hundred|thousand|million|billion|trillion)\b)?",
    re.IGNORECASE | re.ASCII,
)
_APART = re.compile(r"(?<=[a-z]) '(?=(?:s|d|ll|re|ve|m)\b)")
_OPENING = rf"(?<![a-z])'(?!(?:{ELISIONS})\b)"
_QUOTED = re.compile(rf"{_OPENING}([^']*(?:'(?=[a-z])[^']*)*)'(?![a-z])")
_STRAY = re.compile(_OPENING)
_OTHER = re.compile(r"[^a-z']+")


def normalize(text: str) -> str:
    """The words of `text` as they are spoken: lower-case a to z, apostrophes and single spaces, nothing else.

    - Accents and ligatures become plain letters, `&` becomes "and", hyphens and dashes become spaces.
    - Figures are spoken out: 21 "twenty one", 1812 "eighteen twelve", 1803 "eighteen o three", 3rd "third", 1,812 "one
      thousand eight hundred and twelve", 2.5 "two point five", £20 "twenty pounds", 5% "five per cent"; a figure with
      a leading zero or of more than nine digits without commas is read digit by digit.
    - Mr, Mrs, Dr, Messrs, Mme, Esq, etc and St before a name are spoken out, as LibriSpeech does ("mister").
    - An apostrophe stays inside a word (don't; he 'll is joined), after its last letter (boys', an') and before a known
      elision ('tis, 'em). One that opens a quotation goes, and so does the one that closes it. LibriSpeech transcripts,
      which hold no quotations, keep every apostrophe of these kinds.
    - Anything else is dropped. Normalising twice changes nothing.

    Raises:
        ASRError: the text holds figures and the package `inflect` is not installed.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _FRACTION.sub(_say_fraction, text))
    text = text.translate(APOSTROPHES).replace("''", '"').replace("&c", "et cetera").replace("&", " and ")
    text = _SAINT.sub("saint ", text)
    if _DIGIT.search(text):
        text = _FIGURE.sub(_say_figure, _NUMBER.sub("number ", text))
    text = text.lower()
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text.translate(LETTERS))
        text = "".join(character for character in text if not unicodedata.combining(character))
    text = _ABBREVIATION.sub(lambda match: ABBREVIATIONS[match[0].lower()], text)
    text = _APART.sub("'", text)
    text = _STRAY.sub(" ", _QUOTED.sub(r" \1 ", text))
    return _OTHER.sub(" ", text).strip()


def _say_fraction(match: re.Match[str]) -> str:
    return f"{match[1]} and {_FRACTIONS[match[2]]}" if match[1] else _FRACTIONS[match[2]]


def _say_figure(match: re.Match[str]) -> str:
    whole, decimals, scale = match["whole"], match["decimals"], match["scale"] or ""
    if match["currency"]:
        amount = _cardinal(whole)
        one, many = CURRENCIES[match["currency"]]
        unit = one if amount == "one" and not scale else many
        if decimals and scale:
            return f" {amount} point {_digits(decimals)}{scale} {unit} "
        pence = _cardinal(decimals) if decimals and decimals.strip("0") else ""
        return f" {amount}{scale} {unit} {pence} "
    if match["ordinal"]:
        return f" {_inflect().ordinal(_cardinal(whole))} "
    words = _year_or_cardinal(whole) if not (decimals or match["percent"]) else _cardinal(whole)
    if decimals:
        words += f" point {_digits(decimals)}"
    if match["plural"]:
        words = f"{words[:-1]}ies" if words.endswith("y") else f"{words}s"
    return f" {words}{' per cent' if match['percent'] else ''}{scale} "


def _year_or_cardinal(figure: str) -> str:
    value = int(figure.replace(",", ""))
    if len(figure) != 4 or not (1100 <= value <= 1999 or 2010 <= value <= 2099):
        return _cardinal(figure)
    century, rest = divmod(value, 100)
    ending = "hundred" if rest == 0 else f"o {_cardinal(str(rest))}" if rest < 10 else _cardinal(str(rest))
    return f"{_cardinal(str(century))} {ending}"


@lru_cache(maxsize=4096)
def _cardinal(figure: str) -> str:
    digits = figure.replace(",", "")
    if (digits[0] == "0" and len(digits) > 1) or (digits == figure and len(digits) > 9):
        return _digits(digits)
    return str(_inflect().number_to_words(digits)).replace("-", " ")


def _digits(figure: str) -> str:
    return " ".join(_cardinal(digit) for digit in figure)


@lru_cache(maxsize=1)
def _inflect():  # type: ignore[no-untyped-def]  # the package is optional and imported only when figures occur
    try:
        import inflect
    except ImportError as error:
        raise ASRError('Text with figures needs the package inflect: pip install "asr[train]".') from error
    return inflect.engine()
