"""Streams and recordings: the same words for any cutting and type of the same samples, and errors that say why."""

import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import asr
from asr.decoding.beam import BeamSearch
from asr.decoding.greedy import Greedy
from asr.encoder import Encoder, EncoderConfig
from asr.errors import ASRError
from asr.features import FeatureConfig, log_mel
from asr.recognizer import Recognizer, find_model, load
from asr.runtime import Model
from asr.segmenter import EndpointRules, Hypothesis
from asr.tokenizer import Tokenizer
from asr.training.export import export_model
from asr.transcript import Segment, Transcript
from asr.vad import GateRules

DATA = Path(__file__).parent / "data"
CLIPS = sorted(DATA.glob("*-*.*"))
RATE = 16_000
# Short rules, so that a few seconds of speech hold several endpoints.
BUSY = EndpointRules(silence_seconds=0.24, max_seconds=2.0, cut_seconds=1.0, idle_seconds=0.5)


@lru_cache
def speech(name: str = "26-495-0007.flac", rate: int = RATE) -> NDArray[np.float32]:
    samples, found = soundfile.read(DATA / name, dtype="float32")
    return soxr.resample(samples, found, rate)


@pytest.fixture(scope="module", params=["greedy", "beam"])
def recognizer(request: pytest.FixtureRequest, tiny_model: Path) -> Recognizer:
    return load(tiny_model, decoder=request.param, rules=BUSY)


def streamed(recognizer: Recognizer, samples: Any, cuts: list[int], rate: int = RATE) -> list[Hypothesis]:
    """Final hypotheses of samples fed in pieces."""
    stream = recognizer.stream(rate)
    finals = []
    for piece in np.split(samples, sorted(min(cut, len(samples)) for cut in cuts)):
        given = stream.accept(piece)
        assert all(hypothesis.is_final for hypothesis in given[:-1])
        finals += [hypothesis for hypothesis in given if hypothesis.is_final]
    return finals + stream.finish()


def cuts_of(longest: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, longest), max_size=20) | st.builds(
        lambda size: list(range(size, longest, size)), st.integers(150, 5_000)
    )


@settings(max_examples=40)
@given(data=st.data(), name=st.sampled_from([clip.name for clip in CLIPS]), rate=st.sampled_from([8_000, RATE, 44_100]))
def test_any_cutting_gives_the_same_words_times_and_confidence(
    recognizer: Recognizer, data: st.DataObject, name: str, rate: int
) -> None:
    samples = speech(name, rate)[: 3 * rate]
    whole = streamed(recognizer, samples, [], rate)
    assert whole
    assert streamed(recognizer, samples, data.draw(cuts_of(len(samples))), rate) == whole


@settings(max_examples=15)
@given(data=st.data(), rate=st.sampled_from([8_000, RATE, 44_100]))
def test_any_cutting_passes_the_gate_with_the_same_words_times_and_confidence(
    recognizer: Recognizer, data: st.DataObject, rate: int
) -> None:
    gated = Recognizer(recognizer.model, recognizer.decoder, BUSY, GateRules(hangover_seconds=0.5))
    pause = np.zeros(rate * 2, np.float32)
    samples = np.concatenate([pause, speech(CLIPS[0].name, rate)[: 2 * rate], pause, speech(rate=rate)[:rate], pause])
    whole = streamed(gated, samples, [], rate)
    assert whole
    assert all(1.2 <= word.start <= word.end <= 8.3 for final in whole for word in final.words)
    assert streamed(gated, samples, data.draw(cuts_of(len(samples))), rate) == whole


def test_nobody_wakes_the_encoder_in_silence(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    gated = Recognizer(recognizer.model, recognizer.decoder, BUSY, GateRules())
    silence = np.random.default_rng(1).normal(0, 1e-3, 20 * RATE).astype(np.float32)
    stream = gated.stream()
    stream.accept(np.concatenate([speech(), silence]))
    monkeypatch.setattr(Model, "step", None)
    assert stream.accept(silence) == []
    assert stream.finish() == []


def test_a_gate_leaves_speech_without_pauses_as_it_is(recognizer: Recognizer) -> None:
    gated = Recognizer(recognizer.model, recognizer.decoder, recognizer.rules, GateRules())
    whole = recognizer.transcribe(speech())
    assert gated.transcribe(speech()).words == whole.words
    assert gated.transcribe(speech()).duration == whole.duration


@pytest.mark.parametrize("gate", [None, GateRules()], ids=["no gate", "gate"])
def test_no_word_is_lost_or_doubled_at_any_pause(gate: GateRules | None) -> None:
    recognizer = load(gate=gate)
    clips = [speech("19-198-0008.flac"), speech("27-124992-0002.flac")]
    alone = " ".join(load().transcribe(clip).text for clip in clips)
    for milliseconds in range(0, 3_001, 250):
        pause = np.random.default_rng(1).normal(0, 3e-4, milliseconds * RATE // 1000).astype(np.float32)
        transcript = recognizer.transcribe(np.concatenate([clips[0], pause, clips[1]]))
        aligned = jiwer.process_words(alone, transcript.text)
        assert (aligned.deletions, aligned.insertions) == (0, 0), f"{milliseconds} ms: {transcript.text}"
        assert aligned.substitutions <= 4


def test_no_word_is_lost_or_doubled_where_a_long_segment_is_cut() -> None:
    clip = speech("27-124992-0008.flac")
    whole = load().transcribe(clip)
    cut = load(rules=EndpointRules(max_seconds=3.0, cut_seconds=2.0)).transcribe(clip)
    assert len(cut.segments) > len(whole.segments)
    aligned = jiwer.process_words(whole.text, cut.text)
    assert aligned.deletions == 0
    assert aligned.insertions + aligned.substitutions <= 2  # a new segment begins without the words before it
    assert all(one != other for one, other in pairwise(cut.text.split()))


@pytest.mark.parametrize("path", CLIPS[:4], ids=lambda path: path.name)
def test_a_file_its_samples_and_a_stream_of_them_say_the_same(recognizer: Recognizer, path: Path) -> None:
    samples, rate = soundfile.read(path, dtype="float32")
    from_file = recognizer.transcribe(path)
    assert recognizer.transcribe(str(path)) == from_file
    assert recognizer.transcribe(samples, rate) == from_file
    assert tuple(h.segment for h in streamed(recognizer, samples, [5_000, 5_001], rate)) == from_file.segments
    assert from_file.duration == pytest.approx(len(samples) / rate)
    assert from_file.text == " ".join(word.text for word in from_file.words)
    assert len(from_file.segments) > 1


def test_samples_of_every_type_say_the_same(recognizer: Recognizer) -> None:
    samples = (speech() * 32_767).astype(np.int16)
    expected = recognizer.transcribe(samples)
    scaled = samples.astype(np.float64) / 32_768
    assert recognizer.transcribe(scaled) == expected
    assert recognizer.transcribe(scaled.tolist()) == expected
    assert recognizer.transcribe(samples.astype(np.int32) * 65_536) == expected
    assert recognizer.transcribe(np.stack([scaled, scaled], axis=1)) == expected
    assert recognizer.transcribe(scaled, RATE) == expected


def test_words_run_forward_within_the_recording(recognizer: Recognizer) -> None:
    transcript = recognizer.transcribe(CLIPS[0])
    times = [time for word in transcript.words for time in (word.start, word.end)]
    assert all(a <= b for a, b in pairwise([0.0, *times, transcript.duration]))
    assert all(0 < word.confidence <= 1 for word in transcript.words)


def test_a_partial_comes_only_when_its_text_is_new_and_turns_into_the_final(recognizer: Recognizer) -> None:
    stream = recognizer.stream()
    shown = ""
    given = []
    for piece in np.split(speech(), range(400, len(speech()), 400)):
        hypotheses = stream.accept(piece)
        for hypothesis in hypotheses:
            assert hypothesis.text
            assert hypothesis.text == " ".join(word.text for word in hypothesis.words)
            assert hypothesis.is_final or hypothesis.text != shown
            shown = "" if hypothesis.is_final else hypothesis.text
        assert len([h for h in hypotheses if not h.is_final]) <= 1
        given += hypotheses
    assert len(given) > 5
    assert given[-1].is_final or [h.is_final for h in stream.finish()][-1]


def test_finish_ends_a_stream_for_good(recognizer: Recognizer) -> None:
    stream = recognizer.stream()
    stream.accept(speech())
    assert all(hypothesis.is_final for hypothesis in stream.finish())
    assert stream.finish() == []
    with pytest.raises(ASRError, match="finished"):
        stream.accept(speech())


def test_a_stream_that_heard_nothing_says_nothing(recognizer: Recognizer) -> None:
    assert recognizer.stream().finish() == []
    stream = recognizer.stream(48_000)
    assert stream.accept([]) + stream.accept(np.zeros(0, np.int16)) + stream.accept(np.zeros((0, 2))) == []
    assert stream.finish() == []


@pytest.mark.parametrize("length", [1, 399, 400, 2_000])
def test_a_recording_may_be_shorter_than_anything(recognizer: Recognizer, length: int) -> None:
    transcript = recognizer.transcribe(speech()[:length])
    assert transcript.duration == length / RATE
    assert all(word.end <= transcript.duration for word in transcript.words)


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        (np.array([0.1, np.nan]), "NaN or infinite"),
        (np.array([0.1, np.inf], np.float32), "NaN or infinite"),
        ([1, 2, 3], "int64"),
        (np.zeros((2, 2, 2)), "3 dimensions"),
        (np.array(["a"]), "type"),
        (0.5, "0 dimensions"),
    ],
)
def test_samples_that_are_none_are_named_and_leave_the_stream_as_it_was(
    recognizer: Recognizer, samples: Any, sentence: str
) -> None:
    stream = recognizer.stream()
    finals = []
    for piece in np.array_split(speech(), 5):
        with pytest.raises(ASRError, match=sentence):
            stream.accept(samples)
        finals += [hypothesis for hypothesis in stream.accept(piece) if hypothesis.is_final]
    assert finals + stream.finish() == streamed(recognizer, speech(), [])
    with pytest.raises(ASRError, match=sentence):
        recognizer.transcribe(samples)


@pytest.mark.parametrize("rate", [0, -16_000, 1e9, 16_000.5, float("nan")])
def test_rates_that_are_none_are_named(recognizer: Recognizer, rate: float) -> None:
    with pytest.raises(ASRError, match=f"{rate} Hz"):
        recognizer.stream(rate)
    with pytest.raises(ASRError, match=f"{rate} Hz"):
        recognizer.transcribe(speech(), rate)


def test_a_missing_file_is_named(recognizer: Recognizer, tmp_path: Path) -> None:
    with pytest.raises(ASRError, match=r"absent\.wav"):
        recognizer.transcribe(tmp_path / "absent.wav")


def test_a_damaged_recording_gives_what_came_before_the_damage(recognizer: Recognizer, tmp_path: Path) -> None:
    path = tmp_path / "cut.flac"
    whole = (DATA / "19-198-0001.flac").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    segments: list[Segment] = []
    with pytest.raises(ASRError, match=r"cut\.flac"):
        segments.extend(recognizer.segments(path))
    assert 3 < segments[-1].end < 8
    with pytest.raises(ASRError, match=r"cut\.flac"):
        recognizer.transcribe(path)


def test_progress_runs_to_the_end(recognizer: Recognizer) -> None:
    done: list[float] = []
    samples = np.tile(speech(), 8)
    transcript = recognizer.transcribe(samples, progress=done.append)
    assert done == sorted(done)
    assert len(done) > 3
    assert done[-1] == transcript.duration == len(samples) / RATE


@pytest.mark.parametrize("gate", [None, GateRules()], ids=["no gate", "gate"])
def test_a_stream_takes_no_more_memory_after_minutes_than_after_seconds(
    tiny_model: Path, gate: GateRules | None
) -> None:
    stream = load(tiny_model, rules=BUSY, gate=gate).stream(8_000)
    pieces = np.array_split(np.concatenate([speech(clip.name, 8_000) for clip in CLIPS]), 20)
    sizes = []
    tracemalloc.start()
    for _ in range(6):
        for piece in pieces:
            stream.accept(piece)
        stream.accept(np.zeros(8_000 * 2, np.float32))
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert max(sizes[2:]) - sizes[1] < 50_000


def test_streams_at_the_same_time_do_not_meet(recognizer: Recognizer) -> None:
    one, two = speech(), speech(CLIPS[1].name)[: len(speech())]
    streams = recognizer.stream(), recognizer.stream()
    finals: tuple[list[Hypothesis], list[Hypothesis]] = [], []
    for pieces in zip(np.array_split(one, 9), np.array_split(two, 9), strict=True):
        for stream, piece, heard in zip(streams, pieces, finals, strict=True):
            heard += [hypothesis for hypothesis in stream.accept(piece) if hypothesis.is_final]
    for stream, samples, heard in zip(streams, (one, two), finals, strict=True):
        assert heard + stream.finish() == streamed(recognizer, samples, [])


def test_threads_may_share_a_recognizer(recognizer: Recognizer) -> None:
    clips = [speech(clip.name)[: 2 * RATE] for clip in CLIPS]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(recognizer.transcribe, clips))
    assert together == [recognizer.transcribe(clip) for clip in clips]


@pytest.fixture
def overlapped(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> Recognizer:
    """One that works on several parts of a recording, which are short, at the same time."""
    monkeypatch.setattr("asr.recognizer.BLOCK_SECONDS", 0.7)
    return Recognizer(recognizer.model, recognizer.decoder, recognizer.rules, threads=2)


@pytest.mark.parametrize("gate", [None, GateRules(hangover_seconds=0.5)], ids=["no gate", "gate"])
@pytest.mark.parametrize("rate", [8_000, RATE])
def test_two_threads_hear_in_a_recording_what_a_stream_does(
    overlapped: Recognizer, gate: GateRules | None, rate: int
) -> None:
    overlapped.gate = gate
    pause = np.zeros(2 * rate, np.float32)
    samples = np.concatenate([pause, *(part for clip in CLIPS[:4] for part in (speech(clip.name, rate), pause))])
    transcript = overlapped.transcribe(samples, rate)
    assert len(transcript.segments) > 4
    assert transcript.segments == tuple(h.segment for h in streamed(overlapped, samples, [], rate))
    assert transcript.duration == len(samples) / rate


def test_what_goes_wrong_in_another_thread_is_raised_and_ends_both(
    overlapped: Recognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = threading.active_count()
    for name in ("asr.recognizer.Model.step", "asr.recognizer.Segmenter.hear"):
        with monkeypatch.context() as patch:
            patch.setattr(name, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                overlapped.transcribe(np.tile(speech(), 8))
        assert threading.active_count() == threads


def test_a_recording_that_is_left_early_leaves_no_thread(overlapped: Recognizer) -> None:
    threads = threading.active_count()
    segments = overlapped.segments(np.tile(speech(), 8))
    first, *_ = [next(segments) for _ in range(3)]  # which are more than the first part holds
    assert threading.active_count() == threads + 2
    segments.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads
    assert first == overlapped.transcribe(speech()).segments[0]


def test_damage_is_told_by_two_threads_too(overlapped: Recognizer, tmp_path: Path) -> None:
    path = tmp_path / "cut.flac"
    whole = (DATA / "19-198-0001.flac").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    segments: list[Segment] = []
    with pytest.raises(ASRError, match=r"cut\.flac"):
        segments.extend(overlapped.segments(path))
    assert 3 < segments[-1].end < 8


@pytest.mark.parametrize("length", [1, 639, 641, 16_000, 20_479, 20_480, 20_481, 30_001])
def test_emissions_are_in_step_with_the_audio(length: int, tiny_model: Path) -> None:
    """What is dropped at the start and fed at the end is what the lookahead needs; no sample goes unheard."""
    samples = speech()[:length]
    model = Model.load(tiny_model, precision="fp32")
    kept: list[NDArray[np.float32]] = []

    class Keeping(Greedy):
        def step(self, log_probs: NDArray[np.float32], state: Any) -> Any:
            kept.append(log_probs)
            return super().step(log_probs, state)

    endless = EndpointRules(silence_seconds=1e4, max_seconds=1e5, idle_seconds=1e4, tail_seconds=0.0)
    Recognizer(model, Keeping(), endless).transcribe(samples)
    found = np.concatenate(kept)
    frames = log_mel(np.pad(samples, (0, RATE)))
    frames = frames[: len(frames) // 4 * 4]
    expected = model.step(frames[None], model.start())[0][0, model.config.lookahead :]
    assert length <= len(found) * 640 < length + RATE // 2
    np.testing.assert_allclose(found, expected[: len(found)], atol=1e-3)


def test_a_bidirectional_model_speaks_at_the_end(tmp_path: Path) -> None:
    encoder = Encoder(EncoderConfig(kind="bidirectional", conv_channels=24, width=48, layers=2))
    encoder.output.weight.data.mul_(8.0)
    encoder.output.bias.data[0] += 4.0
    export_model(encoder, Tokenizer(), FeatureConfig(), tmp_path / "model", name="both ways")
    recognizer = load(tmp_path / "model", rules=BUSY)
    stream = recognizer.stream()
    assert [stream.accept(piece) for piece in np.array_split(speech(), 7)] == [[]] * 7
    finals = stream.finish()
    assert finals
    assert all(final.is_final for final in finals)
    assert finals == streamed(recognizer, speech(), [])
    assert recognizer.transcribe(speech()).segments == tuple(final.segment for final in finals)


def test_options_of_load(tiny_model: Path) -> None:
    assert isinstance(load(tiny_model).decoder, Greedy)
    assert isinstance(load(tiny_model, decoder="beam").decoder, BeamSearch)
    assert load(str(tiny_model), rules=BUSY).rules == BUSY
    with pytest.raises(ASRError, match=r"'best'.*auto, beam, greedy"):
        load(tiny_model, decoder="best")


def test_weights_of_the_decoder_come_with_the_model(tiny_model: Path, tmp_path: Path) -> None:
    encoder = Encoder(EncoderConfig(conv_channels=8, width=8, layers=1))
    for weights in ({"beam": 7}, {"bean": 7}):
        export_model(encoder, Tokenizer(), FeatureConfig(), tmp_path / "model", name="tiny", decoder=weights)
        if "beam" in weights:
            decoder = load(tmp_path / "model", decoder="beam").decoder
            assert isinstance(decoder, BeamSearch)
            assert decoder.config.beam == 7
        else:
            with pytest.raises(ASRError, match=r"unknown decoder weights.*bean"):
                load(tmp_path / "model", decoder="beam")


def test_an_unknown_model_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ASRError, match=r"no model 'klingon'.*bundled model: "):
        load("klingon")
    with pytest.raises(ASRError, match=r"no config\.json"):
        load(tmp_path)


def test_a_folder_of_recordings_named_like_a_model_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert find_model("tiny") == Path("tiny")
    monkeypatch.setattr("asr.recognizer.PLACES", (tiny_model.parent,))
    assert find_model("tiny") == tiny_model


def test_the_package_imports_next_to_nothing() -> None:
    program = "import sys, asr; print([name for name in ('numpy', 'onnxruntime', 'torch') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def test_recognising_needs_no_torch(tiny_model: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = sys.modules['sentencepiece'] = sys.modules['librosa'] = None\n"
        f"import asr; print(asr.load({str(tiny_model)!r}).transcribe({str(CLIPS[0])!r}).duration)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert float(done.stdout or "nan") == soundfile.info(CLIPS[0]).duration, done.stderr


def test_the_package_gives_its_whole_interface() -> None:
    assert set(asr.__all__) <= set(dir(asr))
    assert all(getattr(asr, name).__name__ == name for name in asr.__all__)
    assert asr.Transcript is Transcript
    with pytest.raises(AttributeError, match="nonsense"):
        _ = asr.nonsense
    assert replace(asr.EndpointRules(), tail_seconds=0.0).tail_seconds == 0.0
