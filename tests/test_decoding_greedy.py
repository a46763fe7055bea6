"""Greedy decoding: equal to collapsing the whole, for any cutting."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from asr.ctc import collapse
from asr.decoding.greedy import Greedy


@given(st.integers(0, 10**6), st.integers(0, 50), st.lists(st.integers(0, 20), max_size=6))
def test_any_cutting_equals_collapsing_the_whole(seed: int, frames: int, cuts: list[int]) -> None:
    log_probs = np.random.default_rng(seed).normal(size=(frames, 4)).astype(np.float32)
    greedy = Greedy()
    state = greedy.start()
    for piece in np.split(log_probs, np.minimum(np.cumsum(cuts, dtype=int), frames)):
        state = greedy.step(piece, state)
    (path,) = greedy.best(state)
    tokens, first = collapse(log_probs.argmax(axis=1) if frames else np.zeros(0, int))
    assert np.array_equal(path.tokens, tokens)
    assert np.array_equal(path.frames, first)
    assert np.array_equal(path.log_probs, log_probs[first, tokens])
    assert path.score == sum(log_probs.max(axis=1).astype(float).tolist()) if frames else path.score == 0
    assert greedy.stable(state) == len(tokens)
