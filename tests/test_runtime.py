"""The runtime: state is all that joins two calls, and a directory that is no model is described in one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asr.errors import ASRError
from asr.features import FeatureConfig, log_mel
from asr.runtime import FORMAT, Model, ModelConfig

DATA = Path(__file__).parent / "data"
SPEECH = log_mel(soundfile.read(DATA / "26-495-0007.flac", dtype="float32")[0])[None, :160]


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def test_the_state_starts_at_zero_and_keeps_its_shape(tiny_model: Path) -> None:
    model = Model.load(tiny_model)
    start = model.start(3)
    _, state = model.step(np.repeat(SPEECH, 3, axis=0), start)
    assert start.keys() == state.keys()
    for name, value in start.items():
        assert not value.any()
        assert value.shape == state[name].shape
        assert value.shape[0] == 3
        assert value.dtype == state[name].dtype == np.float32


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_two_streams_through_one_model_do_not_meet(precision: str, tiny_model: Path) -> None:
    model = Model.load(tiny_model, precision=precision)
    chunks = [SPEECH[:, begin : begin + 16] for begin in range(0, 160, 16)]
    alone, state = [], model.start()
    for chunk in chunks:
        log_probs, state = model.step(chunk, state)
        alone.append(log_probs)
    state, other = model.start(), model.start()
    for chunk, expected in zip(chunks, alone, strict=True):
        _, other = model.step(chunk[:, ::-1], other)
        before = {name: value.copy() for name, value in state.items()}
        log_probs, following = model.step(chunk, state)
        assert np.array_equal(log_probs, expected)
        assert all(np.array_equal(value, state[name]) for name, value in before.items())
        state = following


def test_a_batch_of_streams_equals_each_alone(tiny_model: Path) -> None:
    model = Model.load(tiny_model, precision="fp32")
    batch = np.concatenate([SPEECH, SPEECH[:, ::-1], -SPEECH])
    together, _ = model.step(batch, model.start(3))
    for row in range(3):
        np.testing.assert_allclose(together[row], model.step(batch[row : row + 1], model.start())[0][0], atol=1e-4)


def test_emissions_are_probabilities_of_the_tokens_at_a_quarter_of_the_frames(tiny_model: Path) -> None:
    model = Model.load(tiny_model)
    log_probs, _ = model.step(SPEECH, model.start())
    assert log_probs.shape == (1, SPEECH.shape[1] // 4, len(model.tokenizer.tokens))
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=-1), 1.0, atol=1e-4)
    assert model.config.emission_seconds == pytest.approx(0.04)
    assert model.config.streaming


def test_int8_is_preferred_and_fp32_does_as_well(copy: Path) -> None:
    def emissions(precision: str = "auto") -> np.ndarray:
        model = Model.load(copy, precision=precision)
        return model.step(SPEECH, model.start())[0]

    whole = emissions("fp32")
    assert not np.array_equal(emissions(), whole)
    (copy / "encoder.int8.onnx").unlink()
    assert np.array_equal(emissions(), whole)
    with pytest.raises(ASRError, match=r"has no encoder\.int8\.onnx; export the model again"):
        Model.load(copy, precision="int8")


def test_the_configuration_survives_its_file(tmp_path: Path) -> None:
    config = ModelConfig(
        name="any",
        version="3",
        unit="pieces",
        features=FeatureConfig(n_mels=64),
        encoder={"kind": "bidirectional"},
        lookahead=2,
        delay_seconds=0.12,
        decoder={"lm_weight": 0.4},
    )
    config.save(tmp_path)
    assert ModelConfig.load(tmp_path) == config
    assert not config.streaming


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda d: shutil.rmtree(d), r"has no config\.json, so it is no model directory"),
        (lambda d: (d / "config.json").unlink(), r"has no config\.json, so it is no model directory"),
        (lambda d: cut_short(d / "config.json"), r"config\.json is damaged"),
        (lambda d: (d / "config.json").write_bytes(b"\xff\xfe"), r"config\.json is damaged"),
        (lambda d: (d / "config.json").write_text("[]"), r"config\.json does not say its format"),
        (lambda d: change_config(d, format=None), r"config\.json does not say its format"),
        (
            lambda d: change_config(d, format=FORMAT + 1),
            rf"has format {FORMAT + 1} and this program reads up to {FORMAT}; install a newer asr",
        ),
        (lambda d: change_config(d, features=None), r"config\.json does not fit format 1.*features"),
        (lambda d: change_config(d, colour="red"), r"config\.json does not fit format 1.*colour"),
        (lambda d: change_config(d, chunk_frames=0), r"config\.json cannot be used: chunk_frames is 0"),
        (lambda d: change_config(d, encoder={}), r"config\.json cannot be used: the encoder's kind is None"),
        (lambda d: change_config(d, times=5), r"config\.json cannot be used: times is 5; it must be a table"),
        (lambda d: change_config(d, unit="phones"), r"has no lexicon\.txt, and its tokens are phones"),
        (lambda d: (d / "tokens.txt").unlink(), r"has no tokens\.txt"),
        (lambda d: (d / "tokens.txt").write_text("<blank>\na\n"), "lists 2 tokens and its graph gives 29"),
        (lambda d: cut_short(d / "encoder.int8.onnx"), r"encoder\.int8\.onnx is damaged"),
        (
            lambda d: [path.unlink() for path in d.glob("*.onnx")],
            r"has no encoder\.int8\.onnx and no encoder\.onnx; export the model again",
        ),
    ],
)
def test_what_is_wrong_with_a_directory_is_said_in_one_sentence(
    damage: Callable[[Path], object], sentence: str, copy: Path
) -> None:
    damage(copy)
    with pytest.raises(ASRError, match=sentence) as caught:
        Model.load(copy)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_impossible_options_are_named(tiny_model: Path) -> None:
    with pytest.raises(ASRError, match="threads is 0"):
        Model.load(tiny_model, threads=0)
    with pytest.raises(ASRError, match=r"'fp16'.*auto, int8, fp32"):
        Model.load(tiny_model, precision="fp16")
