"""What was exported can be trained on: a model directory gives back the weights that went into it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asr.cli import main
from asr.decoding.lm import NgramModel
from asr.encoder import Encoder, EncoderConfig
from asr.errors import ASRError
from asr.features import FeatureConfig
from asr.runtime import GRAPH_FILES, ModelConfig
from asr.tokenizer import Tokenizer
from asr.training import checkpoint
from asr.training.export import export_model
from asr.training.restore import restore, starting_point

DATA = Path(__file__).parent / "data"
TINY: dict[str, Any] = {"conv_channels": 8, "width": 24, "layers": 2}
SHAPES = [
    EncoderConfig(lookahead=3, **TINY),
    EncoderConfig(hidden=40, auxiliary=5, layer_norm=False, **TINY),
    EncoderConfig(cell="gru", hidden=16, **TINY),
    EncoderConfig(cell="rnn", **TINY),
    EncoderConfig(kind="bidirectional", **TINY),
    EncoderConfig(kind="bidirectional", cell="gru", hidden=20, **TINY),
]
RECIPE = """
name = "mine"

[data]
batch_seconds = 20

[optimizer]
steps = 1
"""


def encoder_of(shape: EncoderConfig) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(shape).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return encoder


def exported(encoder: Encoder, directory: Path) -> Path:
    export_model(encoder, Tokenizer(), FeatureConfig(), directory, name="test")
    return directory


def log_probs(encoder: Encoder) -> np.ndarray:
    with torch.no_grad():
        features = torch.randn(2, 64, 80, generator=torch.Generator().manual_seed(1))
        return encoder(features, torch.tensor([64, 64]))[0][:, :, : encoder.config.vocabulary].numpy()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.kind}-{s.cell}-{s.hidden}")
def test_an_exported_encoder_comes_back(shape: EncoderConfig, tmp_path: Path) -> None:
    encoder = encoder_of(shape)
    directory = exported(encoder, tmp_path / "model")
    found = restore(directory)
    assert found.config.encoder == replace(shape, auxiliary=0)
    assert found.tokenizer.tokens == Tokenizer().tokens
    np.testing.assert_allclose(log_probs(found.encoder()), log_probs(encoder), atol=1e-5)

    (directory / GRAPH_FILES["fp32"]).unlink()
    for name, rounded in restore(directory).average.items():
        exact = found.average[name]
        if "bias" in name and "cell" in name:
            continue  # of which some graphs hold the sum alone
        in_bytes = exact.ndim > 1 and "ahead" not in name
        atol = exact.abs().max() / 100 if in_bytes else 1e-6
        torch.testing.assert_close(rounded, exact, rtol=0, atol=float(atol))
    assert np.abs(log_probs(restore(directory).encoder()) - log_probs(encoder)).mean() < 0.05


def test_a_model_a_run_and_a_bundled_name_can_be_begun_with(tmp_path: Path) -> None:
    given = restore(exported(encoder_of(SHAPES[0]), tmp_path / "model"))
    checkpoint.save(given, tmp_path / "last.pt")
    for where in (tmp_path / "model", tmp_path, tmp_path / "last.pt"):
        found = starting_point(where)
        assert found.config.encoder == given.config.encoder
        torch.testing.assert_close(found.average, given.average)
    assert starting_point("en").config.name == "en"


def test_training_goes_on_from_a_model_in_its_own_shape(tmp_path: Path) -> None:
    directory = exported(encoder_of(SHAPES[0]), tmp_path / "model")
    (tmp_path / "mine.toml").write_text(RECIPE)
    options = ["--data", str(DATA / "clips.tsv"), "--init", str(directory), "--workers", "0", "--threads", "1"]
    assert main(["train", str(tmp_path / "mine.toml"), *options, "--output", str(tmp_path / "run")]) == 0
    run = checkpoint.load(tmp_path / "run")
    assert run.step == 1
    assert run.config.encoder == SHAPES[0]
    assert run.config.data.train == ["clips.tsv"]
    torch.testing.assert_close(run.average["mean"], restore(directory).average["mean"])


def test_another_shape_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = exported(encoder_of(SHAPES[0]), tmp_path / "model")
    (tmp_path / "mine.toml").write_text(RECIPE + "[encoder]\nwidth = 32\n")
    options = ["--data", str(DATA / "clips.tsv"), "--init", str(directory), "--output", str(tmp_path / "run")]
    assert main(["train", str(tmp_path / "mine.toml"), *options]) == 1
    assert "encoder.width = 24 and not 32" in capsys.readouterr().err


def test_what_nothing_can_begin_with_is_named(tmp_path: Path) -> None:
    with pytest.raises(ASRError, match=r"nowhere; name a .pt file, a run's folder or a model"):
        starting_point("nowhere")
    with pytest.raises(ASRError, match="neither a checkpoint nor a model"):
        starting_point(tmp_path)
    directory = exported(encoder_of(SHAPES[3]), tmp_path / "model")
    (directory / GRAPH_FILES["fp32"]).write_bytes(b"no graph")
    with pytest.raises(ASRError, match=r"cannot take the weights out of .*encoder.onnx"):
        restore(directory)
    for name in GRAPH_FILES.values():
        (directory / name).unlink()
    with pytest.raises(ASRError, match=r"neither encoder.int8.onnx nor encoder.onnx"):
        restore(directory)


def test_an_adapted_model_keeps_language_model_and_decoder_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, run, adapted = tmp_path / "given", tmp_path / "run", tmp_path / "adapted"
    extra: dict[str, Any] = {"decoder": {"lm_weight": 0.7}, "times": {"start": 0.1}, "chunk_frames": 32}
    export_model(encoder_of(SHAPES[3]), Tokenizer(), FeatureConfig(), given, name="given", **extra)
    with open(DATA / "lm" / "clips.arpa", encoding="utf-8") as file:
        NgramModel.read_arpa(file).save(given / "lm.bin")
    run.mkdir()
    checkpoint.save(restore(given), run / "last.pt")
    assert main(["export", str(run), str(adapted), "--like", str(given), "--name", "mine", "--delay", "0.1"]) == 0
    assert (adapted / "lm.bin").read_bytes() == (given / "lm.bin").read_bytes()
    config = ModelConfig.load(adapted)
    assert (config.name, config.decoder, config.chunk_frames) == ("mine", {"lm_weight": 0.7}, 32)
    assert config.times == {"start": 0.1}
    assert config.delay_seconds == 0.1
    (given / "tokens.txt").write_text("<blank>\na\n")
    assert main(["export", str(run), str(adapted), "--like", str(given)]) == 1
    assert "has other tokens than the checkpoint" in capsys.readouterr().err
