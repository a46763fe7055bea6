"""Reading what a server's streams have sent: how late its words and answers were."""

import json

import pytest

from benchmarks import serve_load


def test_a_word_has_come_with_the_first_event_that_shows_it_though_its_segment_is_cut_before_it() -> None:
    a, late, b = ({"text": text, "start": end - 0.3, "end": end} for text, end in (("a", 1.0), ("a", 3.0), ("b", 1.5)))
    events: list[tuple[float, dict[str, object]]] = [
        (11.5, {"type": "partial", "heard": 1.4, "words": [a]}),
        (12.0, {"type": "partial", "heard": 1.9, "words": [a, b]}),
        (12.5, {"type": "final", "heard": 2.4, "words": [a]}),
        (12.5, {"type": "partial", "heard": 2.4, "words": [b]}),
        (14.0, {"type": "final", "heard": 4.0, "words": [b, late]}),
        (14.0, {"type": "done", "seconds": 4.0}),
    ]
    heard = serve_load._heard([(at, json.dumps(event).encode()) for at, event in events], 10.0, 0.1, 4.0)
    assert heard.words == pytest.approx([0.5, 0.5, 1.0])
    assert heard.chunks == pytest.approx([0.1, 0.1, 0.1, 0.1])
    assert (heard.lost, heard.failed) == (0.0, False)
