"""A model directory, loaded: its configuration, its tokens, and its encoder, compiled or as a graph in ONNX Runtime.

    features (batch, frames, n_mels), state -> log-probabilities (batch, frames / subsampling, vocabulary), next state

Every state is float32 with the batch as its first dimension, zero at the start of a stream: streams can be batched.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from asr.encoder_kernel import EncoderKernel, encoder_kernel
from asr.errors import ASRError
from asr.features import BLOCK, FeatureConfig, Frames
from asr.graph_file import INDEPENDENT, ROWS
from asr.lexicon import LEXICON_FILE
from asr.tokenizer import Tokenizer

if TYPE_CHECKING:
    import onnxruntime  # takes a third of a second and 40 MB, and is not needed where the kernel runs

FORMAT = 1  # of the model directory; raised when an older program could no longer read it
CONFIG_FILE = "config.json"
GRAPH_FILES = {"int8": "encoder.int8.onnx", "fp32": "encoder.onnx"}  # in order of preference
LANGUAGE_MODEL_FILE = "lm.bin"
KINDS = ("streaming", "bidirectional")  # of encoders
FEATURES, LOG_PROBS, NEXT = "features", "log_probs", "next_"  # names in the graph

State = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class ModelConfig:
    """config.json: all that a program must know to run the graph, and what the model is."""

    name: str
    version: str
    unit: str  # "characters" or "pieces"
    features: FeatureConfig
    encoder: dict[str, Any]  # its shape, for information; "kind" says whether it streams
    chunk_frames: int = 16  # feature frames of every call; the same always, because int8 quantises each call by itself
    subsampling: int = 4  # feature frames per emission frame
    lookahead: int = 0  # emission frames by which emissions come late
    delay_seconds: float = 0.0  # by which tokens come late, where `times` are not measured
    times: dict[str, float] = field(default_factory=dict)  # of asr.decoding.times.WordTimes
    confidence: dict[str, Any] = field(default_factory=dict)  # by decoder, of asr.decoding.confidence.Calibration
    decoder: dict[str, Any] = field(default_factory=dict)  # weights of the beam search

    def __post_init__(self) -> None:
        if self.chunk_frames <= 0 or self.chunk_frames % self.subsampling:
            raise ASRError(
                f"chunk_frames is {self.chunk_frames}; it must be a positive multiple of {self.subsampling} frames"
            )
        for name in ("encoder", "times", "confidence", "decoder"):
            if not isinstance(getattr(self, name), dict):
                raise ASRError(f"{name} is {getattr(self, name)!r}; it must be a table of names and values")
        if self.encoder.get("kind") not in KINDS:
            raise ASRError(f"the encoder's kind is {self.encoder.get('kind')!r}; it must be one of {', '.join(KINDS)}")

    @property
    def streaming(self) -> bool:
        """Whether the encoder carries state from chunk to chunk, or reads a whole segment in both directions."""
        return self.encoder["kind"] == "streaming"

    @property
    def emission_seconds(self) -> float:
        """Seconds between two emissions."""
        return self.subsampling * self.features.hop / self.features.sample_rate

    def save(self, directory: Path) -> None:
        """Writes config.json."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False)
        (directory / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> "ModelConfig":
        """Reads config.json; ASRError where it is missing, damaged, or of a format newer than this program."""
        path = directory / CONFIG_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise ASRError(f"{directory} has no {CONFIG_FILE}, so it is no model directory; {EXPORT_AGAIN}") from None
        except ValueError as error:
            raise ASRError(f"{path} is damaged: {error}; {EXPORT_AGAIN}") from None
        found = values.pop("format", None) if isinstance(values, dict) else None
        if not isinstance(found, int):
            raise ASRError(f"{path} does not say its format, a number; {EXPORT_AGAIN}")
        if found > FORMAT:
            raise ASRError(f"{path} has format {found} and this program reads up to {FORMAT}; install a newer asr")
        try:
            return cls(**{**values, "features": FeatureConfig(**values["features"])})
        except (KeyError, TypeError) as error:
            raise ASRError(f"{path} does not fit format {found}: {error}; {EXPORT_AGAIN}") from None
        except ASRError as error:
            raise ASRError(f"{path} cannot be used: {error}") from None


class Model:
    """The acoustic model: log-mel frames in, log-probabilities of tokens out. Threads may share it."""

    def __init__(
        self, config: ModelConfig, tokenizer: Tokenizer, encoder: "EncoderKernel | Graph", directory: Path
    ) -> None:
        if encoder.tokens != len(tokenizer.tokens):
            raise ASRError(
                f"{directory} lists {len(tokenizer.tokens)} tokens and its graph gives {encoder.tokens}; {EXPORT_AGAIN}"
            )
        self.config = config
        self.tokenizer = tokenizer
        self.directory = directory
        self._encoder = encoder

    @classmethod
    def load(cls, directory: str | Path, *, threads: int = 1, precision: str = "auto") -> "Model":
        """Loads a model directory.

        threads: used by one call in ONNX Runtime; streams run in parallel without them. precision: "int8", "fp32", or
        "auto", which prefers int8. Raises ASRError where something is missing, damaged or of a newer format.
        """
        directory = Path(directory)
        if threads < 1:
            raise ASRError(f"the number of threads is {threads}; it must be 1 or more")
        config = ModelConfig.load(directory)
        tokenizer = Tokenizer.load(directory)
        if config.unit == "phones" and not tokenizer.lexicon:
            raise ASRError(f"{directory} has no {LEXICON_FILE}, and its tokens are phones; {EXPORT_AGAIN}")
        graph = _graph(directory, precision)
        return cls(config, tokenizer, encoder_kernel(graph) or Graph(graph, threads), directory)

    @property
    def piece_frames(self) -> int:
        """Feature frames of every call: the fewer, the sooner words show; rows that meet need a whole chunk."""
        return self.config.chunk_frames if self._encoder.rows_meet else math.gcd(self.config.chunk_frames, BLOCK)

    @property
    def block_frames(self) -> int:
        """Feature frames that a call should bring where they are there: more than a piece where that changes no bit."""
        return self._encoder.block_chunks * self.config.chunk_frames or self.piece_frames

    def start(self, batch: int = 1) -> State:
        """The state of `batch` streams that have heard nothing; empty for a bidirectional model."""
        return self._encoder.start(batch)

    def step(self, features: Frames, state: State) -> tuple[NDArray[np.float32], State]:
        """Features, shape = (batch, a multiple of subsampling, n_mels), to log-probabilities and the next state.

        The first `lookahead` emissions of a stream are not of its audio. A stream's numbers do not depend on which
        others are in its batch, to the last bit: a graph that does not promise so runs one stream at a time.
        """
        return self._encoder.step(features, state)


class Graph:
    """An encoder in ONNX Runtime."""

    block_chunks = 0  # int8 quantises each call by itself

    def __init__(self, path: Path, threads: int = 1) -> None:
        self._session = session = open_graph(path, threads)
        self.tokens: int = session.get_outputs()[0].shape[-1]
        self.rows_meet = session.get_modelmeta().custom_metadata_map.get(ROWS) != INDEPENDENT
        self._states = [(i.name, i.shape[1:]) for i in session.get_inputs() if i.name != FEATURES]
        self._outputs = [LOG_PROBS, *(NEXT + name for name, _ in self._states)]
        given = [o.name for o in session.get_outputs()]
        if missing := [name for name in self._outputs if name not in given]:
            raise ASRError(f"{path} has no output {missing[0]}; {EXPORT_AGAIN}")

    def start(self, batch: int = 1) -> State:
        """As Model.start."""
        return {name: np.zeros((batch, *shape), np.float32) for name, shape in self._states}

    def step(self, features: Frames, state: State) -> tuple[NDArray[np.float32], State]:
        """As Model.step."""
        if self.rows_meet and len(features) > 1:
            rows = [slice(i, i + 1) for i in range(len(features))]
            alone = [self.step(features[row], {name: value[row] for name, value in state.items()}) for row in rows]
            following = {name: np.concatenate([after[name] for _, after in alone]) for name in state}
            return np.concatenate([log_probs for log_probs, _ in alone]), following
        log_probs, *states = self._session.run(self._outputs, {FEATURES: features, **state})
        return log_probs, {name: value for (name, _), value in zip(self._states, states, strict=True)}


EXPORT_AGAIN = "export the model again"
# Takes the scales of rows for one of all: the output's bias would be multiplied by them.
SPOILING = ["MatMulIntegerToFloatFusion"]


def _graph(directory: Path, precision: str) -> Path:
    if precision not in ("auto", *GRAPH_FILES):
        raise ASRError(f"precision {precision!r} is unknown; choose one of auto, {', '.join(GRAPH_FILES)}")
    wanted = list(GRAPH_FILES.values()) if precision == "auto" else [GRAPH_FILES[precision]]
    for name in wanted:
        if (directory / name).is_file():
            return directory / name
    raise ASRError(f"{directory} has no {' and no '.join(wanted)}; {EXPORT_AGAIN}")


def open_graph(graph: Path, threads: int = 1) -> "onnxruntime.InferenceSession":
    """A session that computes in so many threads and sleeps in between; ASRError where the file is damaged."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # nothing runs while nobody speaks
    try:
        return onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=SPOILING
        )
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        raise ASRError(f"{graph} is damaged or needs a newer ONNX Runtime; {EXPORT_AGAIN}") from error
