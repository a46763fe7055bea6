"""The search in compiled code, where it could be built; its results are those of NumPy to the last bit."""

import itertools

import numpy as np
from numpy.typing import NDArray

from asr import compiled
from asr.decoding import Path
from asr.decoding.fusion import Scorer, WordScorer
from asr.decoding.hotwords import HotwordScorer
from asr.decoding.state import ENTRY, HYPOTHESIS, RANKED, BeamState, Hypotheses, Ranked, Trace

try:
    from asr.decoding import _kernel
except ImportError:  # no compiler where it was installed
    _kernel = None  # type: ignore[assignment]

Ids = NDArray[np.int64]

_serial = itertools.count(1)


class Kernel:
    """Advances the states of one search; holds nothing but limits and the scorer's tables."""

    def __init__(self, scorer: Scorer | None, limits: tuple[int, float, int, float, int, int]) -> None:
        """limits: beam, beam_threshold, tokens, token_threshold, horizon, frames from one settling to the next."""
        hotwords = scorer.hotwords if isinstance(scorer, HotwordScorer) else None
        words = scorer.base if isinstance(scorer, HotwordScorer) else scorer
        assert words is None or isinstance(words, WordScorer)
        self._limits = limits
        word_tables = words.tables() if words else None
        hotword_tables = None
        tokens = len(word_tables[1]) if word_tables else None
        if hotwords:
            _, ahead, earned, codes, _ = hotwords.tables()
            tokens, most = codes.shape[1], float(ahead.max()) + len(codes) * float(earned.max())
            hotword_tables = (*hotwords.tables(), tokens, most)  # and a bound of what a token adds
        self._tokens = tokens
        self._scorer = (word_tables, hotword_tables, next(_serial))

    def takes(self, log_probs: NDArray[np.float64]) -> bool:
        """Whether emissions have as many tokens as the scorer's tables."""
        return self._tokens is None or self._tokens == log_probs.shape[1]

    def step(self, log_probs: NDArray[np.float64], state: BeamState) -> BeamState:
        """The state after these frames, shape = (frames, tokens)."""
        hypotheses, trace, settled = _kernel.step(
            *(state.frame, log_probs.shape[1], self._limits, self._scorer),
            *(np.ascontiguousarray(log_probs), state.hypotheses, state.trace),
        )
        committed = state.committed
        if settled:
            committed = np.concatenate([committed, np.frombuffer(settled, ENTRY)])
        frame = state.frame + len(log_probs)
        return BeamState(frame, np.frombuffer(hypotheses, HYPOTHESIS), np.frombuffer(trace, ENTRY), committed)

    def final(self, hypotheses: Hypotheses) -> NDArray[np.float64]:
        """What the scorer adds if the text ends with each of these, shape = (n,)."""
        return np.frombuffer(_kernel.final(np.ascontiguousarray(hypotheses), self._scorer))

    def merged(self, hypotheses: Hypotheses, ends: NDArray[np.bool_], all: bool) -> Ranked:
        """As BeamSearch._merged, only the best one unless `all` are wanted."""
        return np.frombuffer(_kernel.merged(np.ascontiguousarray(hypotheses), ends, self._scorer, all), RANKED)

    def path(self, state: BeamState, row: int) -> tuple[Ids, Ids, NDArray[np.float64], NDArray[np.float64]]:
        """Tokens, frames, log-probabilities and what is fused of a hypothesis, as Path has them but for the prior."""
        hypotheses = np.ascontiguousarray(state.hypotheses)
        found = np.frombuffer(_kernel.path(state.trace, state.committed, hypotheses, row, self._scorer), np.int64)
        tokens, frames, log_probs, fused = found.reshape(4, -1)
        return tokens, frames, log_probs.view(np.float64), fused.view(np.float64)

    def oldest(self, hypotheses: Hypotheses) -> int:
        """The first entry of the trace in which one of these ends, -1 where one has none."""
        found: int = _kernel.oldest(np.ascontiguousarray(hypotheses))
        return found

    def recent(self, state: BeamState, heads: Ids, since: int) -> tuple[Ids, Ids]:
        """Tokens and frames as Recent has them, of the paths to these entries."""
        found = np.frombuffer(
            _kernel.recent(state.trace, state.committed, np.ascontiguousarray(heads), since), np.int64
        )
        tokens, frames = found.reshape(2, len(heads), -1)
        return tokens, frames

    def stable(self, trace: Trace, hypotheses: Hypotheses) -> int:
        """How many tokens of the trace all of these begin with."""
        found: int = _kernel.stable(trace, np.ascontiguousarray(hypotheses))
        return found


def words(tokens: Ids, frames: Ids, begins: NDArray[np.bool_], boundary: int, since: int) -> Ids | None:
    """Key, first emission, last emission and row of each word, shape = (words, 4), as Judge._words has them.

    None where the kernel was not built or is switched off.
    """
    if not (_kernel and compiled.wanted()):
        return None
    rows = np.ascontiguousarray(tokens), np.ascontiguousarray(frames)
    return np.frombuffer(_kernel.words(*rows, tokens.shape[1], begins, boundary, since), np.int64).reshape(-1, 4)


def evidence(
    log_probs: NDArray[np.float32],
    clarity: NDArray[np.float32],
    path: Path,
    edges: Ids,
    share: NDArray[np.float64],
    fading: NDArray[np.float64],
    boundary: int,
) -> NDArray[np.float64] | None:
    """As confidence._evidence; None where the kernel was not built or is switched off."""
    if not (_kernel and compiled.wanted()):
        return None
    arrays = log_probs, clarity, path.tokens, path.frames, path.log_probs, path.fused, edges, share, fading
    found = _kernel.evidence(boundary, *map(np.ascontiguousarray, arrays))
    return np.frombuffer(found).reshape(-1, len(share))


def kernel(scorer: Scorer | None, limits: tuple[int, float, int, float, int, int]) -> Kernel | None:
    """The kernel for a search with this scorer; None where it was not built, is switched off or does not know it."""
    words = scorer.base if isinstance(scorer, HotwordScorer) else scorer
    known = words is None or isinstance(words, WordScorer)
    return Kernel(scorer, limits) if _kernel and known and compiled.wanted() else None
