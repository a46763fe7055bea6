"""From torch to a model directory: ONNX graphs in float and int8, tokens and configuration, for the runtime half."""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from asr.encoder import SUBSAMPLING, Encoder, EncoderState
from asr.errors import ASRError
from asr.features import FeatureConfig
from asr.lexicon import GRAPHONES_FILE, LEXICON_FILE
from asr.recognizer import find_model
from asr.runtime import CONFIG_FILE, FEATURES, GRAPH_FILES, LANGUAGE_MODEL_FILE, LOG_PROBS, NEXT, ModelConfig
from asr.tokenizer import PIECES_FILE, TOKENS_FILE, Tokenizer
from asr.training.rows import separate

OPSET = 17  # the first with LayerNormalization
CHUNK_FRAMES = 16  # 160 ms
BATCH = "batch"
DECODING = ("chunk_frames", "delay_seconds", "times", "confidence", "decoder")  # fields of ModelConfig


def export_model(
    encoder: Encoder,
    tokenizer: Tokenizer,
    features: FeatureConfig,
    directory: str | Path,
    *,
    name: str,
    version: str = "1",
    **extra: Any,
) -> None:
    """Writes a model directory; `extra` are further fields of ModelConfig, such as chunk_frames or delay_seconds.

    The directory appears whole or not at all. An earlier model there is replaced; files of other names in it, such as a
    language model or a model card, stay.
    """
    config = ModelConfig(
        name=name,
        version=version,
        unit=tokenizer.unit,
        features=features,
        encoder=asdict(encoder.config),
        **{"chunk_frames": CHUNK_FRAMES, "subsampling": SUBSAMPLING, "lookahead": encoder.config.lookahead, **extra},
    )
    if features.n_mels != encoder.config.n_mels or len(tokenizer.tokens) != encoder.config.vocabulary:
        raise ASRError(
            f"the encoder has {encoder.config.n_mels} mel bands and {encoder.config.vocabulary} tokens, its front end "
            f"{features.n_mels} bands and its tokenizer {len(tokenizer.tokens)} tokens; give those it was trained with"
        )
    with _replacing(Path(directory)) as new:
        config.save(new)
        tokenizer.save(new)
        write_graph(encoder, new / GRAPH_FILES["fp32"])
        quantise(new / GRAPH_FILES["fp32"], new / GRAPH_FILES["int8"])


def decoder_settings(like: str | Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """The fields of ModelConfig that concern decoding, as a model has them; ASRError where it has other tokens."""
    directory = find_model(like)
    if Tokenizer.load(directory).tokens != tokenizer.tokens:
        raise ASRError(f"{directory} has other tokens than the checkpoint; take over the settings of another model")
    config = ModelConfig.load(directory)
    return {name: getattr(config, name) for name in DECODING}


def copy_language_model(like: str | Path, directory: str | Path) -> None:
    """Puts the language model of a model, where it has one, into a model directory."""
    source, copy = find_model(like) / LANGUAGE_MODEL_FILE, Path(directory) / LANGUAGE_MODEL_FILE
    if source.is_file() and not (copy.exists() and copy.samefile(source)):
        shutil.copyfile(source, copy)


def write_graph(encoder: Encoder, path: Path) -> None:
    """Writes the encoder as a graph of whole recurrent layers: features and states in, log_probs and states out."""
    was_training = encoder.training
    encoder.eval()
    step = _Step(encoder) if encoder.config.kind == "streaming" else _Whole(encoder)
    states = step.states()
    inputs = [FEATURES, *states]
    outputs = [LOG_PROBS, *(NEXT + state for state in states)]
    axes = {i: {0: BATCH} for i in inputs + outputs}
    axes[FEATURES][1] = "frames"
    axes[LOG_PROBS][1] = "emissions"
    # A batch of two, because one of one would be taken for a constant.
    arguments = (torch.zeros(2, 2 * SUBSAMPLING, encoder.config.n_mels), *step.example(2))
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter by tracing is the one that writes whole LSTM nodes; torch 2.11, which is pinned, still has it.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.onnx")
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        torch.onnx.export(
            step,
            arguments,
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=axes,
        )
    encoder.train(was_training)
    onnx.checker.check_model(onnx.load(str(path)), full_check=True)


def quantise(graph: Path, quantised: Path) -> None:
    """Writes the graph with integer weights in its recurrent and linear layers and, where it streams, convolutions.

    One scale per output channel, and 7 bits: with 8, processors without VNNI saturate when they add two products.
    """
    quant_pre_process(graph, quantised, skip_symbolic_shape=True)
    quantize_dynamic(
        quantised,
        quantised,
        op_types_to_quantize=["LSTM", "MatMul"],
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
    )
    separate(quantised)


class _Step(nn.Module):
    """Encoder.step with the state as flat arguments, named after its fields."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def states(self) -> list[str]:
        c = self.encoder.config
        ahead = ["ahead"] if c.lookahead else []
        cells = [f"cell{i}" for i in range(c.layers)] if c.cell == "lstm" else []
        return ["conv1", "conv2", *ahead, *(f"hidden{i}" for i in range(c.layers)), *cells]

    def example(self, batch: int) -> list[Tensor]:
        return self._flat(self.encoder.start(batch))

    def forward(self, features: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        c = self.encoder.config
        given = list(flat)
        conv1, conv2 = given.pop(0), given.pop(0)
        ahead = given.pop(0) if c.lookahead else self.encoder.start(features.shape[0]).ahead
        state = EncoderState(conv1, conv2, ahead, tuple(given[: c.layers]), tuple(given[c.layers :]))
        log_probs, following = self.encoder.step(features, state)
        return log_probs, *self._flat(following)

    def _flat(self, state: EncoderState) -> list[Tensor]:
        ahead = [state.ahead] if self.encoder.config.lookahead else []
        return [state.conv1, state.conv2, *ahead, *state.hidden, *state.cell]


class _Whole(nn.Module):
    """A bidirectional encoder on whole segments: no state, any number of frames."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def states(self) -> list[str]:
        return []

    def example(self, batch: int) -> list[Tensor]:
        return []

    def forward(self, features: Tensor) -> Tensor:
        encoder = self.encoder
        x = (features - encoder.mean) / encoder.std
        x = nn.functional.pad(x, (0, 0, 0, SUBSAMPLING - 1))  # the last emission may have one frame only
        start = encoder.start(features.shape[0])
        x, *_ = encoder._subsample(x, start.conv1, start.conv2)
        for block in encoder.blocks:
            x, _ = block(x)
        return encoder.emissions(x)


@contextmanager
def _replacing(directory: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `directory` at the end, with what else that holds; not after an error."""
    if (
        directory.exists()
        and not (directory / CONFIG_FILE).exists()
        and (not directory.is_dir() or any(directory.iterdir()))
    ):
        raise ASRError(f"{directory} exists and is no model directory; name a new one")
    beside = f"{directory.name}.{os.getpid()}"
    new, old = directory.with_name(f".{beside}.new"), directory.with_name(f".{beside}.old")
    try:
        new.mkdir(parents=True)
        yield new
        if directory.exists():
            units = (TOKENS_FILE, PIECES_FILE, LEXICON_FILE, GRAPHONES_FILE)
            others = shutil.ignore_patterns(CONFIG_FILE, *units, *GRAPH_FILES.values())
            shutil.copytree(directory, new, ignore=others, dirs_exist_ok=True)
            directory.rename(old)
        new.rename(directory)
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
