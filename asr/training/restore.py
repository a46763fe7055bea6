"""From a model directory back to torch: the weights of an exported encoder, so that training can go on from a release.

A graph in 8 bits gives its weights as they are in it, each within half a step of what was trained.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from asr.encoder import KERNEL, Encoder, EncoderConfig
from asr.errors import ASRError
from asr.recognizer import find_model
from asr.runtime import CONFIG_FILE, GRAPH_FILES, ModelConfig
from asr.tokenizer import Tokenizer
from asr.training import checkpoint
from asr.training.checkpoint import LAST, Checkpoint
from asr.training.config import DataConfig, TrainingConfig

Arrays = dict[str, NDArray[np.float32]]

PREFIX = "encoder."  # of the names that the exporter keeps
COMPUTED = "onnx::Add"  # at the beginning of the name of a bias that the exporter has computed
QUANTISED = "_quantized"  # at the end of the name of a matrix in 8 bits
CONVOLUTION, MATRIX_SCALE = "rows.encoder.", "/w_scale"  # around the name of a convolution's weights, from there too
ROW_SCALE = "/r_scale"  # at the end of the name of a constant of each LSTM that asr.training.rows has rewritten
GATES = {"lstm": (0, 2, 3, 1), "gru": (1, 0, 2), "rnn": (0,)}  # the place in ONNX's order of each gate in torch's


class Cell(NamedTuple):
    """A recurrent layer as ONNX has it: a row of matrices for each gate, and a first dimension for the directions."""

    inputs: NDArray[np.float32]  # (directions, gates * hidden, width)
    hidden: NDArray[np.float32]  # (directions, gates * hidden, hidden)
    biases: NDArray[np.float32]  # (directions, 2 * gates * hidden), of the inputs and of the hidden state


def starting_point(where: str | os.PathLike[str]) -> Checkpoint:
    """What a run may begin with: a checkpoint, a run's folder, a model directory, or the name of a bundled model."""
    path = Path(where)
    if path.is_file() or (path / LAST).exists():
        return checkpoint.load(path)
    if path.is_dir() and not (path / CONFIG_FILE).exists():
        raise ASRError(f"{path} holds neither a checkpoint nor a model; name a run, a .pt file or a model directory")
    try:
        directory = find_model(where)
    except ASRError:
        raise ASRError(
            f"there is nothing to begin with at {path}; name a .pt file, a run's folder or a model"
        ) from None
    return restore(directory)


def restore(directory: Path) -> Checkpoint:
    """The model of a directory as a checkpoint that has taken no step: encoder and tokenizer, but no optimizer.

    Raises:
        ASRError: no model directory, or a graph that this program has not made.
    """
    config = ModelConfig.load(directory)
    path = next((directory / name for name in reversed(GRAPH_FILES.values()) if (directory / name).exists()), None)
    if path is None:
        raise ASRError(f"{directory} has neither {' nor '.join(GRAPH_FILES.values())}; export the model again")
    shape = replace(EncoderConfig(**config.encoder), auxiliary=0)
    try:
        weights = _weights(onnx.load(str(path)), shape.cell)
        Encoder(shape).load_state_dict(weights)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ASRError(f"cannot take the weights out of {path}: {reason} Begin with a checkpoint instead") from None
    settings = TrainingConfig(config.name, DataConfig(unit=config.unit), config.features, shape)
    return Checkpoint(settings, Tokenizer.load(directory), weights, weights, {"state": {}}, 0, 0, 0, 0.0)


def _weights(model: onnx.ModelProto, cell: str) -> dict[str, torch.Tensor]:
    """A state dictionary of the Encoder, from a graph that was exported of it."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = {name.removeprefix(PREFIX): value for name, value in constants.items() if name.startswith(PREFIX)}
    for node in model.graph.node:
        layer = node.name.strip("/").rpartition("/")[0].replace("/", ".") or "output"  # or such as blocks.0.project
        if node.op_type in ("MatMul", "MatMulInteger"):
            weights[f"{layer}.weight"] = _matrix(node.input[1], constants).T
        elif node.op_type == "Add" and node.input[0].startswith(COMPUTED):
            weights[f"{layer}.bias"] = constants[node.input[0]]
    for name in (name.removesuffix(MATRIX_SCALE) for name in constants if name.startswith(CONVOLUTION)):
        if f"{name}{MATRIX_SCALE}" in constants:
            rows = constants[f"{name}/w"] * constants[f"{name}{MATRIX_SCALE}"]
            layer = name.removeprefix(CONVOLUTION)
            weights[layer] = rows.reshape(KERNEL, -1, rows.shape[1]).transpose(2, 1, 0)
    for number, found in enumerate(_cells(model.graph, constants)):
        for direction, suffix in enumerate(("l0", "l0_reverse")[: len(found.inputs)]):
            bias_ih, bias_hh = np.split(found.biases[direction], 2)
            parts = {"weight_ih": found.inputs[direction], "weight_hh": found.hidden[direction]}
            for name, value in (parts | {"bias_ih": bias_ih, "bias_hh": bias_hh}).items():
                gates = np.split(value, len(GATES[cell]))
                weights[f"blocks.{number}.cell.{name}_{suffix}"] = np.concatenate([gates[g] for g in GATES[cell]])
    return {name: torch.from_numpy(np.array(value, np.float32)) for name, value in weights.items()}


def _cells(graph: onnx.GraphProto, constants: Arrays) -> list[Cell]:
    """The recurrent layers of a graph from below to above, in any of the three ways that export writes them."""
    cells = []
    for node in graph.node:
        if node.op_type in ("LSTM", "GRU", "RNN"):
            cells.append(Cell(*(constants[name] for name in node.input[1:4])))
        elif node.op_type == "DynamicQuantizeLSTM":
            inputs, hidden = (_matrix(name, constants).swapaxes(1, 2) for name in node.input[1:3])
            cells.append(Cell(inputs, hidden, constants[node.input[3]]))
    for name in (name.removesuffix(ROW_SCALE) for name in constants if name.endswith(ROW_SCALE)):
        inputs, hidden = ((constants[f"{name}/{m}"] * constants[f"{name}/{m}_scale"]).T[None] for m in ("w", "r"))
        bias = constants[f"{name}/b"]
        cells.append(Cell(inputs, hidden, np.concatenate((bias, np.zeros_like(bias)))[None]))
    return cells


def _matrix(name: str, constants: Arrays) -> NDArray[np.float32]:
    """A constant of the graph; if it is in 8 bits, which lie around zero, multiplied by the scale of each column."""
    if not name.endswith(QUANTISED):
        return constants[name]
    scale = constants[name.removesuffix(QUANTISED) + "_scale"]
    return constants[name] * (scale[:, None] if scale.ndim > 1 else scale)
