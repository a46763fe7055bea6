"""`asr live` and `asr devices`: on stand-ins, and from a sound server's speaker through a microphone to the words."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import jiwer
import numpy as np
import pytest
import soundfile

import asr
from asr.audio import Resampler
from asr.cli import main
from asr.errors import ASRError
from asr.microphone import Device
from asr.segmenter import Hypothesis
from asr.text import normalize

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
        block = np.zeros(480, np.float32)
        yield block
        yield block
        self.event(self)
        yield block
        assert self.stopped

    def stop(self) -> None:
        self.stopped = True


class FakeRecognizer:
    """Hears "one two", then "three", of which the end comes only with `finish`."""

    def stream(self, sample_rate: float) -> Self:
        assert sample_rate == FakeMicrophone.sample_rate
        self.script = iter([("one", False), ("one two", True), ("three", False), ("three", True)])
        return self

    def accept(self, samples: np.ndarray) -> list[Hypothesis]:
        text, is_final = next(self.script)
        return [Hypothesis(text, is_final, 0.0, 0.0, ())]

    def finish(self) -> list[Hypothesis]:
        *_, (text, is_final) = self.script
        return [Hypothesis(text, is_final, 0.0, 0.0, ())]


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Callable[[Event], int]:
    """Runs `asr live` on the stand-ins, with an event after the second block."""

    def run(event: Event) -> int:
        monkeypatch.setattr("asr.microphone.Microphone", FakeMicrophone)
        monkeypatch.setattr(FakeMicrophone, "event", staticmethod(event))
        monkeypatch.setattr(asr, "load", lambda model: FakeRecognizer(), raising=False)
        return main(["live", "--plain"])

    return run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_last_words(
    live: Callable[[Event], int], capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    usual = signal.getsignal(number)
    assert live(lambda microphone: signal.raise_signal(number)) == 0
    output = capsys.readouterr()
    assert output.out == "one two\nthree\n"
    assert output.err == 'listening to "Fake" (Test, 48000 Hz); Ctrl-C ends\n'
    assert signal.getsignal(number) is usual


def test_a_second_interrupt_ends_it_at_once(live: Callable[[Event], int], capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt_twice(microphone: FakeMicrophone) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    assert live(interrupt_twice) == 130
    assert capsys.readouterr().out == "one two\n"


def test_a_microphone_that_goes_away_ends_it_with_the_last_words(
    live: Callable[[Event], int], capsys: pytest.CaptureFixture[str]
) -> None:
    def unplug(microphone: FakeMicrophone) -> None:
        raise ASRError("The microphone is gone: connect it")

    assert live(unplug) == 1
    output = capsys.readouterr()
    assert output.out == "one two\nthree\n"
    assert output.err.endswith("asr: The microphone is gone: connect it\n")


def test_lost_sound_is_told(live: Callable[[Event], int], capsys: pytest.CaptureFixture[str]) -> None:
    def lose(microphone: FakeMicrophone) -> None:
        microphone.overflows = 3
        microphone.stop()

    assert live(lose) == 0
    assert "asr: sound was lost 3 times" in capsys.readouterr().err


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


def test_words_that_are_played_are_written_down(sound_server: dict[str, str], tmp_path: Path) -> None:
    clips = ["27-124992-0008.flac", "27-124992-0002.flac"]
    sound = write_sound(tmp_path / "sound.wav", clips)
    process = subprocess.Popen(
        command("live", "--plain", "--device", "pulse"),
        env=sound_server,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    output, errors = hear(process, sound, sound_server, signal.SIGINT)
    assert errors == ""
    assert len(output.splitlines()) == len(clips)
    heard = " ".join(output.split())
    assert jiwer.cer(asr.load().transcribe(sound).text, heard) <= NEAR
    assert jiwer.wer(reference(clips), heard) <= 0.5


def test_on_a_terminal_a_line_grows_until_it_is_final(sound_server: dict[str, str], tmp_path: Path) -> None:
    clips = ["27-124992-0002.flac"]
    sound = write_sound(tmp_path / "sound.wav", clips)
    terminal, inside = os.openpty()
    process = subprocess.Popen(
        command("live", "--device", "pulse"),
        env={**sound_server, "TERM": "xterm-256color"},
        stdout=inside,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(inside)
    hear(process, sound, sound_server, signal.SIGTERM)
    screen = os.read(terminal, 1_000_000).decode()
    os.close(terminal)
    partials = re.findall(r"\x1b\[2m(.*?)\x1b\[0m\r\x1b\[2K", screen)  # dim, then erased
    *_, last = filter(None, re.sub(r"\x1b\[2m.*?\x1b\[0m|\x1b\[.*?[a-zA-Z]|\r", "", screen).split("\n"))
    assert len(partials) > 5
    assert len(partials[0]) < len(partials[2]) < len(partials[-1])
    assert jiwer.cer(asr.load().transcribe(sound).text, last) <= NEAR


def test_a_sound_server_that_dies_is_told_in_one_line(sound_server: dict[str, str], tiny_model: Path) -> None:
    process = subprocess.Popen(
        command("live", "--model", str(tiny_model), "--plain", "--device", "pulse"),
        env=sound_server,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("listening")
    subprocess.run(["pulseaudio", "--kill"], env=sound_server, check=True, timeout=60)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == (
        'asr: The microphone "pulse" has stopped sending sound: connect it again and restart'
    )
    assert "Traceback" not in errors


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
