"""The constants of a graph in ONNX, read without the onnx package, which an installation without extras does not have.

Only as much of the protocol buffers' encoding as that takes: a message is a series of fields, each a key (field number
and kind) and a value, which is a number or so many bytes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUMBER, BYTES, LENGTHS = 0, 2, {1: 8, 5: 4}  # kinds of a field; the bytes of those kinds that have a fixed length
GRAPH, PROPERTY = 7, 14  # fields of a model
INITIALIZER = 5  # of a graph
DIMENSION, DATA_TYPE, FLOAT_DATA, NAME, RAW_DATA = 1, 2, 4, 8, 9  # of a tensor
TYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    2: np.dtype("u1"),
    3: np.dtype("i1"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
}

ROWS, INDEPENDENT = "asr.rows", "independent"  # metadata of a graph in which the rows of a batch do not meet

Constants = dict[str, NDArray]


def read_constants(path: Path) -> tuple[Constants, dict[str, str]]:
    """The constants of a graph by name, and its metadata; ValueError where the file is not whole.

    Small constants may be stored as numbers in place of bytes; of those only floats are read.
    """
    data = memoryview(path.read_bytes())
    constants: Constants = {}
    metadata: dict[str, str] = {}
    try:
        for number, value in _fields(data):
            if number == GRAPH:
                tensors = (_tensor(part) for field, part in _fields(value) if field == INITIALIZER)
                constants |= dict(tensor for tensor in tensors if tensor)
            elif number == PROPERTY:
                key, text = (str(part, "utf-8") for _, part in _fields(value))
                metadata[key] = text
    except (IndexError, KeyError, TypeError, OverflowError) as error:  # of which TypeError: a field of another kind
        raise ValueError(f"{path} is no graph in ONNX") from error
    return constants, metadata


def _tensor(data: memoryview) -> tuple[str, NDArray] | None:
    fields = list(_fields(data))
    values: dict[int, Any] = dict(fields)
    stored = values.get(RAW_DATA, values.get(FLOAT_DATA))
    if stored is None:
        return None
    shape = [value for number, value in fields if number == DIMENSION]
    return str(values[NAME], "utf-8"), np.frombuffer(stored, TYPES[values[DATA_TYPE]]).reshape(shape)


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a message's fields; a value is a number, or bytes."""
    at = 0
    while at < len(data):
        key, at = _number(data, at)
        kind = key & 7
        value: Any = None
        if kind == NUMBER:
            value, at = _number(data, at)
        else:
            length, at = _number(data, at) if kind == BYTES else (LENGTHS[kind], at)
            value, at = data[at : at + length], at + length
            if at > len(data):
                raise IndexError("a field is longer than its message")
        yield key >> 3, value


def _number(data: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1
