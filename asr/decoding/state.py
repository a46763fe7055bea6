"""What a prefix beam search remembers, as arrays of records that NumPy and _kernel.c both read."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A live prefix. It is told from others by a 64-bit hash; keys are mixed well enough to count as random: of n live
# prefixes two share one with probability n^2 / 2^65, which is one frame in 10^14 for 256 of them.
HYPOTHESIS = np.dtype(
    [
        ("key", np.uint64),
        ("parent_key", np.uint64),  # key of the prefix without its last token
        ("last", np.int64),  # last token, blank for the empty prefix
        ("blank", np.float64),  # log-probability of all alignments that end in a blank
        ("label", np.float64),  # the same for those that end in the last token
        ("fused", np.float64),  # what the scorer has added
        ("scorer", np.int64, (3,)),  # its state: node of the hot-words, context of the language model, node of the tree
        ("best_blank", np.float64),  # log-probability of the likeliest alignment that ends in a blank
        ("best_label", np.float64),
        ("head_blank", np.int64),  # trace entry of the last token in that alignment, -1: the committed past
        ("head_label", np.int64),
    ]
)
# The first emission of a token.
ENTRY = np.dtype(
    [
        ("parent", np.int64),  # entry of the token before, always an earlier one; -1: the committed past
        ("token", np.int64),
        ("frame", np.int64),
        ("log_prob", np.float64),
        ("fused", np.float64),  # what the scorer has added up to here
    ]
)
# A hypothesis among others, best first; row: in their array.
RANKED = np.dtype([("score", np.float64), ("row", np.int64)])

# Columns of a scorer's state: with and without hot-words, with and without words.
FIRST_OF_HOTWORDS, FIRST_OF_WORDS, ALL_FIELDS = 0, 1, 3

Hypotheses = NDArray[np.void]  # of HYPOTHESIS
Trace = NDArray[np.void]  # of ENTRY
Ranked = NDArray[np.void]  # of RANKED
EMPTY_TRACE: Trace = np.zeros(0, ENTRY)


@dataclass(frozen=True)
class BeamState:
    """Everything the search remembers; nothing in it is changed in place.

    Only `committed`, the tokens and times that are settled for good, grows with the length of the audio.
    """

    frame: int  # frames decoded
    hypotheses: Hypotheses
    trace: Trace
    committed: Trace


def heads(hypotheses: Hypotheses) -> NDArray[np.int64]:
    """Trace entry of the last token in the likeliest alignment of each prefix, shape = (n,)."""
    is_label = hypotheses["best_label"] > hypotheses["best_blank"]
    return np.where(is_label, hypotheses["head_label"], hypotheses["head_blank"])
