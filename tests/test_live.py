"""`asr live` and `asr devices`: on stand-ins, and from a sound server's speaker through a microphone to the words."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import jiwer
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

import asr
from asr.audio import Resampler
from asr.cli import main
from asr.cli.screen import METER_CELLS, State, footer, meter, unfinished
from asr.errors import ASRError
from asr.microphone import Device, Disconnected
from asr.segmenter import Hypothesis
from asr.text import normalize
from asr.transcript import Word

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data"
RATE = 16_000
SERVER_RATE = 44_100
NEAR = 0.15  # character error rate between a recording and the same heard from any sample on: frames fall elsewhere
PAUSE = np.zeros(RATE * 3 // 2, np.float32)  # longer than an endpoint needs

Event = Callable[["FakeMicrophone"], None]


def no_event(microphone: "FakeMicrophone") -> None:
    """Nothing happens."""


class FakeMicrophone:
    """A microphone that sends three blocks, with something happening after the second, and goes on until stopped."""

    device = Device(0, "Fake", "Test", 1, 48_000, is_default=True)
    sample_rate = 48_000
    event: Event = staticmethod(no_event)

    def __init__(self, device: str | None) -> None:
        self.overflows = 0
        self.stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def __iter__(self) -> Iterator[np.ndarray]:
        block = np.full(480, 0.5, np.float32)
        yield block
        yield block
        self.event(self)
        yield block
        assert self.stopped

    def reconnect(self) -> bool:
        self.event = FakeMicrophone.stop
        return not self.stopped

    def stop(self) -> None:
        self.stopped = True


def hypothesis(text: str, is_final: bool) -> Hypothesis:
    """Words of a tenth of a second each, from the start of the stream."""
    words = tuple(Word(word, i / 10, (i + 1) / 10, 0.5) for i, word in enumerate(text.split()))
    return Hypothesis(text, is_final, 0.0, len(words) / 10, words)


class FakeRecognizer:
    """Hears "one two", then "three", of which the end comes only with `finish`, in every stream anew."""

    def stream(self, sample_rate: float) -> Self:
        assert sample_rate == FakeMicrophone.sample_rate
        self.script = iter([("one", False), ("one two", True), ("three", False), ("three", True)])
        return self

    def accept(self, samples: np.ndarray) -> list[Hypothesis]:
        return [hypothesis(*next(self.script))]

    def finish(self) -> list[Hypothesis]:
        *_, last = self.script
        return [hypothesis(*last)]


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs `asr live` on the stand-ins, with an event after the second block."""

    def run(event: Event, *options: str) -> int:
        monkeypatch.setattr("asr.microphone.Microphone", FakeMicrophone)
        monkeypatch.setattr(FakeMicrophone, "event", staticmethod(event))
        monkeypatch.setattr(asr, "load", lambda model, **options: FakeRecognizer(), raising=False)
        return main(["live", *(options or ["--plain"])])

    return run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_last_words(
    live: Callable[..., int], capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    usual = signal.getsignal(number)
    assert live(lambda microphone: signal.raise_signal(number)) == 0
    output = capsys.readouterr()
    assert output.out == "one two\nthree\n"
    assert output.err == 'listening to "Fake" (Test, 48000 Hz); Ctrl-C ends\n'
    assert signal.getsignal(number) is usual


def test_a_second_interrupt_ends_it_at_once(live: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt_twice(microphone: FakeMicrophone) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    assert live(interrupt_twice) == 130
    assert capsys.readouterr().out == "one two\n"


def test_a_failing_microphone_ends_it_with_the_last_words(
    live: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(microphone: FakeMicrophone) -> None:
        raise ASRError("The microphone is broken: repair it")

    assert live(fail) == 1
    output = capsys.readouterr()
    assert output.out == "one two\nthree\n"
    assert output.err.endswith("asr: The microphone is broken: repair it\n")


def unplug(microphone: FakeMicrophone) -> None:
    """Away after the second block, back at once, and stopped three blocks later."""
    raise Disconnected("The microphone is gone: connect it again")


def test_an_unplugged_microphone_is_waited_for(live: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert live(unplug) == 0
    output = capsys.readouterr()
    assert output.out == "one two\nthree\n" * 2
    assert output.err.splitlines()[1:] == [
        "asr: The microphone is gone: connect it again; waiting for it, Ctrl-C ends",
        'listening to "Fake" (Test, 48000 Hz) again',
    ]


def test_files_are_of_everything_that_was_heard(live: Callable[..., int], tmp_path: Path) -> None:
    names = ["said.txt", "said.json", "said.srt", "said.vtt", "said.tsv"]
    save = [option for name in names for option in ("--save", str(tmp_path / name))]
    assert live(unplug, *save, "--record", str(tmp_path / "heard.wav")) == 0
    assert (tmp_path / "said.txt").read_text() == "one two\nthree\n" * 2
    whole = json.loads((tmp_path / "said.json").read_text())
    assert whole["text"] == "one two three one two three"
    assert [word["start"] for word in whole["words"]] == [0, 0.1, 0, 0.02, 0.12, 0.02]  # 960 samples before the loss
    assert (tmp_path / "said.vtt").read_text().startswith("WEBVTT\n\n00:00:00.000 -->")
    sound, rate = soundfile.read(tmp_path / "heard.wav")
    assert rate == FakeMicrophone.sample_rate
    np.testing.assert_allclose(sound, np.full(5 * 480, 0.5), atol=1e-4)


@pytest.mark.parametrize("name", ["said.txt", "said.json", "said.srt", "said.vtt", "said.tsv"])
def test_a_file_holds_every_segment_at_once(live: Callable[..., int], tmp_path: Path, name: str) -> None:
    path = tmp_path / name

    def look(microphone: FakeMicrophone) -> None:
        text = path.read_text()
        if name == "said.json":
            assert [segment["text"] for segment in json.loads(text)["segments"]] == ["one two"]
        assert "one two" in text
        microphone.stop()

    assert live(look, "--save", str(path)) == 0
    assert "three" in path.read_text()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--save", "said.doc"], "asr: --save said.doc has a suffix that names no format; wanted .json, .srt, "),
        (["--record", "heard.mp3"], "asr: --record heard.mp3 has a suffix that names no format; wanted .flac, "),
        (["--save", "there.txt"], "asr: there.txt exists already"),
        (["--record", "there.wav"], "asr: there.wav exists already"),
        (["--save", "nowhere/said.txt"], "asr: cannot write nowhere/said.txt: No such file or directory; "),
        (["--record", "nowhere/heard.wav"], "asr: cannot write nowhere/heard.wav: "),
    ],
)
def test_files_that_cannot_be_written(
    live: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.txt").touch()
    (tmp_path / "there.wav").touch()
    assert live(no_event, *options) == (1 if "nowhere" in complaint else 2)
    assert capsys.readouterr().err.startswith(complaint)


def test_json_lines_are_all_hypotheses(live: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert live(lambda microphone: microphone.stop(), "--json-lines") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(event["type"], event["text"]) for event in events] == [
        ("partial", "one"),
        ("final", "one two"),
        ("partial", "three"),
        ("final", "three"),
    ]
    assert events[1]["words"][1] == {"text": "two", "start": 0.1, "end": 0.2, "confidence": 0.5}


def test_lost_sound_is_told(live: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    def lose(microphone: FakeMicrophone) -> None:
        microphone.overflows = 3
        microphone.stop()

    assert live(lose) == 0
    assert "asr: sound lost 3 times" in capsys.readouterr().err


@given(
    words=st.lists(st.text("abc'", min_size=1), max_size=8),
    committed=st.integers(0, 8),
)
def test_only_what_may_still_change_is_dim(words: list[str], committed: int) -> None:
    timed = tuple(Word(word, 0.0, 0.0, 0.5) for word in words)
    shown = unfinished(Hypothesis(" ".join(words), False, 0.0, 0.0, timed, min(committed, len(words))))
    assert shown.plain == " ".join(words)
    dim = {i for span in shown.spans if span.style == "dim" for i in range(span.start, span.end)}
    solid = len(" ".join(words[:committed]))
    assert dim == {i for i in range(solid, len(shown.plain)) if shown.plain[i] != " "}


@given(peak=st.floats(0, 4), ascii_only=st.booleans())
def test_the_meter_is_as_long_as_the_sound_is_loud(peak: float, ascii_only: bool) -> None:
    shown = meter(peak, ascii_only)
    full = "#" if ascii_only else "█"
    assert len(shown) == METER_CELLS
    assert shown.plain.isascii() == ascii_only
    assert shown.plain.count(full) <= meter(2 * peak, ascii_only).plain.count(full)
    assert (shown.plain == full * METER_CELLS) == (peak > 0.98) or 0.95 < peak < 1
    assert (full in shown.plain) or peak < 0.002


def test_the_footer_tells_what_was_lost() -> None:
    state = State("Headset", seconds=61.0, busy=6.1, peak=0.5)
    assert "1:01  0.10 x real time  no sound lost  Headset" in footer(state).plain
    state.overflows = 1
    assert "sound lost once" in footer(state).plain
    state.waiting = "It is gone"
    assert footer(state).plain == "It is gone"


# Through a real sound server


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "run_asr.py"), *arguments]


def write_sound(path: Path, clips: list[str]) -> Path:
    """A recording of the clips with pauses between and after them, at the sound server's rate."""
    pieces = [piece for clip in clips for piece in (soundfile.read(DATA / clip, dtype="float32")[0], PAUSE)]
    resampler = Resampler(RATE, SERVER_RATE)
    soundfile.write(path, np.concatenate([*map(resampler.step, pieces), resampler.flush()]), SERVER_RATE)
    return path


def reference(clips: list[str]) -> str:
    rows = [line.split("\t") for line in (DATA / "clips.tsv").read_text().splitlines()[1:]]
    texts = {row[0]: normalize(row[4]) for row in rows}
    return " ".join(texts[clip] for clip in clips)


def hear(
    process: subprocess.Popen[str], sound: Path, environment: dict[str, str], end: signal.Signals
) -> tuple[str, str]:
    """Plays a recording once the process listens, ends it, and gives what it wrote to standard output and error."""
    assert process.stderr is not None
    listening = process.stderr.readline()
    assert listening.startswith('listening to "pulse" (ALSA, '), listening + process.stderr.read()
    subprocess.run(["paplay", sound], env=environment, check=True, timeout=60)
    process.send_signal(end)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output, errors


def listen(environment: dict[str, str], *options: str) -> subprocess.Popen[str]:
    """`asr live` on the sound server's microphone."""
    return subprocess.Popen(
        command("live", "--device", "pulse", *options),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(process: subprocess.Popen[str]) -> str:
    """The next line on standard error."""
    assert process.stderr is not None
    return process.stderr.readline()


def play(sound: Path, environment: dict[str, str]) -> None:
    subprocess.run(["paplay", sound], env=environment, check=True, timeout=60)


def control(environment: dict[str, str], *arguments: str) -> None:
    """Tells the sound server something."""
    subprocess.run(["pactl", *arguments], env=environment, check=True, capture_output=True, timeout=60)


def test_words_that_are_played_are_written_down(sound_server: dict[str, str], tmp_path: Path) -> None:
    clips = ["27-124992-0008.flac", "27-124992-0002.flac"]
    sound = write_sound(tmp_path / "sound.wav", clips)
    process = listen(sound_server, "--plain")
    output, errors = hear(process, sound, sound_server, signal.SIGINT)
    assert errors == ""
    assert len(output.splitlines()) == len(clips)
    heard = " ".join(output.split())
    assert jiwer.cer(asr.load().transcribe(sound).text, heard) <= NEAR
    assert jiwer.wer(reference(clips), heard) <= 0.5


def test_killed_it_leaves_all_that_was_final(sound_server: dict[str, str], tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "sound.wav", ["27-124992-0002.flac"])
    files = {name: tmp_path / f"said.{name}" for name in ("txt", "json", "srt")}
    recording = tmp_path / "heard.flac"
    save = [option for path in files.values() for option in ("--save", str(path))]
    with listen(sound_server, *save, "--record", str(recording)) as process:
        assert told(process).startswith("listening")
        play(sound, sound_server)
        assert process.stdout is not None
        line = process.stdout.readline()
        process.kill()
    assert len(line.split()) > 5
    assert files["txt"].read_text() == line
    segment, *_ = json.loads(files["json"].read_text())["segments"]
    assert segment["text"] == line.strip()
    cues = files["srt"].read_text().strip().split("\n\n")
    assert " ".join(" ".join(cue.splitlines()[2:]) for cue in cues) == line.strip()
    assert jiwer.cer(line, asr.load().transcribe(recording).text) <= NEAR


def test_an_unplugged_microphone_is_heard_again(sound_server: dict[str, str], tmp_path: Path) -> None:
    clips = ["27-124992-0008.flac", "27-124992-0002.flac"]
    with listen(sound_server, "--plain") as process:
        assert told(process).startswith("listening")
        play(DATA / clips[0], sound_server)
        control(sound_server, "unload-module", "module-null-sink")
        assert told(process) == (
            'asr: The microphone "pulse" has stopped sending sound: connect it again; waiting for it, Ctrl-C ends\n'
        )
        control(sound_server, "load-module", "module-null-sink")
        assert re.fullmatch(r'listening to "pulse" \(ALSA, \d+ Hz\) again\n', told(process))
        play(DATA / clips[1], sound_server)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert errors == ""
    recognizer = asr.load()
    for line, clip in zip(output.splitlines(), clips, strict=True):
        assert jiwer.cer(recognizer.transcribe(DATA / clip).text, line) <= NEAR


def test_a_sound_server_that_dies_is_waited_for(sound_server: dict[str, str], tiny_model: Path) -> None:
    with listen(sound_server, "--model", str(tiny_model)) as process:
        assert told(process).startswith("listening")
        subprocess.run(["pulseaudio", "--kill"], env=sound_server, check=True, timeout=60)
        assert "waiting for it" in told(process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert errors == ""


def test_what_the_computer_plays_is_heard(sound_server: dict[str, str], tmp_path: Path) -> None:
    control(sound_server, "load-module", "module-null-sink", "sink_name=other")
    control(sound_server, "set-default-source", "other.monitor")
    sound = write_sound(tmp_path / "sound.wav", ["27-124992-0002.flac"])
    process = subprocess.Popen(
        command("live", "--loopback"), env=sound_server, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    output, _ = hear(process, sound, sound_server, signal.SIGINT)
    assert jiwer.cer(asr.load().transcribe(sound).text, output.strip()) <= NEAR


def test_on_a_terminal_a_line_grows_until_it_is_final(sound_server: dict[str, str], tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "sound.wav", ["27-124992-0002.flac"])
    terminal, inside = os.openpty()
    process = subprocess.Popen(
        command("live", "--device", "pulse"),
        env={**sound_server, "TERM": "xterm-256color", "COLUMNS": "200"},
        stdout=inside,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(inside)
    with ThreadPoolExecutor() as pool:
        shown = pool.submit(read_all, terminal)
        hear(process, sound, sound_server, signal.SIGTERM)
        drawings = shown.result().split("\x1b[2K")  # each erases the one before it
    os.close(terminal)
    lines = [re.sub(r"\x1b\[.*?[a-zA-Z]|\r", "", drawing).split("\n") for drawing in drawings]
    views = [(view[:-2], view[-1]) for view in lines if "─" in "".join(view[-2:-1])]
    partials = list(dict.fromkeys(above[-1] for above, _ in views))
    assert len(partials) > 5
    assert len(partials[0]) < len(partials[2]) < max(map(len, partials))
    assert all("x real time" in footer and "pulse" in footer for _, footer in views)
    levels = [footer.count("█") for _, footer in views]
    assert min(levels) == 0 < max(levels)
    [final] = [line for above, _ in views for line in above[:-1]]
    assert jiwer.cer(asr.load().transcribe(sound).text, final) <= NEAR


def read_all(terminal: int) -> str:
    """What is written to a terminal until its last writer has closed it."""
    pieces = []
    with contextlib.suppress(OSError):  # which is how Linux tells the end
        while piece := os.read(terminal, 65536):
            pieces.append(piece)
    return b"".join(pieces).decode()


def test_devices_are_listed(sound_server: dict[str, str]) -> None:
    listed = subprocess.run(command("devices"), env=sound_server, capture_output=True, text=True, check=True)
    lines = listed.stdout.splitlines()
    assert any("pulse" in line and "Hz" in line for line in lines)
    assert sum(line.startswith("* ") for line in lines) == 1


def test_a_device_that_is_not_there(sound_server: dict[str, str]) -> None:
    run = subprocess.run(command("live", "--device", "webcam"), env=sound_server, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith('asr: No input device is called "webcam"; there are: ')
    assert len(run.stderr.splitlines()) == 1
