"""The streaming encoder in compiled code, where it could be built, with the weights of the quantised graph.

It is several times as fast as ONNX Runtime, which stays the reference, and a stream's numbers depend neither on its
batch nor on how many frames a call brings, to the last bit.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr import compiled
from asr.graph_file import INDEPENDENT, ROWS, Constants, read_constants

try:
    from asr import _encoder_kernel
except ImportError:  # no compiler where it was installed
    _encoder_kernel = None  # type: ignore[assignment]

PATH = "ASR_ENCODER"  # environment variable: an instruction set of `paths`, in place of the best one

# As in _encoder_kernel.c.
SUBSAMPLING, KERNEL, CACHED = 4, 5, 3
PANEL, QUAD, ALIGNMENT = 64, 4, 64
PARTS = 16  # the width must be a multiple of it
ZERO = 128

STATE = "state"

Floats = NDArray[np.float32]


class EncoderKernel:
    """The encoder of one model; threads may share it."""

    rows_meet = False  # of a batch
    block_chunks = 64  # of a call that may be long: more are no faster, and take memory

    def __init__(self, constants: Constants, path: int) -> None:
        """Raises KeyError or ValueError where these are not the constants of a graph that the kernel knows."""
        weights = _Weights(constants)
        self.tokens = weights.tokens
        self._mels, self._path, self._sizes, self._table = weights.mels, path, weights.sizes, weights.table()
        _, channels, width, layers, lookahead, _ = weights.sizes
        self._state_size = CACHED * (self._mels + channels) + (lookahead + 2 * layers) * width

    def start(self, batch: int = 1) -> dict[str, Floats]:
        """The state of `batch` streams that have heard nothing."""
        return {STATE: np.zeros((batch, self._state_size), np.float32)}

    def step(self, features: Floats, state: dict[str, Floats]) -> tuple[Floats, dict[str, Floats]]:
        """As asr.runtime.Model.step."""
        streams, frames = len(features), features.shape[1] // SUBSAMPLING
        log_probs = np.empty((streams, frames, self.tokens), np.float32)
        following = np.empty((streams, self._state_size), np.float32)
        features, before = (np.ascontiguousarray(array, np.float32) for array in (features, state[STATE]))
        _encoder_kernel.encode(
            self._path, self._sizes, streams, frames, self._table, features, before, log_probs, following
        )
        return log_probs, {STATE: following}


def paths() -> dict[str, int]:
    """Instruction sets that the kernel can use on this machine, best first; none where it was not built."""
    return _encoder_kernel.paths() if _encoder_kernel else {}


def encoder_kernel(graph: Path) -> EncoderKernel | None:
    """The kernel for a quantised graph; None where it was not built, is switched off, or does not know such graphs."""
    usable = paths()
    if not usable or not compiled.wanted():
        return None
    try:
        constants, metadata = read_constants(graph)
        if metadata.get(ROWS) == INDEPENDENT:
            return EncoderKernel(constants, usable.get(os.environ.get(PATH, ""), next(iter(usable.values()))))
    except (KeyError, ValueError):
        pass
    return None


class _Weights:
    """The constants of a graph, in the kernel's order and layout."""

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self._layers = sum(name.endswith("/LSTM_output_0/r") for name in constants)
        inputs, width = constants["rows.encoder.conv2.weight/w"].shape
        channels = inputs // KERNEL
        self.mels = len(constants["encoder.mean"])
        self._lookahead = len(constants["encoder.ahead.weight"][0, 0]) - 1 if "encoder.ahead.weight" in constants else 0
        self._output = self._linear()
        self.tokens = len(self._output[2])
        self.sizes = (self.mels, channels, width, self._layers, self._lookahead, self.tokens)
        if width % PARTS or channels % QUAD or self.mels % QUAD:
            raise ValueError(
                f"{self.mels} mel bands, {channels} channels and a width of {width} do not fill the panels"
            )
        for i in range(self._layers):
            if constants[f"/blocks.{i}/cell/LSTM_output_0/r"].shape != (width, 4 * width):
                raise ValueError(f"block {i} has a cell of another width")

    def table(self) -> NDArray[np.uint8]:
        """All of them, each part at a multiple of ALIGNMENT bytes."""
        parts = [np.ascontiguousarray(part) for part in self._parts()]
        sizes = [-(-part.nbytes // ALIGNMENT) * ALIGNMENT for part in parts]
        room = np.zeros(sum(sizes) + ALIGNMENT, np.uint8)
        begin = -room.ctypes.data % ALIGNMENT
        table = room[begin : begin + sum(sizes)]
        for part, at in zip(parts, np.cumsum([0, *sizes]), strict=False):
            table[at : at + part.nbytes] = part.view(np.uint8).reshape(-1)
        return table

    def _parts(self) -> list[NDArray]:
        c = self._constants
        parts = [c["encoder.mean"], c["encoder.std"]]
        for name, zero in (("encoder.conv1", ZERO), ("encoder.conv2", 0)):
            parts += _matrix(c[f"rows.{name}.weight/w"], c[f"rows.{name}.weight/w_scale"], zero)
            parts.append(_padded(c[f"{name}.bias"]))
        if self._lookahead:
            parts += [c["encoder.ahead.weight"][:, 0].T, c["encoder.ahead.bias"]]
        for i in range(self._layers):
            norm, cell = f"encoder.blocks.{i}.norm", f"/blocks.{i}/cell/LSTM_output_0"
            parts += [c[f"{norm}.weight"], c[f"{norm}.bias"], c[f"{cell}/b"]]
            parts += _matrix(c[f"{cell}/w"], c[f"{cell}/w_scale"])
            parts += _matrix(c[f"{cell}/r"], c[f"{cell}/r_scale"])
        weights, scale, bias = self._output
        return [
            *parts,
            c["encoder.norm.weight"],
            c["encoder.norm.bias"],
            *_matrix(weights, scale),
            _padded(bias),
        ]

    def _linear(self) -> tuple[NDArray, NDArray, NDArray]:
        """Weights, scales and biases of the output; the exporter numbers their names."""
        c = self._constants
        (name,) = (found[1] for found in map(re.compile("(.+)_quantized").fullmatch, c) if found)
        weights, scale = c[f"{name}_quantized"], c[f"{name}_scale"]
        (bias,) = (c[key] for key in c if key == "encoder.output.bias" or key.startswith("onnx::Add_"))
        return weights, scale, bias


def _matrix(weights: NDArray, scale: NDArray, zero: int = ZERO) -> Sequence[NDArray]:
    """Weights (inputs, outputs) as (outputs / PANEL, inputs / 4, PANEL, 4); where sums start; scales.

    zero: of the inputs, as a byte.
    """
    inputs, outputs = weights.shape
    missing = -outputs % PANEL
    if missing:
        weights = np.pad(weights, ((0, 0), (0, missing)))
    panels = weights.reshape(inputs // QUAD, QUAD, -1, PANEL).transpose(2, 0, 3, 1)
    return panels, -zero * weights.sum(axis=0, dtype=np.int32), _padded(scale)


def _padded(row: NDArray) -> NDArray:
    return np.pad(row, (0, -len(row) % PANEL))
