"""Constants of a graph without the onnx package: those that it reads itself, and no other file taken for a graph."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from asr.graph_file import INDEPENDENT, ROWS, read_constants
from asr.recognizer import find_model
from asr.runtime import GRAPH_FILES


def test_the_bundled_model_reads_as_onnx_reads_it() -> None:
    path = find_model("en") / GRAPH_FILES["int8"]
    found, metadata = read_constants(path)
    expected = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    assert metadata == {ROWS: INDEPENDENT}
    assert len(found) > 50
    for name, value in found.items():
        assert np.array_equal(value, expected[name])
        assert value.shape == expected[name].shape


@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=1), text=st.text())
def test_floats_are_read_in_both_ways_that_they_may_be_stored(
    values: list[float], text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("graph") / "graph.onnx"
    array = np.array(values, np.float32)
    tensors = [
        numpy_helper.from_array(array, "raw"),
        helper.make_tensor("numbers", TensorProto.FLOAT, array.shape, array),
    ]
    model = helper.make_model(helper.make_graph([], "graph", [], [], tensors))
    helper.set_model_props(model, {"says": text})
    path.write_bytes(model.SerializeToString())
    found, metadata = read_constants(path)
    assert metadata == {"says": text}
    assert np.array_equal(found["raw"], array)
    assert np.array_equal(found["numbers"], array)


@given(data=st.data())
def test_a_damaged_file_is_refused_or_lacks_constants(
    data: st.DataObject, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = (tiny_model / GRAPH_FILES["int8"]).read_bytes()
    path = tmp_path_factory.mktemp("graph") / "graph.onnx"
    at = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(data.draw(st.sampled_from([whole[:at], data.draw(st.binary()), whole[:at] + b"\xff" * 9])))
    with suppress(ValueError):
        assert len(read_constants(path)[0]) < len(read_constants(tiny_model / GRAPH_FILES["int8"])[0])


def message(fields: list[tuple[int, int | bytes]]) -> bytes:
    """Fields in the encoding of protocol buffers; numbers and lengths below 128."""
    parts = (
        bytes([number << 3, value]) if isinstance(value, int) else bytes([number << 3 | 2, len(value)]) + value
        for number, value in fields
    )
    return b"".join(parts)


def messages(values: st.SearchStrategy[int | bytes]) -> st.SearchStrategy[bytes]:
    """Messages of a few fields."""
    fields = st.lists(st.tuples(st.sampled_from([1, 2, 4, 5, 7, 8, 9, 14]), values), max_size=4)
    return fields.map(message).filter(lambda found: len(found) < 128)


numbers_or_bytes = st.integers(0, 127) | st.binary(max_size=8)


@given(data=messages(numbers_or_bytes | messages(numbers_or_bytes | messages(numbers_or_bytes))))
def test_fields_of_another_kind_are_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("graph") / "graph.onnx"
    path.write_bytes(data)
    with suppress(ValueError):
        found, _ = read_constants(path)
        assert all(isinstance(value, np.ndarray) for value in found.values())


@pytest.mark.parametrize("data", [message([(7, 0)]), message([(14, 1)]), message([(7, message([(5, 3)]))])])
def test_a_number_where_bytes_belong_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="no graph in ONNX"):
        read_constants(path)
