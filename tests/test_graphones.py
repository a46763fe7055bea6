"""Graphones, derivation rules and the lexicon: what they take, what they give back, and what real words sound like."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.cli import main
from asr.errors import ASRError
from asr.graphones import LETTERS, PHONES, SHAPES, Graphones, align, join_ending, split_ending
from asr.lexicon import PHONES as ONE_LETTER
from asr.lexicon import Lexicon as Pronunciations
from asr.training.derivation import Derivation
from asr.training.lexicon import build_lexicon, read_dictionary

DATA = Path(__file__).parent / "data"
EXCERPT = DATA / "cmudict_excerpt.dict"
LANGUAGE_MODEL = DATA / "lm" / "clips.arpa"
DICTIONARY = read_dictionary([EXCERPT])
PAIRS = [(word, phones) for word, said in DICTIONARY.items() for phones in said]

DERIVATION = Derivation(DICTIONARY)

WORDS = st.text("".join(LETTERS), min_size=1, max_size=12).filter(lambda word: word.strip("'"))
SOUNDS = st.lists(st.sampled_from(PHONES), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def graphones() -> Graphones:
    return Graphones.train(PAIRS, pruning=0)


@pytest.mark.parametrize("shapes", [SHAPES, ((1, 0), (0, 1), (1, 1)), ((1, 0), (1, 1), (2, 1), (2, 2))])
def test_graphones_of_an_aligned_pair_spell_the_word_and_its_phones(shapes: tuple[tuple[int, int], ...]) -> None:
    aligned = align(PAIRS, shapes)
    made = []
    for sequence in aligned:
        halves = [label.split(":") for label in sequence]
        phones = ".".join(phones for _, phones in halves if phones).split(".")
        made.append(("".join(letters for letters, _ in halves), tuple(phones)))
        assert {(len(a), len(b.split(".")) if b else 0) for a, b in halves} <= set(shapes)
    assert len(made) > 0.98 * len(PAIRS)
    assert set(made) <= set(PAIRS)


def test_alignment_finds_what_letters_stand_for() -> None:
    aligned = align(PAIRS)
    assert ["b:B", "a:AE", "c:K", "k:"] in aligned or ["b:B", "a:AE", "c:", "k:K"] in aligned
    assert ["f:F", "o:AA", "x:K.S"] in aligned


def test_words_of_the_dictionary_are_pronounced_and_spelled_as_it_says(graphones: Graphones) -> None:
    words = list(DICTIONARY)
    said = graphones.pronounce_all(words)
    right = sum(candidates[0].symbols in DICTIONARY[word] for word, candidates in zip(words, said, strict=True))
    assert right > 0.9 * len(words)
    spelled = graphones.spell_all([phones for _, phones in PAIRS])
    right = sum(
        tuple(phones) in DICTIONARY.get("".join(candidates[0].symbols), [])
        for (_, phones), candidates in zip(PAIRS, spelled, strict=True)
    )
    assert right > 0.9 * len(PAIRS)


@settings(deadline=None, max_examples=40)
@given(st.lists(WORDS, min_size=1, max_size=4))
def test_any_words_get_distinct_pronunciations_in_order(graphones: Graphones, words: list[str]) -> None:
    answers = graphones.pronounce_all(words, 3)
    assert len(answers) == len(words)
    for candidates in answers:
        symbols = [candidate.symbols for candidate in candidates]
        log_probs = [candidate.log_prob for candidate in candidates]
        assert len(set(symbols)) == len(symbols) <= 3
        assert log_probs == sorted(log_probs, reverse=True)
        assert sum(map(math.exp, log_probs)) <= 1 + 1e-5
        assert all(phones and set(phones) <= set(PHONES) for phones in symbols)


@settings(deadline=None, max_examples=30)
@given(st.lists(WORDS, min_size=2, max_size=5), st.lists(SOUNDS, min_size=2, max_size=5))
def test_many_at_once_are_answered_as_one_by_one(
    graphones: Graphones, words: list[str], sounds: list[list[str]]
) -> None:
    assert [answer[:1] for answer in graphones.pronounce_all(words)] == [
        graphones.pronounce_all([word])[0] for word in words
    ]
    spelled = [candidates[0].symbols if candidates else () for candidates in graphones.spell_all(sounds)]
    assert ["".join(symbols) for symbols in spelled] == [graphones.spell(phones) for phones in sounds]


def test_a_saved_model_answers_alike(graphones: Graphones, tmp_path: Path) -> None:
    graphones.save(tmp_path / "graphones.bin")
    again = Graphones.load(tmp_path / "graphones.bin")
    words = ["rounder", "landless", "o'brien", "boys'", "unlit"]
    for before, after in zip(graphones.pronounce_all(words), again.pronounce_all(words), strict=True):
        assert [a.symbols for a in before] == [a.symbols for a in after]
        assert before[0].log_prob == pytest.approx(after[0].log_prob, abs=0.3)


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("dog's", "D AO G Z"),
        ("dogs'", "D AO G Z"),
        ("boss's", "B AO S IH Z"),
        ("boys'", "B OY Z"),
        ("paintin'", None),
        ("knight's", "N AY T S"),
        ("back'd", "B AE K T"),
    ],
)
def test_apostrophes_are_spoken(graphones: Graphones, word: str, phones: str | None) -> None:
    said = graphones.pronounce(word)[0]
    assert said == phones.split() if phones else said[-2:] == ["IH", "N"]


def test_endings_follow_the_last_sound() -> None:
    assert join_ending(("CH", "ER", "CH"), "'s") == ("CH", "ER", "CH", "IH", "Z")
    assert join_ending(("Y", "UW"), "'ve") == ("Y", "UW", "V")
    assert join_ending(("IH", "T"), "'ve") == ("IH", "T", "AH", "V")
    assert join_ending(("DH", "AW"), "'rt") == ("DH", "AW", "R", "T")
    assert join_ending(("N", "OW"), "'d") == ("N", "OW", "D")
    assert split_ending("'ouse", {"house"}) == ("house", "h")
    assert split_ending("'em", {"house"}) == ("'em", "")


@given(WORDS)
def test_an_ending_leaves_a_word_that_can_be_pronounced(word: str) -> None:
    base, ending = split_ending(word)
    assert base.strip("'")
    assert ending == "" or len(base) < len(word) or ending == "in'"


@pytest.mark.parametrize("word", ["", "'", "café", "Dog", "two words", "a1", "dog\n"])
def test_other_signs_are_refused_in_one_sentence(graphones: Graphones, word: str) -> None:
    with pytest.raises(ASRError, match="letters a to z"):
        graphones.pronounce(word)


@pytest.mark.parametrize("phones", [[], ["D", "AO1", "G"], ["d"]])
def test_unknown_phones_are_refused(graphones: Graphones, phones: list[str]) -> None:
    with pytest.raises(ASRError, match="phone"):
        graphones.spell(phones)


def test_a_model_of_words_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lm", "convert", str(LANGUAGE_MODEL), str(tmp_path / "lm.bin")]) == 0
    with pytest.raises(ASRError, match="asr lexicon build"):
        Graphones.load(tmp_path / "lm.bin")


def test_suffixes_prefixes_and_compounds_are_learned_from_pairs() -> None:
    def said(word: str) -> list[tuple[str, ...]]:
        return DICTIONARY[word]

    prefixed = {f"un{word}": [("AH", "N", *said(word)[0])] for word in DICTIONARY if word != "lights"}
    compounds = {a + b: [said(a)[0] + said(b)[0]] for a, b in [("head", "land"), ("back", "hand"), ("ball", "word")]}
    derivation = Derivation(DICTIONARY | prefixed | compounds)
    for word, phones in [
        ("blindless", "B L AY N D L AH S"),
        ("quotes", "K W OW T S"),
        ("unlights", "AH N L AY T S"),
        ("wordroom", "W ER D R UW M"),
        ("zzz", None),
    ]:
        derived = derivation.derive(word)
        assert (" ".join(derived.pronunciations[0]) if derived else None) == phones
        assert derived is None or 0 < derived.share <= 1


@settings(deadline=None)
@given(WORDS)
def test_rules_make_phones_or_nothing_of_any_word(word: str) -> None:
    derived = DERIVATION.derive(word)
    assert derived is None or all(set(phones) <= set(PHONES) for phones in derived.pronunciations)


def test_lexicon_takes_the_dictionary_first_then_rules_then_graphones(graphones: Graphones, tmp_path: Path) -> None:
    words = ["tomato", "blindless", "soundless's", "knorp", "'and", "handin'", "'"]
    lexicon = build_lexicon(words, DICTIONARY, graphones)
    said = lexicon.pronunciations
    assert list(said["tomato"]) == DICTIONARY["tomato"]
    assert said["soundless's"][0] == ("S", "AW", "N", "D", "L", "AH", "S", "IH", "Z")
    assert said["'and"] == [("AE", "N", "D")]
    assert said["handin'"] == [("HH", "AE", "N", "D", "IH", "N")]
    assert set(said) == set(words) - {"'"}
    assert lexicon.sources["dictionary"] == 1
    assert lexicon.sources["rules"] >= 2
    assert lexicon.sources.total() == len(said)
    lexicon.save(tmp_path / "lexicon.txt")
    lines = (tmp_path / "lexicon.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == sorted(line.split("\t")[0] for line in lines)
    saved = Pronunciations.load(tmp_path / "lexicon.txt")
    for word, phones in said.items():
        assert list(saved.sounds(word)) == ["".join(ONE_LETTER[phone] for phone in way) for way in phones]
    lexicon.save(tmp_path / "lexicon.txt", {"tomato": -3.0, "knorp": -2.0})
    first = [word for word, _ in Pronunciations.load(tmp_path / "lexicon.txt").pairs]
    assert list(dict.fromkeys(first))[:2] == ["knorp", "tomato"]


def test_the_verb_builds_pronounces_and_spells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = tmp_path / "built"
    text = tmp_path / "text.txt"
    text.write_text("The blindless knights' tomato.\n")
    chapter = tmp_path / "LibriSpeech" / "train-clean-100" / "103" / "1240"
    chapter.mkdir(parents=True)
    (chapter / "103-1240.trans.txt").write_text("103-1240-0000 A DOG\n")
    soundfile.write(chapter / "103-1240-0000.flac", np.zeros(16_000), 16_000)
    sources = [str(text), str(tmp_path / "LibriSpeech"), "--dictionary", str(EXCERPT)]
    assert main(["lexicon", "build", *sources, "--output", str(built)]) == 0
    assert (built / "lexicon.txt").read_text().count("tomato\t") == 2
    assert "dog\t" in (built / "lexicon.txt").read_text()
    model = str(built / "graphones.bin")
    capsys.readouterr()
    assert main(["lexicon", "pronounce", model, "dog's"]) == 0
    assert capsys.readouterr().out.startswith("dog's\tD AO G Z\t")
    assert main(["lexicon", "spell", model, "D", "AO", "G"]) == 0
    assert capsys.readouterr().out == "dog\n"
    assert main(["lexicon", "build", "--dictionary", str(EXCERPT), "--output", str(built)]) == 2
    assert "--words" in capsys.readouterr().err


def test_a_broken_model_of_spelling_is_named_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "graphones.bin").write_bytes(b"asr-lm")
    with pytest.raises(ASRError, match=r"graphones.bin .*asr lexicon build"):
        Graphones.load(tmp_path / "graphones.bin")


def test_a_dictionary_with_other_phones_is_refused_by_line(tmp_path: Path) -> None:
    (tmp_path / "bad.dict").write_text("dog D AO1 G\ncat K XX T\n")
    with pytest.raises(ASRError, match=r"line 2, cat: .*'XX'"):
        read_dictionary([tmp_path / "bad.dict"])
