"""Makes the rows of a batch independent in a graph that ONNX Runtime has quantised.

Dynamic quantisation takes one scale for a whole input, so that streams which share a batch change each other's numbers,
and the text of one would depend on who else is connected. Here every row, which is one emission of one stream, has a
scale of its own: the same weights and integer products, and a result that is the same, to the last bit, in any batch.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from asr.graph_file import INDEPENDENT, ROWS

MICROSOFT = "com.microsoft"  # domain of ONNX Runtime's own operators
LEVELS = 127.0  # of magnitude; values become bytes around ZERO
ZERO = 128
TINY = 1e-9  # scale of a row of zeros
MOST_OF_WEIGHT = 63  # 7 bits, as the other weights have
OF_FEATURES = "encoder.conv1.weight"  # the other convolution hears what a ReLU leaves

ONE, STEP, FLOOR, MIDDLE, OFFSET, FIRST, SECOND, SMALL_STEP, BOTTOM, HALF = (
    f"rows.{name}"
    for name in ("one", "step", "floor", "middle", "offset", "first", "second", "small_step", "bottom", "half")
)
CONSTANTS: dict[str, Any] = {
    ONE: np.float32(1),
    STEP: np.float32(1 / LEVELS),
    FLOOR: np.float32(TINY),
    MIDDLE: np.uint8(ZERO),
    OFFSET: np.float32(ZERO + 0.5),  # a cast to bytes cuts off, and so rounds
    FIRST: np.array([0], np.int64),
    SECOND: np.array([1], np.int64),
    SMALL_STEP: np.float32(1 / (2 * LEVELS + 1)),  # of values that are not negative
    BOTTOM: np.uint8(0),
    HALF: np.float32(0.5),
}


def separate(path: Path) -> None:
    """Rewrites the quantised LSTMs and matrix products of a streaming graph, and notes so in its metadata.

    Its subsampling convolutions become matrix products too, whose rows are all the frames of an output.

    Other graphs, bidirectional or of other cells, stay as they are.
    """
    model = onnx.load(str(path))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    recurrent = [node for node in model.graph.node if node.op_type == "DynamicQuantizeLSTM"]
    if not recurrent or any(a.name == "direction" and a.s != b"forward" for n in recurrent for a in n.attribute):
        return
    nodes = _Nodes(dict(CONSTANTS))
    for node in model.graph.node:
        if node.op_type == "DynamicQuantizeLSTM":
            _lstm(nodes, node, constants)
        elif node.op_type == "Conv" and all(a.i == 1 for a in node.attribute if a.name == "group"):
            _convolution(nodes, node, constants)
        elif node.op_type == "DynamicQuantizeLinear":
            rows, scale = nodes.quantised(node.input[0], node.output[0])
            nodes.add("Identity", [rows], node.output[0])
            nodes.add("Identity", [scale], node.output[1])
            nodes.add("Identity", [MIDDLE], node.output[2])
        else:
            nodes.list.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes.list)
    used = {name for node in _all_nodes(model.graph) for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in nodes.constants.items())
    onnx.helper.set_model_props(model, {ROWS: INDEPENDENT})
    onnx.save(model, str(path))


class _Nodes:
    """Nodes of a graph as they are written, with their constants."""

    def __init__(self, constants: dict[str, Any]) -> None:
        self.list: list[onnx.NodeProto] = []
        self.constants = constants

    def add(self, operator: str, inputs: list[str], *outputs: str, domain: str = "", **attributes: Any) -> str:
        """One node; the name of its first output."""
        self.list.append(helper.make_node(operator, inputs, outputs, outputs[0], domain=domain, **attributes))
        return outputs[0]

    def constant(self, name: str, value: np.ndarray) -> str:
        """A constant; its name."""
        self.constants[name] = value
        return name

    def quantised(self, x: str, name: str, positive: bool = False) -> tuple[str, str]:
        """Bytes around ZERO for each row of `x`, or from 0 on where none is negative, and the scales of the rows."""
        most = self.add("ReduceMax", [self.add("Abs", [x], f"{name}/abs")], f"{name}/most", axes=[-1], keepdims=1)
        step, offset = (SMALL_STEP, HALF) if positive else (STEP, OFFSET)
        scale = self.add("Add", [self.add("Mul", [most, step], f"{name}/step"), FLOOR], f"{name}/scale")
        shifted = self.add("Add", [self.add("Div", [x, scale], f"{name}/scaled"), offset], f"{name}/shifted")
        return self.add("Cast", [shifted], f"{name}/bytes", to=TensorProto.UINT8), scale

    def product(self, x: str, weights: str, weight_scale: str, name: str, positive: bool = False) -> str:
        """x @ weights, in integers inside; positive: where nothing in x is negative."""
        rows, scale = self.quantised(x, name, positive)
        inputs = [rows, weights, ONE, weight_scale, BOTTOM if positive else MIDDLE]
        whole = self.add("MatMulIntegerToFloat", inputs, f"{name}/whole", domain=MICROSOFT)
        return self.add("Mul", [whole, scale], f"{name}/product")


def _convolution(nodes: _Nodes, node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> None:
    """A convolution over (batch, inputs, frames) without padding."""
    x, weight, bias = node.input
    name = f"rows.{weight}"
    (stride,) = next(a.ints for a in node.attribute if a.name == "strides")
    given = constants[weight].transpose(2, 1, 0)  # (kernel, inputs, outputs)
    kernel, _, outputs = given.shape
    scale = np.maximum(np.abs(given).max(axis=(0, 1)) / MOST_OF_WEIGHT, TINY).astype(np.float32)
    weights = nodes.constant(f"{name}/w", np.rint(given / scale).astype(np.int8).reshape(-1, outputs))
    frames = nodes.add("Transpose", [x], f"{name}/frames", perm=[0, 2, 1])
    every = nodes.constant(f"{name}/stride", np.array([stride], np.int64))
    parts = []
    for k in range(kernel):
        ends = k + 1 - kernel or np.iinfo(np.int64).max
        limits = [nodes.constant(f"{name}/{at}.{k}", np.array([i], np.int64)) for at, i in (("from", k), ("to", ends))]
        parts.append(nodes.add("Slice", [frames, *limits, SECOND, every], f"{name}/frame.{k}"))
    rows = nodes.add("Concat", parts, f"{name}/rows", axis=-1)
    weight_scale = nodes.constant(f"{name}/w_scale", scale)
    product = nodes.product(rows, weights, weight_scale, f"{name}/product", positive=weight != OF_FEATURES)
    nodes.add("Transpose", [nodes.add("Add", [product, bias], f"{name}/sum")], node.output[0], perm=[0, 2, 1])


def _lstm(nodes: _Nodes, node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> None:
    """A forward LSTM over (frames, batch, width), as the ONNX standard has it, gates in its order i, o, f, c."""
    x, w, r, b, _, hidden, cell, _, w_scale, _, r_scale, _ = node.input
    name = node.output[0]
    weights = {
        key: nodes.constant(f"{name}/{key}", constants[given][0])
        for key, given in {"w": w, "r": r, "w_scale": w_scale, "r_scale": r_scale}.items()
    }
    four = constants[b].shape[1] // 2
    size = four // 4
    bias = nodes.constant(f"{name}/b", constants[b][0, :four] + constants[b][0, four:])
    gates = nodes.constant("rows.gates", np.array([3 * size, size], np.int64))
    three = nodes.constant("rows.three", np.array([size] * 3, np.int64))
    from_input = nodes.add(
        "Add", [nodes.product(x, weights["w"], weights["w_scale"], f"{name}/x"), bias], f"{name}/from_input"
    )
    step = _Nodes(nodes.constants)
    at = f"{name}/step"
    recurrent = step.product(f"{at}/h_before", weights["r"], weights["r_scale"], f"{at}/h")
    total = step.add("Add", [f"{at}/from_input", recurrent], f"{at}/total")
    step.add("Split", [total, gates], f"{at}/iof", f"{at}/c_raw", axis=1)
    step.add(
        "Split", [step.add("Sigmoid", [f"{at}/iof"], f"{at}/open"), three], f"{at}/i", f"{at}/o", f"{at}/f", axis=1
    )
    new = step.add("Mul", [f"{at}/i", step.add("Tanh", [f"{at}/c_raw"], f"{at}/c_new")], f"{at}/new")
    old = step.add("Mul", [f"{at}/f", f"{at}/c_before"], f"{at}/old")
    c_after = step.add("Add", [old, new], f"{at}/c_after")
    h_after = step.add("Mul", [f"{at}/o", step.add("Tanh", [c_after], f"{at}/c_out")], f"{at}/h_after")
    y = step.add("Identity", [h_after], f"{at}/y")

    def value(called: str, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(called, TensorProto.FLOAT, ["batch", width])

    body = helper.make_graph(
        step.list,
        at,
        [value(f"{at}/h_before", size), value(f"{at}/c_before", size), value(f"{at}/from_input", four)],
        [value(h_after, size), value(c_after, size), value(y, size)],
    )
    start = [nodes.add("Squeeze", [state, FIRST], f"{name}/{state}") for state in (hidden, cell)]
    last = [f"{name}/h_last", f"{name}/c_last"]
    nodes.add("Scan", [*start, from_input], *last, f"{name}/all", body=body, num_scan_inputs=1)
    nodes.add("Unsqueeze", [f"{name}/all", SECOND], node.output[0])
    for state, output in zip(last, node.output[1:], strict=True):
        nodes.add("Unsqueeze", [state, FIRST], output)


def _all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes of a graph and of the bodies in it."""
    bodies = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [*graph.node, *(node for body in bodies for node in _all_nodes(body))]
