"""Confidence: shares of the live hypotheses, evidence that counts in its direction, the same for any partials."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr.decoding import Path
from asr.decoding.beam import BeamConfig, BeamSearch
from asr.decoding.confidence import AGE, EVERY, EVIDENCE, FADED, MOST_ODDS, REACH, Calibration, Judge, _around
from asr.decoding.greedy import Greedy
from asr.errors import ASRError
from asr.features import FeatureConfig
from asr.runtime import ModelConfig
from asr.segmenter import EndpointRules, Segmenter
from asr.tokenizer import BOUNDARY
from asr.transcript import Word

TOKENS = ["<blank>", BOUNDARY, "a", "b"]
SHARE = EVIDENCE.index("share")
FLAT = Calibration(0.0, EVIDENCE, (0.0,) * len(EVIDENCE), (1.0,) * len(EVIDENCE), (0.5,) * len(EVIDENCE))
numbers = st.floats(-50, 50)


def emissions(seed: int, frames: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    x = 2 * rng.normal(size=(frames, len(TOKENS)))
    x[rng.random(frames) < 0.5, 0] += 5
    return (x - np.log(np.exp(x).sum(axis=1, keepdims=True))).astype(np.float32)


def search(beam: int = 32) -> BeamSearch:
    return BeamSearch(BeamConfig(beam=beam), tokens=TOKENS)


def words_of(path: Path) -> list[tuple[str, int, int]]:
    return [(w.text, int(path.frames[w.begin]), int(path.frames[w.end - 1])) for w in search().words(path.tokens)]


@given(st.integers(0, 10**6), st.integers(1, EVERY))
@settings(max_examples=40)
def test_the_share_is_that_of_the_hypotheses_that_have_the_word_there(seed: int, frames: int) -> None:
    decoder, judge = search(10**4), Judge(TOKENS, FLAT)
    log_probs = emissions(seed, frames)
    state = decoder.step(log_probs, decoder.start())
    rows = decoder.recent(state, 0)
    paths = [
        Path(t[t >= 0], f[f >= 0], np.zeros((t >= 0).sum()), 0.0, np.zeros((t >= 0).sum()))
        for t, f in zip(rows.tokens, rows.frames, strict=True)
    ]
    best = decoder.best(state)[0]
    if not words_of(best):
        return
    odds = judge.evidence(decoder, state, log_probs, best, True, decoder.words(best.tokens))[SHARE]
    for (text, first, last), found in zip(words_of(best), odds.tolist(), strict=True):
        share = sum(
            weight
            for path, weight in zip(paths, rows.weights.tolist(), strict=True)
            if any(t == text and a <= last + 1 and b >= first - 1 for t, a, b in words_of(path))
        )
        assert found == pytest.approx(np.log((share + 1 / MOST_ODDS) / (1 - share + 1 / MOST_ODDS)), abs=1e-6)


@given(st.lists(st.one_of(st.none(), st.floats(-10, 10)), min_size=1, max_size=15))
def test_words_beside_a_word_count_less_and_less(known: list[float | None]) -> None:
    values = np.array([np.nan if value is None else value for value in known])
    for i, found in enumerate(_around(values[None], FADED)[0].tolist()):
        beside = [(j, known[j]) for j in range(max(0, i - REACH), min(len(known), i + REACH + 1))]
        pairs = [(FADED[abs(i - j)], value) for j, value in beside if value is not None]
        mean = sum(w * v for w, v in pairs) / sum(w for w, _ in pairs) if pairs else np.nan
        assert found == pytest.approx(mean, nan_ok=True, abs=1e-9)


@given(st.dictionaries(st.sampled_from(EVIDENCE), numbers), st.sampled_from(EVIDENCE), st.floats(0, 10))
def test_more_evidence_never_lowers_confidence(values: dict[str, float], kind: str, more: float) -> None:
    before = np.array([[values.get(name, np.nan)] for name in EVIDENCE])
    row, low = EVIDENCE.index(kind), before.copy()
    low[row] = values.get(kind, 0.0)
    high = low.copy()
    high[row] += more
    a, b = FLAT.probabilities(low)[0], FLAT.probabilities(high)[0]
    assert 0 <= a <= b <= 1
    assert 0 <= FLAT.probabilities(before)[0] <= 1


def finals(seed: int, frames: int, partials: bool) -> list[tuple[Word, ...]]:
    config = ModelConfig("x", "1", "characters", FeatureConfig(), {"kind": "streaming"})
    config = replace(config, confidence={"beam": FLAT.to_config()})
    segmenter = Segmenter(config, TOKENS, search(), EndpointRules(max_seconds=7.0, cut_seconds=3.0))
    log_probs, found = emissions(seed, frames), []
    for begin in range(0, frames, 4):
        found += segmenter.step(log_probs[begin : begin + 4])
        if partials:
            segmenter.partial()
    return [final.words for final in [*found, *segmenter.flush()]]


@given(st.integers(0, 10**6), st.integers(1, 300))
@settings(max_examples=15)
def test_looking_at_partials_changes_nothing(seed: int, frames: int) -> None:
    assert finals(seed, frames, partials=True) == finals(seed, frames, partials=False)


def test_words_are_looked_up_when_rivals_are_still_alive() -> None:
    decoder, judge = search(), Judge(TOKENS, FLAT)
    doubt = np.log(np.array([[0.02, 0.02, 0.5, 0.46], [0.94, 0.02, 0.02, 0.02]], np.float32))
    clear = np.log(np.array([[0.001, 0.997, 0.001, 0.001], [0.001, 0.001, 0.997, 0.001]] * 40, np.float32))
    state, heard = decoder.start(), 0
    for part in (doubt, *np.split(clear, 20)):
        state, heard = decoder.step(part, state), heard + len(part)
        judge.observe(decoder, state, heard)
    log_probs = np.concatenate([doubt, clear])
    best = decoder.best(state)[0]
    share = judge.evidence(decoder, state, log_probs, best, True, decoder.words(best.tokens))[SHARE]
    assert heard > EVERY + AGE
    assert abs(share[0]) < 0.5  # about even: a or b
    assert share[1:-1].min() > 3


def test_without_a_calibration_it_is_the_geometric_mean() -> None:
    decoder = Greedy()
    log_probs = np.log(np.array([[0.05, 0.05, 0.9], [0.3, 0.1, 0.6]], np.float32))
    judge = Judge(["<blank>", BOUNDARY, "'"], None)
    state = decoder.step(log_probs, decoder.start())
    path = decoder.best(state)[0]
    spans = decoder.words(path.tokens)
    assert judge.confidences(decoder, state, log_probs, path, True, spans) == pytest.approx([0.9])


@pytest.mark.parametrize(
    "wrong",
    [
        {"evidence": ["guess"], "mean": [0], "deviation": [1], "weight": [1]},
        {"evidence": ["fit"], "mean": [0], "deviation": [1], "weight": [-1]},
        {"evidence": ["fit"], "mean": [0], "deviation": [0], "weight": [1]},
        {"evidence": ["fit"], "mean": [0, 0], "deviation": [1], "weight": [1]},
        {"evidence": ["fit"], "mean": ["x"], "deviation": [1], "weight": [1]},
        {"evidence": ["fit"], "mean": [0], "deviation": [1], "weight": [float("nan")]},
        {"evidence": ["fit"], "mean": [0], "deviation": [1], "weight": [1], "bias": None},
        {"evidence": ["fit"]},
        {"evidence": [], "mean": [], "deviation": [], "weight": []},
    ],
)
def test_a_calibration_that_cannot_be_used_is_named(wrong: dict[str, list[float]]) -> None:
    with pytest.raises(ASRError, match="calibration of confidence"):
        Calibration.from_config({"bias": 0.0, **wrong})


def test_a_config_gives_back_what_was_saved() -> None:
    assert Calibration.from_config(FLAT.to_config()) == FLAT
    assert Calibration.from_config({}) is None
