"""Word times: in order whatever is said, and as measured in running speech and around pauses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.decoding.times import WordTimes
from asr.errors import ASRError

delays = st.floats(-0.3, 0.3)
MEASURED = WordTimes(start=0.15, onset=0.1, end=-0.05, pause=0.32)


@given(st.lists(st.tuples(st.floats(0.04, 2), st.floats(0, 1))), delays, delays, delays, st.floats(0, 1))
def test_times_never_run_backwards(
    words: list[tuple[float, float]], start: float, onset: float, end: float, pause: float
) -> None:
    steps = np.array(words).reshape(-1, 2)
    first = np.cumsum(steps.sum(axis=1)) - steps[:, 1]
    starts, ends = map(np.array, WordTimes(start, onset, end, pause).spans(first, first + steps[:, 1]))
    assert starts.shape == ends.shape == (len(words),)
    assert (starts <= ends).all()
    assert (ends[:-1] <= starts[1:]).all()


def test_a_word_ends_where_the_next_begins_unless_there_is_a_pause() -> None:
    starts, ends = MEASURED.spans([1.0, 1.5, 3.0], [1.3, 2.0, 3.2])
    assert starts == pytest.approx([0.9, 1.35, 2.9])
    assert ends == pytest.approx([1.35, 2.05, 3.25])


def test_without_measurement_a_token_is_late_by_the_delay_and_lasts_one_emission() -> None:
    starts, ends = WordTimes.from_config({}, 0.05, 0.04).spans([1.0, 1.2], [1.1, 1.2])
    assert starts == pytest.approx([0.95, 1.15])
    assert ends == pytest.approx([1.09, 1.19])


def test_a_config_gives_back_what_was_saved_and_names_what_is_wrong() -> None:
    assert WordTimes.from_config(MEASURED.to_config(), 0.0, 0.04) == MEASURED
    for wrong in ({"start": 0.1}, MEASURED.to_config() | {"end": "x"}, MEASURED.to_config() | {"end": float("nan")}):
        with pytest.raises(ASRError, match="calibrate the model again"):
            WordTimes.from_config(wrong, 0.0, 0.04)
