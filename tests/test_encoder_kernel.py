"""The compiled encoder against its graph: the same numbers, whatever the batch, the cutting or the processor."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asr import encoder_kernel
from asr.compiled import SWITCH
from asr.encoder_kernel import PATH, STATE, EncoderKernel, paths
from asr.features import Frames, log_mel
from asr.graph_file import read_constants
from asr.recognizer import find_model
from asr.runtime import GRAPH_FILES, Graph, Model
from tests.building import ROOT, build

DATA = ROOT / "tests" / "data"
CLIPS = sorted(path for path in DATA.iterdir() if path.suffix in (".flac", ".ogg"))
FRAMES = 4 * 60  # of each clip that is used, where not the whole of it is


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The kernel can be built from this checkout wherever a compiler is."""
    built = build(tmp_path_factory.mktemp("build"), "asr/_encoder_kernel")
    assert bool(paths()) >= bool(built), "build the kernel in place: python setup.py build_ext --inplace"


@pytest.fixture(scope="module")
def speech() -> Frames:
    """The beginnings of three clips, shape = (3, FRAMES, n_mels)."""
    return np.stack([whole(path)[0, :FRAMES] for path in CLIPS[:3]])


def whole(path: Path) -> Frames:
    frames = log_mel(soundfile.read(path, dtype="float32")[0])
    return frames[None, : len(frames) // 4 * 4]


def kernel(model: Path, path: str | None = None) -> EncoderKernel:
    constants, _ = read_constants(model / GRAPH_FILES["int8"])
    return EncoderKernel(constants, paths()[path] if path else next(iter(paths().values())))


@pytest.mark.parametrize("bundled", [True, False])
def test_the_numbers_are_those_of_onnx_runtime(bundled: bool, tiny_model: Path) -> None:
    directory = find_model("en") if bundled else tiny_model
    own, graph = kernel(directory), Graph(directory / GRAPH_FILES["int8"])
    apart, agree = [], []
    for clip in CLIPS:
        features = whole(clip)
        found, _ = own.step(features, own.start())
        expected, _ = graph.step(features, graph.start())
        apart.append(np.abs(np.exp(found) - np.exp(expected)))
        agree.append(found.argmax(axis=-1) == expected.argmax(axis=-1))
    assert np.concatenate(agree, axis=1).mean() > 0.98
    # A byte that is rounded the other way shows in all that follows, so that the first frames are closer than the rest.
    assert np.concatenate(apart, axis=1).mean() < 1e-3
    assert max(part[:, :4].max() for part in apart) < 1e-3


@pytest.mark.parametrize("path", paths())
def test_every_instruction_set_gives_the_same_bits(path: str, tiny_model: Path, speech: Frames) -> None:
    for directory in (tiny_model, find_model("en")):
        best, other = kernel(directory), kernel(directory, path)
        expected, after = best.step(speech, best.start(3))
        found, following = other.step(speech, other.start(3))
        assert np.array_equal(found, expected)
        assert np.array_equal(following[STATE], after[STATE])


@settings(max_examples=20)
@given(data=st.data())
def test_neither_cutting_nor_batch_changes_a_bit(data: st.DataObject, tiny_model: Path, speech: Frames) -> None:
    own = kernel(tiny_model)
    expected = [own.step(clip[None], own.start()) for clip in speech]
    who = data.draw(st.lists(st.integers(0, len(speech) - 1), min_size=1, max_size=9))
    state, parts, at = own.start(len(who)), [], 0
    while at < FRAMES:
        length = 4 * data.draw(st.integers(1, (FRAMES - at) // 4))
        log_probs, state = own.step(speech[who, at : at + length], state)
        parts.append(log_probs)
        at += length
    for row, clip in enumerate(who):
        assert np.array_equal(np.concatenate(parts, axis=1)[row], expected[clip][0][0])
        assert np.array_equal(state[STATE][row], expected[clip][1][STATE][0])


def test_a_state_is_left_as_it_is(tiny_model: Path, speech: Frames) -> None:
    own = kernel(tiny_model)
    _, state = own.step(speech, own.start(3))
    before = state[STATE].copy()
    own.step(speech, state)
    assert np.array_equal(state[STATE], before)


def test_silence_and_extremes_give_probabilities(tiny_model: Path) -> None:
    own = kernel(tiny_model)
    for level in (-1e9, -13.8, 0.0, 1e9):
        log_probs, _ = own.step(np.full((1, 32, 80), level, np.float32), own.start())
        np.testing.assert_allclose(np.exp(log_probs).sum(axis=-1), 1, atol=1e-4)


def test_arrays_of_other_sizes_are_refused(tiny_model: Path, speech: Frames) -> None:
    own = kernel(tiny_model)
    for features, batch in ((speech[:, :30], 3), (speech[:, :, :79], 3), (speech, 2)):
        with pytest.raises(ValueError, match="do not have the encoder's sizes"):
            own.step(features, own.start(batch))


def test_it_runs_where_it_can_and_onnx_runtime_elsewhere(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(Model.load(tiny_model)._encoder, EncoderKernel)
    assert isinstance(Model.load(tiny_model, precision="fp32")._encoder, Graph)
    for path in paths():
        monkeypatch.setenv(PATH, path)
        chosen = Model.load(tiny_model)._encoder
        assert isinstance(chosen, EncoderKernel)
        assert chosen._path == paths()[path]
    monkeypatch.setenv(SWITCH, "1")
    assert isinstance(Model.load(tiny_model)._encoder, Graph)
    monkeypatch.delenv(SWITCH)
    monkeypatch.setattr(encoder_kernel, "_encoder_kernel", None)
    assert isinstance(Model.load(tiny_model)._encoder, Graph)


def test_onnx_runtime_is_not_loaded_beside_it(tiny_model: Path) -> None:
    program = f"import sys, asr; asr.load({str(tiny_model)!r}); print('onnxruntime' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize("change", ["gru", "wide", "norm"])
def test_other_encoders_are_left_to_onnx_runtime(change: str, tmp_path: Path) -> None:
    import torch

    from asr.encoder import Encoder, EncoderConfig
    from asr.features import FeatureConfig
    from asr.tokenizer import Tokenizer
    from asr.training.export import export_model

    shapes: dict[str, dict] = {"gru": {"cell": "gru"}, "wide": {"hidden": 48}, "norm": {"layer_norm": False}}
    torch.manual_seed(1)
    encoder = Encoder(EncoderConfig(conv_channels=16, width=32, layers=2, **shapes[change]))
    export_model(encoder, Tokenizer(), FeatureConfig(), tmp_path / "other", name="other")
    assert isinstance(Model.load(tmp_path / "other")._encoder, Graph)


@pytest.mark.parametrize(("lookahead", "auxiliary", "layers"), [(0, 0, 1), (2, 5, 3)])
def test_other_shapes_run_in_it(lookahead: int, auxiliary: int, layers: int, tmp_path: Path, speech: Frames) -> None:
    import torch

    from asr.encoder import Encoder, EncoderConfig
    from asr.features import FeatureConfig
    from asr.tokenizer import Tokenizer
    from asr.training.export import export_model

    torch.manual_seed(2)
    shape = EncoderConfig(conv_channels=20, width=64, layers=layers, lookahead=lookahead, auxiliary=auxiliary)
    encoder = Encoder(shape)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape))  # the exporter makes one tensor of equal ones
    export_model(encoder, Tokenizer(), FeatureConfig(), tmp_path / "other", name="other")
    own, graph = Model.load(tmp_path / "other"), Graph(tmp_path / "other" / GRAPH_FILES["int8"])
    assert isinstance(own._encoder, EncoderKernel)
    found, _ = own.step(speech, own.start(3))
    expected, _ = graph.step(speech, graph.start(3))
    np.testing.assert_allclose(found, expected, atol=0.02)
