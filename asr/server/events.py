"""Hypotheses as the events of the server's own protocol."""

from typing import Any

from asr.segmenter import Hypothesis
from asr.transcript import Seconds


class Events:
    """Numbers the segments of one stream."""

    def __init__(self, *, partials: bool = True, words: bool = True) -> None:
        self._partials, self._words = partials, words
        self._segment = 0

    def of(self, hypotheses: list[Hypothesis], heard: Seconds) -> list[dict[str, Any]]:
        """The events that tell these hypotheses; `heard` seconds had been decoded."""
        return [self._event(hypothesis, heard) for hypothesis in hypotheses if hypothesis.is_final or self._partials]

    def _event(self, hypothesis: Hypothesis, heard: Seconds) -> dict[str, Any]:
        event: dict[str, Any] = {
            "type": "final" if hypothesis.is_final else "partial",
            "segment": self._segment,
            "text": hypothesis.text,
            "start": round(hypothesis.start, 3),
            "end": round(hypothesis.end, 3),
            "heard": round(heard, 3),
        }
        if not hypothesis.is_final:
            event["committed"] = hypothesis.committed
        if self._words:
            event["words"] = [
                {
                    "text": word.text,
                    "start": round(word.start, 3),
                    "end": round(word.end, 3),
                    "confidence": round(word.confidence, 3),
                }
                for word in hypothesis.words
            ]
        self._segment += hypothesis.is_final
        return event
