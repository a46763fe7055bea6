"""When words begin and end, from the emissions of their tokens: a model emits a token late, and only once."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asr.errors import ASRError

Seconds = float
Ids = NDArray[np.int64]
Times = NDArray[np.float64]


@dataclass(frozen=True)
class WordTimes:
    """By how many seconds a model's tokens come late; `asr calibrate` measures it.

    A word begins `start` before its first token, or `onset` before it where a pause or nothing precedes. It ends where
    the next word begins, or `end` before its last token where a pause or nothing follows. From one word's last token to
    the next word's first one, a pause is longer than `pause`.
    """

    start: Seconds
    onset: Seconds
    end: Seconds
    pause: Seconds

    @classmethod
    def from_config(cls, values: Mapping[str, Any], delay: Seconds, emission_seconds: Seconds) -> "WordTimes":
        """Those of a model's config.json; where they are not measured, every token is `delay` late and lasts one frame.

        ASRError where they cannot be used.
        """
        if not values:
            return cls(delay, delay, delay - emission_seconds, 0.0)
        try:
            times = cls(**{name: float(value) for name, value in values.items()})
            if not np.isfinite([times.start, times.onset, times.end, times.pause]).all():
                raise ValueError(f"{times} is not finite")
            return times
        except (TypeError, ValueError) as error:
            raise ASRError(f"the model's word times cannot be used: {error}; calibrate the model again") from None

    def to_config(self) -> dict[str, float]:
        """For a model's config.json."""
        return asdict(self)

    def spans(self, first: Times, last: Times) -> tuple[Times, Times]:
        """Starts and ends of words in their order, shape = (words,), from the times of their first and last tokens.

        They never run backwards: no word ends before it begins, and none begins before the one before it ends.
        """
        if len(first) == 0:
            return first, last
        paused = first[1:] - last[:-1] > self.pause
        starts = first - np.where(np.append(True, paused), self.onset, self.start)
        starts = np.maximum.accumulate(starts)
        own = np.maximum(last - self.end, starts)
        following = np.append(starts[1:], np.inf)
        return starts, np.where(np.append(paused, True), np.minimum(own, following), following)
