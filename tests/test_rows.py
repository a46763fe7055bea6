"""A quantised graph whose rows do not meet: no stream hears which others share its batch, and little is lost."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.features import log_mel
from asr.runtime import Model, State

DATA = Path(__file__).parent / "data"
CLIPS = ("26-495-0007.flac", "19-198-0008.flac", "1993-147964-0002.ogg")
CHUNK = 16  # feature frames


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Frames of three readers, one of them ten times as loud, shape = (3, frames, n_mels)."""
    clips = [soundfile.read(DATA / name, dtype="float32")[0][:32_000] for name in CLIPS]
    return np.stack([log_mel(samples * gain) for samples, gain in zip(clips, (1.0, 10.0, 0.1), strict=True)])


def states(given: list[State]) -> State:
    return {name: np.concatenate([state[name] for state in given]) for name in given[0]}


@settings(max_examples=15)
@given(data=st.data())
def test_who_else_is_in_a_batch_changes_no_bit(data: st.DataObject, tiny_model: Path, speech: np.ndarray) -> None:
    model = Model.load(tiny_model, precision="int8")
    alone, state = [], model.start()
    for begin in range(0, 5 * CHUNK, CHUNK):
        log_probs, state = model.step(speech[:1, begin : begin + CHUNK], state)
        alone.append(log_probs[0])
    state = model.start()
    for number, expected in enumerate(alone):
        others = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 100)), max_size=9))
        place = data.draw(st.integers(0, len(others)))
        chunks = [speech[None, who, begin : begin + CHUNK] for who, begin in others]
        chunks.insert(place, speech[:1, number * CHUNK : (number + 1) * CHUNK])
        given_states = [model.start() for _ in others]
        given_states.insert(place, state)
        log_probs, following = model.step(np.concatenate(chunks), states(given_states))
        state = {name: value[place : place + 1] for name, value in following.items()}
        assert np.array_equal(log_probs[place], expected)


def test_the_length_of_a_call_hardly_matters(tiny_model: Path, speech: np.ndarray) -> None:
    model = Model.load(tiny_model, precision="int8")
    whole, _ = model.step(speech[:1, : 5 * CHUNK], model.start())
    state, parts = model.start(), []
    for begin in range(0, 5 * CHUNK, CHUNK):
        log_probs, state = model.step(speech[:1, begin : begin + CHUNK], state)
        parts.append(log_probs)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-3)


def test_little_is_lost_by_quantising(tiny_model: Path, speech: np.ndarray) -> None:
    int8, fp32 = (Model.load(tiny_model, precision=precision) for precision in ("int8", "fp32"))
    found, _ = int8.step(speech[:, :160], int8.start(3))
    wanted, _ = fp32.step(speech[:, :160], fp32.start(3))
    assert np.abs(np.exp(found) - np.exp(wanted)).mean() < 0.01
