"""Text normalisation: its alphabet, its stability, and how figures, quotations and apostrophes come out."""

import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.errors import ASRError
from asr.text import _inflect, normalize

# Capitals as LibriSpeech and speechocean762 have them.
CORPUS_TEXTS = (
    "HUGH'S WRITTEN A DELIGHTFUL PART FOR HER AND SHE'S QUITE INEXPRESSIBLE",
    "THE BUSH' AND THE DEBTORS' PRISON O'ER THE HILL",
    "MISTER JOHN AND MISSUS SMITH ET CETERA",
    "'TIS THE BOYS' TURN TO TELL 'EM",
)
normalize("1")  # imports inflect here, outside the time limit of single examples

ANY_TEXT = st.text() | st.text("abz '’-,.5019£%&éß\"SMrt½_", max_size=40)


@given(ANY_TEXT)
def test_only_letters_apostrophes_and_single_spaces_come_out(text: str) -> None:
    assert re.fullmatch(r"[a-z']+( [a-z']+)*|", normalize(text))


@given(ANY_TEXT)
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once


@given(st.lists(st.from_regex(r"[A-Z]+('[A-Z]+)?'?", fullmatch=True).filter(lambda w: w not in {"MR", "MRS", "DR"})))
def test_words_in_capitals_survive_with_their_apostrophes(words: list[str]) -> None:
    text = " ".join(word for word in words if normalize(word).count(" ") == 0)
    assert len(normalize(text).split()) == len(text.split())


@pytest.mark.parametrize("text", CORPUS_TEXTS)
def test_transcripts_in_capitals_change_only_their_case(text: str) -> None:
    assert normalize(text) == text.lower()


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("'Tis true, he said; 'don't tell 'em.'", "'tis true he said don't tell 'em"),
        ("‘Yes,’ said the boys’ father — ‘come in’", "yes said the boys' father come in"),
        ("'all' that", "all that"),
        ("he 'll say it 's his", "he'll say it's his"),
        ("''quoted'' _italic_", "quoted italic"),
        ("Café Œuvre naïve Straße ﬁne ſo", "cafe oeuvre naive strasse fine so"),
        ("well-known—or not...really", "well known or not really"),
        (
            "Mr. and Mrs. Smith & Dr Brown of St. James's, etc.",
            "mister and missus smith and doctor brown of saint james's et cetera",
        ),
        ("U.S.A.", "u s a"),
        (
            "in 1812, 1803, 1900 and 2005",
            "in eighteen twelve eighteen o three nineteen hundred and two thousand and five",
        ),
        ("2019 in the 1850s", "twenty nineteen in the eighteen fifties"),
        ("1,812 men, 0 losses", "one thousand eight hundred and twelve men zero losses"),
        ("the 21st, 2d and 30th", "the twenty first second and thirtieth"),
        ("3.14 and 2½ and ½", "three point one four and two and a half and a half"),
        (
            "£20, £1, $1.50 and £2.5 million",
            "twenty pounds one pound one dollar fifty and two point five million pounds",
        ),
        ("5% or 2.5 %", "five per cent or two point five per cent"),
        ("No. 19, 007", "number nineteen zero zero seven"),
        ("press 3 now", "press three now"),
        ("日本 £ !!!", ""),
    ],
)
def test_examples(text: str, spoken: str) -> None:
    assert normalize(text) == spoken


def test_figures_without_inflect_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inflect", None)
    _inflect.cache_clear()
    assert normalize("no figures") == "no figures"
    with pytest.raises(ASRError, match="pip install"):
        normalize("987654 figures")
