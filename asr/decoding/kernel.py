"""The search's frames in compiled code, where it could be built; its results are those of NumPy to the last bit."""

import os
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from asr.decoding.fusion import Scorer, WordScorer
from asr.decoding.hotwords import HotwordScorer

try:
    from asr.decoding import _kernel
except ImportError:  # no compiler where it was installed
    _kernel = None  # type: ignore[assignment]

SWITCH = "ASR_NUMPY"  # environment variable; if set, the search runs in NumPy

# Columns of a scorer's state in the kernel: node of the hot-words, context of the language model, node of the tree.
FIRST_OF_HOTWORDS, FIRST_OF_WORDS, ALL_FIELDS = 0, 1, 3
HYPOTHESIS = np.dtype(
    [
        *((name, np.uint64) for name in ("key", "parent_key")),
        ("last", np.int64),
        *((name, np.float64) for name in ("blank", "label", "fused")),
        ("scorer", np.int64, (ALL_FIELDS,)),
        *((name, np.float64) for name in ("best_blank", "best_label")),
        *((name, np.int64) for name in ("head_blank", "head_label")),
    ]
)
ENTRY = np.dtype(
    [
        *((name, np.int64) for name in ("parent", "token", "frame")),
        *((name, np.float64) for name in ("log_prob", "fused")),
    ]
)

Fields = dict[str, NDArray]


class Kernel:
    """Advances the hypotheses of one search by blocks of frames; holds nothing but the scorer's tables."""

    def __init__(self, scorer: Scorer | None, beam: int, beam_threshold: float) -> None:
        hotwords = scorer.hotwords if isinstance(scorer, HotwordScorer) else None
        words = scorer.base if isinstance(scorer, HotwordScorer) else scorer
        assert words is None or isinstance(words, WordScorer)
        self._words = words.tables() if words else None
        self._hotwords = hotwords.tables() if hotwords else None
        first = FIRST_OF_HOTWORDS if hotwords else FIRST_OF_WORDS
        self._columns = slice(first, ALL_FIELDS if words else FIRST_OF_WORDS)
        tokens = len(self._words[1]) if self._words else self._hotwords[3].shape[1] if self._hotwords else None
        self._tokens, self._beam, self._threshold = tokens, beam, beam_threshold

    def takes(self, log_probs: NDArray[np.float64]) -> bool:
        """Whether emissions have as many tokens as the scorer's tables."""
        return self._tokens is None or self._tokens == log_probs.shape[1]

    def block(
        self,
        log_probs: NDArray[np.float64],
        tried: NDArray[np.bool_],
        hypotheses: Mapping[str, NDArray],
        frame: int,
        trace_size: int,
    ) -> tuple[Fields, Fields]:
        """The fields of the hypotheses after these frames, and those of new entries of the trace.

        log_probs, tried: shape = (frames, tokens); frame: number of the first one; hypotheses: their fields now.
        """
        rows = np.zeros(len(hypotheses["last"]), HYPOTHESIS)
        for name, values in hypotheses.items():
            (rows["scorer"][:, self._columns] if name == "scorer" else rows[name])[:] = values
        after, new = _kernel.block(
            *(frame, trace_size, log_probs.shape[1], self._beam, self._threshold),
            *(np.ascontiguousarray(log_probs, np.float64), np.ascontiguousarray(tried), rows),
            *(self._words, self._hotwords),
        )
        fields, entries = _fields(after, HYPOTHESIS), _fields(new, ENTRY)
        fields["scorer"] = fields["scorer"][:, self._columns]
        return fields, entries

    def final(self, state: NDArray[np.int64]) -> NDArray[np.float64]:
        """What WordScorer.final gives for states of it, shape = (n, 2); the search must have one."""
        return np.frombuffer(_kernel.final(np.ascontiguousarray(state, np.int64), self._words))

    def merged(
        self, scores: NDArray[np.float64], keys: NDArray[np.uint64], ends: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows and scores of what is left, best first, where the best of each key and end are one; shapes = (n,)."""
        rows, merged = _kernel.merged(np.ascontiguousarray(scores), np.ascontiguousarray(keys), ends)
        return np.frombuffer(rows, np.int64), np.frombuffer(merged)


def kernel(scorer: Scorer | None, beam: int, beam_threshold: float) -> Kernel | None:
    """The kernel for a search with this scorer; None where it was not built, is switched off or does not know it."""
    words = scorer.base if isinstance(scorer, HotwordScorer) else scorer
    known = words is None or isinstance(words, WordScorer)
    return Kernel(scorer, beam, beam_threshold) if _kernel and known and not os.environ.get(SWITCH) else None


def _fields(rows: bytes, dtype: np.dtype) -> Fields:
    table = np.frombuffer(rows, dtype)
    return {name: np.ascontiguousarray(table[name]) for name in table.dtype.names or ()}
