"""Checkpoints: all that a run needs to go on exactly, or an export, in one file that is never half written."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from asr.encoder import Encoder
from asr.errors import ASRError
from asr.tokenizer import Tokenizer
from asr.training.config import TrainingConfig

FORMAT = 1


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
    directory = path.parent
    checkpoint.tokenizer.save(directory)
    values = {
        "format": FORMAT,
        "config": checkpoint.config.to_dict(),
        **{
            name: getattr(checkpoint, name)
            for name in ("weights", "average", "optimizer", "step", "epoch", "batch", "audio_seconds")
        },
    }
    partial = path.with_suffix(".partial")
    with partial.open("wb") as f:
        torch.save(values, f)
        f.flush()
        os.fsync(f.fileno())
    partial.replace(path)


def load(path: str | Path) -> Checkpoint:
    """Reads a checkpoint, or the last one of a run's folder, on the CPU."""
    path = Path(path)
    if path.is_dir():
        path = path / "last.pt"
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
