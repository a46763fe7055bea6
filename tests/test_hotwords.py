"""Hot-words: what they add against brute force, how they are written, and that they find what else is lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.decoding.fusion import WordScorer
from asr.decoding.hotwords import Hotwords, HotwordScorer
from asr.decoding.kneser_ney import build_corpus, train
from asr.decoding.lm import UNKNOWN_ID
from asr.tokenizer import BOUNDARY

CHARACTERS = ["<blank>", BOUNDARY, "a", "b", "c"]
PIECES = ["<blank>", f"{BOUNDARY}a", "b", f"{BOUNDARY}ba", BOUNDARY, "ab", "c", "a"]
LM = train(build_corpus(["a ab b a", "ba ab a", "b b ab", "ab bab a", "b a"], 4), order=3)
PENALTY = 5.0

words = st.text("ab", min_size=1, max_size=4)
lists = st.dictionaries(st.lists(words, min_size=1, max_size=4).map(" ".join), st.floats(0, 9), min_size=1, max_size=6)


def spell(tokens: list[str], phrase: str) -> list[list[int]]:
    """All ways to spell a phrase in tokens of whatever length, the boundary in front being optional."""
    wanted = phrase.replace(" ", BOUNDARY)
    found = []
    open_ways: list[tuple[str, list[int]]] = [(wanted, []), (BOUNDARY + wanted, [])]
    while open_ways:
        rest, ids = open_ways.pop()
        if not rest:
            found.append(ids)
        for i, token in enumerate(tokens[1:], start=1):
            if rest.startswith(token):
                open_ways.append((rest.removeprefix(token), [*ids, i]))
    return found


def scorer(boosts: dict[str, float], tokens: list[str], base: WordScorer | None = None) -> HotwordScorer:
    return HotwordScorer(Hotwords(boosts, lambda phrase: spell(tokens, phrase)[:1], tokens, base), base)


def word_scorer(tokens: list[str]) -> WordScorer:
    return WordScorer(LM, tokens, 0.7, 0.4, PENALTY)


def occurrences(phrase: list[str], text: list[str]) -> int:
    return sum(text[i : i + len(phrase)] == phrase for i in range(len(text)))


def by_brute_force(boosts: dict[str, float], text: list[str], penalty: float = 0.0) -> float:
    """Nats that complete words earn."""
    own: dict[str, float] = {}
    for phrase in sorted(boosts, key=len):
        inside = sum(boost * occurrences(other.split(), phrase.split()) for other, boost in own.items())
        own[phrase] = max(0.0, boosts[phrase] - inside)
    known = {word for phrase in boosts for word in phrase.split()}
    unknown = [word for word in text if word in known and LM.ids([word])[0] == UNKNOWN_ID]
    return penalty * len(unknown) + sum(boost * occurrences(phrase.split(), text) for phrase, boost in own.items())


def total(judge: HotwordScorer | WordScorer, ids: list[int], complete: bool = True) -> float:
    """What a scorer gives a token sequence, from its beginning to its end."""
    state, score = judge.start()[None], 0.0
    for i in ids:
        added, state = judge.extend(state, np.array([i]))
        score += float(added[0])
    return score + float(judge.final(state)[0]) if complete else score


def said(tokens: list[str], ids: list[int]) -> list[str]:
    return "".join(tokens[i] for i in ids).replace(BOUNDARY, " ").split()


@given(lists, st.lists(st.integers(1, 7), max_size=30), st.sampled_from([CHARACTERS, PIECES]), st.booleans())
def test_boosts_given_and_taken_back_equal_brute_force(
    boosts: dict[str, float], text: list[int], tokens: list[str], with_lm: bool
) -> None:
    ids = [1 + i % (len(tokens) - 1) for i in text]
    base = word_scorer(tokens) if with_lm else None
    found = total(scorer(boosts, tokens, base), ids) - (total(base, ids) if base else 0.0)
    wanted = by_brute_force(boosts, said(tokens, ids), PENALTY if with_lm else 0.0)
    assert found == pytest.approx(wanted, abs=1e-9)


@given(lists, st.data(), st.sampled_from([CHARACTERS, PIECES]))
def test_every_spelling_of_a_text_earns_the_same(
    boosts: dict[str, float], data: st.DataObject, tokens: list[str]
) -> None:
    text = data.draw(st.lists(st.sampled_from(sorted(boosts)) | words, min_size=1, max_size=3).map(" ".join))
    judge = scorer(boosts, tokens)
    for ids in spell(tokens, text)[:8]:
        assert total(judge, ids) == pytest.approx(by_brute_force(boosts, text.split()), abs=1e-9)


@given(words, st.floats(0, 9))
def test_a_boost_is_given_letter_by_letter(word: str, boost: float) -> None:
    judge = scorer({word: boost}, CHARACTERS)
    (ids,) = (ids for ids in spell(CHARACTERS, word) if ids[0] != 1)
    for n in range(len(word) + 1):
        assert total(judge, ids[:n], complete=False) == pytest.approx(boost * n / len(word))
    assert total(judge, [*ids, 4], complete=False) == pytest.approx(0)  # "c" makes it another word


@given(lists, st.lists(st.integers(1, 4), max_size=20))
def test_many_at_once_score_as_one_by_one(boosts: dict[str, float], ids: list[int]) -> None:
    judge = scorer(boosts, CHARACTERS, word_scorer(CHARACTERS))
    rows = np.array([ids, ids[::-1], sorted(ids)], np.int64)
    state, score = np.repeat(judge.start()[None], 3, axis=0), np.zeros(3)
    for tokens in rows.T:
        added, state = judge.extend(state, tokens)
        score += added
    assert (score + judge.final(state)).tolist() == pytest.approx([total(judge, row) for row in rows.tolist()])


def test_a_longer_match_that_fails_leaves_the_shorter_one_its_boost() -> None:
    boosts = {"ab": 3.0, "ab ba a": 9.0, "ba": 2.0}
    judge = scorer(boosts, CHARACTERS)
    for text, wanted in [("ab ba a", 9.0), ("ab ba b", 5.0), ("ab b", 3.0), ("aba", 0.0), ("b ba a", 2.0)]:
        assert total(judge, spell(CHARACTERS, text)[0]) == pytest.approx(wanted)


def test_all_words_of_phrases_count_as_known() -> None:
    base = word_scorer(CHARACTERS)
    judge = scorer({"bbb a": 4.0}, CHARACTERS, base)
    for text, wanted in [("bbb a", 4.0 + PENALTY), ("bbb", PENALTY), ("bbbb", 0.0), ("bb bbb", PENALTY)]:
        ids = spell(CHARACTERS, text)[0]
        assert total(judge, ids) - total(base, ids) == pytest.approx(wanted)


@given(lists, lists, st.lists(st.integers(1, 4), max_size=12), st.lists(st.integers(1, 4), max_size=12))
def test_exchanged_in_mid_text_each_list_counts_for_what_ends_in_its_time(
    before: dict[str, float], after: dict[str, float], early: list[int], late: list[int]
) -> None:
    split = len(early) // 2
    first, second = scorer(before, CHARACTERS), scorer(after, CHARACTERS)
    state, score = first.start()[None], 0.0
    for i in early:
        added, state = first.extend(state, np.array([i]))
        score += float(added[0])
    back, state = first.take_back(state)
    up, state = second.take_up(np.array(early[:split], np.int64), np.array([[-1, *early[split:]]]), state)
    score += float(back[0] + up[0])
    for i in late:
        added, state = second.extend(state, np.array([i]))
        score += float(added[0])
    score += float(second.final(state)[0])

    # What each list gives to the words that are complete before the exchange.
    closed = early[: len(early) - early[::-1].index(1)] if 1 in early else []
    done = said(CHARACTERS, closed)
    whole = said(CHARACTERS, early + late)
    expected = by_brute_force(before, done) + by_brute_force(after, whole) - by_brute_force(after, done)
    assert score == pytest.approx(expected, abs=1e-9)
