"""Augmentation: each change has the size that was asked for, and none is made where none was asked for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.features import FeatureConfig, Samples, log_mel
from asr.training.augment import add_noise, augmented_frames, equalize, mask, perturb_speed
from asr.training.config import AugmentConfig

DATA = Path(__file__).parent / "data"
RATE = 16_000
FEATURES = FeatureConfig()
NOTHING = AugmentConfig(0, 0, 0, 0, (0, 0), 0, 0, 0, 0, 0)
SPEECH: Samples = soundfile.read(DATA / "26-495-0007.flac", dtype="float32")[0]
SEEDS = st.integers(0, 2**32)
FEW = settings(max_examples=20, deadline=None)


def last_of(rng: np.random.Generator) -> np.random.Generator:
    """The generator after the draws that every augmentation makes: whether there is noise, and the warp."""
    rng.random()
    rng.uniform()
    return rng


def power(samples: Samples) -> float:
    return float(np.mean(samples.astype(np.float64) ** 2))


def peak_hz(samples: Samples) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * RATE / len(samples))


@given(SEEDS)
@FEW
def test_nothing_changes_where_nothing_is_asked_for(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = augmented_frames(SPEECH, FEATURES, NOTHING, rng)
    assert np.array_equal(frames, log_mel(SPEECH))
    assert np.array_equal(mask(frames, NOTHING, np.zeros(80, np.float32), rng), frames)


@given(SEEDS)
@FEW
def test_the_same_generator_gives_the_same_frames(seed: int) -> None:
    first, second = (augmented_frames(SPEECH, FEATURES, AugmentConfig(), np.random.default_rng(seed)) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.isfinite(first).all()


@given(st.floats(0.8, 1.25))
@FEW
def test_speed_changes_length_and_pitch_by_its_factor(factor: float) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE).astype(np.float32)
    faster = perturb_speed(tone, RATE, factor)
    assert len(faster) == pytest.approx(len(tone) / factor, abs=2)
    assert peak_hz(faster) == pytest.approx(440 * factor, rel=0.005)
    assert power(faster) == pytest.approx(power(tone), rel=0.05)


@given(st.floats(-5, 40), SEEDS)
@FEW
def test_noise_has_the_ratio_that_was_asked_for(snr_db: float, seed: int) -> None:
    noisy = add_noise(SPEECH, snr_db, np.random.default_rng(seed))
    found = 10 * np.log10(power(SPEECH) / power(noisy - SPEECH))
    assert found == pytest.approx(snr_db, abs=0.5)


def test_noise_comes_in_colours() -> None:
    def high_share(seed: int) -> float:
        noise = add_noise(SPEECH, 0, np.random.default_rng(seed)) - SPEECH
        spectrum = np.abs(np.fft.rfft(noise)) ** 2
        return float(spectrum[len(spectrum) // 2 :].sum() / spectrum.sum())

    shares = [high_share(seed) for seed in range(30)]
    assert min(shares) < 0.05
    assert max(shares) > 0.3


def test_silence_stays_silent() -> None:
    silence = np.zeros(RATE, np.float32)
    assert not add_noise(silence, 10, np.random.default_rng(0)).any()
    assert np.isfinite(augmented_frames(silence, FEATURES, AugmentConfig(), np.random.default_rng(0))).all()


def test_noise_comes_as_often_as_its_share() -> None:
    config = AugmentConfig(0, 0, 0, 0.3, (0, 0), 0, 0, 0, 0, 0)
    clean = log_mel(SPEECH[:RATE])
    rng = np.random.default_rng(1)
    noisy = sum(not np.array_equal(augmented_frames(SPEECH[:RATE], FEATURES, config, rng), clean) for _ in range(400))
    assert noisy / 400 == pytest.approx(0.3, abs=0.08)


@given(SEEDS)
@FEW
def test_gain_moves_every_band_within_its_limit(seed: int) -> None:
    config = AugmentConfig(0, 0, 6.0, 0, (0, 0), 0, 0, 0, 0, 0)
    loud = SPEECH + np.float32(0.1) * np.random.default_rng(0).standard_normal(len(SPEECH)).astype(np.float32)
    moved = augmented_frames(loud, FEATURES, config, np.random.default_rng(seed)) - log_mel(loud)
    decibels = moved * 10 / np.log(10)
    assert np.abs(decibels).max() <= 6.05
    assert decibels.std() < 0.05  # one gain for the whole utterance; the floor under the logarithm hardly shows


@given(SEEDS)
@FEW
def test_silence_at_the_edges_stays_within_its_limit(seed: int) -> None:
    config = AugmentConfig(0, 0, 0, 0, (0, 0), 0.5, 0, 0, 0, 0)
    added = len(augmented_frames(SPEECH, FEATURES, config, np.random.default_rng(seed))) - len(log_mel(SPEECH))
    assert 0 <= added <= 100


@given(st.floats(0.5, 20), SEEDS)
@FEW
def test_the_equalizer_colours_all_frames_alike_smoothly_and_within_its_limit(most_db: float, seed: int) -> None:
    frames = log_mel(SPEECH)
    coloured = equalize(frames, most_db, np.random.default_rng(seed))
    decibels = (coloured - frames) * 10 / np.log(10)
    assert np.abs(decibels).max() <= most_db * 1.001
    assert decibels.std(axis=0).max() < 1e-4 * most_db
    assert decibels[0].std() > 0
    assert np.abs(np.diff(decibels[0])).max() <= 2 * most_db * 4 / 79 * 1.001  # four lines over 80 bands


def test_the_equalizer_is_part_of_the_augmentation() -> None:
    config = replace(NOTHING, equalizer_db=6.0)
    coloured = augmented_frames(SPEECH, FEATURES, config, np.random.default_rng(5))
    assert np.array_equal(coloured, equalize(log_mel(SPEECH), 6.0, last_of(np.random.default_rng(5))))


def test_warping_moves_formants_and_keeps_the_length() -> None:
    config = AugmentConfig(0, 0.1, 0, 0, (0, 0), 0, 0, 0, 0, 0)
    tone = np.sin(2 * np.pi * 2000 * np.arange(RATE) / RATE).astype(np.float32)
    bands = {
        int(augmented_frames(tone, FEATURES, config, np.random.default_rng(seed)).mean(axis=0).argmax())
        for seed in range(40)
    }
    plain = int(log_mel(tone).mean(axis=0).argmax())
    assert min(bands) < plain < max(bands)
    assert augmented_frames(SPEECH, FEATURES, config, np.random.default_rng(3)).shape == log_mel(SPEECH).shape


@given(
    st.integers(1, 1500),
    st.builds(
        AugmentConfig,
        time_masks=st.integers(0, 12),
        time_mask_frames=st.integers(0, 60),
        band_masks=st.integers(0, 3),
        band_mask_width=st.integers(0, 100),
    ),
    SEEDS,
)
@settings(max_examples=100, deadline=None)
def test_masks_cover_no_more_than_was_asked_for(n_frames: int, config: AugmentConfig, seed: int) -> None:
    frames = np.ones((n_frames, 80), np.float32)
    fill = np.zeros(80, np.float32)
    masked = mask(frames, config, fill, np.random.default_rng(seed))
    assert masked.shape == frames.shape
    assert frames.all()
    hidden_bands = int((masked == 0).all(axis=0).sum())
    hidden_frames = int((masked == 0).all(axis=1).sum())
    most = np.ceil(config.time_masks * n_frames / 1000)
    if hidden_frames < n_frames:
        assert hidden_bands <= config.band_masks * config.band_mask_width
    if hidden_bands < 80:
        assert hidden_frames <= most * config.time_mask_frames
    inside = masked[(masked != 0).any(axis=1)][:, (masked != 0).any(axis=0)]
    assert (inside == 1).all()


def test_masks_hide_the_expected_share_on_average() -> None:
    config = AugmentConfig(time_masks=8, time_mask_frames=20, band_masks=2, band_mask_width=18)
    rng = np.random.default_rng(0)
    frames, fill = np.ones((1000, 80), np.float32), np.full(80, 7, np.float32)
    masked = np.stack([mask(frames, config, fill, rng) for _ in range(300)]) == 7
    time_share = masked.all(axis=2).mean()
    band_share = masked.all(axis=1).mean()
    # uniform counts and lengths: half the most masks of half the longest, less their overlap
    assert time_share == pytest.approx(4 * 10 / 1000, rel=0.15)
    assert band_share == pytest.approx(1 * 9 / 80, rel=0.2)
