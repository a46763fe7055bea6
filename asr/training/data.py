"""Batches of log-mel frames and token ids, planned from (seed, epoch) alone so that any step can be made again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor
from torch.utils.data import Dataset

from asr.ctc import frames_needed
from asr.encoder import SUBSAMPLING
from asr.errors import ASRError
from asr.features import FeatureConfig, Frames, Samples, log_mel
from asr.text import normalize
from asr.tokenizer import Tokenizer
from asr.training.augment import augmented_frames, mask
from asr.training.config import TrainingConfig
from asr.training.manifest import Utterance


@dataclass(frozen=True)
class Batch:
    """Padded features (batch, frames, n_mels), lengths (batch,), targets in one row, target_lengths (batch,)."""

    features: Tensor
    lengths: Tensor
    targets: Tensor
    target_lengths: Tensor
    seconds: float  # of audio, without padding


class AudioStore:
    """Samples of utterances by index: decoded each time, or read from a file of packed 16-bit samples."""

    def __init__(self, utterances: Sequence[Utterance], sample_rate: int, packed: Path | None = None) -> None:
        self._utterances = utterances
        self._sample_rate = sample_rate
        self._samples: np.ndarray | None = None
        if packed is not None:
            self._offsets = self._pack(packed)
            self._samples = np.memmap(packed, np.int16, "r")

    def __getitem__(self, index: int) -> Samples:
        if self._samples is None:
            return self._decode(index)
        packed = self._samples[self._offsets[index] : self._offsets[index + 1]]
        return packed.astype(np.float32) / np.float32(32_768)

    def _decode(self, index: int) -> Samples:
        path = self._utterances[index].path
        try:
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        except (OSError, soundfile.LibsndfileError) as error:
            raise ASRError(f"cannot read {path}: {error}; mend the file or take its line out of the manifest") from None
        mono: Samples = samples.mean(axis=1)
        return mono if rate == self._sample_rate else soxr.resample(mono, rate, self._sample_rate)

    def _pack(self, path: Path) -> np.ndarray:
        index_path = path.with_suffix(".offsets.npy")
        if index_path.exists():
            offsets = np.load(index_path)
            if len(offsets) == len(self._utterances) + 1 and path.stat().st_size == 2 * offsets[-1]:
                return offsets
        lengths = [0]
        with path.open("wb") as f:
            for i in range(len(self._utterances)):
                samples = np.clip(np.rint(self._decode(i) * 32_768), -32_768, 32_767).astype(np.int16)
                f.write(samples.tobytes())
                lengths.append(len(samples))
        offsets = np.cumsum(lengths)
        np.save(index_path, offsets)
        return offsets


def usable(utterances: Sequence[Utterance], tokenizer: Tokenizer, config: TrainingConfig) -> list[Utterance]:
    """Those within the length limits whose text is not empty and fits into their emission frames."""
    data, hop = config.data, config.features.hop / config.features.sample_rate

    def fits(u: Utterance) -> bool:
        tokens = tokenizer.encode(normalize(u.text))
        emissions = u.seconds * (1 - config.augment.speed) / hop / SUBSAMPLING
        return bool(tokens) and frames_needed(tokens) < emissions

    return [
        u
        for u in utterances
        if data.min_seconds <= u.seconds <= data.max_seconds and data.passes.get(u.corpus, 1.0) > 0 and fits(u)
    ]


def statistics(store: AudioStore, count: int, features: FeatureConfig, sample: int = 500) -> tuple[Frames, Frames]:
    """Mean and standard deviation per mel band, shape = (n_mels,), over evenly spaced utterances."""
    picked = np.unique(np.linspace(0, count - 1, min(sample, count)).astype(int))
    frames = np.concatenate([log_mel(store[int(i)], features) for i in picked])
    return frames.mean(axis=0), frames.std(axis=0)


def plan_epoch(utterances: Sequence[Utterance], config: TrainingConfig, epoch: int) -> list[list[int]]:
    """Batches of utterance indices for one epoch: each corpus as often as `passes` says, similar lengths together."""
    rng = np.random.default_rng([config.optimizer.seed, epoch])
    passes = np.array([config.data.passes.get(u.corpus, 1.0) for u in utterances])
    repeats = np.floor(passes).astype(int) + (rng.random(len(passes)) < passes % 1)
    indices = rng.permutation(np.repeat(np.arange(len(utterances)), repeats))
    lengths = np.array([u.seconds for u in utterances])[indices]
    order = indices[np.argsort(lengths * rng.uniform(0.9, 1.1, len(lengths)), kind="stable")]

    batches: list[list[int]] = []
    batch: list[int] = []
    longest = 0.0
    for i in order.tolist():
        longest = max(longest, utterances[i].seconds)
        if batch and longest * (len(batch) + 1) > config.data.batch_seconds:
            batches.append(batch)
            batch, longest = [], utterances[i].seconds
        batch.append(i)
    if batch:
        batches.append(batch)
    return [batches[i] for i in rng.permutation(len(batches))]


class TrainingBatches(Dataset[Batch]):
    """One epoch's batches by number; augmentation is drawn from (seed, epoch, batch number)."""

    def __init__(
        self,
        utterances: Sequence[Utterance],
        store: AudioStore,
        tokenizer: Tokenizer,
        config: TrainingConfig,
        fill: Frames,
        epoch: int,
    ) -> None:
        self._store, self._config, self._fill, self._epoch = store, config, fill, epoch
        self._utterances, self._tokenizer = utterances, tokenizer
        self.plan = plan_epoch(utterances, config, epoch)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> Batch:
        config = self._config
        rng = np.random.default_rng([config.optimizer.seed, self._epoch, number])
        frames, tokens = [], []
        for i in self.plan[number]:
            clean = augmented_frames(self._store[i], config.features, config.augment, rng)
            frames.append(mask(clean, config.augment, self._fill, rng))
            tokens.append(self._tokenizer.encode(normalize(self._utterances[i].text)))
        return collate(frames, tokens, sum(self._utterances[i].seconds for i in self.plan[number]))


class PlainBatches(Dataset[Batch]):
    """Utterances as they are, in order of length, for measuring."""

    def __init__(
        self, utterances: Sequence[Utterance], store: AudioStore, tokenizer: Tokenizer, config: TrainingConfig
    ) -> None:
        self._utterances, self._store, self._tokenizer, self._features = utterances, store, tokenizer, config.features
        order = sorted(range(len(utterances)), key=lambda i: utterances[i].seconds)
        size = max(1, int(config.data.batch_seconds / config.data.max_seconds))
        self.plan = [order[i : i + size] for i in range(0, len(order), size)]

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> Batch:
        chosen = self.plan[number]
        frames = [log_mel(self._store[i], self._features) for i in chosen]
        tokens = [self._tokenizer.encode(normalize(self._utterances[i].text)) for i in chosen]
        return collate(frames, tokens, sum(self._utterances[i].seconds for i in chosen))


def collate(frames: list[Frames], tokens: list[list[int]], seconds: float) -> Batch:
    """Pads frames at the end with zeros and joins the texts."""
    lengths = torch.tensor([len(f) for f in frames])
    features = torch.zeros(len(frames), int(lengths.max()), frames[0].shape[1])
    for row, f in zip(features, frames, strict=True):
        row[: len(f)] = torch.from_numpy(f)
    targets = torch.tensor([t for ids in tokens for t in ids])
    return Batch(features, lengths, targets, torch.tensor([len(ids) for ids in tokens]), seconds)
