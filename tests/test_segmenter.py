"""Endpointing: when words become final, what times they get, and that silence costs no memory."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.decoding.beam import BeamConfig, BeamSearch
from asr.decoding.greedy import Greedy, GreedyState
from asr.decoding.kneser_ney import build_corpus, train
from asr.decoding.words import Spelled
from asr.errors import ASRError
from asr.features import FeatureConfig
from asr.runtime import ModelConfig
from asr.segmenter import DOUBTFUL_SECONDS, GROWING_SECONDS, EndpointRules, Hypothesis, LogProbs, Segmenter
from asr.tokenizer import CHARACTERS

CONFIG = ModelConfig("test", "1", "characters", FeatureConfig(), {"kind": "streaming"})
PIECES = ["<blank>", "▁the", "▁c", "at", "s", "'"]
RULES = EndpointRules()
SHORT = EndpointRules(silence_seconds=0.8, max_seconds=3.0, cut_seconds=1.5)
CHUNK = 4  # emissions
SECOND = 25  # emissions
BLANK = "."

decoders = st.sampled_from([Greedy(), BeamSearch()])
scripts = st.text(BLANK * 3 + "_ab'", max_size=200) | st.lists(
    st.sampled_from(["a", "b_", "_", "_ab", BLANK, BLANK * 5, BLANK * 18, BLANK * 22, BLANK * 120]), max_size=60
).map("".join)


def emissions(script: str, tokens: list[str] | tuple[str, ...] = CHARACTERS, probability: float = 0.9) -> LogProbs:
    """One emission a letter, which is the token likeliest there; "." is the blank and "_" the word boundary."""
    log_probs = np.full((len(script), len(tokens)), np.log((1 - probability) / (len(tokens) - 1)), np.float32)
    ids = [0 if letter == BLANK else tokens.index(letter.replace("_", "▁")) for letter in script]
    log_probs[np.arange(len(script)), ids] = np.log(probability)
    return log_probs


def segmenter(rules: EndpointRules = RULES, decoder: Any = None, **config: Any) -> Segmenter:
    return Segmenter(replace(CONFIG, **config), list(CHARACTERS), decoder or Greedy(), rules)


def finals(script: str, heard_by: Segmenter | None = None) -> list[Hypothesis]:
    """The final hypotheses of a whole script, fed in chunks."""
    heard_by = heard_by or segmenter()
    log_probs = emissions(script)
    given = [heard_by.step(log_probs[begin : begin + CHUNK]) for begin in range(0, len(script), CHUNK)]
    heard_by.duration = len(script) / SECOND
    return [final for several in [*given, heard_by.flush()] for final in several]


def texts(script: str) -> list[str]:
    return [final.text for final in finals(script)]


def test_a_pause_ends_a_segment_and_a_shorter_one_does_not() -> None:
    pause = round(RULES.silence_seconds * SECOND)
    assert texts("ab_a" + BLANK * (pause + CHUNK) + "b") == ["ab a", "b"]
    assert texts("ab_a" + BLANK * (pause - CHUNK) + "b") == ["ab ab"]
    assert finals("ab_a" + BLANK * (pause + CHUNK) + "b")[0].is_final


def test_a_final_comes_with_the_chunk_that_completes_the_pause() -> None:
    heard_by = segmenter()
    pause = round(RULES.silence_seconds * SECOND)
    log_probs = emissions("ab_a" + BLANK * pause)
    for begin in range(0, len(log_probs) - CHUNK, CHUNK):
        assert heard_by.step(log_probs[begin : begin + CHUNK]) == []
    partial = heard_by.partial()
    assert partial
    assert (partial.text, partial.is_final) == ("ab a", False)
    assert [final.text for final in heard_by.step(log_probs[-CHUNK:])] == ["ab a"]
    assert heard_by.partial() is None
    assert heard_by.flush() == []


def test_words_have_the_times_of_their_first_and_last_token() -> None:
    (final,) = finals("." * 10 + "a.b_.b" + "." * 6)
    assert [word.text for word in final.words] == ["ab", "b"]
    assert [(word.start, word.end) for word in final.words] == [(0.4, 0.52), (0.6, 0.64)]
    assert (final.start, final.end) == (0.4, 0.64)
    assert final.segment.text == "ab b"


def test_the_models_delay_is_taken_off_and_never_leads_out_of_the_stream() -> None:
    (final,) = finals("a_" + "." * 8 + "a.b" + "...", segmenter(delay_seconds=0.1))
    assert [(word.start, word.end) for word in final.words] == [(0.0, 0.0), pytest.approx((0.3, 0.42))]


def test_words_after_the_end_are_moved_to_it() -> None:
    heard_by = segmenter()
    heard_by.step(emissions("ab......_b.."))
    heard_by.duration = 0.06
    (final,) = heard_by.flush()
    assert [(word.start, word.end) for word in final.words] == [(0.0, 0.06), (0.06, 0.06)]


def test_confidence_is_the_geometric_mean_of_the_probabilities() -> None:
    heard_by = segmenter()
    heard_by.step(np.concatenate([emissions("a", probability=0.9), emissions("b", probability=0.4)]))
    (final,) = heard_by.flush()
    assert final.words[0].confidence == pytest.approx(0.6, rel=1e-5)


def test_pieces_are_joined_to_words() -> None:
    heard_by = Segmenter(CONFIG, PIECES, Greedy(Spelled(PIECES)), RULES)
    log_probs = np.full((8, len(PIECES)), -9.0, np.float32)
    log_probs[np.arange(8), [3, 0, 1, 1, 2, 3, 4, 0]] = -0.1
    heard_by.step(log_probs)
    (final,) = heard_by.flush()
    assert final.text == "at the cats"


def test_a_long_segment_is_cut_in_its_longest_late_pause() -> None:
    spoken = "ab_" * 100  # 12 s
    longest = "a" + "." * 15 + "_b_"
    script = spoken + longest + "ab_" * 20 + "a" + "." * 10 + "_ab_" + "ba_" * 100
    first, *rest = texts(script)
    assert len(first.split()) == 100 + 2 + 20 + 1
    assert " ".join([first, *rest]) == " ".join(script.replace(".", "").replace("_", " ").split())


def test_a_long_segment_without_a_pause_is_cut_all_the_same() -> None:
    script = "ab" * 600  # 48 s of one word
    pieces = finals(script)
    assert "".join(piece.text for piece in pieces) == script
    assert max(piece.end - piece.start for piece in pieces) <= RULES.max_seconds + CHUNK / SECOND


class Watched(Greedy):
    """Remembers how many emissions a segment has had at most."""

    def __init__(self) -> None:
        super().__init__()
        self.longest = 0

    def step(self, log_probs: LogProbs, state: GreedyState) -> GreedyState:
        state = super().step(log_probs, state)
        self.longest = max(self.longest, state.frame)
        return state


@pytest.mark.parametrize("script", [BLANK, "_" + BLANK * 40, "ab" + BLANK * 40, "ab_", "ab_......", "a"])
def test_nothing_grows_in_ten_minutes_of_anything(script: str) -> None:
    watched = Watched()
    heard_by = segmenter(decoder=watched)
    minutes = emissions(script * (600 * SECOND // len(script)))
    for begin in range(0, len(minutes), CHUNK):
        heard_by.step(minutes[begin : begin + CHUNK])
    assert watched.longest <= RULES.max_seconds * SECOND + CHUNK
    if script == BLANK:
        assert watched.longest <= RULES.idle_seconds * SECOND + CHUNK


@given(scripts, decoders, st.floats(0, 0.3))
def test_times_run_forward_and_stay_inside(script: str, decoder: Any, delay: float) -> None:
    heard_by = segmenter(decoder=decoder, delay_seconds=delay)
    times = [0.0]
    for final in finals(script, heard_by):
        assert final.is_final
        assert final.text == " ".join(word.text for word in final.words)
        assert (final.start, final.end) == (final.words[0].start, final.words[-1].end)
        for word in final.words:
            assert word.text
            assert " " not in word.text
            assert 0 <= word.confidence <= 1
            times += [word.start, word.end]
    assert all(a <= b for a, b in pairwise([*times, len(script) / SECOND]))


@given(scripts, decoders)
def test_no_letter_is_lost_or_doubled_where_segments_meet(script: str, decoder: Any) -> None:
    expected = finals(script, segmenter(EndpointRules(silence_seconds=1e5, max_seconds=2e5, idle_seconds=1e5)))
    found = finals(script, segmenter(decoder=decoder))
    assert letters(found) == letters(expected)


@given(scripts, decoders, st.integers(0, 2**32), st.integers(1, 40))
def test_committed_words_stay_until_they_are_final(script: str, decoder: Any, seed: int, chunk: int) -> None:
    heard_by = segmenter(SHORT, decoder)
    doubt = np.random.default_rng(seed).gumbel(size=(len(script), len(CHARACTERS))).astype(np.float32)
    scores = 0.7 * emissions(script) + doubt
    log_probs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    committed: list[str] = []
    for begin in range(0, len(script), chunk):
        for final in heard_by.step(log_probs[begin : begin + chunk]):
            words = final.text.split()
            assert final.committed == len(words)
            assert words[: len(committed)] == committed
            committed = []
        partial = heard_by.partial()
        shown = partial.text.split()[: partial.committed] if partial else []
        assert shown[: len(committed)] == committed
        committed = shown
    assert [word for final in heard_by.flush() for word in final.text.split()][: len(committed)] == committed


def test_words_are_committed_when_the_next_one_has_begun() -> None:
    heard_by = segmenter()
    for script, text, committed in (("ab...", "ab", 0), ("_", "ab", 1), ("a", "ab", 1), ("_b", "ab a", 2)):
        heard_by.step(emissions(script))
        partial = heard_by.partial()
        assert partial
        assert (partial.text, partial.committed) == (text, committed)


def test_a_word_that_is_being_spelled_is_not_shown_yet() -> None:
    heard_by = segmenter()
    shown = []
    for letter in "a.b...." + "_" + "ab":
        heard_by.step(emissions(letter))
        partial = heard_by.partial()
        shown.append(partial.text if partial else "")
    assert shown == ["", "", "", "", "", "ab", "ab", "ab", "ab", "ab"]


def test_a_word_that_the_language_model_expects_is_shown_at_once_and_another_one_later_than_without_it() -> None:
    lm = train(build_corpus(["ab babab"] * 9 + ["ab abba"], 4), order=2)
    heard_by = segmenter(decoder=BeamSearch.with_language_model(lm, CHARACTERS, BeamConfig(lm_weight=1.0)))
    shown: dict[str, int] = {}
    for word, script in (("babab", "ab_babab"), ("ba", "ab_ba.......")):
        for i, letter in enumerate(script):
            heard_by.step(emissions(letter))
            if word in heard_by.partial_text().split():
                shown.setdefault(word, i - script.rindex(word[-1]))
        heard_by.flush()
    assert shown["babab"] == 0
    assert shown["ba"] * CONFIG.emission_seconds == pytest.approx(DOUBTFUL_SECONDS)
    assert DOUBTFUL_SECONDS > GROWING_SECONDS


@given(scripts, scripts, st.floats(0, 1000))
def test_a_region_that_begins_elsewhere_has_its_own_times(first: str, second: str, later: float) -> None:
    heard_by, alone = segmenter(), segmenter()
    before = [*heard_by.step(emissions(first)), *heard_by.flush()]
    origin = len(first) / SECOND + later
    heard_by.move(origin)
    moved = [*heard_by.step(emissions(second)), *heard_by.flush()]
    expected = [*alone.step(emissions(second)), *alone.flush()]
    assert [final.text for final in moved] == [final.text for final in expected]
    assert [final.start - origin for final in moved] == pytest.approx([final.start for final in expected])
    assert not before or before[-1].end <= origin + 1e-9


def letters(hypotheses: list[Hypothesis]) -> str:
    return "".join(hypothesis.text.replace(" ", "") for hypothesis in hypotheses)


@pytest.mark.parametrize(
    "wrong",
    [
        {"silence_seconds": 0.0},
        {"silence_seconds": 30.0},
        {"cut_seconds": 21.0},
        {"cut_seconds": 0.0},
        {"idle_seconds": 0.0},
        {"tail_seconds": -1.0},
        {"silence_seconds": float("nan")},
        {"idle_seconds": float("nan")},
        {"tail_seconds": float("nan")},
        {"max_seconds": float("inf")},
    ],
)
def test_impossible_rules_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ASRError, match="endpoint rules have"):
        EndpointRules(**wrong)
