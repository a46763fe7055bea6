"""Log-mel front end: one NumPy implementation for training and for running, so that features cannot drift apart."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from asr.errors import ASRError

Samples = NDArray[np.float32]
Frames = NDArray[np.float32]

BLOCK = 4  # frames per matrix product: always the same shape, hence the same bits for any cutting of the samples

AT_ONCE = 32 * BLOCK  # frames whose spectra are in memory together; with more of them the cache overflows


@dataclass(frozen=True)
class FeatureConfig:
    """Parameters of the log-mel front end; lengths in samples, frequencies in Hz."""

    sample_rate: int = 16_000
    window: int = 400  # 25 ms
    hop: int = 160  # 10 ms
    n_fft: int = 512
    n_mels: int = 80
    low_hz: float = 20.0
    high_hz: float = 7_600.0
    floor: float = 1e-6  # added to each band's energy; about 20 dB above 16-bit quantisation noise

    def __post_init__(self) -> None:
        if not 0 < self.hop <= self.window <= self.n_fft:
            raise ASRError(
                f"features need 0 < hop <= window <= n_fft, but these are {self.hop}, {self.window} and {self.n_fft} "
                "samples; correct [features] in the configuration"
            )
        if not 0 <= self.low_hz < self.high_hz <= self.sample_rate / 2:
            raise ASRError(
                f"mel bands from {self.low_hz:g} to {self.high_hz:g} Hz do not fit below "
                f"{self.sample_rate / 2:g} Hz, half the sample rate; correct low_hz and high_hz in [features]"
            )


def hz_to_mel(hz: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Mel scale of O'Shaughnessy (1987): 2595 log10(1 + f / 700)."""
    return np.asarray(2595.0 * np.log10(1.0 + np.asarray(hz, dtype=np.float64) / 700.0))


def mel_to_hz(mel: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Inverse of hz_to_mel."""
    return np.asarray(700.0 * (10.0 ** (np.asarray(mel, dtype=np.float64) / 2595.0) - 1.0))


@lru_cache(maxsize=256)
def mel_filters(config: FeatureConfig, warp: float = 1.0) -> NDArray[np.float32]:
    """Triangular filters of unit peak, shape = (n_fft // 2 + 1, n_mels).

    `warp` scales the filters' centre frequencies: vocal tract length perturbation (Jaitly & Hinton, 2013); 1.0 leaves
    them in place.
    """
    mels = np.linspace(hz_to_mel(config.low_hz), hz_to_mel(config.high_hz), config.n_mels + 2)
    edges = np.minimum(mel_to_hz(mels) * warp, config.sample_rate / 2)
    bins = np.fft.rfftfreq(config.n_fft, 1 / config.sample_rate)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins - low) / np.maximum(centre - low, 1e-9)
    falling = (high - bins) / np.maximum(high - centre, 1e-9)
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


class LogMel:
    """Streaming log-mel: frame t covers samples [t * hop, t * hop + window), natural logarithm, not normalised.

    Frames leave in blocks of BLOCK, counted from the start of the stream, so that every frame is the same to the last
    bit however the samples are cut. The state is the samples that are still needed.
    """

    def __init__(self, config: FeatureConfig | None = None, warp: float = 1.0) -> None:
        self.config = config or FeatureConfig()
        self._window = np.hanning(self.config.window + 1)[:-1].astype(np.float32)
        self._filters = mel_filters(self.config, warp)

    def start(self) -> Samples:
        """The state of a stream that has heard nothing."""
        return np.zeros(0, np.float32)

    def step(self, samples: Samples, state: Samples) -> tuple[Frames, Samples]:
        """Samples, shape = (n,), to the frames they complete, shape = (k * BLOCK, n_mels), and the next state."""
        pending = np.concatenate((state, samples))
        blocks = self._complete_frames(len(pending)) // BLOCK
        frames = self._frames(pending, blocks * BLOCK)
        return frames, pending[blocks * BLOCK * self.config.hop :].copy()

    def wanted(self, frames: int, state: Samples) -> int:
        """Samples that bring so many more frames."""
        whole = -(-frames // BLOCK) * BLOCK
        return (whole - 1) * self.config.hop + self.config.window - len(state)

    def flush(self, state: Samples) -> Frames:
        """The complete frames that wait for their block; samples that fill no window are dropped."""
        wanted = self._complete_frames(len(state))
        filled = np.zeros((BLOCK - 1) * self.config.hop + self.config.window, np.float32)
        filled[: len(state)] = state[: len(filled)]
        return self._frames(filled, BLOCK)[:wanted]

    def __call__(self, samples: Samples) -> Frames:
        """Frames of a whole signal, shape = (n_frames, n_mels)."""
        frames, state = self.step(samples, self.start())
        return np.concatenate((frames, self.flush(state)))

    def _complete_frames(self, n_samples: int) -> int:
        return max(0, (n_samples - self.config.window) // self.config.hop + 1)

    def _frames(self, samples: Samples, count: int) -> Frames:
        if count == 0:
            return np.zeros((0, self.config.n_mels), np.float32)
        steps = (self.config.hop * samples.itemsize, samples.itemsize)
        windows = np.ndarray((count, self.config.window), samples.dtype, samples.data, strides=steps)  # overlapping
        parts = [self._log_energy(windows[begin : begin + AT_ONCE]) for begin in range(0, count, AT_ONCE)]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _log_energy(self, windows: NDArray[np.float32]) -> Frames:
        """windows: shape = (a multiple of BLOCK, window)."""
        filled = np.zeros((len(windows), self.config.n_fft), np.float32)
        np.multiply(windows, self._window, out=filled[:, : self.config.window])
        spectrum = np.fft.rfft(filled)
        power = spectrum.real**2 + spectrum.imag**2
        energy = power.reshape(-1, BLOCK, power.shape[1]) @ self._filters  # (blocks, BLOCK, n_mels)
        return np.log(energy.reshape(len(windows), -1) + np.float32(self.config.floor))


def log_mel(samples: Samples, config: FeatureConfig | None = None) -> Frames:
    """Log-mel frames of a whole signal, shape = (n_frames, n_mels)."""
    return LogMel(config)(samples)
