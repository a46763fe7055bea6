"""Checkpoints: all that a run needs to go on exactly, or an export, in one file that is never half written."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from asr.encoder import Encoder
from asr.errors import ASRError
from asr.lexicon import GRAPHONES_FILE, LEXICON_FILE
from asr.tokenizer import PIECES_FILE, TOKENS_FILE, Tokenizer
from asr.training.config import TrainingConfig

FORMAT = 1
LAST, BEST = "last.pt", "best.pt"  # in a run's folder: where it goes on, and the least dev loss so far


@dataclass(frozen=True)
class Checkpoint:
    """A run after `step` steps: `batch` batches into `epoch`. Weights as state dictionaries of the Encoder."""

    config: TrainingConfig
    tokenizer: Tokenizer
    weights: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    step: int
    epoch: int
    batch: int
    audio_seconds: float

    def encoder(self) -> Encoder:
        """The encoder with averaged weights, ready to run."""
        encoder = Encoder(self.config.encoder)
        encoder.load_state_dict(self.average)
        return encoder.eval()


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Writes beside `path` and renames, so that a kill at any time leaves the old file or the new one."""
    save_tokenizer(checkpoint.tokenizer, path.parent)
    values = {
        "format": FORMAT,
        "config": checkpoint.config.to_dict(),
        **{
            name: getattr(checkpoint, name)
            for name in ("weights", "average", "optimizer", "step", "epoch", "batch", "audio_seconds")
        },
    }
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as f:
            torch.save(values, f)
            f.flush()
            os.fsync(f.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
        partial.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise ASRError(
            f"cannot write {path}: {reason}; make room, and the same command goes on from the last"
        ) from None


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Puts the tokenizer's files into `directory`, each of them whole or not at all."""
    partial = directory / "tokenizer.partial"
    partial.mkdir(exist_ok=True)
    tokenizer.save(partial)
    for name in (PIECES_FILE, LEXICON_FILE, GRAPHONES_FILE, TOKENS_FILE):
        if (partial / name).exists():
            (partial / name).replace(directory / name)
        else:
            (directory / name).unlink(missing_ok=True)
    partial.rmdir()


def load(path: str | Path) -> Checkpoint:
    """Reads a checkpoint, or the last one of a run's folder, on the CPU."""
    path = Path(path)
    if path.is_dir():
        path = path / LAST
    if not path.exists():
        raise ASRError(f"there is no checkpoint {path}; name a .pt file or the folder of a training run")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        found = values.pop("format")
    except Exception as error:
        raise ASRError(f"{path} is not a checkpoint of this program ({type(error).__name__}); train again") from None
    if found != FORMAT:
        raise ASRError(f"{path} has checkpoint format {found} and this program reads {FORMAT}; update the program")
    config = TrainingConfig.from_dict(values.pop("config"))
    return Checkpoint(config=config, tokenizer=Tokenizer.load(path.parent), **values)
