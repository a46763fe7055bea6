"""Measuring a stream: what counts as shown, changed, committed and final, and the verb on real speech."""

import json
from pathlib import Path

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.audio import read_blocks
from asr.cli import main
from asr.errors import ASRError
from asr.recognizer import Recognizer, load
from asr.segmenter import EndpointRules
from asr.training.manifest import read
from asr.training.streaming import flicker, measure, right_words, table, word_ends
from asr.vad import GateRules

DATA = Path(__file__).parent / "data"
CLIPS = read(DATA / "clips.tsv")
BUSY = EndpointRules(silence_seconds=0.24, max_seconds=2.0, cut_seconds=1.0, idle_seconds=0.5)

sentences = st.lists(st.sampled_from(("a", "an", "the", "cat", "cats", "sat")), max_size=6)


@pytest.fixture(scope="module")
def recognizer(tiny_model: Path) -> Recognizer:
    return load(tiny_model, decoder="beam", rules=BUSY)


@given(sentences, sentences)
def test_what_is_added_changes_nothing_and_what_is_taken_away_does(before: list[str], more: list[str]) -> None:
    assert flicker(before, before + more) == (0, 0)
    assert flicker(before + more, before) == (len(more), 0)


@given(sentences, sentences)
def test_no_more_can_change_than_was_shown(before: list[str], after: list[str]) -> None:
    changed, grown = flicker(before, after)
    assert 0 <= changed + grown <= len(before)
    assert grown in (0, 1)


def test_a_last_word_may_grow() -> None:
    assert flicker(["the", "c"], ["the", "cat", "sat"]) == (0, 1)
    assert flicker(["the", "c"], ["the", "sat"]) == (1, 0)
    assert flicker(["c", "sat"], ["cat", "sat"]) == (2, 0)


@given(sentences, sentences)
def test_right_words_are_jiwers_hits(said: list[str], heard: list[str]) -> None:
    pairs = right_words(" ".join(said), " ".join(heard))
    assert all(said[i] == heard[j] for i, j in pairs)
    hits = jiwer.process_words(" ".join(said), " ".join(heard)).hits if said and heard else 0
    assert len(pairs) == hits


def test_every_chunk_size_hears_the_same_and_a_word_shows_before_it_is_committed(recognizer: Recognizer) -> None:
    rows = measure(recognizer, CLIPS[2:4], (80, 640))
    assert [row.chunk_ms for row in rows] == [80, 640]
    assert [row.different_from_offline for row in rows] == [0, 0]
    assert rows[0].wer == rows[1].wer
    for row in rows:
        assert row.utterances == 2
        assert 0 < row.chunk_p50_ms <= row.chunk_p99_ms
        assert row.final_delay
        if row.shown_delay and row.committed_delay:
            assert all(shown <= stays for shown, stays in zip(row.shown_delay, row.committed_delay, strict=True))
    assert (rows[0].unstable_words or 0) >= (rows[1].unstable_words or 0)
    assert len(table(rows).splitlines()) == 4


def test_words_show_soon_whatever_the_size_of_the_chunks() -> None:
    """Of 160 ms too, which never end where a chunk of the encoder does."""
    rows = measure(load(), CLIPS[:2], (40, 80, 100, 160, 320))
    for row in rows:
        assert row.shown_delay
        assert row.shown_delay[1] < 0.5 + row.chunk_ms / 1000


def test_the_speech_gate_may_be_measured_too(recognizer: Recognizer) -> None:
    gated = Recognizer(recognizer.model, recognizer.decoder, recognizer.rules, GateRules())
    (row,) = measure(gated, CLIPS[2:3], (160,))
    assert row.different_from_offline == 0


def test_words_end_in_order_within_the_recording() -> None:
    model = load().model
    for clip in CLIPS[5:7]:
        samples = np.concatenate(list(read_blocks(clip.path, target_rate=16_000)))
        reference = clip.text.lower()
        ends = word_ends(model, samples, reference)
        assert len(ends) == len(reference.split())
        assert ends == sorted(ends)
        assert 0 < ends[0] < 1.5
        assert ends[-1] == pytest.approx(len(samples) / 16_000, abs=0.8)


def test_a_text_that_is_too_long_has_no_ends(recognizer: Recognizer) -> None:
    assert word_ends(recognizer.model, np.zeros(16_000, np.float32), "too many words " * 20) == []


def test_the_verb_prints_the_table_and_writes_it(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    options = ["--model", str(tiny_model), "--limit", "1", "--streaming", "--chunks", "160", "--json", str(out)]
    assert main(["evaluate", str(DATA / "clips.tsv"), *options]) == 0
    assert "| 160 ms |" in capsys.readouterr().out
    (row,) = json.loads(out.read_text())["streaming"]
    assert row["chunk_ms"] == 160


@pytest.mark.parametrize("options", [["--chunks", "0"], ["--chunks", "a"], ["--jobs", "2"]])
def test_impossible_options_are_wrong_use(
    tiny_model: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(DATA / "clips.tsv"), "--model", str(tiny_model), "--streaming", *options]) == 2
    assert options[0] in capsys.readouterr().err


def test_nothing_to_stream_is_named(recognizer: Recognizer) -> None:
    with pytest.raises(ASRError, match="no utterance"):
        measure(recognizer, [])
