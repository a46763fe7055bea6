"""Compiled from _kernel.c."""

from numpy.typing import NDArray

def step(
    frame: int,
    tokens: int,
    limits: tuple[int, float, int, float, int, int],
    scorer: tuple[tuple | None, tuple | None, int],
    emissions: NDArray,
    hypotheses: NDArray,
    trace: NDArray,
) -> tuple[bytes, bytes, bytes]: ...
def follow(trace: NDArray, heads: NDArray, since: int) -> tuple[bytes, int]: ...
def score(ngrams: tuple, contexts: NDArray, words: NDArray) -> tuple[bytes, bytes]: ...
def final(hypotheses: NDArray, scorer: tuple[tuple | None, tuple | None, int]) -> bytes: ...
def merged(scores: NDArray, keys: NDArray, ends: NDArray) -> tuple[bytes, bytes]: ...
