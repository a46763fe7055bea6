"""Writers: every format read back by its own rules, whatever the words and the times."""

import csv
import io
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.errors import ASRError
from asr.transcript import LINE_WIDTH, WRITERS, Segment, Transcript, Word

SRT_TIMES = re.compile(r"(\d\d+):(\d\d):(\d\d),(\d{3}) --> (\d\d+):(\d\d):(\d\d),(\d{3})")
VTT_TIMES = re.compile(SRT_TIMES.pattern.replace(",", r"\."))

words = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)


@st.composite
def segments(draw: st.DrawFn) -> list[Segment]:
    """Segments as a recogniser gives them: words in order of time, some of no length, some touching."""
    clock = draw(st.floats(0, 400_000))
    result = []
    for texts in draw(st.lists(st.lists(words, min_size=1, max_size=40), max_size=5)):
        spoken = []
        for text in texts:
            start = clock + draw(st.sampled_from([0.0, 0.04, 0.3, 2.0]))
            clock = start + draw(st.sampled_from([0.0, 0.0004, 0.2, 1.5]))
            spoken.append(Word(text, start, clock, draw(st.floats(0, 1))))
        result.append(Segment.of(tuple(spoken)))
    return result


def written(name: str, given_segments: list[Segment]) -> str:
    out = io.StringIO()
    writer = WRITERS[name](out)
    for segment in given_segments:
        writer.write(segment)
    writer.close()
    return out.getvalue()


def milliseconds(match: re.Match[str]) -> tuple[int, int]:
    h, m, s, ms, h2, m2, s2, ms2 = (int(group) for group in match.groups())
    assert max(m, s, m2, s2) < 60
    return ((h * 60 + m) * 60 + s) * 1000 + ms, ((h2 * 60 + m2) * 60 + s2) * 1000 + ms2


@given(segments())
def test_text_has_one_line_a_segment(given_segments: list[Segment]) -> None:
    assert written("txt", given_segments).split("\n")[:-1] == [segment.text for segment in given_segments]


@given(segments())
def test_json_holds_the_whole_transcript(given_segments: list[Segment]) -> None:
    whole = json.loads(written("json", given_segments))
    transcript = Transcript(tuple(given_segments))
    assert whole["text"] == transcript.text
    assert [segment["text"] for segment in whole["segments"]] == [segment.text for segment in given_segments]
    assert [(w["text"], w["start"], w["end"]) for w in whole["words"]] == [
        (w.text, round(w.start, 3), round(w.end, 3)) for w in transcript.words
    ]
    assert all(0 <= item["confidence"] <= 1 for item in whole["words"] + whole["segments"])


@given(segments())
def test_tsv_reads_back_as_a_table(given_segments: list[Segment]) -> None:
    rows = list(csv.reader(written("tsv", given_segments).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert rows[0] == ["start", "end", "text"]
    assert [row[2] for row in rows[1:]] == [segment.text for segment in given_segments]
    assert all(0 <= float(row[0]) <= float(row[1]) for row in rows[1:])


@given(segments())
def test_srt_cues_are_numbered_ordered_and_never_overlap(given_segments: list[Segment]) -> None:
    cues = written("srt", given_segments).split("\n\n")[:-1]
    spans = []
    for number, cue in enumerate(cues, 1):
        first, times, *lines = cue.split("\n")
        assert first == str(number)
        assert lines
        assert all(line.strip() and (len(line) <= LINE_WIDTH or " " not in line) for line in lines)
        assert "-->" not in " ".join(lines)
        matched = SRT_TIMES.fullmatch(times)
        assert matched
        spans.append(milliseconds(matched))
    assert all(start < end for start, end in spans)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@given(segments())
def test_vtt_holds_every_word_and_no_markup(given_segments: list[Segment]) -> None:
    header, *cues = written("vtt", given_segments).split("\n\n")[:-1]
    assert header == "WEBVTT"
    texts = []
    for cue in cues:
        times, *lines = cue.split("\n")
        assert VTT_TIMES.fullmatch(times)
        assert not set("<>") & set("".join(lines))
        texts += " ".join(lines).split()
    unescaped = [t.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for t in texts]
    assert unescaped == [word.text for segment in given_segments for word in segment.words]


@pytest.mark.parametrize(
    ("start", "end", "times"),
    [
        (0.0, 1.0, "00:00:00,000 --> 00:00:01,000"),
        (0.0, 0.9999996, "00:00:00,000 --> 00:00:01,000"),
        (59.9996, 3599.9996, "00:01:00,000 --> 01:00:00,000"),
        (36_000.5, 363_600.25, "10:00:00,500 --> 101:00:00,250"),
        (2.0, 2.0, "00:00:02,000 --> 00:00:02,001"),
    ],
)
def test_timestamps(start: float, end: float, times: str) -> None:
    assert written("srt", [Segment("hello", start, end, 1.0, ())]) == f"1\n{times}\nhello\n\n"


@pytest.mark.parametrize("name", WRITERS)
def test_a_segment_without_text_writes_no_line_and_no_cue(name: str) -> None:
    assert name == "json" or written(name, [Segment("", 1.0, 2.0, 0.0, ())]) == written(name, [])


def test_subtitles_are_divided_at_pauses_and_otherwise_in_the_middle() -> None:
    def spoken(starts: list[float]) -> list[str]:
        words = tuple(Word(f"word{i}", start, start + 0.3, 1.0) for i, start in enumerate(starts))
        return [" ".join(cue.split("\n")[2:]) for cue in written("srt", [Segment.of(words)]).split("\n\n")[:-1]]

    assert spoken([0.0, 0.4, 0.8]) == ["word0 word1 word2"]
    assert spoken([0.0, 0.4, 2.0]) == ["word0 word1", "word2"]
    assert spoken([1.2 * i for i in range(8)]) == ["word0 word1 word2 word3", "word4 word5 word6 word7"]
    assert spoken([0.0, 1.2, 2.4, 4.1, 5.3, 6.5, 7.7]) == ["word0 word1 word2", "word3 word4 word5 word6"]


def test_an_arrow_in_the_text_cannot_be_taken_for_times() -> None:
    segment = Segment("a --> b & <i>", 0.0, 1.0, 1.0, ())
    assert "\na -> b & <i>\n" in written("srt", [segment])
    assert "\na --&gt; b &amp; &lt;i&gt;\n" in written("vtt", [segment])


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_appears_whole_or_not_at_all(name: str, tmp_path: Path) -> None:
    segment = Segment.of((Word("whole", 0.0, 1.0, 0.5),))
    path = tmp_path / f"talk.{name}"
    path.write_text("older")
    with pytest.raises(ZeroDivisionError), WRITERS[name].open(path) as writer:
        writer.write(Segment.of((Word("half", 0.0, 1.0, 1 / 0),)))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "older"
    with WRITERS[name].open(path) as writer:
        writer.write(segment)
        assert path.read_text() == "older"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_text(encoding="utf-8") == written(name, [segment])


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ASRError, match=r"cannot write .*absent.*No such file"),
        WRITERS["txt"].open(tmp_path / "absent/a.txt"),
    ):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(ASRError, match=r"cannot write .*folder"), WRITERS["txt"].open(tmp_path / "folder"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_confidence_of_a_segment_weighs_words_by_their_letters() -> None:
    segment = Segment.of((Word("a", 0.0, 0.1, 0.2), Word("long", 0.2, 0.9, 0.7)))
    assert segment.text == "a long"
    assert (segment.start, segment.end) == (0.0, 0.9)
    assert segment.confidence == pytest.approx((0.2 + 4 * 0.7) / 5)
