"""Export: ONNX gives what torch gives, 8 bits nearly so, and a model directory is never half written."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from asr.cli import main
from asr.ctc import collapse
from asr.encoder import SUBSAMPLING, Encoder, EncoderConfig
from asr.errors import ASRError
from asr.features import FeatureConfig, Frames, log_mel
from asr.runtime import Model
from asr.tokenizer import Tokenizer
from asr.training import checkpoint, export
from asr.training.config import TrainingConfig
from asr.training.export import export_model

DATA = Path(__file__).parent / "data"
SPEECH = log_mel(soundfile.read(DATA / "26-495-0007.flac", dtype="float32")[0])
SPEECH = SPEECH[: len(SPEECH) // 16 * 16]
SMALL: dict[str, Any] = {"conv_channels": 24, "width": 48, "layers": 3}
STREAMING = [
    EncoderConfig(cell=cell, lookahead=lookahead, hidden=hidden, layer_norm=not hidden, **SMALL)
    for (cell, lookahead), hidden in zip(product(("lstm", "gru", "rnn"), (0, 3)), (0, 40, 0, 0, 40, 0), strict=True)
]
BIDIRECTIONAL = [EncoderConfig(kind="bidirectional", cell=cell, **SMALL) for cell in ("lstm", "gru", "rnn")]


def trained(config: EncoderConfig) -> Encoder:
    """An encoder of random weights that speaks: its log-probabilities are as far apart as those of a trained one."""
    torch.manual_seed(0)
    encoder = Encoder(config).eval()
    with torch.no_grad():
        encoder.mean.copy_(torch.from_numpy(SPEECH.mean(axis=0)))
        encoder.std.copy_(torch.from_numpy(SPEECH.std(axis=0)))
        encoder.output.weight.mul_(12.0)
    return encoder


def exported(encoder: Encoder, directory: Path, **extra: Any) -> Path:
    export_model(encoder, Tokenizer(), FeatureConfig(), directory, name="test", **extra)
    return directory


def streamed(model: Model, features: Frames, chunk: int) -> NDArray[np.float32]:
    """Log-probabilities of a batch, shape = (batch, emissions, vocabulary), chunk by chunk."""
    state, parts = model.start(len(features)), []
    for begin in range(0, features.shape[1], chunk):
        log_probs, state = model.step(features[:, begin : begin + chunk], state)
        parts.append(log_probs)
    return np.concatenate(parts, axis=1)


def text(log_probs: NDArray[np.float32]) -> str:
    return Tokenizer().decode(collapse(log_probs.argmax(axis=-1))[0])


def label(config: EncoderConfig) -> str:
    return f"{config.kind}-{config.cell}-{config.lookahead}"


@pytest.mark.parametrize("config", STREAMING, ids=label)
def test_streaming_in_onnx_equals_torch(config: EncoderConfig, tmp_path: Path) -> None:
    encoder = trained(config)
    model = Model.load(exported(encoder, tmp_path / "model"), precision="fp32")
    batch = np.stack([SPEECH, SPEECH[::-1]])
    with torch.no_grad():
        expected, _ = encoder.step(torch.from_numpy(batch), encoder.start(2))
        whole, _ = encoder(torch.from_numpy(batch), torch.tensor([batch.shape[1]] * 2))
    for chunk in (SUBSAMPLING, 16, batch.shape[1]):
        found = streamed(model, batch, chunk)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
        np.testing.assert_allclose(found[:, config.lookahead :], whole[:, : -config.lookahead or None], atol=1e-4)
        np.testing.assert_allclose(found[:1], streamed(model, batch[:1], chunk), atol=1e-4)
        assert text(found[0]) == text(expected[0].numpy())
    assert len(text(found[0])) > 3


@pytest.mark.parametrize("config", BIDIRECTIONAL, ids=label)
def test_bidirectional_in_onnx_equals_torch(config: EncoderConfig, tmp_path: Path) -> None:
    encoder = trained(config)
    model = Model.load(exported(encoder, tmp_path / "model"), precision="fp32")
    assert model.start() == {}
    for frames, batch in ((1, 1), (17, 2), (len(SPEECH) - 2, 1)):
        features = np.stack([SPEECH[:frames]] * batch)
        with torch.no_grad():
            expected, _ = encoder(torch.from_numpy(features), torch.tensor([frames] * batch))
        np.testing.assert_allclose(model.step(features, {})[0], expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("config", [STREAMING[0], STREAMING[1], BIDIRECTIONAL[0]], ids=label)
def test_eight_bits_are_few_and_near(config: EncoderConfig, tmp_path: Path) -> None:
    directory = exported(trained(config), tmp_path / "model")
    whole, small = (Model.load(directory, precision=precision) for precision in ("fp32", "int8"))
    expected, found = (model.step(SPEECH[None], model.start())[0] for model in (whole, small))
    assert np.abs(np.exp(found) - np.exp(expected)).mean() < 0.01
    graph = onnx.load(directory / "encoder.int8.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Scan" if config.kind == "streaming" else "DynamicQuantizeLSTM") == config.layers
    assert "LSTM" not in kinds
    assert "MatMul" not in kinds
    weights = [onnx.numpy_helper.to_array(t) for t in graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert max(np.abs(weight).max() for weight in weights) == 64


def test_the_configuration_says_what_a_recogniser_needs(tmp_path: Path) -> None:
    directory = exported(trained(STREAMING[1]), tmp_path / "model", chunk_frames=32, delay_seconds=0.1)
    config = json.loads((directory / "config.json").read_text())
    assert config["format"] == 1
    assert (config["name"], config["version"], config["unit"]) == ("test", "1", "characters")
    assert (config["chunk_frames"], config["subsampling"], config["lookahead"]) == (32, 4, 3)
    assert config["delay_seconds"] == 0.1
    assert config["features"]["sample_rate"] == 16_000
    assert config["encoder"]["kind"] == "streaming"


def test_a_model_is_replaced_whole_and_its_neighbours_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = exported(trained(STREAMING[0]), tmp_path / "model")
    (directory / "lm.bin").write_bytes(b"words")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    with monkeypatch.context() as patched:
        patched.setattr(export, "quantise", interrupted)
        with pytest.raises(KeyboardInterrupt):
            exported(trained(STREAMING[2]), directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

    exported(trained(STREAMING[2]), directory)
    assert {path.name for path in directory.iterdir()} == before.keys()
    assert (directory / "lm.bin").read_bytes() == b"words"
    assert Model.load(directory).config.encoder["cell"] == "gru"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ASRError, match="no model directory; name a new one"):
        exported(trained(STREAMING[0]), tmp_path)
    with pytest.raises(ASRError, match="no model directory; name a new one"):
        exported(trained(STREAMING[0]), tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    encoder = trained(STREAMING[0])
    with pytest.raises(ASRError, match=r"chunk_frames is 10.*multiple of 4"):
        exported(encoder, tmp_path / "model", chunk_frames=10)
    with pytest.raises(ASRError, match=r"29 tokens.*its tokenizer 3 tokens"):
        export_model(encoder, Tokenizer(["<blank>", "a", "b"]), FeatureConfig(), tmp_path / "model", name="test")
    with pytest.raises(ASRError, match=r"80 mel bands.*40 bands"):
        export_model(encoder, Tokenizer(), replace(FeatureConfig(), n_mels=40), tmp_path / "model", name="test")
    assert not list(tmp_path.iterdir())


def test_export_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = trained(STREAMING[1])
    weights = encoder.state_dict()
    run = tmp_path / "run"
    run.mkdir()
    saved = checkpoint.Checkpoint(
        config=TrainingConfig(name="tiny", encoder=encoder.config),
        tokenizer=Tokenizer(),
        weights={name: torch.zeros_like(value) for name, value in weights.items()},
        average=weights,
        optimizer={},
        step=7,
        epoch=0,
        batch=0,
        audio_seconds=0.0,
    )
    checkpoint.save(saved, run / "last.pt")
    assert main(["export", str(run), str(tmp_path / "model"), "--version", "2", "--chunk-frames", "8"]) == 0
    assert "tiny after 7 steps" in capsys.readouterr().out
    model = Model.load(tmp_path / "model", precision="fp32")
    assert (model.config.name, model.config.version, model.config.chunk_frames) == ("tiny", "2", 8)
    with torch.no_grad():
        expected, _ = encoder.step(torch.from_numpy(SPEECH[None]), encoder.start())
    np.testing.assert_allclose(streamed(model, SPEECH[None], 8), expected.numpy(), atol=1e-4)
