"""Random changes to training audio, drawn from the generator that is handed in, so that an epoch can be repeated."""

import math

import numpy as np
import soxr

from asr.features import FeatureConfig, Frames, LogMel, Samples
from asr.training.config import AugmentConfig

WARP_STEP = 0.02  # mel filters are made once per step of the warp
EQUALIZER_KNOTS = 5
MASKED_FRAMES = 1_000  # frames, 10 s at a hop of 10 ms, that `time_masks` counts for


def augmented_frames(
    samples: Samples, features: FeatureConfig, config: AugmentConfig, rng: np.random.Generator
) -> Frames:
    """Samples, shape = (n,), to augmented log-mel frames, shape = (n_frames, n_mels), before masking."""
    if config.speed:
        samples = perturb_speed(samples, features.sample_rate, rng.uniform(1 - config.speed, 1 + config.speed))
    if config.edge_seconds:
        before, after = rng.integers(0, int(config.edge_seconds * features.sample_rate) + 1, 2)
        samples = np.pad(samples, (before, after))
    if rng.random() < config.noise:
        samples = add_noise(samples, rng.uniform(*config.noise_snr_db), rng)
    if config.gain_db:
        samples = samples * np.float32(10 ** (rng.uniform(-config.gain_db, config.gain_db) / 20))
    warp = 1 + WARP_STEP * round(rng.uniform(-config.warp, config.warp) / WARP_STEP)
    frames = LogMel(features, warp)(samples)
    return equalize(frames, config.equalizer_db, rng) if config.equalizer_db else frames


def perturb_speed(samples: Samples, sample_rate: int, factor: float) -> Samples:
    """Plays the samples `factor` times as fast, pitch and formants with it (Ko et al., 2015)."""
    return soxr.resample(samples, sample_rate * factor, sample_rate, quality="LQ")


def add_noise(samples: Samples, snr_db: float, rng: np.random.Generator) -> Samples:
    """Adds Gaussian noise with a random spectral slope, white to brown, at `snr_db` below the signal's mean power."""
    slope = rng.uniform(0.0, 2.0)
    size = 1 << (len(samples) - 1).bit_length()  # a fast length for the transform
    spectrum = np.fft.rfft(rng.standard_normal(size, dtype=np.float32))
    spectrum *= np.maximum(np.arange(len(spectrum), dtype=np.float32), len(spectrum) / 160) ** np.float32(-slope / 2)
    noise = np.fft.irfft(spectrum, size)[: len(samples)].astype(np.float32)
    power = float(np.mean(samples**2)) / max(float(np.mean(noise**2)), 1e-20)
    return samples + noise * np.float32((power / 10 ** (snr_db / 10)) ** 0.5)


def equalize(frames: Frames, most_db: float, rng: np.random.Generator) -> Frames:
    """Colours the sound as another microphone or voice would: gains within +- `most_db` at a few bands, lines between.

    After FilterAugment (Nam et al., 2022), its linear kind.
    """
    bands, knots = np.arange(frames.shape[1]), np.linspace(0, frames.shape[1] - 1, EQUALIZER_KNOTS)
    gains = np.interp(bands, knots, rng.uniform(-most_db, most_db, EQUALIZER_KNOTS))
    return frames + (gains * math.log(10) / 10).astype(np.float32)


def mask(frames: Frames, config: AugmentConfig, fill: Frames, rng: np.random.Generator) -> Frames:
    """SpecAugment without time warping (Park et al., 2019): stretches of time and of bands become `fill`, (n_mels,)."""
    masked = frames.copy()
    for _ in range(rng.integers(0, config.band_masks + 1)):
        width = min(int(rng.integers(0, config.band_mask_width + 1)), frames.shape[1])
        low = int(rng.integers(0, frames.shape[1] - width + 1))
        masked[:, low : low + width] = fill[low : low + width]
    most = math.ceil(config.time_masks * len(frames) / MASKED_FRAMES)
    for _ in range(rng.integers(0, most + 1)):
        length = min(int(rng.integers(0, config.time_mask_frames + 1)), len(frames))
        start = int(rng.integers(0, len(frames) - length + 1))
        masked[start : start + length] = fill
    return masked
