"""When words begin and end, from the emissions of their tokens: a model emits a token late, and only once."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from asr.errors import ASRError

Seconds = float


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

    def spans(self, first: Iterable[Seconds], last: Iterable[Seconds]) -> tuple[list[Seconds], list[Seconds]]:
        """Starts and ends of words in their order, from the times of their first and last tokens.

        They never run backwards: no word ends before it begins, and none begins before the one before it ends.
        """
        starts: list[Seconds] = []
        ends: list[Seconds] = []
        start = emitted = -math.inf  # of the word before: where it begins, and its last token
        for first_token, last_token in zip(first, last, strict=True):
            paused = first_token - emitted > self.pause
            own_end = max(emitted - self.end, start)
            start = max(first_token - (self.onset if paused else self.start), start)
            ends.append(min(own_end, start) if paused else start)
            starts.append(start)
            emitted = last_token
        return starts, [*ends[1:], max(emitted - self.end, start)] if starts else []
