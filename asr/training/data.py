"""Batches of log-mel frames and token ids, planned from (seed, epoch) alone so that any step can be made again."""

import hashlib
import signal
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from asr.audio import read_blocks
from asr.ctc import frames_needed
from asr.encoder import SUBSAMPLING
from asr.errors import ASRError
from asr.features import FeatureConfig, Frames, Samples, log_mel
from asr.text import normalize
from asr.tokenizer import Tokenizer
from asr.training.augment import augmented_frames, mask
from asr.training.config import TrainingConfig
from asr.training.log import counting
from asr.training.manifest import Utterance

SECONDS_TOLERANCE = 0.5  # between an utterance's length in its manifest and that of its audio
DECODED_SECONDS = 60.0  # of audio at once
FULL_SCALE = 32_768  # of 16-bit samples
LEAST_VARIANCE = 1e-4  # of a mel band, squared nats: a band that never changes must not divide by zero
PREFETCHED = 4  # batches that wait per worker
LETTERS = Tokenizer()


class Batch(NamedTuple):
    """Padded features (batch, frames, n_mels), lengths (batch,), targets in one row, target_lengths (batch,).

    Where utterances have two views, the second ones follow all the first ones, in the same order.
    """

    features: Tensor
    lengths: Tensor
    targets: Tensor
    target_lengths: Tensor
    letters: Tensor  # the same texts in letters
    letter_lengths: Tensor
    seconds: float  # of audio, without padding

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return Batch(*(x.to(device, non_blocking=True) if isinstance(x, Tensor) else x for x in self))  # type: ignore[arg-type]


class AudioStore:
    """Samples of utterances by index: decoded each time, or read from a file of packed 16-bit samples.

    The packed file is made where it is missing or holds other recordings than these; about 115 MB per hour.
    """

    def __init__(self, utterances: Sequence[Utterance], sample_rate: int, packed: Path | None = None) -> None:
        self._utterances = utterances
        self._sample_rate = sample_rate
        self._packed = packed
        self._offsets = np.zeros(0, np.int64) if packed is None else self._pack(packed)

    def __getitem__(self, index: int) -> Samples:
        """float32 samples of one utterance, shape = (n,)."""
        if self._packed is None:
            return self._decode(index)
        start, end = self._offsets[index : index + 2].tolist()
        packed = np.fromfile(self._packed, np.int16, end - start, offset=start * 2)
        return packed.astype(np.float32) / np.float32(FULL_SCALE)

    def _decode(self, index: int) -> Samples:
        utterance = self._utterances[index]
        blocks = read_blocks(utterance.path, target_rate=self._sample_rate, block_seconds=DECODED_SECONDS)
        samples = np.concatenate([np.zeros(0, np.float32), *blocks])
        seconds = len(samples) / self._sample_rate
        if abs(seconds - utterance.seconds) > SECONDS_TOLERANCE:
            raise ASRError(
                f"{utterance.path} lasts {seconds:.2f} s and its manifest says {utterance.seconds:.2f}; "
                "correct the manifest or fetch the file again"
            )
        return samples

    def _pack(self, path: Path) -> NDArray[np.int64]:
        index_path, fingerprint = path.with_suffix(".npz"), self._fingerprint()
        if index_path.exists() and path.exists():
            with np.load(index_path) as index:
                if index["fingerprint"] == fingerprint and path.stat().st_size == 2 * index["offsets"][-1]:
                    offsets: NDArray[np.int64] = index["offsets"]
                    return offsets
        lengths = [0]
        partial = path.with_suffix(".partial")
        with partial.open("wb") as f:
            for i in counting(len(self._utterances), f"decoding {len(self._utterances)} recordings into {path}"):
                scaled = np.rint(self._decode(i) * FULL_SCALE)
                samples = np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
                f.write(samples.tobytes())
                lengths.append(len(samples))
        offsets = np.cumsum(lengths, dtype=np.int64)
        index_path.unlink(missing_ok=True)
        partial.replace(path)
        with partial.open("wb") as f:
            np.savez(f, fingerprint=np.array(fingerprint), offsets=offsets)
        partial.replace(index_path)
        return offsets

    def _fingerprint(self) -> str:
        """Changes with the recordings: their order, names, lengths, sizes and times of writing."""
        digest = hashlib.sha256(str(self._sample_rate).encode())
        for u in self._utterances:
            try:
                status = u.path.stat()
            except OSError as error:
                raise ASRError(f"cannot read {u.path}: {error.strerror}; correct the manifest") from None
            digest.update(f"{u.path}\t{u.seconds}\t{status.st_size}\t{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def usable(utterances: Sequence[Utterance], tokenizer: Tokenizer, config: TrainingConfig) -> list[Utterance]:
    """Those within the length limits, of a text that can be spelled and fits into their emissions at any speed."""
    data, hop = config.data, config.features.hop / config.features.sample_rate

    def fits(u: Utterance) -> bool:
        text = normalize(u.text)
        if tokenizer.unknown(text):
            return False
        tokens = tokenizer.encode(text)
        emissions = u.seconds * (1 - config.augment.speed) / hop / SUBSAMPLING
        return bool(tokens) and frames_needed(tokens) < emissions

    return [u for u in utterances if data.min_seconds <= u.seconds <= data.max_seconds and fits(u)]


def statistics(store: AudioStore, count: int, features: FeatureConfig, sample: int = 500) -> tuple[Frames, Frames]:
    """Mean and standard deviation per mel band, shape = (n_mels,), over evenly spaced utterances."""
    total, squares, n_frames = np.zeros(features.n_mels), np.zeros(features.n_mels), 0
    for i in np.unique(np.linspace(0, count - 1, min(sample, count)).astype(int)).tolist():
        frames = log_mel(store[i], features).astype(np.float64)
        total += frames.sum(axis=0)
        squares += (frames**2).sum(axis=0)
        n_frames += len(frames)
    mean = total / n_frames
    variance = np.maximum(squares / n_frames - mean**2, LEAST_VARIANCE)
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


def plan_epoch(
    utterances: Sequence[Utterance], config: TrainingConfig, epoch: int, processes: int = 1
) -> list[list[int]]:
    """Batches of utterance indices for one epoch: each corpus as often as `passes` says, similar lengths together.

    So are the batches that as many processes take at a time, as all of them wait for the longest.
    """
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
    odd = set(rng.permutation(len(batches))[: len(batches) % processes].tolist()) if processes > 1 else set()
    even = [batch for i, batch in enumerate(batches) if i not in odd]
    steps = [even[i : i + processes] for i in range(0, len(even), processes)]
    return [batch for i in rng.permutation(len(steps)) for batch in steps[i]] + [batches[i] for i in sorted(odd)]


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
        processes: int = 1,
    ) -> None:
        self._store, self._config, self._fill, self._epoch = store, config, fill, epoch
        self._utterances, self._tokenizer = utterances, tokenizer
        self.plan = plan_epoch(utterances, config, epoch, processes)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> Batch:
        config = self._config
        rng = np.random.default_rng([config.optimizer.seed, self._epoch, number])
        chosen = self.plan[number]
        clean = [augmented_frames(self._store[i], config.features, config.augment, rng) for i in chosen]
        views = 2 if config.optimizer.consistency else 1
        frames = [mask(f, config.augment, self._fill, rng) for _ in range(views) for f in clean]
        texts = [normalize(self._utterances[i].text) for i in chosen] * views
        return collate(frames, texts, self._tokenizer, sum(self._utterances[i].seconds for i in chosen))


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
        texts = [normalize(self._utterances[i].text) for i in chosen]
        return collate(frames, texts, self._tokenizer, sum(self._utterances[i].seconds for i in chosen))


def prefetched(
    batches: Dataset[Batch], numbers: Sequence[int], workers: int, pinned: bool = False
) -> Generator[Batch, None, None]:
    """The batches of these numbers in this order, made by `workers` processes ahead of time, or here where it is 0.

    The processes end with the iterator: close it where it is not read to its end.
    """
    loader = DataLoader(
        _ErrorsAsValues(batches),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=PREFETCHED if workers else None,
        pin_memory=pinned,
        worker_init_fn=_leave_interrupts_to_the_parent,
    )
    for batch in loader:
        if isinstance(batch, ASRError):
            raise batch
        yield batch


class _ErrorsAsValues(Dataset[Batch | ASRError]):
    """DataLoader would hand on an exception of a worker as a traceback in the message of another."""

    def __init__(self, batches: Dataset[Batch]) -> None:
        self._batches = batches

    def __getitem__(self, number: int) -> Batch | ASRError:
        try:
            return self._batches[number]
        except ASRError as error:
            return error


def _leave_interrupts_to_the_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def collate(frames: list[Frames], texts: list[str], tokenizer: Tokenizer, seconds: float) -> Batch:
    """Pads frames at the end with zeros and joins the normalised texts."""
    lengths = torch.tensor([len(f) for f in frames])
    features = torch.zeros(len(frames), int(lengths.max()), frames[0].shape[1])
    for row, f in zip(features, frames, strict=True):
        row[: len(f)] = torch.from_numpy(f)
    return Batch(features, lengths, *_joined(tokenizer, texts), *_joined(LETTERS, texts), seconds)


def _joined(tokenizer: Tokenizer, texts: list[str]) -> tuple[Tensor, Tensor]:
    tokens = [tokenizer.encode(text) for text in texts]
    return torch.tensor([t for ids in tokens for t in ids]), torch.tensor([len(ids) for ids in tokens])
