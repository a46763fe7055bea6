"""Compiled from _encoder_kernel.c."""

from numpy.typing import NDArray

def encode(
    path: int,
    sizes: tuple[int, int, int, int, int, int],
    streams: int,
    frames: int,
    table: NDArray,
    features: NDArray,
    state: NDArray,
    log_probs: NDArray,
    next: NDArray,
) -> None: ...
def paths() -> dict[str, int]: ...
