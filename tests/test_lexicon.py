"""Lexicon of pronunciations, and the search over phones: homophones, variants, unknown words, against brute force."""

import itertools
from collections import defaultdict
from math import inf
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr.ctc import collapse
from asr.decoding.beam import BeamConfig, BeamSearch
from asr.decoding.greedy import Greedy
from asr.decoding.kneser_ney import build_corpus, train
from asr.decoding.lm import UNKNOWN
from asr.decoding.words import Sounded, reader
from asr.errors import ASRError
from asr.lexicon import PHONES, Lexicon
from asr.tokenizer import BOUNDARY, PHONE_TOKENS, Tokenizer

TOKENS = ["<blank>", BOUNDARY, "a", "b"]
# "to" and "two" sound alike; "row" sounds in two ways, one of them like "bow"; "oh" is not in the language model.
LEXICON = Lexicon([("to", "a"), ("two", "a"), ("row", "b"), ("row", "ab"), ("bow", "ab"), ("oh", "bb")])
LM = train(build_corpus(["to row two", "two bow to", "row two", "to two row bow"], 4), order=3)
EVERYTHING = BeamConfig(
    beam=10**6, beam_threshold=inf, tokens=100, token_threshold=inf, horizon=10**6, word_bonus=0.5, oov_penalty=1e4
)


def emissions(seed: int, frames: int) -> NDArray[np.float32]:
    x = 2 * np.random.default_rng(seed).normal(size=(frames, len(TOKENS)))
    return (x - np.log(np.exp(x).sum(axis=1, keepdims=True))).astype(np.float32)


def sounds(log_probs: NDArray[np.float32]) -> dict[str, float]:
    """Log-probability of each string of phones and boundaries, over all its alignments."""
    found: dict[str, float] = defaultdict(lambda: -inf)
    for alignment in itertools.product(range(len(TOKENS)), repeat=len(log_probs)):
        score = sum(float(log_probs[t, token]) for t, token in enumerate(alignment))
        text = "".join(TOKENS[i] for i in collapse(np.array(alignment))[0])
        found[text] = float(np.logaddexp(found[text], score))
    return found


@given(st.integers(0, 10**6), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_a_wide_beam_finds_the_likeliest_words(seed: int, frames: int) -> None:
    log_probs = emissions(seed, frames)
    heard = sounds(log_probs)
    expected: dict[tuple[str, ...], float] = {}
    for count in range(4):
        for words in itertools.product(["to", "two", "row", "bow"], repeat=count):
            for way in LEXICON.sounds_of_text(" ".join(words)) if count else [[]]:
                sound = BOUNDARY.join(way)
                acoustic = np.logaddexp(heard.get(sound, -inf), heard.get(sound + BOUNDARY, -inf) if sound else -inf)
                language = float(LM.log_probs([LM.ids(words)], end=False)[0].sum())
                score = acoustic + EVERYTHING.lm_weight * language + EVERYTHING.word_bonus * count
                expected[words] = max(score, expected.get(words, -inf))
    search = BeamSearch.with_language_model(LM, TOKENS, EVERYTHING, LEXICON)
    path = search.best(search.step(log_probs, search.start()))[0]
    found = tuple(word.text for word in search.words(path.tokens))
    assert path.score == pytest.approx(max(expected.values()), abs=1e-3)
    assert expected[found] == pytest.approx(path.score, abs=1e-3)


@given(st.integers(0, 10**6), st.integers(1, 30), st.lists(st.integers(1, 7), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_words_and_scores_do_not_depend_on_the_cutting(seed: int, frames: int, cuts: list[int]) -> None:
    log_probs = emissions(seed, frames)
    search = BeamSearch.with_language_model(LM, TOKENS, BeamConfig(oov_penalty=3.0), LEXICON)
    whole = search.best(search.step(log_probs, search.start()), 5)
    state, begin = search.start(), 0
    for cut in itertools.cycle(cuts):
        state = search.step(log_probs[begin : begin + cut], state)
        begin += cut
        if begin >= frames:
            break
    for one, other in zip(whole, search.best(state, 5), strict=True):
        assert one.score == other.score
        assert search.words(one.tokens) == search.words(other.tokens)


def say(text: str) -> NDArray[np.float32]:
    """Emissions that say these phones clearly; a dot is a blank."""
    log_probs = np.full((len(text), len(TOKENS)), -9.0, np.float32)
    log_probs[np.arange(len(text)), [0 if phone == "." else TOKENS.index(phone) for phone in text]] = -0.01
    return log_probs


@pytest.mark.parametrize(
    ("phones", "words"),
    [("a▁b▁a", "to row two"), ("a.▁ab", "two bow"), ("b▁a", "row two"), ("b.b▁a", "oh two"), ("ba▁a", "ba two")],
)
def test_neighbours_decide_between_words_that_sound_alike(phones: str, words: str) -> None:
    config = BeamConfig(lm_weight=1.0, oov_penalty=1.0)
    search = BeamSearch.with_language_model(LM, TOKENS, config, LEXICON)
    path = search.best(search.step(say(phones), search.start()))[0]
    found = [word.text for word in search.words(path.tokens)]
    assert found == words.split()


def test_a_hotword_is_written_as_it_is_listed() -> None:
    search = BeamSearch.with_language_model(LM, TOKENS, BeamConfig(), LEXICON)
    spellings = Tokenizer(TOKENS, lexicon=Lexicon([("kaliko", "ab"), ("oh", "bb"), ("toe", "a")])).spellings
    hotwords = search.hotwords({"kaliko": None, "oh toe": 3.0}, spellings)
    search = search.with_hotwords(hotwords)
    path = search.best(search.step(say("a▁ab▁b.b▁a▁b.b"), search.start()))[0]
    assert [word.text for word in search.words(path.tokens)] == ["two", "kaliko", "oh", "toe", "oh"]


def test_spans_hold_the_phones_of_their_words() -> None:
    search = BeamSearch.with_language_model(LM, TOKENS, BeamConfig(), LEXICON)
    path = search.best(search.step(say("a▁b▁ab"), search.start()))[0]
    assert [(begin, end) for _, begin, end in search.words(path.tokens)] == [(0, 1), (2, 3), (4, 6)]


def test_greedy_reads_the_commonest_word_of_a_sound() -> None:
    greedy = Greedy(Sounded(TOKENS, LEXICON))
    path = greedy.best(greedy.step(say("a▁ab▁b.b▁ba"), greedy.start()))[0]
    assert [word.text for word in greedy.words(path.tokens)] == ["to", "row", "oh", "ba"]


def test_texts_become_phones_and_stay_readable() -> None:
    lexicon = Lexicon([("hello", "hElo"), ("hello", "hAlo"), ("world", "wRld")])
    tokenizer = Tokenizer(PHONE_TOKENS, lexicon=lexicon)
    assert tokenizer.unit == "phones"
    assert tokenizer.decode(tokenizer.encode("hello world")) == "hElo wRld"
    assert [tokenizer.decode(ids) for ids in tokenizer.spellings("hello world")] == ["hElo wRld", "hAlo wRld"]
    assert tokenizer.unknown("hello there world") == ["there"]
    assert isinstance(reader(tokenizer), Sounded)
    with pytest.raises(ASRError, match="no pronunciation of 'there'"):
        tokenizer.encode("hello there")


def test_a_model_directory_keeps_its_lexicon(tmp_path: Path) -> None:
    saved = Tokenizer(PHONE_TOKENS, lexicon=LEXICON)
    saved.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.unit == "phones"
    assert loaded.lexicon
    assert loaded.lexicon.pairs == LEXICON.pairs


@given(
    st.lists(st.tuples(st.text("ab'", min_size=1, max_size=4), st.text("ab", max_size=3)), max_size=30), st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_words_and_sounds_are_found_as_in_dictionaries(pairs: list[tuple[str, str]], alike: bool) -> None:
    sounds: dict[str, list[str]] = defaultdict(list)
    words: dict[str, list[str]] = defaultdict(list)
    for word, sound in pairs:
        sounds[word].append(sound)
        words[sound].append(word)
    with pytest.MonkeyPatch.context() as patch:
        if alike:  # all that end with the same letter have the same hash
            patch.setattr("asr.lexicon.MULTIPLIER", 0)
        lexicon = Lexicon(pairs)
        assert lexicon.pairs == pairs
        for key in {*sounds, *words, "b", "bab"}:
            assert list(lexicon.sounds(key)) == sounds[key]
            assert lexicon.text(key) == (words[key] or [key])[0]


@pytest.mark.parametrize("text", ["to\ta\ntwo\ta", "to\ta\ntwo\ta\n", "to\ta\r\ntwo\ta\r\n"])
def test_lines_may_end_in_any_way(tmp_path: Path, text: str) -> None:
    (tmp_path / "lexicon.txt").write_bytes(text.encode())
    assert Lexicon.load(tmp_path / "lexicon.txt").pairs == [("to", "a"), ("two", "a")]


def test_every_phone_has_a_letter_of_its_own() -> None:
    assert len(PHONES) == len(set(PHONES.values())) == 39
    assert all(len(letter) == 1 and letter.isascii() for letter in PHONES.values())
    assert UNKNOWN not in PHONES.values()


@pytest.mark.parametrize(
    ("text", "message"),
    [("word", "every line"), ("a\tb\tc\n", "every line"), ("a\tb\n\n", "every line"), (None, "cannot read")],
)
def test_a_bad_lexicon_is_one_clear_sentence(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "lexicon.txt").write_text(text)
    with pytest.raises(ASRError, match=message):
        Lexicon.load(tmp_path / "lexicon.txt")
