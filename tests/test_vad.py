"""The speech gate: the same passages for any cutting, no onset lost, silence left out, noise learnt."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.errors import ASRError
from asr.features import Samples
from asr.vad import BLOCK, FRAME, SAMPLE_RATE, Detector, DetectorState, Gate, GateRules, Passage

DATA = Path(__file__).parent / "data"
SECOND = SAMPLE_RATE


@lru_cache
def speech(name: str = "26-495-0007.flac") -> Samples:
    return soundfile.read(DATA / name, dtype="float32")[0]


@lru_cache
def noise(seconds: float, level: float = 1e-3) -> Samples:
    return np.random.default_rng(1).normal(0, level, round(seconds * SECOND)).astype(np.float32)


class Loud(Detector):
    """Takes a frame for speech if it is loud, and counts what it is asked."""

    def __init__(self, level: float = 0.1) -> None:
        self.level = level
        self.asked = 0

    def step(self, samples: Samples, state: DetectorState) -> tuple[Samples, DetectorState]:
        self.asked += len(samples) // FRAME
        return (abs(samples.reshape(-1, FRAME)).max(axis=1) >= self.level).astype(np.float32), state


def passages(samples: Samples, cuts: list[int], gate: Gate) -> list[tuple[int, int, Samples]]:
    """Begin, samples known before, and samples of each region."""
    found: list[Passage] = []
    for piece in np.split(samples, sorted(min(cut, len(samples)) for cut in cuts)):
        found += gate.step(piece)
    found += gate.flush()
    regions: list[tuple[int, int, list[Samples]]] = []
    for passage in found:
        if passage.begin is not None:
            regions.append((passage.begin, passage.known, []))
        regions[-1][2].append(passage.samples)
    assert [p.ends for p in found if p.begin is not None or p.ends] == [False, True] * len(regions)
    return [(begin, known, np.concatenate(pieces)) for begin, known, pieces in regions]


spans = st.lists(st.tuples(st.integers(0, 3 * SECOND), st.booleans()), max_size=8)
rules = st.builds(
    GateRules, preroll_seconds=st.sampled_from([0.0, 0.16, 0.5]), hangover_seconds=st.sampled_from([0.16, 0.5, 1.0])
)


def of_spans(spans: list[tuple[int, bool]]) -> Samples:
    """Silence and the highest tone there is: samples that are all alike would be an offset, which is no sound."""
    tone = np.tile(np.array([0.5, -0.5], np.float32), 2 * SECOND)
    return np.concatenate([np.zeros(0, np.float32), *(tone[:n] * loud for n, loud in spans)])


@given(spans, rules, st.lists(st.integers(0, 10 * SECOND), max_size=10))
def test_every_loud_sample_is_passed_once_whatever_the_cutting(
    spans: list[tuple[int, bool]], rules: GateRules, cuts: list[int]
) -> None:
    samples = of_spans(spans)
    whole = passages(samples, [], Gate(rules, Loud()))
    cut = passages(samples, cuts, Gate(rules, Loud()))
    assert [region[:2] for region in cut] == [region[:2] for region in whole]
    passed = np.zeros(len(samples) + BLOCK, int)
    for (begin, known, heard), (_, _, again) in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(heard, again)
        np.testing.assert_array_equal(heard[: len(samples) - begin], samples[begin : begin + len(heard)])
        passed[begin + known : begin + len(heard)] += 1
    assert passed.max(initial=0) <= 1
    assert passed[: len(samples)][samples != 0].min(initial=1) == 1


def test_a_region_begins_before_the_speech_and_ends_after_it() -> None:
    rules = GateRules(preroll_seconds=0.48, hangover_seconds=0.64)
    samples = of_spans([(3 * SECOND, False), (SECOND, True), (4 * SECOND, False)])
    ((begin, known, heard),) = passages(samples, [], Gate(rules, Loud()))
    assert 0 <= 3 * SECOND - 0.48 * SECOND - begin <= BLOCK
    assert known == 0
    assert 0 <= begin + len(heard) - 4 * SECOND - 0.64 * SECOND <= BLOCK


def test_samples_of_an_open_gate_pass_at_once() -> None:
    gate = Gate(GateRules(), Loud())
    list(gate.step(of_spans([(SECOND, True)])))
    assert gate.is_open
    assert [len(passage.samples) for passage in gate.step(of_spans([(100, True)]))] == [100]


@pytest.mark.parametrize("level", [0.0, 1e-5, 1e-3, 1e-2])
def test_steady_noise_is_soon_not_looked_at(level: float) -> None:
    detector = Loud()
    gate = Gate(GateRules(), detector)
    assert list(gate.step(noise(60, level))) == []
    assert detector.asked <= 0.02 * 60 * SECOND / FRAME


def test_louder_noise_is_looked_at_until_it_is_known() -> None:
    detector = Loud()
    gate = Gate(GateRules(), detector)
    list(gate.step(noise(10, 1e-4)))
    before = detector.asked
    list(gate.step(noise(60, 1e-2)))
    assert 0 < detector.asked - before <= 0.05 * 60 * SECOND / FRAME


def test_probabilities_do_not_depend_on_how_many_frames_a_call_has() -> None:
    detector, samples = Detector.load(), speech()[: 60 * FRAME]
    whole, _ = detector.step(samples, detector.start())
    state, pieces = detector.start(), []
    for begin, end in ((0, 1), (1, 7), (7, 12), (12, 60)):
        piece, state = detector.step(samples[begin * FRAME : end * FRAME], state)
        pieces.append(piece)
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    assert whole.max() > 0.9


@settings(max_examples=10)
@given(st.lists(st.integers(0, 12 * SECOND), max_size=10))
def test_real_speech_passes_alike_however_it_is_cut(cuts: list[int]) -> None:
    samples = np.concatenate([noise(3), speech()[: 2 * SECOND], noise(3), speech()[2 * SECOND : 4 * SECOND]])
    whole = passages(samples, [], Gate(GateRules()))
    cut = passages(samples, cuts, Gate(GateRules()))
    assert len(whole) == 2
    assert [region[:2] for region in cut] == [region[:2] for region in whole]
    for one, other in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(one[2], other[2])


@pytest.mark.parametrize("path", sorted(DATA.glob("*-*.*")), ids=lambda path: path.name)
def test_real_speech_is_passed_whole_and_the_silence_around_it_is_not(path: Path) -> None:
    clip = speech(path.name)
    samples = np.concatenate([noise(8), clip, noise(8)]) + noise(16 + len(clip) / SECOND)[: 16 * SECOND + len(clip)]
    regions = passages(samples, [], Gate(GateRules()))
    passed = np.zeros(len(samples) + BLOCK, bool)
    for begin, _, heard in regions:
        passed[begin : begin + len(heard)] = True
    frames = clip[: len(clip) // FRAME * FRAME].reshape(-1, FRAME).std(axis=1)
    loud = np.flatnonzero(frames > 0.1 * np.percentile(frames, 95)) * FRAME + 8 * SECOND
    assert passed[loud].mean() > 0.99
    assert passed.sum() <= len(clip) + 3 * SECOND


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 0.0},
        {"threshold": 1.5},
        {"threshold": float("nan")},
        {"preroll_seconds": -1.0},
        {"hangover_seconds": 0.0},
        {"hangover_seconds": float("inf")},
    ],
)
def test_impossible_rules_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ASRError, match="the gate"):
        GateRules(**wrong)


def test_a_missing_or_damaged_detector_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr.vad.PACKAGE", tmp_path)
    load = Detector.load.__wrapped__
    with pytest.raises(ASRError, match="missing"):
        load(Detector)
    graph = tmp_path / "pretrained" / "silero-vad" / "silero_vad_16k_sequence.onnx"
    graph.parent.mkdir(parents=True)
    graph.write_bytes(b"nothing")
    with pytest.raises(ASRError, match="damaged"):
        load(Detector)
