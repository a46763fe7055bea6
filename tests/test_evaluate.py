"""Evaluation: the figures against jiwer and by hand, and the verb on real speech."""

import json
from pathlib import Path

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import asr
from asr.cli import main
from asr.errors import ASRError
from asr.text import normalize
from asr.training.evaluate import (
    Recognised,
    Score,
    evaluate,
    interval,
    recognise,
    recognise_all,
    report,
    score,
    summary,
)
from asr.training.manifest import COLUMNS, Utterance, read

DATA = Path(__file__).parent / "data"
CLIPS = read(DATA / "clips.tsv")

SENTENCE = st.lists(st.sampled_from(("a", "an", "the", "cat", "cats", "sat", "on")), max_size=6).map(" ".join)
SENTENCES = st.lists(st.tuples(SENTENCE, SENTENCE), min_size=1, max_size=8)


def result(reference: str, hypothesis: str, corpus: str = "c", path: str = "x.wav", seconds: float = 2.0) -> Recognised:
    """An utterance that was read as `reference` and heard as `hypothesis`."""
    utterance = Utterance(Path(path), seconds, "s", corpus, reference.upper())
    return Recognised(utterance, reference, hypothesis, seconds, 0.01, 0.1)


@given(SENTENCES)
def test_rates_are_jiwers(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = map(list, zip(*pairs, strict=True))
    s = score([result(*pair) for pair in pairs])
    assert s.words == sum(len(reference.split()) for reference in references)
    if s.words:
        assert s.wer == pytest.approx(jiwer.wer(references, hypotheses))
        assert s.cer == pytest.approx(jiwer.cer(references, hypotheses))
        assert s.wer == pytest.approx((s.substitutions + s.deletions + s.insertions) / s.words)
    else:
        assert (s.wer, s.wer_interval, s.cer) == (None, None, None)


@given(SENTENCES, SENTENCES)
def test_corpora_and_speakers_add_up(one: list[tuple[str, str]], two: list[tuple[str, str]]) -> None:
    whole = evaluate([*(result(*pair, "one") for pair in one), *(result(*pair, "two") for pair in two)])
    for count in ("utterances", "audio_seconds", "words", "substitutions", "deletions", "insertions"):
        for parts in (whole.corpora, whole.speakers):
            assert sum(getattr(s, count) for s in parts.values()) == getattr(whole.overall, count)


def test_the_interval_is_zero_where_nothing_is_wrong_and_shrinks_with_more_utterances() -> None:
    words = np.full(400, 10)
    errors = np.random.default_rng(1).binomial(10, 0.2, 400)
    assert interval(np.zeros(400), words) == (0.0, 0.0)
    low, high = interval(errors, words)
    fewer_low, fewer_high = interval(errors[:40], words[:40])
    assert low < errors.sum() / words.sum() < high
    assert high - low < fewer_high - fewer_low
    # The sum of independent errors is nearly normal: 1.96 standard errors on either side.
    assert high - low == pytest.approx(2 * 1.96 * errors.std() / 10 / np.sqrt(400), rel=0.15)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=20))
def test_the_interval_is_in_order_and_repeatable(counts: list[tuple[int, int]]) -> None:
    errors, words = np.array(counts).T
    low, high = interval(errors, words)
    assert 0 <= low <= high
    assert interval(errors, words) == (low, high)


def test_the_commonest_errors_are_counted_word_by_word() -> None:
    found = evaluate(
        [
            result("a cat sat", "a hat sat"),
            result("the cat sat", "the hat"),
            result("on the mat", "on the the mat"),
            result("two cats", "two"),
        ]
    )
    assert found.substitutions[0] == ("cat", "hat", 2)
    assert dict(found.deletions) == {"sat": 1, "cats": 1}
    assert found.insertions == [("the", 1)]
    assert found.recognition_rtf == pytest.approx(0.05)
    assert found.reading_rtf == pytest.approx(0.005)


def test_the_summary_says_it_all() -> None:
    lines = summary(evaluate([result("a cat", "a hat", "one"), result("a dog", "a dog", "two")])).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["one", "two", "all"]
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[3].split()[4] == "25.00"
    assert "said -> heard: cat -> hat (1)" in lines


def test_the_report_shows_the_worst_first() -> None:
    text = report([result("a cat", "a cat", path="good.wav"), result("a cat sat", "a hat", path="bad.wav")])
    assert text.splitlines()[0] == "bad.wav  2 of 3 words wrong"
    assert "REF: a cat sat\nHYP: a hat ***\n" in text
    assert text.index("good.wav  0 of 2 words wrong") > text.index("HYP")


def test_nothing_to_evaluate_is_refused() -> None:
    with pytest.raises(ASRError, match="no utterance to evaluate"):
        evaluate([])


def test_an_utterance_is_heard_as_transcribe_hears_it(tiny_model: Path) -> None:
    recognizer = asr.load(tiny_model)
    for utterance in CLIPS[-2:]:
        heard = recognise(recognizer, utterance)
        assert heard.reference == normalize(utterance.text)
        assert heard.hypothesis == normalize(recognizer.transcribe(utterance.path).text)
        assert heard.audio_seconds == pytest.approx(utterance.seconds, abs=0.1)


def test_processes_change_nothing_and_keep_the_order(tiny_model: Path) -> None:
    lost = Utterance(DATA / "lost.wav", 1.0, "s", "c", "A")
    utterances = [CLIPS[0], lost, CLIPS[3]]
    one = list(recognise_all(str(tiny_model), utterances))
    two = list(recognise_all(str(tiny_model), utterances, jobs=2))
    for alone, shared in zip(one, two, strict=True):
        if isinstance(alone, Recognised) and isinstance(shared, Recognised):
            assert (alone.utterance, alone.hypothesis) == (shared.utterance, shared.hypothesis)
        else:
            assert str(alone) == str(shared) == f"{lost.path} does not exist: check the name"


# The verb


def test_the_clips_are_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", str(tmp_path / "figures.json"), "--report", str(tmp_path / "report.txt")]
    assert main(["evaluate", str(DATA / "clips.tsv"), "--speakers", *files]) == 0
    printed = capsys.readouterr().out
    assert {clip.speaker for clip in CLIPS} <= {line.split()[0] for line in printed.splitlines() if line}
    figures = json.loads((tmp_path / "figures.json").read_text())
    overall = Score(**figures["overall"])
    assert overall.utterances == len(figures["utterances"]) == 8
    assert overall.words == 128
    assert overall.wer is not None
    assert overall.wer < 0.5
    assert f"{100 * overall.wer:.2f}" in printed
    assert figures["corpora"].keys() == {"librispeech-dev-clean", "librispeech-train-clean-100"}
    assert {u["path"] for u in figures["utterances"]} == {str(clip.path) for clip in CLIPS}
    assert all(str(clip.path) in (tmp_path / "report.txt").read_text() for clip in CLIPS)


def test_both_graphs_are_compared(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    options = ["--model", str(tiny_model), "--limit", "2", "--compare", "--json", str(out)]
    assert main(["evaluate", str(DATA / "clips.tsv"), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[-2:]] == ["int8", "fp32"]
    assert json.loads(out.read_text())["fp32"]["overall"]["utterances"] == 2


def test_limited_utterances_are_spread_over_the_source(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    options = ["--model", str(tiny_model), "--limit", "2", "--greedy", "--json", str(out)]
    assert main(["evaluate", str(DATA / "clips.tsv"), *options]) == 0
    paths = [u["path"] for u in json.loads(out.read_text())["utterances"]]
    assert paths == [str(CLIPS[0].path), str(CLIPS[4].path)]


def test_a_recording_that_cannot_be_read_is_told_and_left_out(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "m.tsv"
    rows = [COLUMNS, ("lost.wav", "1.0", "s", "c", "A"), (CLIPS[0].path.name, "2.86", "s", "c", CLIPS[0].text)]
    manifest.write_text("".join("\t".join(row) + "\n" for row in rows))
    assert main(["evaluate", str(manifest), "--data", str(DATA), "--model", str(tiny_model)]) == 1
    printed = capsys.readouterr()
    assert printed.err == f"asr: {DATA / 'lost.wav'} does not exist: check the name\n"
    assert printed.out.splitlines()[1].split()[:2] == ["c", "1"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nosuch.tsv"], 1, "there is no manifest or folder nosuch.tsv"),
        ([str(DATA / "clips.tsv"), "--limit", "0"], 2, "--limit is 0; it must be 1 or more"),
        ([str(DATA / "clips.tsv"), "--jobs", "-1"], 2, "--jobs is -1; it must be 1 or more"),
        ([str(DATA / "clips.tsv"), "--model", "nosuch"], 1, "there is no model 'nosuch'"),
        (
            [str(DATA / "clips.tsv"), "--limit", "1", "--model", "TINY", "--json", "no/such/folder.json"],
            1,
            "cannot write no/such",
        ),
    ],
)
def test_wrong_commands_are_told(
    arguments: list[str], code: int, said: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tiny_model) if argument == "TINY" else argument for argument in arguments]
    assert main(["evaluate", *arguments]) == code
    assert capsys.readouterr().err.startswith(f"asr: {said}")
