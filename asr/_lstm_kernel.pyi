"""Compiled from _lstm_kernel.c."""

from numpy.typing import NDArray

def forward(
    sizes: tuple[int, int, int],
    first: int,
    last: int,
    weights: NDArray,
    bias: NDArray,
    hidden: NDArray,
    gates: NDArray,
    cells: NDArray,
) -> None: ...
def backward(
    sizes: tuple[int, int, int],
    first: int,
    last: int,
    weights: NDArray,
    carried: NDArray,
    slope: NDArray,
    gates: NDArray,
    cells: NDArray,
    slopes: NDArray,
) -> None: ...
def works() -> bool: ...
