"""Prefix beam search: against brute force over all alignments, for any cutting, over hours, with a language model."""

import itertools
import json
import pathlib
from dataclasses import replace
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr.ctc import collapse
from asr.decoding import Path
from asr.decoding.beam import LIKELY, SETTLE_EVERY, BeamConfig, BeamSearch, BeamState
from asr.decoding.fusion import WordScorer
from asr.decoding.greedy import Greedy
from asr.decoding.kneser_ney import build_corpus, train
from asr.decoding.lm import UNKNOWN_ID, NgramModel
from asr.errors import ASRError
from asr.tokenizer import BOUNDARY

FLASHLIGHT = pathlib.Path(__file__).parent / "data" / "flashlight"
EVERYTHING = BeamConfig(beam=10**6, beam_threshold=inf, tokens=100, token_threshold=inf, horizon=10**6)
CHARACTERS = ["<blank>", BOUNDARY, "a", "b"]
PIECES = ["<blank>", f"{BOUNDARY}a", "b", f"{BOUNDARY}ba", BOUNDARY]
LM = train(build_corpus(["a ab b a", "ba ab a", "b b ab", "ab bab a", "b a"], 4), order=3)


def emissions(seed: int, frames: int, tokens: int, blanks: float = 0.0) -> NDArray[np.float32]:
    """Random log-probabilities; in a share `blanks` of the frames the blank is all but certain."""
    rng = np.random.default_rng(seed)
    x = 2 * rng.normal(size=(frames, tokens))
    x[rng.random(frames) < blanks, 0] += 15
    return (x - np.log(np.exp(x).sum(axis=1, keepdims=True))).astype(np.float32)


def enumerate_alignments(log_probs: NDArray[np.float32]) -> dict[tuple[int, ...], tuple[float, float, list[int]]]:
    """For each token sequence: log-probability of all its alignments, of the likeliest one, and that one's frames."""
    found: dict[tuple[int, ...], tuple[float, float, list[int]]] = {}
    frames, vocabulary = log_probs.shape
    for alignment in itertools.product(range(vocabulary), repeat=frames):
        score = sum(float(log_probs[t, token]) for t, token in enumerate(alignment))
        tokens, first = collapse(np.array(alignment))
        total, best, times = found.get(tuple(tokens.tolist()), (-inf, -inf, []))
        better = (score, first.tolist()) if score > best else (best, times)
        found[tuple(tokens.tolist())] = (float(np.logaddexp(total, score)), *better)
    return found


def word_score(lm: NgramModel, text: str, config: BeamConfig) -> float:
    words = lm.ids(text.split())
    log_prob = sum(lm.log_probs([words], end=False)[0].tolist())
    unknown = int((words == UNKNOWN_ID).sum())
    return config.lm_weight * log_prob + config.word_bonus * len(words) - config.oov_penalty * unknown


def decode(search: BeamSearch, log_probs: NDArray[np.float32], cuts: list[int]) -> BeamState:
    state, begin = search.start(), 0
    for cut in itertools.cycle(cuts or [len(log_probs)]):
        state = search.step(log_probs[begin : begin + cut], state)
        begin += cut
        if begin >= len(log_probs):
            return state
    raise AssertionError


def same(a: Path, b: Path) -> bool:
    return a.score == b.score and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("tokens", "frames", "log_probs", "fused")
    )


@given(st.integers(0, 10**6), st.integers(0, 5), st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_a_wide_beam_equals_brute_force(seed: int, frames: int, tokens: int) -> None:
    log_probs = emissions(seed, frames, tokens)
    expected = enumerate_alignments(log_probs)
    search = BeamSearch(EVERYTHING)
    paths = search.best(search.step(log_probs, search.start()), 10**6)
    assert len(paths) == len(expected)
    for path in paths:
        total, _, times = expected[tuple(path.tokens.tolist())]
        assert path.score == pytest.approx(total, abs=1e-9)
        assert path.frames.tolist() == times
        assert np.array_equal(path.log_probs, log_probs[path.frames, path.tokens])
    assert all(a.score >= b.score for a, b in itertools.pairwise(paths))


@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.sampled_from([CHARACTERS, PIECES]),
    st.floats(0, 2),
    st.floats(-1, 2),
    st.floats(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_fusion_equals_rescoring_every_sequence(
    seed: int, frames: int, tokens: list[str], lm_weight: float, word_bonus: float, oov_penalty: float
) -> None:
    config = replace(EVERYTHING, lm_weight=lm_weight, word_bonus=word_bonus, oov_penalty=oov_penalty)
    log_probs = emissions(seed, frames, len(tokens))
    expected = enumerate_alignments(log_probs)
    search = BeamSearch(config, WordScorer(LM, tokens, lm_weight, word_bonus, oov_penalty))
    for path in search.best(search.step(log_probs, search.start()), 10**6):
        total, _, _ = expected[tuple(path.tokens.tolist())]
        text = "".join(tokens[i] for i in path.tokens).replace(BOUNDARY, " ")
        assert path.score == pytest.approx(total + word_score(LM, text, config), abs=1e-4)


@pytest.mark.parametrize("with_lm", [False, True], ids=["alone", "lm"])
def test_real_emissions_give_the_sequences_and_scores_of_flashlight(with_lm: bool) -> None:
    emitted = np.load(FLASHLIGHT / "emissions.npz")
    tokens = emitted["tokens"].tolist()
    recorded = json.loads((FLASHLIGHT / "found.json").read_text())
    # Flashlight keeps an alignment that ends in a blank apart from one that does not, so its 2000 are 1000 of ours.
    config = BeamConfig(1000, 60.0, len(tokens), 60.0, horizon=10**6, **recorded["settings"])
    with (FLASHLIGHT / "sounds.arpa").open() as file:
        scorer = BeamSearch.with_language_model(NgramModel.read_arpa(file), tokens, config).scorer
    search = BeamSearch(config, scorer if with_lm else None)
    for clip, found in recorded["found"].items():
        wanted = found["lm" if with_lm else "alone"]
        paths = search.best(search.step(emitted[clip].astype(np.float32), search.start()), len(wanted))
        assert ["".join(tokens[i] for i in path.tokens) for path in paths] == [sequence for sequence, _ in wanted]
        assert [path.score for path in paths] == pytest.approx([score for _, score in wanted], abs=0.1)


@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([CHARACTERS, PIECES]), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_n_best_are_distinct_texts_with_or_without_a_last_boundary(
    seed: int, frames: int, tokens: list[str], n: int
) -> None:
    search = BeamSearch.with_language_model(LM, tokens, EVERYTHING)
    each = BeamSearch(EVERYTHING, search.scorer)
    log_probs = emissions(seed, frames, len(tokens))
    state = search.step(log_probs, search.start())
    paths = search.best(state, n)
    texts = ["".join(tokens[i] for i in path.tokens).replace(BOUNDARY, " ").split() for path in paths]
    assert len({tuple(text) for text in texts}) == len(paths) <= n
    assert all(a.score >= b.score for a, b in itertools.pairwise(paths))
    assert same(paths[0], search.best(state)[0])

    scores = {tuple(path.tokens.tolist()): path.score for path in each.best(state, 10**6)}
    boundary = tokens.index(BOUNDARY)
    for path in paths:
        ids = tuple(path.tokens.tolist())
        stem = ids[:-1] if ids[-1:] == (boundary,) else ids
        if stem[-1:] != (boundary,):  # of two boundaries only the first is the end of a word
            both = np.logaddexp(scores.get(stem, -inf), scores.get((*stem, boundary), -inf))
            assert path.score == pytest.approx(both, abs=1e-9)


@given(st.integers(0, 10**6), st.integers(1, 12), st.lists(st.integers(0, 90), max_size=5), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_cutting_gives_the_same_bits(seed: int, blocks: int, cuts: list[int], with_lm: bool) -> None:
    log_probs = emissions(seed, blocks * 2 * SETTLE_EVERY, len(CHARACTERS), blanks=0.4)
    config = BeamConfig(beam=8, horizon=40)
    search = BeamSearch.with_language_model(LM, CHARACTERS, config) if with_lm else BeamSearch(config)
    whole = search.best(decode(search, log_probs, []), 8)
    pieces = search.best(decode(search, log_probs, cuts if sum(cuts) else []), 8)
    assert len(whole) == len(pieces)
    assert all(map(same, whole, pieces))


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_stable_tokens_never_change_and_times_run_forwards(seed: int) -> None:
    log_probs = emissions(seed, 400, len(CHARACTERS), blanks=0.5)
    search = BeamSearch.with_language_model(LM, CHARACTERS, BeamConfig(beam=6, horizon=50))
    state, settled = search.start(), np.zeros(0, np.int64)
    for begin in range(0, len(log_probs), 10):
        state = search.step(log_probs[begin : begin + 10], state)
        for path in search.best(state, 6):
            assert np.array_equal(path.tokens[: len(settled)], settled)
            assert (np.diff(path.frames) > 0).all()
            assert np.array_equal(path.log_probs, log_probs[path.frames, path.tokens])
        stable = search.stable(state)
        assert stable >= len(settled)
        settled = search.best(state)[0].tokens[:stable]
    assert len(settled) > 0


def test_a_state_can_be_gone_on_from_twice() -> None:
    log_probs = emissions(1, 300, len(CHARACTERS), blanks=0.3)
    search = BeamSearch.with_language_model(LM, CHARACTERS)
    state = search.step(log_probs[:150], search.start())
    before = search.best(state, 3)
    one, two = search.step(log_probs[150:], state), search.step(log_probs[150:], state)
    assert all(map(same, search.best(state, 3), before))
    assert all(map(same, search.best(one, 3), search.best(two, 3)))


def test_the_live_state_stays_small_over_an_hour_without_a_reset() -> None:
    search = BeamSearch(BeamConfig(beam=8))
    log_probs = emissions(2, 15_000, len(CHARACTERS), blanks=0.7)
    state, sizes = search.start(), []
    for _ in range(6):
        state = search.step(log_probs, state)
        sizes.append(len(state.trace))
    assert state.frame == 90_000
    assert max(sizes) < 2000
    assert len(search.best(state)[0].tokens) - len(state.committed) < 300


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_clear_emissions_decode_as_greedily(seed: int) -> None:
    rng = np.random.default_rng(seed)
    log_probs = np.full((60, 5), np.log(1e-5), np.float32)
    log_probs[np.arange(60), np.where(rng.random(60) < 0.5, 0, rng.integers(1, 5, 60))] = np.log(1 - 4e-5)
    search, greedy = BeamSearch(BeamConfig(beam=1)), Greedy()
    (path,) = search.best(search.step(log_probs, search.start()))
    (expected,) = greedy.best(greedy.step(log_probs, greedy.start()))
    assert np.array_equal(path.tokens, expected.tokens)
    assert np.array_equal(path.frames, expected.frames)
    assert np.array_equal(path.log_probs, expected.log_probs)


def test_a_frame_of_near_certain_blank_costs_at_most_what_the_other_tokens_weigh() -> None:
    log_probs = emissions(3, 40, 4, blanks=0.6)
    exact = BeamSearch(BeamConfig(beam=1000, beam_threshold=inf, token_threshold=inf))
    pruned = BeamSearch(BeamConfig(beam=1000, beam_threshold=inf, token_threshold=7.0))
    a, b = (search.best(search.step(log_probs, search.start()))[0] for search in (exact, pruned))
    assert np.array_equal(a.tokens, b.tokens)
    assert b.score <= a.score <= b.score + 40 * 3 * np.exp(-7.0)


def test_no_frames_give_the_empty_path() -> None:
    search = BeamSearch.with_language_model(LM, CHARACTERS)
    state = search.step(np.zeros((0, 4), np.float32), search.start())
    (path,) = search.best(state)
    assert len(path.tokens) == 0
    assert path.score == 0.0
    assert search.stable(state) == 0


def test_the_language_model_decides_between_equal_sounds() -> None:
    log_probs = np.full((3, 4), np.log(1e-4), np.float32)
    log_probs[0, 2] = log_probs[2, 3] = np.log(0.99)  # "a", then a blank or a boundary, then "b"
    log_probs[1, 0] = np.log(0.52)
    log_probs[1, 1] = np.log(0.47)
    plain = BeamSearch()
    (path,) = plain.best(plain.step(log_probs, plain.start()))
    assert path.tokens.tolist() == [2, 3]
    fused = BeamSearch.with_language_model(LM, CHARACTERS, BeamConfig(lm_weight=0.5, word_bonus=2.0))
    (path,) = fused.best(fused.step(log_probs, fused.start()))
    assert path.tokens.tolist() == [2, 1, 3]


@pytest.mark.parametrize("setting", [{"beam": 0}, {"tokens": 0}, {"token_threshold": -1.0}, {"horizon": 0}])
def test_impossible_settings_are_named(setting: dict[str, float]) -> None:
    with pytest.raises(ASRError, match=f"{next(iter(setting))} is"):
        BeamConfig(**setting)  # type: ignore[arg-type]


def test_pieces_that_cross_a_word_boundary_are_refused() -> None:
    with pytest.raises(ASRError, match="inside"):
        BeamSearch.with_language_model(LM, ["<blank>", f"a{BOUNDARY}b"])


@given(st.integers(0, 10**6), st.floats(0.05, 1.0))
def test_a_prior_is_taken_off_the_emissions_but_not_off_what_is_reported(seed: int, weight: float) -> None:
    log_probs = emissions(seed, 6, 4)
    prior = tuple(np.log(np.exp(log_probs).mean(axis=0)).tolist())
    config = replace(EVERYTHING, prior_weight=weight, prior=prior)
    found = decode(BeamSearch(config), log_probs, [5])
    less = (log_probs - weight * np.array(prior)).astype(np.float32)
    wanted = decode(BeamSearch(EVERYTHING), less, [5])
    [path], [plain] = BeamSearch(config).best(found), BeamSearch(EVERYTHING).best(wanted)
    assert path.tokens.tolist() == plain.tokens.tolist()
    assert path.score == pytest.approx(plain.score, abs=1e-4)
    np.testing.assert_allclose(path.log_probs, log_probs[path.frames, path.tokens], atol=1e-5)


def test_a_prior_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(ASRError, match="prior has 3 numbers and the model 4 tokens"):
        BeamSearch.with_language_model(LM, CHARACTERS, BeamConfig(prior=(0.0, -1.0, -2.0)))


@given(st.integers(0, 10**6), st.integers(0, 300), st.integers(-10, 310))
@settings(max_examples=40, deadline=None)
def test_recent_tokens_are_the_ends_of_all_likely_hypotheses(seed: int, frames: int, since: int) -> None:
    search = BeamSearch(BeamConfig(beam=16, horizon=20))
    state = search.step(emissions(seed, frames, 4, blanks=0.5), search.start())
    paths = search.best(state, 10**6)
    paths = [path for path in paths if path.score >= paths[0].score - LIKELY]
    expected = set()
    for path in paths:
        begin = max(0, int(np.searchsorted(path.frames, since)) - 1)
        expected.add((tuple(path.tokens[begin:]), tuple(path.frames[begin:])))
    recent = search.recent(state, since)
    found = [(tuple(t[t >= 0]), tuple(f[f >= 0])) for t, f in zip(recent.tokens, recent.frames, strict=True)]
    assert set(found) == expected
    odds = np.exp([path.score for path in paths])
    assert np.sort(recent.weights) == pytest.approx(np.sort(odds / odds.sum()))


@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([CHARACTERS, PIECES]))
@settings(max_examples=40, deadline=None)
def test_what_is_fused_up_to_the_last_token_is_the_score_of_all_words(
    seed: int, frames: int, tokens: list[str]
) -> None:
    config = BeamConfig(lm_weight=0.7, word_bonus=0.3, oov_penalty=1.5)
    search = BeamSearch.with_language_model(LM, tokens, config)
    for path in search.best(search.step(emissions(seed, frames, len(tokens)), search.start()), 5):
        text = "".join(tokens[i] for i in path.tokens).replace(BOUNDARY, " ")
        assert path.fused.shape == path.tokens.shape
        assert path.fused[-1:].sum() == pytest.approx(word_score(LM, text, config), abs=1e-5)


@pytest.mark.parametrize("settings", [{"beam": 0}, {"lm_weight": "0.5"}, {"token_threshold": None}, {"horizon": -1}])
def test_settings_that_cannot_be_are_named(settings: dict) -> None:
    with pytest.raises(ASRError, match=next(iter(settings))):
        BeamConfig(**settings)


@given(st.integers(0, 10**6), st.integers(0, 300))
@settings(max_examples=40, deadline=None)
def test_no_hypothesis_has_been_silent_for_longer_than_the_pause(seed: int, frames: int) -> None:
    search = BeamSearch(BeamConfig(beam=16, horizon=20))
    state = search.step(emissions(seed, frames, 4, blanks=0.5), search.start())
    last = [int(path.frames[-1]) if len(path.frames) else -1 for path in search.best(state, 10**6)]
    assert search.pause(state) == frames - 1 - min(last)
