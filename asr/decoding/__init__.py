"""From emissions to token sequences: greedy search, prefix beam search, language model."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Path:
    """One hypothesis.

    tokens, frames, log_probs: shape = (tokens,); a frame is that of the token's first emission on the likeliest
    alignment, counted from the start of the decoder, and a log-probability is the token's at that frame (acoustic,
    nats); score: nats, higher is better, acoustic and language model together; fused: shape = (tokens,), what the
    language model and hot-words have added up to each token, with the last one as if the text ended there.
    """

    tokens: NDArray[np.int64]
    frames: NDArray[np.int64]
    log_probs: NDArray[np.float64]
    score: float
    fused: NDArray[np.float64]


@dataclass(frozen=True)
class Recent:
    """The last tokens of the likely hypotheses.

    tokens, frames: shape = (hypotheses, longest), -1 where a hypothesis has none; weights: shape = (hypotheses,), their
    probabilities if nothing else were possible.
    """

    tokens: NDArray[np.int64]
    frames: NDArray[np.int64]
    weights: NDArray[np.float64]


class Span(NamedTuple):
    """A word, and where its tokens begin and end in a path; boundaries belong to no word."""

    text: str
    begin: int
    end: int


class Decoder(Protocol):
    """A search over emissions that takes them in pieces of any size.

    States are never changed in place: a caller may keep one and go on from it twice. How the emissions are cut into
    pieces does not change the result by a single bit.
    """

    def start(self) -> Any:
        """State before the first frame."""
        ...

    def step(self, log_probs: NDArray[np.float32], state: Any) -> Any:
        """State after the next emissions, natural-log probabilities of shape = (frames, tokens)."""
        ...

    def best(self, state: Any, n: int = 1) -> list[Path]:
        """The n best hypotheses, best first, as if the audio ended here; at least one, perhaps fewer than n."""
        ...

    def pause(self, state: Any) -> int:
        """Frames since the last token, or the start, of the live hypothesis that has had none for longest."""
        ...

    def stable(self, state: Any) -> int:
        """How many leading tokens no later emission can change."""
        ...

    def recent(self, state: Any, since: int) -> Recent:
        """The tokens that each likely hypothesis emits from frame `since` on, after the one before them."""
        ...

    def words(self, tokens: NDArray[np.int64]) -> list[Span]:
        """The words that a path's tokens say."""
        ...
