"""When words become final and when the recogniser sleeps: figures that a user may set."""

import math
from dataclasses import dataclass

from asr.errors import ASRError


@dataclass(frozen=True)
class EndpointRules:
    """When a hypothesis is final; every silence is counted from the last token decoded."""

    silence_seconds: float = 0.8  # of silence after words end the segment
    max_seconds: float = 20.0  # of segment; a longer one is cut between two words
    cut_seconds: float = 6.0  # at the end of a long segment, searched for the longest pause to cut it in
    idle_seconds: float = 2.4  # without a word: the decoder starts afresh, so that it never grows
    tail_seconds: float = 0.5  # of silence fed at the end of the stream, so that the last tokens come out

    def __post_init__(self) -> None:
        if math.inf in (self.max_seconds, self.idle_seconds, self.tail_seconds):
            raise ASRError("endpoint rules have figures without end; give seconds, as many as you like")
        if not (0 < self.silence_seconds < self.max_seconds and 0 < self.cut_seconds <= self.max_seconds):
            raise ASRError(
                f"endpoint rules have {self.silence_seconds:g} s of silence, {self.max_seconds:g} s of segment and "
                f"{self.cut_seconds:g} s of cut; silence must be above 0 and below the segment, cut no longer than it"
            )
        if not (self.idle_seconds > 0 and self.tail_seconds >= 0):
            raise ASRError(
                f"endpoint rules have {self.idle_seconds:g} s of idling and {self.tail_seconds:g} s of tail; idling "
                "must be above 0 and the tail not below 0"
            )


@dataclass(frozen=True)
class GateRules:
    """When the gate opens, and how long it stays open."""

    threshold: float = 0.5  # probability of speech from which the gate opens
    preroll_seconds: float = 0.5  # before that, passed too, so that no onset is lost
    hangover_seconds: float = 1.0  # without speech, after which it closes and what was said is final

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ASRError(f"the gate's threshold is {self.threshold:g}; it must be a probability between 0 and 1")
        if not (0 <= self.preroll_seconds < math.inf and 0 < self.hangover_seconds < math.inf):
            raise ASRError(
                f"the gate has {self.preroll_seconds:g} s of preroll and {self.hangover_seconds:g} s of hangover; the "
                "preroll must not be below 0 and the hangover above 0"
            )
