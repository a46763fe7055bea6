"""What a recipe's TOML file may say: one dataclass a section, all of it kept inside the checkpoint."""

import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from asr.encoder import EncoderConfig
from asr.errors import ASRError
from asr.features import FeatureConfig


@dataclass(frozen=True)
class DataConfig:
    """Which speech to learn from; sources are manifests or LibriSpeech folders, relative to the data folder."""

    train: list[str] = field(default_factory=list)
    dev: list[str] = field(default_factory=list)
    passes: dict[str, float] = field(default_factory=dict)  # of a corpus per epoch; 1 where not named, 0 leaves it out
    min_seconds: float = 0.5
    max_seconds: float = 17.0
    batch_seconds: float = 160.0  # of padded audio, per process
    unit: str = "characters"  # or "pieces"
    pieces: int = 256  # size of the vocabulary where the unit is pieces
    pack: bool = True  # decode the audio once, to 16-bit samples in one memory-mapped file


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes to the training audio; zero everywhere leaves it as it is."""

    speed: float = 0.1  # resampled by a factor within 1 +- speed
    warp: float = 0.08  # mel bands scaled within 1 +- warp (VTLP)
    gain_db: float = 10.0  # level changed within +- gain_db
    noise: float = 0.4  # share of utterances with added coloured noise
    noise_snr_db: tuple[float, float] = (8.0, 40.0)
    edge_seconds: float = 0.4  # most silence added at either end
    time_masks: int = 8  # most masks in 10 s of speech
    time_mask_frames: int = 20
    band_masks: int = 2
    band_mask_width: int = 18


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up, a constant rate, and a linear decay to zero over the last steps."""

    steps: int = 10_000
    peak_rate: float = 2e-3
    warmup_steps: int = 400
    decay_steps: int = 3_000
    weight_decay: float = 0.01
    clip_norm: float = 2.0
    average: float = 0.999  # decay of the exponential moving average of the weights
    seed: int = 1
    checkpoint_minutes: float = 3.0
    dev_every: int = 500  # steps between looks at the dev sources


@dataclass(frozen=True)
class TrainingConfig:
    """A whole recipe."""

    name: str = "model"
    data: DataConfig = field(default_factory=DataConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries of plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainingConfig":
        """The inverse of to_dict; names that no section knows are errors."""
        sections: dict[str, Any] = {"name": values.get("name", cls.name)}
        kinds = {f.name: f.default_factory for f in fields(cls) if f.name != "name"}
        for section in values.keys() - {"name"}:
            if section not in kinds:
                raise ASRError(f"configuration section [{section}] is unknown; choose from {', '.join(sorted(kinds))}")
            kind: Any = kinds[section]
            known = {f.name for f in fields(kind)}
            if unknown := sorted(values[section].keys() - known):
                raise ASRError(f"[{section}] does not know {unknown[0]!r}; it knows {', '.join(sorted(known))}")
            given = {k: tuple(v) if k == "noise_snr_db" else v for k, v in values[section].items()}
            sections[section] = kind(**given)
        return cls(**sections)


def read_config(path: str | Path, changes: list[str] | None = None) -> TrainingConfig:
    """Reads a recipe's TOML file; each change is `section.name=value` with a TOML value and overrides the file."""
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ASRError(f"there is no configuration {path}; recipes/ holds those that come with the project") from None
    except tomllib.TOMLDecodeError as error:
        raise ASRError(f"{path} is not TOML: {error}") from None
    for change in changes or []:
        name, _, value = change.partition("=")
        section, _, key = name.strip().partition(".")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            raise ASRError(f"cannot read the change {change!r}; write section.name=value with a TOML value") from None
        if key:
            values.setdefault(section, {})[key] = parsed
        else:
            values[section] = parsed
    return TrainingConfig.from_dict(values)
