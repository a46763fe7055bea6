"""What a recipe's TOML file may say: one dataclass a section, all of it kept inside the checkpoint."""

import math
import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin

from asr.encoder import EncoderConfig
from asr.errors import ASRError
from asr.features import FeatureConfig

UNITS = ("auto", "characters", "pieces", "phones")


@dataclass(frozen=True)
class DataConfig:
    """Which speech to learn from; sources are manifests or LibriSpeech folders, relative to the data folder."""

    train: list[str] = field(default_factory=list)
    dev: list[str] = field(default_factory=list)
    known_speakers: bool = False  # dev sources may hold speakers of the training sources, whom a model knows too well
    passes: dict[str, float] = field(default_factory=dict)  # of a corpus per epoch; 1 where not named, 0 leaves it out
    min_seconds: float = 0.5
    max_seconds: float = 17.0
    batch_seconds: float = 160.0  # of padded audio as recorded, per process
    unit: str = "auto"  # "characters", "pieces" or "phones"; "auto": those that a run begins with, or characters
    lexicon: str = "en"  # where the unit is phones: a lexicon.txt, or a bundled model that has one
    pieces: int = 256  # size of the vocabulary where the unit is pieces
    pack: bool = True  # decode the audio once, to one file of 16-bit samples in the run's folder

    def __post_init__(self) -> None:
        _require(self.unit in UNITS, "data.unit", self.unit, " or ".join(UNITS))
        _require(self.min_seconds >= 0, "data.min_seconds", self.min_seconds, "0 or more")
        _require(self.max_seconds > self.min_seconds, "data.max_seconds", self.max_seconds, "above data.min_seconds")
        fits = f"at least data.max_seconds ({self.max_seconds:g}), so that every utterance fits"
        _require(self.batch_seconds >= self.max_seconds, "data.batch_seconds", self.batch_seconds, fits)
        for corpus, passes in self.passes.items():
            _require(passes >= 0, f"data.passes.{corpus}", passes, "0 or more")


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
    equalizer_db: float = 0.0  # gains of single bands within +- equalizer_db, smooth over the others

    def __post_init__(self) -> None:
        for name in (
            "gain_db",
            "equalizer_db",
            "edge_seconds",
            "time_masks",
            "time_mask_frames",
            "band_masks",
            "band_mask_width",
        ):
            _require(getattr(self, name) >= 0, f"augment.{name}", getattr(self, name), "0 or more")
        for name in ("speed", "warp"):
            _require(0 <= getattr(self, name) <= 0.5, f"augment.{name}", getattr(self, name), "from 0 to 0.5")
        _require(0 <= self.noise <= 1, "augment.noise", self.noise, "from 0 to 1")
        low, high = self.noise_snr_db
        _require(low <= high, "augment.noise_snr_db", [low, high], "the lower ratio and the higher one")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up, a constant rate, and a linear decay to zero over the last steps."""

    steps: int = 10_000
    peak_rate: float = 2e-3
    warmup_steps: int = 400
    decay_steps: int = 3_000
    weight_decay: float = 0.01
    clip_norm: float = 2.0
    average: float = 0.999  # decay of the exponential moving average of the weights: about the last 1 / (1 - decay)
    letters: float = 0.0  # weight of a second loss, of letters beside phones or pieces; 0: none
    denominator: float = 0.0  # weight of the likelihood of all texts (CTC-CRF), below 1; 0: plain CTC
    consistency: float = 0.0  # weight of the divergence between two masked views of an utterance (CR-CTC); 0: one view
    seed: int = 1
    checkpoint_minutes: float = 3.0  # 0: after every step
    dev_every: int = 500  # steps between looks at the dev sources

    def __post_init__(self) -> None:
        for name in ("steps", "dev_every"):
            _require(getattr(self, name) >= 1, f"optimizer.{name}", getattr(self, name), "1 or more")
        for name in (
            "warmup_steps",
            "decay_steps",
            "weight_decay",
            "letters",
            "consistency",
            "seed",
            "checkpoint_minutes",
        ):
            _require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "0 or more")
        for name in ("peak_rate", "clip_norm"):
            _require(getattr(self, name) > 0, f"optimizer.{name}", getattr(self, name), "above 0")
        for name in ("average", "denominator"):
            _require(0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "at least 0 and below 1")


@dataclass(frozen=True)
class TrainingConfig:
    """A whole recipe."""

    name: str = "model"
    data: DataConfig = field(default_factory=DataConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        for name in ("n_mels", "conv_channels", "width", "layers", "vocabulary"):
            _require(getattr(self.encoder, name) >= 1, f"encoder.{name}", getattr(self.encoder, name), "1 or more")
        _require(self.encoder.hidden >= 0, "encoder.hidden", self.encoder.hidden, "0 or more")
        _require(0 <= self.encoder.dropout < 1, "encoder.dropout", self.encoder.dropout, "at least 0 and below 1")
        bands = f"features.n_mels, which is {self.features.n_mels}"
        _require(self.encoder.n_mels == self.features.n_mels, "encoder.n_mels", self.encoder.n_mels, bands)

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries of plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainingConfig":
        """The inverse of to_dict; a name that no section knows or a value of another type is an error."""
        sections: dict[str, Any] = {"name": _typed(str, values.get("name", cls.name), "name")}
        kinds = {f.name: f.default_factory for f in fields(cls) if f.name != "name"}
        for section in values.keys() - {"name"}:
            if section not in kinds:
                raise ASRError(f"configuration section [{section}] is unknown; choose from {', '.join(sorted(kinds))}")
            _require(isinstance(values[section], dict), section, values[section], f"a section, headed [{section}]")
            kind: Any = kinds[section]
            known = {f.name: f.type for f in fields(kind)}
            if unknown := sorted(values[section].keys() - known):
                raise ASRError(f"[{section}] does not know {unknown[0]!r}; it knows {', '.join(sorted(known))}")
            given = {k: _typed(known[k], v, f"{section}.{k}") for k, v in values[section].items()}
            sections[section] = kind(**given)
        return cls(**sections)


def differences(one: TrainingConfig, other: TrainingConfig) -> dict[str, tuple[Any, Any]]:
    """Settings in which two configurations differ, by dotted name such as encoder.width, with both values."""
    a, b = _flat(one.to_dict()), _flat(other.to_dict())
    return {name: (a[name], b[name]) for name in a if a[name] != b[name]}


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    flat = {"name": values["name"]}
    for section in values.keys() - {"name"}:
        flat |= {f"{section}.{name}": value for name, value in values[section].items()}
    return dict(sorted(flat.items()))


def read_config(
    path: str | Path, changes: list[str] | None = None, like: TrainingConfig | None = None
) -> TrainingConfig:
    """Reads a recipe's TOML file; each change is `section.name=value` with a TOML value and overrides the file.

    What both leave open about features and encoder is as in `like`.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ASRError(f"there is no configuration {path}; recipes/ holds those that come with the project") from None
    except OSError as error:
        raise ASRError(f"cannot read the configuration {path}: {error.strerror}; name a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ASRError(f"{path} is not TOML: {error}") from None
    for change in changes or []:
        _apply(change, values)
    if like:
        for name, given in (("features", like.features), ("encoder", like.encoder)):
            section = values.setdefault(name, {})
            values[name] = asdict(given) | section if isinstance(section, dict) else section
    return TrainingConfig.from_dict(values)


def _apply(change: str, values: dict[str, Any]) -> None:
    name, _, value = change.partition("=")
    *parents, last = name.strip().split(".")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        raise ASRError(
            f"cannot read the change {change!r}; write section.name=value with a TOML value (text in quotation marks)"
        ) from None
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ASRError(f"cannot make the change {change!r}: {parent} is a value and holds no names")
    values[last] = parsed


_IN_WORDS: dict[Any, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list[str]: "a list of texts",
    dict[str, float]: "a table of numbers",
    tuple[float, float]: "a list of two numbers",
}


def _typed(kind: Any, value: Any, name: str) -> Any:
    """`value` as a `kind` of _IN_WORDS, or an ASRError that names it."""
    try:
        return _converted(kind, value)
    except TypeError:
        raise ASRError(f"{name} is {value!r}; it must be {_IN_WORDS[kind]}") from None


def _converted(kind: Any, value: Any) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is list and isinstance(value, list):
        return [_converted(parts[0], item) for item in value]
    if origin is tuple and isinstance(value, list | tuple) and len(value) == len(parts):
        return tuple(_converted(part, item) for part, item in zip(parts, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {_converted(parts[0], key): _converted(parts[1], item) for key, item in value.items()}
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind is type(value) and kind is not float:
        return value
    raise TypeError


def _require(holds: bool, name: str, value: Any, wanted: str) -> None:
    if not holds:
        raise ASRError(f"{name} is {value!r}; it must be {wanted}")
