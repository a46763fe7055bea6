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
