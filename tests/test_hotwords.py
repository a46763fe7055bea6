"""Hot-words: what they add against brute force, how they are written, and what they do to real speech; n-best."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr.cli import main
from asr.decoding.beam import BeamConfig, BeamSearch
from asr.decoding.fusion import WordScorer
from asr.decoding.hotwords import Hotwords, HotwordScorer, phrases
from asr.decoding.kneser_ney import build_corpus, train
from asr.decoding.lm import UNKNOWN_ID
from asr.errors import ASRError
from asr.recognizer import Recognizer, load
from asr.segmenter import EndpointRules, Hypothesis
from asr.tokenizer import BOUNDARY

CHARACTERS = ["<blank>", BOUNDARY, "a", "b", "c"]
PIECES = ["<blank>", f"{BOUNDARY}a", "b", f"{BOUNDARY}ba", BOUNDARY, "ab", "c", "a"]
LM = train(build_corpus(["a ab b a", "ba ab a", "b b ab", "ab bab a", "b a"], 4), order=3)
PENALTY = 5.0
DATA = Path(__file__).parent / "data"
CLIP = DATA / "1462-170138-0007.ogg"  # ... drew Alexander's attention to the stage
RATE = 16_000
BUSY = EndpointRules(silence_seconds=0.24, max_seconds=2.0, cut_seconds=1.0, idle_seconds=0.5)

words = st.text("ab", min_size=1, max_size=4)
lists = st.dictionaries(st.lists(words, min_size=1, max_size=4).map(" ".join), st.floats(0, 9), min_size=1, max_size=6)


def spell(tokens: list[str], phrase: str) -> list[list[int]]:
    """All ways to spell a phrase in tokens of whatever length, the boundary in front being optional."""
    wanted = phrase.replace(" ", BOUNDARY)
    found = []
    open_ways: list[tuple[str, list[int]]] = [(wanted, []), (BOUNDARY + wanted, [])]
    while open_ways:
        rest, ids = open_ways.pop()
        if not rest:
            found.append(ids)
        for i, token in enumerate(tokens[1:], start=1):
            if rest.startswith(token):
                open_ways.append((rest.removeprefix(token), [*ids, i]))
    return found


def scorer(boosts: dict[str, float], tokens: list[str], base: WordScorer | None = None) -> HotwordScorer:
    return HotwordScorer(Hotwords(boosts, lambda phrase: spell(tokens, phrase)[:1], tokens, base), base)


def word_scorer(tokens: list[str]) -> WordScorer:
    return WordScorer(LM, tokens, 0.7, 0.4, PENALTY)


def occurrences(phrase: list[str], text: list[str]) -> int:
    return sum(text[i : i + len(phrase)] == phrase for i in range(len(text)))


def by_brute_force(boosts: dict[str, float], text: list[str], penalty: float = 0.0) -> float:
    """Nats that complete words earn."""
    own: dict[str, float] = {}
    for phrase in sorted(boosts, key=len):
        inside = sum(boost * occurrences(other.split(), phrase.split()) for other, boost in own.items())
        own[phrase] = max(0.0, boosts[phrase] - inside)
    known = {word for phrase in boosts for word in phrase.split()}
    unknown = [word for word in text if word in known and LM.ids([word])[0] == UNKNOWN_ID]
    return penalty * len(unknown) + sum(boost * occurrences(phrase.split(), text) for phrase, boost in own.items())


def total(judge: HotwordScorer | WordScorer, ids: list[int], complete: bool = True) -> float:
    """What a scorer gives a token sequence, from its beginning to its end."""
    state, score = judge.start()[None], 0.0
    for i in ids:
        added, state = judge.extend(state, np.array([i]))
        score += float(added[0])
    return score + float(judge.final(state)[0]) if complete else score


def said(tokens: list[str], ids: list[int]) -> list[str]:
    return "".join(tokens[i] for i in ids).replace(BOUNDARY, " ").split()


@given(lists, st.lists(st.integers(1, 7), max_size=30), st.sampled_from([CHARACTERS, PIECES]), st.booleans())
def test_boosts_given_and_taken_back_equal_brute_force(
    boosts: dict[str, float], text: list[int], tokens: list[str], with_lm: bool
) -> None:
    ids = [1 + i % (len(tokens) - 1) for i in text]
    base = word_scorer(tokens) if with_lm else None
    found = total(scorer(boosts, tokens, base), ids) - (total(base, ids) if base else 0.0)
    wanted = by_brute_force(boosts, said(tokens, ids), PENALTY if with_lm else 0.0)
    assert found == pytest.approx(wanted, abs=1e-9)


@given(lists, st.data(), st.sampled_from([CHARACTERS, PIECES]))
def test_every_spelling_of_a_text_earns_the_same(
    boosts: dict[str, float], data: st.DataObject, tokens: list[str]
) -> None:
    text = data.draw(st.lists(st.sampled_from(sorted(boosts)) | words, min_size=1, max_size=3).map(" ".join))
    judge = scorer(boosts, tokens)
    for ids in spell(tokens, text)[:8]:
        assert total(judge, ids) == pytest.approx(by_brute_force(boosts, text.split()), abs=1e-9)


@given(words, st.floats(0, 9))
def test_a_boost_is_given_letter_by_letter(word: str, boost: float) -> None:
    judge = scorer({word: boost}, CHARACTERS)
    (ids,) = (ids for ids in spell(CHARACTERS, word) if ids[0] != 1)
    for n in range(len(word) + 1):
        assert total(judge, ids[:n], complete=False) == pytest.approx(boost * n / len(word))
    assert total(judge, [*ids, 4], complete=False) == pytest.approx(0)  # "c" makes it another word


@given(lists, st.lists(st.integers(1, 4), max_size=20))
def test_many_at_once_score_as_one_by_one(boosts: dict[str, float], ids: list[int]) -> None:
    judge = scorer(boosts, CHARACTERS, word_scorer(CHARACTERS))
    rows = np.array([ids, ids[::-1], sorted(ids)], np.int64)
    state, score = np.repeat(judge.start()[None], 3, axis=0), np.zeros(3)
    for tokens in rows.T:
        added, state = judge.extend(state, tokens)
        score += added
    assert (score + judge.final(state)).tolist() == pytest.approx([total(judge, row) for row in rows.tolist()])


def test_a_longer_match_that_fails_leaves_the_shorter_one_its_boost() -> None:
    boosts = {"ab": 3.0, "ab ba a": 9.0, "ba": 2.0}
    judge = scorer(boosts, CHARACTERS)
    for text, wanted in [("ab ba a", 9.0), ("ab ba b", 5.0), ("ab b", 3.0), ("aba", 0.0), ("b ba a", 2.0)]:
        assert total(judge, spell(CHARACTERS, text)[0]) == pytest.approx(wanted)


def test_all_words_of_phrases_count_as_known() -> None:
    base = word_scorer(CHARACTERS)
    judge = scorer({"bbb a": 4.0}, CHARACTERS, base)
    for text, wanted in [("bbb a", 4.0 + PENALTY), ("bbb", PENALTY), ("bbbb", 0.0), ("bb bbb", PENALTY)]:
        ids = spell(CHARACTERS, text)[0]
        assert total(judge, ids) - total(base, ids) == pytest.approx(wanted)


@given(lists, lists, st.lists(st.integers(1, 4), max_size=12), st.lists(st.integers(1, 4), max_size=12))
def test_exchanged_in_mid_text_each_list_counts_for_what_ends_in_its_time(
    before: dict[str, float], after: dict[str, float], early: list[int], late: list[int]
) -> None:
    split = len(early) // 2
    first, second = scorer(before, CHARACTERS), scorer(after, CHARACTERS)
    state, score = first.start()[None], 0.0
    for i in early:
        added, state = first.extend(state, np.array([i]))
        score += float(added[0])
    back, state = first.take_back(state)
    up, state = second.take_up(np.array(early[:split], np.int64), np.array([[-1, *early[split:]]]), state)
    score += float(back[0] + up[0])
    for i in late:
        added, state = second.extend(state, np.array([i]))
        score += float(added[0])
    score += float(second.final(state)[0])

    # What each list gives to the words that are complete before the exchange.
    closed = early[: len(early) - early[::-1].index(1)] if 1 in early else []
    done = said(CHARACTERS, closed)
    whole = said(CHARACTERS, early + late)
    expected = by_brute_force(before, done) + by_brute_force(after, whole) - by_brute_force(after, done)
    assert score == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("Nuffield Kaliko=8 ", {"nuffield": None, "kaliko": 8.0}),
        ("general relativity=12.5, Nuffield,", {"general relativity": 12.5, "nuffield": None}),
        ("general relativity,", {"general relativity": None}),
        ("Zürich\nO'Brien = 3", {"zurich": None, "o'brien": 3.0}),
        (["new york", "York=0"], {"new york": None, "york": 0.0}),
        ({"Well-known": 4, "well known": 2.0, "E=mc": None}, {"well known": 4.0, "e mc": None}),
        ("", {}),
        (" , ", {}),
    ],
)
def test_phrases_as_they_are_written(wanted: Any, found: dict[str, float | None]) -> None:
    assert phrases(wanted) == found


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_phrases_of_a_file_are_its_lines(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    text = "# names\n\nNuffield, Lord=9\ngeneral relativity\n"
    path.write_text(text, encoding=encoding)
    assert phrases(f"@{path}") == {"nuffield lord": 9.0, "general relativity": None}


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ("Nuffield=much", "'much' after its ="),
        ("Nuffield=-1", "boost of -1.0"),
        ("Nuffield=nan", "boost of nan"),
        ("北京", "no letters from a to z"),
        ("=8", "no letters from a to z"),
        ("@/does/not/exist", "cannot read the hot-words in /does/not/exist"),
    ],
)
def test_phrases_that_are_none_are_named(
    wanted: str, sentence: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ASRError, match=sentence):
        phrases(wanted)
    assert main(["transcribe", str(CLIP), "--model", str(tiny_model), "--hotwords", wanted]) == 2
    errors = capsys.readouterr().err
    assert sentence in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (5, "the hot-words are 5"),
        ([5], "the hot-word 5 is no text"),
        (b"Nuffield", "the hot-word 78 is no text"),
        ({"Nuffield": "8"}, "a boost of '8'"),
        ({None: 8}, "the hot-word None is no text"),
        (["drew " * 201], "begins with 'drew drew drew drew ' has 1004 letters; it may have 1000"),
    ],
)
def test_what_is_no_text_or_too_long_is_named(wanted: Any, sentence: str) -> None:
    with pytest.raises(ASRError, match=sentence):
        phrases(wanted)


@given(st.text(max_size=30))
def test_any_text_gives_phrases_or_a_sentence(text: str) -> None:
    try:
        found = phrases([text])
    except ASRError:
        return
    assert len(found) == 1
    assert phrases(found) == found


@given(st.integers(0, 10**6), lists)
@settings(max_examples=30)
def test_without_phrases_the_search_is_the_same_to_the_bit(seed: int, boosts: dict[str, float]) -> None:
    rng = np.random.default_rng(seed)
    log_probs = np.log(rng.dirichlet(np.full(5, 0.3), size=60).clip(1e-6)).astype(np.float32)
    plain = BeamSearch.with_language_model(LM, CHARACTERS, BeamConfig(beam=8))
    loud = plain.with_hotwords(plain.hotwords(boosts, lambda phrase: spell(CHARACTERS, phrase)[:1]))
    again = loud.with_hotwords(None)
    wanted = plain.best(plain.step(log_probs, plain.start()), 8)
    found = again.best(again.step(log_probs, again.start()), 8)
    assert [path.score for path in found] == [path.score for path in wanted]
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(found, wanted, strict=True))


def speech(rate: int = RATE) -> NDArray[np.float32]:
    samples, found = soundfile.read(CLIP, dtype="float32")
    return soxr.resample(samples, found, rate)


@pytest.fixture(scope="module")
def recognizer(tiny_model: Path) -> Recognizer:
    return load(tiny_model, decoder="beam", rules=BUSY)


def streamed(
    recognizer: Recognizer, samples: NDArray[np.float32], rate: int, cuts: list[int], changes: dict[int, str]
) -> list[Hypothesis]:
    """Final hypotheses of samples fed in pieces, with hot-words exchanged after some number of samples."""
    stream = recognizer.stream(rate, nbest=3)
    begin, finals = 0, []
    for end in sorted({*(min(cut, len(samples)) for cut in cuts), *changes, len(samples)}):
        finals += [hypothesis for hypothesis in stream.accept(samples[begin:end]) if hypothesis.is_final]
        if end in changes:
            stream.set_hotwords(changes[end])
        begin = end
    return finals + stream.finish()


@settings(max_examples=25)
@given(data=st.data(), rate=st.sampled_from([8_000, RATE, 44_100]))
def test_any_cutting_gives_the_same_with_hot_words_exchanged_at_the_same_sample(
    recognizer: Recognizer, data: st.DataObject, rate: int
) -> None:
    samples = speech(rate)[: 3 * rate]
    several = st.sampled_from(["", "a", "e t=20", "it is, a=9", "the"])
    changes = data.draw(st.dictionaries(st.integers(0, len(samples)), several, max_size=3))
    cuts = data.draw(st.lists(st.integers(0, len(samples)), max_size=12))
    found = streamed(recognizer, samples, rate, cuts, changes)
    assert found == streamed(recognizer, samples, rate, [], changes)


def test_hot_words_of_a_recording_a_stream_and_a_recogniser_are_the_same(recognizer: Recognizer) -> None:
    prepared = recognizer.hotwords("e t=20, a=9")
    plain, wanted = recognizer.transcribe(CLIP), recognizer.transcribe(CLIP, hotwords="e t=20, a=9")
    assert wanted.text != plain.text
    assert recognizer.transcribe(CLIP, hotwords=prepared) == wanted
    assert recognizer.transcribe(CLIP, hotwords={"e t": 20, "a": 9}) == wanted
    assert recognizer.transcribe(CLIP, hotwords="") == plain
    always = load(recognizer.model.directory, rules=BUSY, hotwords="e t=20, a=9")
    assert always.transcribe(CLIP) == wanted
    stream = always.stream()
    stream.set_hotwords(None)
    finals = [*stream.accept(speech()), *stream.finish()]
    assert tuple(final.segment for final in finals if final.is_final) == plain.segments


def test_a_greedy_recogniser_says_that_it_knows_no_hot_words(tiny_model: Path, capsys: Any) -> None:
    greedy = load(tiny_model, decoder="greedy")
    assert greedy.transcribe(CLIP, hotwords="") == greedy.transcribe(CLIP)
    with pytest.raises(ASRError, match="decoder is greedy"):
        greedy.stream(hotwords="Nuffield")
    assert main(["transcribe", str(CLIP), "--model", str(tiny_model), "--greedy", "--hotwords", "Nuffield"]) == 2
    assert "leave out --greedy" in capsys.readouterr().err


def test_a_name_that_is_misheard_is_heard_when_it_is_listed() -> None:
    recognizer = load()
    plain = recognizer.transcribe(CLIP).text
    named = recognizer.transcribe(CLIP, hotwords="drew, Nuffield, Kaliko=4").text
    assert "drew" not in plain
    assert "drew" in named
    assert named.split()[:8] == plain.split()[:8]


def test_alternatives_are_distinct_begin_with_the_segment_and_fall_in_score(recognizer: Recognizer) -> None:
    plain, found = recognizer.transcribe(CLIP), recognizer.transcribe(CLIP, nbest=4)
    assert found.text == plain.text
    for segment in found.segments:
        texts = [alternative.text for alternative in segment.alternatives]
        scores = [alternative.score for alternative in segment.alternatives]
        assert texts[0] == segment.text
        assert segment.alternatives[0].words == segment.words
        assert len(set(texts)) == len(texts) <= 4
        assert scores == sorted(scores, reverse=True)
        for alternative in segment.alternatives:
            assert alternative.text == " ".join(word.text for word in alternative.words)
    assert max(len(segment.alternatives) for segment in found.segments) > 1
    with pytest.raises(ASRError, match="0 alternatives"):
        recognizer.stream(nbest=0)


def test_transcribe_writes_alternatives_and_the_model_as_json_and_as_text(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["transcribe", str(CLIP), "--model", str(tiny_model), "--nbest", "3"]
    assert main([*command, "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == "tiny"
    for segment in document["segments"]:
        assert segment["alternatives"][0]["text"] == segment["text"]
        assert segment["alternatives"][0]["words"] == segment["words"]
    assert main(command) == 0
    blocks = capsys.readouterr().out.rstrip("\n").split("\n\n")
    assert len(blocks) == len(document["segments"])
    for block, segment in zip(blocks, document["segments"], strict=True):
        rows = [line.split("\t") for line in block.splitlines()]
        assert [(float(score), text) for score, text in rows] == [
            (alternative["score"], alternative["text"]) for alternative in segment["alternatives"]
        ]


@pytest.mark.parametrize("wrong", [["--nbest", "0"], ["--nbest", "3", "--greedy"], ["--nbest", "3", "--format", "srt"]])
def test_wrong_uses_of_nbest_are_named(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", str(CLIP), *wrong]) == 2
    assert "--nbest" in capsys.readouterr().err
