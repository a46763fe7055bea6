"""Calibration: delays and weights are found again, figures are their definitions, speech aligns as it sounds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.ctc import align
from asr.decoding.confidence import EVIDENCE
from asr.errors import ASRError
from asr.recognizer import load
from asr.text import normalize
from asr.training.calibrate import (
    Heard,
    aligned_tokens,
    alignment_errors,
    boundary_errors,
    fit_confidence,
    fit_times,
    folds,
    quality,
    read_samples,
    spoken_times,
)
from asr.training.evaluate import calibration_error, partners, roc_area
from asr.training.manifest import read

CLIP = next(u for u in read(Path(__file__).parent / "data" / "clips.tsv") if "1462" in u.path.name)


def heard(seed: int, words: int = 60) -> Heard:
    """Words of 0.3 s, every fifth before a pause, whose tokens come 0.15 s late, or 0.1 s after a pause."""
    rng = np.random.default_rng(seed)
    pause = np.where(np.arange(words) % 5 == 4, 0.8, 0.0)
    start = np.cumsum(0.3 + np.append(0.0, pause[:-1]))
    late = np.where(np.append(1.0, pause[:-1]) > 0, 0.1, 0.15)
    evidence = rng.normal(size=(words, len(EVIDENCE)))
    right = rng.random(words) < 1 / (1 + np.exp(-2 * evidence[:, EVIDENCE.index("fit")]))
    first, last = start + late, start + 0.3 - 0.05
    number = np.zeros(words, np.int64)
    aligned, place = np.stack([first, last], axis=1), np.arange(words)
    return Heard(str(seed), "x", evidence, first, last, number, right, start, start + 0.3, aligned, place)


def test_delays_are_found_again() -> None:
    times = fit_times([heard(1), heard(2)])
    assert (times.start, times.onset, times.end) == pytest.approx((0.15, 0.1, -0.05), abs=1e-6)
    assert np.abs(boundary_errors([heard(3)], times)).max() < 1e-6


def test_a_search_that_emits_as_the_alignment_has_it_adds_no_error() -> None:
    one = heard(1)
    times = fit_times([one])
    assert np.abs(alignment_errors([one], times)).max() == 0
    early = replace(one, first=one.first - 0.04, last=one.last - 0.04)
    assert np.median(alignment_errors([early], times)) == pytest.approx(-0.04)
    assert len(alignment_errors([replace(one, place=np.full(len(one), -1))], times)) == 0


def test_the_reference_is_aligned_in_the_pronunciation_that_fits_best() -> None:
    recognizer = load("en", decoder="greedy")
    tokenizer = recognizer.model.tokenizer
    log_probs = np.concatenate(recognizer.emissions(read_samples(CLIP)))
    reference = normalize(CLIP.text)
    found = aligned_tokens(log_probs, reference, tokenizer)
    ways = [(tokens, align(log_probs, tokens)) for tokens in tokenizer.spellings(reference)]
    likelihood = [sum(span.log_prob * (span.end - span.start) for span in spans) for _, spans in ways]
    assert len(found) == len(reference.split())
    assert (np.diff(found.ravel()) >= 0).all()
    starts = {span.start for span in ways[int(np.argmax(likelihood))][1]}
    assert np.mean([frame in starts for frame in found.ravel()]) > 0.9  # blanks, which count too, may decide otherwise
    assert len(aligned_tokens(log_probs[:20], reference, tokenizer)) == 0


def test_only_evidence_that_tells_gets_weight() -> None:
    calibration = fit_confidence([heard(i, 400) for i in range(5)])
    assert dict(zip(calibration.evidence, calibration.weight, strict=True))["fit"] > 1.5
    assert sum(calibration.weight) < calibration.weight[calibration.evidence.index("fit")] + 0.5


def test_no_speaker_is_fitted_on_and_measured_on() -> None:
    everybody = [heard(i) for i in range(7)]
    measured = [h.speaker for _, part in folds(everybody) for h in part]
    assert sorted(measured) == [h.speaker for h in everybody]
    for fitted, part in folds(everybody):
        assert not {h.speaker for h in fitted} & {h.speaker for h in part}
    assert quality(everybody)["x"].roc_area > 0.75


def test_words_that_are_all_right_cannot_calibrate() -> None:
    with pytest.raises(ASRError, match="words that are wrong"):
        fit_confidence([Heard(**{**vars(heard(1)), "right": np.ones(60, bool)})])


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_the_roc_area_is_the_share_of_pairs_in_order(pairs: list[tuple[int, bool]]) -> None:
    score, right = np.array([s for s, _ in pairs], np.float64), np.array([r for _, r in pairs])
    order = [1.0 if a > b else 0.5 if a == b else 0.0 for a in score[right] for b in score[~right]]
    assert roc_area(score, right) == pytest.approx(np.mean(order) if order else float("nan"), nan_ok=True)


def test_the_calibration_error_is_the_gap_between_belief_and_truth() -> None:
    assert calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0
    assert calibration_error(np.full(4, 0.75), np.array([True, True, True, False])) == pytest.approx(0)
    assert calibration_error(np.full(4, 0.95), np.array([True, True, False, False])) == pytest.approx(0.45)


def test_partners_are_the_words_that_agree() -> None:
    assert partners("the cat sat down", ["a", "cat", "sat", "on", "down"]).tolist() == [-1, 1, 2, -1, 3]
    assert partners("", ["a"]).tolist() == [-1]


def test_speech_aligns_to_where_it_is_loud() -> None:
    samples = read_samples(CLIP)
    spoken = spoken_times(samples, "as they sat down a burst of applause drew hilda's attention to the stage")
    if spoken is None:  # the dictionary has no hilda's
        spoken = spoken_times(samples, "as they sat down a burst of applause drew hilda attention to the stage")
    assert spoken is not None
    assert (np.diff(spoken.ravel()) >= 0).all()
    loud = np.flatnonzero(np.abs(samples) > 0.1 * np.abs(samples).max()) / 16_000
    assert spoken[0, 0] == pytest.approx(loud[0], abs=0.15)
    assert spoken[-1, 1] == pytest.approx(loud[-1], abs=0.3)


def test_words_outside_the_dictionary_cannot_be_aligned() -> None:
    assert spoken_times(read_samples(CLIP), "xyzzyqua") is None
    assert spoken_times(read_samples(CLIP), "") is None
