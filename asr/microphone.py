"""Microphones: which there are, and the sound of one as a stream of blocks.

    with Microphone("usb") as microphone:
        for block in microphone:                 # float32 (n,) at microphone.sample_rate, until stop()
            ...

PortAudio's own thread only copies each block into a queue; whoever iterates does the work. When the device goes away
the iteration ends with Disconnected, after all its sound, and `reconnect` waits for it. sounddevice is imported inside
functions because importing it fails where the PortAudio library is missing.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np

from asr.errors import ASRError

BLOCK_SECONDS = 0.05  # how often the microphone is heard
BUFFER_SECONDS = 0.15  # what the driver may hold while this process is kept waiting
BACKLOG_SECONDS = 30.0  # what may wait for a slow recogniser before sound is dropped
SILENT_SECONDS = 5.0  # a device that sends nothing at all for so long is gone
RETRY_SECONDS = 1.0  # between two looks for a device that is gone: PortAudio does not tell when it is back

SOUND_CARDS = Path("/dev/snd")
INVALID_CHANNELS = -9998  # PortAudio's paInvalidChannelCount
BUSY = "close other programs that record from it, or choose another with --device"
DENIED = ("denied", "permission", "not permitted", "0x80070005")  # in the reasons that sound systems give, lower case
ALLOW = {
    "darwin": "allow it for this terminal in System Settings > Privacy & Security > Microphone",
    "win32": "allow it for desktop apps in Settings > Privacy > Microphone",
}
ALLOW_ELSEWHERE = "add yourself to the group audio (sudo usermod -aG audio $USER) and log in again"

LOOPBACKS = ("[loopback]", "monitor of", "stereo mix", "blackhole", "loopback")  # in the names of devices, lower case
SOUND_SERVER = "pulse"  # ALSA's device for PulseAudio, or PipeWire in its place
LOOPBACK_HINTS = {
    "darwin": "install BlackHole (brew install blackhole-2ch), and play into it and your speakers with a "
    "multi-output device made in Audio MIDI Setup",
    "win32": 'enable the device "Stereo Mix" in Settings > System > Sound',
}
LOOPBACK_HINT = "it needs PulseAudio or PipeWire, and ALSA's way to them: sudo apt install libasound2-plugins"


class Disconnected(ASRError):
    """The device went away while it was recorded from."""


@dataclass(frozen=True)
class Device:
    """A device that sound can be recorded from."""

    index: int
    name: str
    host: str  # the sound system it is reached through: ALSA, Core Audio, Windows WASAPI, ...
    channels: int
    sample_rate: int  # Hz, the device's own
    is_default: bool


def devices() -> list[Device]:
    """All input devices in PortAudio's order. ASRError where PortAudio is missing."""
    sounddevice = _sounddevice()
    hosts = sounddevice.query_hostapis()
    default = sounddevice.default.device[0]
    return [
        Device(
            index=entry["index"],
            name=entry["name"],
            host=hosts[entry["hostapi"]]["name"],
            channels=entry["max_input_channels"],
            sample_rate=round(entry["default_samplerate"]),
            is_default=entry["index"] == default,
        )
        for entry in sounddevice.query_devices()
        if entry["max_input_channels"] > 0
    ]


def find_device(wanted: int | str | None = None) -> Device:
    """The device with this index, or with this name or part of it, or the default one. ASRError if there is no one."""
    present = devices()
    if not present:
        raise no_microphone()
    if wanted is None:
        return next((device for device in present if device.is_default), present[0])
    found = [device for device in present if str(device.index) == str(wanted)]
    found = found or [device for device in present if device.name.lower() == str(wanted).lower()]
    found = found or [device for device in present if str(wanted).lower() in device.name.lower()]
    if len(found) == 1:
        return found[0]
    listed = "; ".join(f"{device.index} is {device.name} ({device.host})" for device in found or present)
    if found:
        raise ASRError(f'{len(found)} input devices are called "{wanted}"; choose one by its number: {listed}')
    raise ASRError(f'No input device is called "{wanted}"; there are: {listed}')


def no_microphone() -> ASRError:
    """Why `devices` is empty."""
    cards = list(SOUND_CARDS.glob("pcm*c"))
    if cards and not any(os.access(card, os.R_OK) for card in cards):
        return ASRError(f"There are microphones, but recording from them is not permitted: {ALLOW_ELSEWHERE}")
    return ASRError("There is no microphone: plug one in, and on Linux see that PulseAudio or PipeWire is running")


def find_loopback() -> Device:
    """The device that hears what this computer plays; ASRError with what to install where there is none.

    Under PulseAudio and PipeWire that is the monitor of the default output, chosen by setting PULSE_SOURCE.
    """
    present = devices()
    for device in present:
        if device.name == SOUND_SERVER:
            os.environ["PULSE_SOURCE"] = "@DEFAULT_MONITOR@"
            return device
    for part in LOOPBACKS:
        for device in present:
            if part in device.name.lower():
                return device
    raise ASRError(f"No device hears what this computer plays: {LOOPBACK_HINTS.get(sys.platform, LOOPBACK_HINT)}")


class Microphone:
    """The sound of an input device; open it with `with`, iterate over its blocks, end that by `stop`.

    sample_rate: Hz, the device's own; resample to whatever else is needed.
    overflows: how many times sound has been lost so far, by the driver or because the iterating side was too slow.
    """

    def __init__(self, device: int | str | None = None) -> None:
        self.device = find_device(device)
        # A number may belong to another device after it was unplugged.
        self._wanted = self.device.name if str(device).lstrip("-").isdigit() else device
        self.overflows = 0
        self._blocks: SimpleQueue[np.ndarray | None] = SimpleQueue()  # None ends it
        self._started = Event()
        self._stopped = False
        self._stream: Any = None

    @property
    def sample_rate(self) -> int:
        """Hz, the device's own; it may be another after `reconnect`."""
        return self.device.sample_rate

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Blocks of float32 (n,) as they come. Disconnected if the device goes away, after what it had sent."""
        while True:
            try:
                block = self._blocks.get(timeout=SILENT_SECONDS)
            except Empty:
                block = None
            if block is not None:
                yield block.mean(axis=1)
            elif self._stopped:
                return
            else:
                raise Disconnected(f"{self._name} has stopped sending sound: connect it again")

    def reconnect(self) -> bool:
        """Waits until the device is there again and opens it, to be iterated anew; False where `stop` came first."""
        self._close()
        sounddevice = _sounddevice()
        while True:
            self._blocks, self._started = SimpleQueue(), Event()
            if self._stopped:
                return False
            sounddevice._terminate()  # PortAudio looks for devices only as it starts
            sounddevice._initialize()
            try:
                self.device = find_device(self._wanted)
                self._start()
                return True
            except ASRError:
                self._sleep()

    def stop(self) -> None:
        """Let the iteration end after the blocks recorded until now; may be called from anywhere, a signal included."""
        self._stopped = True
        self._blocks.put(None)

    def _start(self) -> None:
        sounddevice = _sounddevice()
        try:
            self._stream = self._open(sounddevice)
            self._stream.start()
        except sounddevice.PortAudioError as error:
            self._close()
            raise ASRError(f"{self._name} cannot be opened: {_explained(error)}") from error
        if not self._started.wait(SILENT_SECONDS):
            self._close()
            raise ASRError(f"{self._name} has sent no sound for {SILENT_SECONDS:.0f} s: check that it is connected")

    def _sleep(self) -> None:
        """For RETRY_SECONDS, or less where `stop` is called."""
        with contextlib.suppress(Empty):
            while not self._stopped:
                self._blocks.get(timeout=RETRY_SECONDS)

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    @property
    def _name(self) -> str:
        return f'The microphone "{self.device.name}"'

    def _open(self, sounddevice: ModuleType) -> Any:
        blocks = self._blocks

        def stream(channels: int) -> Any:
            return sounddevice.InputStream(
                device=self.device.index,
                samplerate=self.sample_rate,
                channels=channels,
                dtype="float32",
                blocksize=round(self.sample_rate * BLOCK_SECONDS),
                latency=BUFFER_SECONDS,
                callback=self._receive,
                finished_callback=lambda: blocks.put(None),
            )

        try:
            return stream(1)
        except sounddevice.PortAudioError as error:
            if INVALID_CHANNELS not in error.args:
                raise
            return stream(self.device.channels)  # some drivers will not mix down

    def _receive(self, samples: np.ndarray, frames: int, time: object, status: Any) -> None:
        if status.input_overflow:
            self.overflows += 1
        if self._blocks.qsize() * BLOCK_SECONDS < BACKLOG_SECONDS:
            self._blocks.put(samples.copy())
        else:
            self.overflows += 1
        self._started.set()


def _sounddevice() -> ModuleType:
    try:
        import sounddevice
    except OSError as error:
        remedy = "sudo apt install libportaudio2" if sys.platform == "linux" else "pip install --force sounddevice"
        raise ASRError(f"The PortAudio library is missing: {remedy}") from error
    return sounddevice


def _explained(error: Exception) -> str:
    """PortAudio's reason, or that of the sound system below it where it gives one, and the remedy."""
    text, *rest = error.args
    host_text = rest[1][2] if len(rest) > 1 else ""
    reason = host_text or str(text).removeprefix("Error opening InputStream: ").removeprefix("Error starting stream: ")
    denied = any(word in reason.lower() for word in DENIED)
    return f"{reason}: {ALLOW.get(sys.platform, ALLOW_ELSEWHERE) if denied else BUSY}"
