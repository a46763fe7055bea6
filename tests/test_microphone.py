"""Which microphones there are, and their sound as blocks: on a stand-in for PortAudio, and on a real sound server."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from asr import microphone
from asr.audio import Resampler
from asr.errors import ASRError
from asr.microphone import Device, Disconnected, Microphone, devices, find_device, find_loopback

CLIP = Path(__file__).parent / "data" / "26-495-0007.flac"
RATE = 16_000


class PortAudioError(Exception):
    """As sounddevice has it: text, code and, for some, (host, code, text) of the system below."""


class PortAudio:
    """Stands in for the sounddevice module: its microphone sends `sound`, once and at once, when started."""

    PortAudioError = PortAudioError

    def __init__(self) -> None:
        self.names = ["Speakers", "Built-in Microphone", "USB Microphone", "USB Microphone 2", "Headset"]
        self.default = SimpleNamespace(device=[1, 0])
        self.sound: list[np.ndarray] = [np.zeros((10, 1), np.float32)]
        self.overflowing: set[int] = set()  # the blocks before which sound was lost
        self.unplugged = False  # after the sound
        self.refuse: Callable[[int], Exception | None] = lambda channels: None
        self.opened: dict[str, Any] = {}
        self.closed = False
        self.on_initialize: Callable[[], None] = lambda: None

    def _terminate(self) -> None:
        assert self.closed

    def _initialize(self) -> None:
        self.on_initialize()

    def query_hostapis(self) -> list[dict[str, str]]:
        return [{"name": "ALSA"}, {"name": "JACK"}]

    def query_devices(self) -> list[dict[str, Any]]:
        return [
            {
                "index": index,
                "name": name,
                "hostapi": int(name == "Headset"),
                "max_input_channels": 0 if name == "Speakers" else 2,
                "default_samplerate": 48_000.0,
            }
            for index, name in enumerate(self.names)
        ]

    def InputStream(self, **options: Any) -> Any:
        if error := self.refuse(options["channels"]):
            raise error
        self.opened = options
        self.closed = False
        return SimpleNamespace(start=self._start, close=self._close)

    def _start(self) -> None:
        for number, block in enumerate(self.sound):
            buffer = block.copy()
            status = SimpleNamespace(input_overflow=number in self.overflowing)
            self.opened["callback"](buffer, len(buffer), None, status)
            buffer[:] = np.nan  # PortAudio uses its buffer again
        if self.unplugged:
            self.opened["finished_callback"]()

    def _close(self) -> None:
        self.closed = True
        self.opened["finished_callback"]()


@pytest.fixture
def portaudio(monkeypatch: pytest.MonkeyPatch) -> PortAudio:
    fake = PortAudio()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return fake


# Devices


def test_devices_are_those_with_inputs(portaudio: PortAudio) -> None:
    assert [device.name for device in devices()] == portaudio.names[1:]
    assert devices()[0] == Device(1, "Built-in Microphone", "ALSA", 2, 48_000, is_default=True)
    assert devices()[3].host == "JACK"
    assert [device.is_default for device in devices()] == [True, False, False, False]


@pytest.mark.parametrize(
    ("wanted", "index"),
    [(None, 1), (2, 2), ("2", 2), ("headset", 4), ("Built", 1), ("USB Microphone", 2), ("microphone 2", 3)],
)
def test_a_device_is_found_by_number_or_name(portaudio: PortAudio, wanted: int | str | None, index: int) -> None:
    assert find_device(wanted).index == index


def test_without_a_default_the_first_microphone_is_taken(portaudio: PortAudio) -> None:
    portaudio.default.device[0] = -1
    assert find_device().index == 1


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ("usb", r'^2 input devices are called "usb".*: 2 is USB Microphone \(ALSA\); 3 is USB Microphone 2 \(ALSA\)$'),
        ("webcam", r'^No input device is called "webcam"; there are: 1 is Built-in .*; 4 is Headset \(JACK\)$'),
        (0, 'called "0"'),  # the speakers
        (-1, 'called "-1"'),
        (99, 'called "99"'),
    ],
)
def test_devices_that_cannot_be_meant(portaudio: PortAudio, wanted: int | str, named: str) -> None:
    with pytest.raises(ASRError, match=named):
        find_device(wanted)


def test_no_microphone_at_all(portaudio: PortAudio) -> None:
    portaudio.names = ["Speakers"]
    assert devices() == []
    with pytest.raises(ASRError, match="no microphone: plug one in"):
        find_device()


def test_microphones_that_may_not_be_used(
    portaudio: PortAudio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    portaudio.names = []
    (tmp_path / "pcmC0D0c").touch()
    monkeypatch.setattr(microphone, "SOUND_CARDS", tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ASRError, match="not permitted: add yourself to the group audio"):
        find_device()


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["Speakers", "BlackHole 2ch", "USB Microphone"], "BlackHole 2ch"),
        (["Microphone", "Stereo Mix (Realtek)"], "Stereo Mix (Realtek)"),
        (["Stereo Mix", "Speakers [Loopback]"], "Speakers [Loopback]"),
    ],
)
def test_the_loopback_is_found_by_its_name(portaudio: PortAudio, names: list[str], found: str) -> None:
    portaudio.names = names
    assert find_loopback().name == found


def test_under_a_sound_server_the_loopback_is_a_monitor(portaudio: PortAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULSE_SOURCE", "other")
    portaudio.names = ["Loopback", "pulse"]
    assert find_loopback().name == "pulse"
    assert os.environ["PULSE_SOURCE"] == "@DEFAULT_MONITOR@"


@pytest.mark.parametrize(
    ("platform", "remedy"), [("darwin", "install BlackHole"), ("win32", "Stereo Mix"), ("linux", "libasound2-plugins")]
)
def test_without_a_loopback_the_remedy_is_named(
    portaudio: PortAudio, monkeypatch: pytest.MonkeyPatch, platform: str, remedy: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(ASRError, match=f"No device hears what this computer plays: .*{remedy}"):
        find_loopback()


def test_without_portaudio_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(ASRError, match="sudo apt install libportaudio2"):
        devices()


# Sound


def listen(device: int | None = None) -> tuple[np.ndarray, Microphone]:
    """What the microphone has sent when stopped right after it was opened."""
    with Microphone(device) as microphone:
        microphone.stop()
        return np.concatenate([np.zeros(0, np.float32), *microphone]), microphone


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=20), channels=st.sampled_from([1, 2]))
def test_the_blocks_are_the_sound(sizes: list[int], channels: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "sounddevice", fake := PortAudio())
        sound = np.random.default_rng(0).standard_normal((sum(sizes), channels)).astype(np.float32)
        fake.sound = np.split(sound, np.cumsum(sizes)[:-1])
        heard, microphone = listen()
    np.testing.assert_allclose(heard, sound.mean(axis=1), atol=1e-6)
    assert heard.dtype == np.float32
    assert microphone.overflows == 0


def test_the_device_is_opened_at_its_own_rate_and_closed(portaudio: PortAudio) -> None:
    _, microphone = listen(2)
    assert microphone.sample_rate == portaudio.opened["samplerate"] == 48_000
    assert portaudio.opened["device"] == 2
    assert portaudio.opened["channels"] == 1
    assert portaudio.closed


def test_a_device_that_does_not_mix_down_is_opened_with_all_channels(portaudio: PortAudio) -> None:
    error = PortAudioError("Invalid number of channels", microphone.INVALID_CHANNELS)
    portaudio.refuse = lambda channels: error if channels == 1 else None
    listen()
    assert portaudio.opened["channels"] == 2


def test_lost_sound_is_counted(portaudio: PortAudio) -> None:
    portaudio.sound *= 5
    portaudio.overflowing = {1, 3}
    assert listen()[1].overflows == 2


def test_sound_that_nobody_takes_is_dropped_and_counted(portaudio: PortAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr.microphone.BACKLOG_SECONDS", 3 * microphone.BLOCK_SECONDS)
    portaudio.sound *= 8
    heard, listened = listen()
    assert len(heard) == 30
    assert listened.overflows == 5


def test_an_unplugged_microphone_ends_with_an_error_after_its_sound(portaudio: PortAudio) -> None:
    portaudio.sound *= 3
    portaudio.unplugged = True
    blocks: list[np.ndarray] = []
    with Microphone() as opened, pytest.raises(ASRError, match=r'"Built-in Microphone" has stopped sending sound'):
        blocks.extend(opened)
    assert len(blocks) == 3


@pytest.mark.parametrize("wanted", [None, "usb micro", 1])
def test_an_unplugged_microphone_is_heard_when_it_is_back(
    portaudio: PortAudio, monkeypatch: pytest.MonkeyPatch, wanted: str | int | None
) -> None:
    monkeypatch.setattr("asr.microphone.RETRY_SECONDS", 0.001)
    portaudio.names = ["Speakers", "USB Microphone"]
    portaudio.unplugged = True
    present = iter([[], ["Speakers"], ["Speakers", "Headset", "USB Microphone"]])

    def look() -> None:
        portaudio.names = next(present)
        portaudio.default.device = [len(portaudio.names) - 1, 0]
        portaudio.unplugged = False

    portaudio.on_initialize = look
    with Microphone(wanted) as opened:
        with pytest.raises(Disconnected):
            list(opened)
        assert opened.reconnect()
        assert opened.device.index == portaudio.opened["device"] == 2
        opened.stop()
        assert len(np.concatenate(list(opened))) == 10


def test_waiting_for_a_microphone_ends_when_it_is_stopped(portaudio: PortAudio) -> None:
    portaudio.unplugged = True
    with Microphone() as opened:
        with pytest.raises(Disconnected):
            list(opened)

        def stop() -> None:
            portaudio.names = []
            opened.stop()

        portaudio.on_initialize = stop
        assert not opened.reconnect()
        assert portaudio.closed


def test_a_microphone_that_falls_silent_ends_with_an_error(
    portaudio: PortAudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asr.microphone.SILENT_SECONDS", 0.01)
    with Microphone() as opened, pytest.raises(ASRError, match="has stopped sending sound"):
        list(opened)


def test_a_microphone_that_never_sends_is_not_opened(portaudio: PortAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr.microphone.SILENT_SECONDS", 0.01)
    portaudio.sound = []
    with pytest.raises(ASRError, match="has sent no sound"):
        Microphone().__enter__()
    assert portaudio.closed


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (
            PortAudioError("Error opening InputStream: Device unavailable", -9985),
            "cannot be opened: Device unavailable",
        ),
        (
            PortAudioError("Unanticipated host error", -9999, (0, -16, "Device or resource busy")),
            "resource busy: close",
        ),
        (PortAudioError("Unanticipated host error", -9999, (0, -16, "")), "Unanticipated host error"),
        (
            PortAudioError("Unanticipated host error", -9999, (0, -13, "Permission denied")),
            "Permission denied: add yourself to the group audio",
        ),
    ],
)
def test_a_microphone_that_cannot_be_opened(
    portaudio: PortAudio, monkeypatch: pytest.MonkeyPatch, error: Exception, named: str
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    portaudio.refuse = lambda channels: error
    with pytest.raises(ASRError, match=named):
        Microphone().__enter__()


def test_a_microphone_that_does_not_start_is_closed(portaudio: PortAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise PortAudioError("Error starting stream: Device unavailable", -9985)

    monkeypatch.setattr(portaudio, "_start", fail)
    with pytest.raises(ASRError, match="cannot be opened: Device unavailable: close"):
        Microphone().__enter__()
    assert portaudio.closed


RECORDER = """
import signal, sys
import numpy as np
from asr.microphone import Microphone

microphone = Microphone("pulse")
signal.signal(signal.SIGINT, lambda number, frame: microphone.stop())
with microphone:
    print(microphone.sample_rate, flush=True)
    np.save(sys.argv[1], np.concatenate(list(microphone)))
"""


def test_a_real_device_hears_what_is_played(sound_server: dict[str, str], tmp_path: Path) -> None:
    recorder = subprocess.Popen(
        [sys.executable, "-c", RECORDER, str(tmp_path / "heard.npy")],
        env={**sound_server, "PYTHONPATH": str(Path(microphone.__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
    )
    with recorder:
        assert recorder.stdout is not None
        rate = int(recorder.stdout.readline())
        subprocess.run(["paplay", CLIP], env=sound_server, check=True, timeout=60)
        recorder.send_signal(signal.SIGINT)
    assert recorder.returncode == 0

    resampler = Resampler(rate, RATE)
    heard = np.concatenate([resampler.step(np.load(tmp_path / "heard.npy")), resampler.flush()])
    played = soundfile.read(CLIP, dtype="float32")[0]
    size = len(heard) + len(played)
    correlation = np.fft.irfft(np.fft.rfft(heard, size) * np.fft.rfft(played, size).conj(), size)
    assert correlation.max() > 0.95 * np.linalg.norm(heard) * np.linalg.norm(played)
