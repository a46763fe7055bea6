"""The switch that leaves out what is compiled of this package: NumPy and ONNX Runtime then do the same, slower."""

import os

SWITCH = "ASR_NUMPY"  # environment variable; if set, nothing compiled of ours runs


def wanted() -> bool:
    """Whether it is not set."""
    return not os.environ.get(SWITCH)
