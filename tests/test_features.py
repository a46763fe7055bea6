"""The log-mel front end: equal to torchaudio's and librosa's, and the same to the last bit however samples are cut."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from hypothesis import given
from hypothesis import strategies as st

from asr.errors import ASRError
from asr.features import BLOCK, FeatureConfig, Frames, LogMel, Samples, hz_to_mel, log_mel, mel_filters, mel_to_hz

CONFIG = FeatureConfig()
CLIPS = sorted((Path(__file__).parent / "data").glob("*-*.*"))
SPEECH: Samples = soundfile.read(CLIPS[0], dtype="float32")[0]


def in_pieces(samples: Samples, cuts: list[int]) -> Frames:
    front = LogMel(CONFIG)
    state, parts = front.start(), []
    for piece in np.split(samples, sorted(cuts)):
        frames, state = front.step(piece, state)
        parts.append(frames)
    return np.concatenate([*parts, front.flush(state)])


@given(st.integers(0, 30_000), st.integers(0, 30_000), st.lists(st.integers(0, 30_000), max_size=30))
def test_any_cutting_gives_the_same_bits(begin: int, length: int, cuts: list[int]) -> None:
    samples = SPEECH[begin : begin + length]
    assert np.array_equal(in_pieces(samples, [min(cut, len(samples)) for cut in cuts]), log_mel(samples))


@pytest.mark.parametrize("size", [1, 160, 401])
def test_small_pieces_all_of_one_size_give_the_same_bits(size: int) -> None:
    samples = SPEECH[: 16_000 + 77]
    assert np.array_equal(in_pieces(samples, list(range(size, len(samples), size))), log_mel(samples))


@given(st.integers(0, 5_000))
def test_a_frame_needs_its_whole_window(length: int) -> None:
    expected = 0 if length < CONFIG.window else (length - CONFIG.window) // CONFIG.hop + 1
    assert log_mel(SPEECH[:length]).shape == (expected, CONFIG.n_mels)


@given(st.integers(0, 50), st.data())
def test_a_frame_depends_on_its_window_alone(t: int, data: st.DataObject) -> None:
    samples = SPEECH[:12_000]
    at = data.draw(st.integers(0, len(samples) - 1))
    changed = samples.copy()
    changed[at] += 0.5
    inside = t * CONFIG.hop < at < t * CONFIG.hop + CONFIG.window  # the window's first weight is zero
    assert np.array_equal(log_mel(samples)[t], log_mel(changed)[t]) != inside


def test_the_state_never_holds_more_than_a_block() -> None:
    front = LogMel(CONFIG)
    state = front.start()
    for piece in np.array_split(SPEECH, 97):
        _, state = front.step(piece, state)
        assert len(state) < (BLOCK - 1) * CONFIG.hop + CONFIG.window
        assert state.base is None


@pytest.mark.parametrize("path", CLIPS, ids=lambda path: path.name)
def test_equals_torchaudio_and_librosa(path: Path) -> None:
    samples = soundfile.read(path, dtype="float32")[0]
    ours = log_mel(samples)
    # Both put the window in the middle of the transform: shifted, so that frame t begins at sample t * hop.
    shifted = np.pad(samples, ((CONFIG.n_fft - CONFIG.window) // 2, CONFIG.n_fft))
    theirs = torchaudio.transforms.MelSpectrogram(
        CONFIG.sample_rate,
        n_fft=CONFIG.n_fft,
        win_length=CONFIG.window,
        hop_length=CONFIG.hop,
        f_min=CONFIG.low_hz,
        f_max=CONFIG.high_hz,
        n_mels=CONFIG.n_mels,
        center=False,
    )(torch.from_numpy(shifted)).numpy()
    also = librosa.feature.melspectrogram(
        y=shifted,
        sr=CONFIG.sample_rate,
        n_fft=CONFIG.n_fft,
        win_length=CONFIG.window,
        hop_length=CONFIG.hop,
        fmin=CONFIG.low_hz,
        fmax=CONFIG.high_hz,
        n_mels=CONFIG.n_mels,
        htk=True,
        norm=None,
        center=False,
    )
    for energy in (theirs, also):
        np.testing.assert_allclose(ours, np.log(energy.T[: len(ours)] + CONFIG.floor), atol=1e-3)


def test_silence_is_the_floor_and_finite() -> None:
    np.testing.assert_allclose(log_mel(np.zeros(1_000, np.float32)), np.log(CONFIG.floor), rtol=1e-6)


@pytest.mark.parametrize("warp", [0.9, 1.0, 1.1])
def test_warping_moves_every_band_by_the_factor(warp: float) -> None:
    wide = replace(CONFIG, n_fft=16_384, high_hz=6_000.0)
    peaks = mel_filters(wide, warp).argmax(axis=0) * wide.sample_rate / wide.n_fft
    centres = mel_to_hz(np.linspace(hz_to_mel(wide.low_hz), hz_to_mel(wide.high_hz), wide.n_mels + 2))[1:-1]
    np.testing.assert_allclose(peaks, centres * warp, atol=1.0)


@given(st.floats(0, 20_000))
def test_the_mel_scale_goes_both_ways(hz: float) -> None:
    assert float(mel_to_hz(hz_to_mel(hz))) == pytest.approx(hz, abs=1e-6)


@pytest.mark.parametrize("wrong", [{"hop": 0}, {"window": 600}, {"low_hz": 8_000.0}, {"high_hz": 9_000.0}])
def test_impossible_parameters_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ASRError, match=r"correct .*\[features\]"):
        replace(CONFIG, **wrong)
