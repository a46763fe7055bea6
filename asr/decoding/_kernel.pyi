"""Compiled from _kernel.c."""

from numpy.typing import NDArray

def block(
    frame: int,
    trace_size: int,
    tokens: int,
    beam: int,
    threshold: float,
    emissions: NDArray,
    tried: NDArray,
    hypotheses: NDArray,
    words: tuple | None,
    hotwords: tuple | None,
) -> tuple[bytes, bytes]: ...
def score(ngrams: tuple, contexts: NDArray, words: NDArray) -> tuple[bytes, bytes]: ...
def final(state: NDArray, words: tuple | None) -> bytes: ...
def merged(scores: NDArray, keys: NDArray, ends: NDArray) -> tuple[bytes, bytes]: ...
