"""Greedy decoding: the best token of every frame, collapsed."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from asr.ctc import BLANK_ID
from asr.decoding import Path, Recent, Span
from asr.decoding.words import Reader, Spelled
from asr.tokenizer import CHARACTERS


@dataclass(frozen=True)
class GreedyState:
    """What has been decoded so far; the arrays are never changed in place."""

    frame: int  # frames decoded
    last: int  # best token of the last frame
    tokens: NDArray[np.int64]
    frames: NDArray[np.int64]
    log_probs: NDArray[np.float64]
    score: float


class Greedy:
    """The likeliest single alignment; its one hypothesis is final at every frame."""

    def __init__(self, reader: Reader | None = None) -> None:
        """reader: of the model's tokens; without it they are the characters."""
        self._reader = reader or Spelled(CHARACTERS)

    def start(self) -> GreedyState:
        """State before the first frame."""
        nothing = np.zeros(0, np.int64)
        return GreedyState(0, BLANK_ID, nothing, nothing, np.zeros(0), 0.0)

    def step(self, log_probs: NDArray[np.float32], state: GreedyState) -> GreedyState:
        """State after the next emissions, shape = (frames, tokens)."""
        if len(log_probs) == 0:
            return state
        best = log_probs.argmax(axis=1)
        values = log_probs.max(axis=1).astype(np.float64)
        before = np.append(state.last, best[:-1])
        first = np.flatnonzero((best != BLANK_ID) & (best != before))
        score = state.score
        for value in values.tolist():  # one by one, so that the sum does not depend on the cutting
            score += value
        frame, last = state.frame + len(best), int(best[-1])
        if len(first) == 0:
            return replace(state, frame=frame, last=last, score=score)
        return GreedyState(
            frame,
            last,
            np.append(state.tokens, best[first]),
            np.append(state.frames, state.frame + first),
            np.append(state.log_probs, values[first]),
            score,
        )

    def best(self, state: GreedyState, n: int = 1) -> list[Path]:
        """The one hypothesis."""
        return [Path(state.tokens, state.frames, state.log_probs, state.score, np.zeros(len(state.tokens)))]

    def pause(self, state: GreedyState) -> int:
        """Frames since the last token, or the start."""
        return state.frame - 1 - int(state.frames[-1]) if len(state.frames) else state.frame

    def stable(self, state: GreedyState) -> int:
        """All of its tokens."""
        return len(state.tokens)

    def recent(self, state: GreedyState, since: int) -> Recent:
        """Those of the one hypothesis."""
        begin = max(0, int(np.searchsorted(state.frames, since)) - 1)
        return Recent(state.tokens[None, begin:], state.frames[None, begin:], np.ones(1))

    def words(self, tokens: NDArray[np.int64]) -> list[Span]:
        """The words that tokens say."""
        return self._reader.words(tokens.tolist())
