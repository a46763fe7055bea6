"""Microphones: which there are, and the sound of one as a stream of blocks.

    with Microphone("usb") as microphone:
        for block in microphone:                 # float32 (n,) at microphone.sample_rate, until stop()
            ...

PortAudio's own thread only copies each block into a queue; whoever iterates does the work. sounddevice is imported
inside functions because importing it fails where the PortAudio library is missing.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
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

NO_MICROPHONE = "There is no microphone: plug one in, and on Linux see that PulseAudio or PipeWire is running"
INVALID_CHANNELS = -9998  # PortAudio's paInvalidChannelCount


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
        raise ASRError(NO_MICROPHONE)
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


class Microphone:
    """The sound of an input device; open it with `with`, iterate over its blocks, end that by `stop`.

    sample_rate: Hz, the device's own; resample to whatever else is needed.
    overflows: how many times sound has been lost so far, by the driver or because the iterating side was too slow.
    """

    def __init__(self, device: int | str | None = None) -> None:
        self.device = find_device(device)
        self.sample_rate = self.device.sample_rate
        self.overflows = 0
        self._blocks: SimpleQueue[np.ndarray | None] = SimpleQueue()  # None ends it
        self._started = Event()
        self._stopped = False
        self._stream: Any = None

    def __enter__(self) -> Self:
        sounddevice = _sounddevice()
        try:
            self._stream = self._open(sounddevice)
            self._stream.start()
        except sounddevice.PortAudioError as error:
            self._close()
            raise ASRError(
                f"{self._name} cannot be opened: {_reason(error)}: close other programs that record from it, or choose "
                "another with --device"
            ) from error
        if not self._started.wait(SILENT_SECONDS):
            self._close()
            raise ASRError(f"{self._name} has sent no sound for {SILENT_SECONDS:.0f} s: check that it is connected")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Blocks of float32 (n,) as they come. ASRError if the device goes away."""
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
                raise ASRError(f"{self._name} has stopped sending sound: connect it again and restart")

    def stop(self) -> None:
        """Let the iteration end after the blocks recorded until now; may be called from anywhere, a signal included."""
        self._stopped = True
        self._blocks.put(None)

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    @property
    def _name(self) -> str:
        return f'The microphone "{self.device.name}"'

    def _open(self, sounddevice: ModuleType) -> Any:
        def stream(channels: int) -> Any:
            return sounddevice.InputStream(
                device=self.device.index,
                samplerate=self.sample_rate,
                channels=channels,
                dtype="float32",
                blocksize=round(self.sample_rate * BLOCK_SECONDS),
                latency=BUFFER_SECONDS,
                callback=self._receive,
                finished_callback=lambda: self._blocks.put(None),
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


def _reason(error: Exception) -> str:
    """PortAudio's reason, or that of the sound system below it where it gives one."""
    text, *rest = error.args
    host_text = rest[1][2] if len(rest) > 1 else ""
    return host_text or str(text).removeprefix("Error opening InputStream: ").removeprefix("Error starting stream: ")
