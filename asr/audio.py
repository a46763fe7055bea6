"""Any recording -> mono float32 samples at the model's rate, as a stream of blocks.

    for block in read_blocks("talk.mp3"):        # float32 (n,), 16 kHz, in order
        ...

soundfile decodes wav, flac, ogg, opus, mp3 and some twenty more; PyAV (the `media` extra) whatever else FFmpeg knows:
m4a, mp4, webm, mov. `-` is raw PCM on standard input. Memory does not grow with the length of the recording.
"""

import io
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

import numpy as np
import soundfile
import soxr

from asr.errors import ASRError

if TYPE_CHECKING:
    import av

SAMPLE_RATE = 16_000  # Hz, what models are fed with
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz
MAX_CHANNELS = 64  # more columns than this is an array that lies on its side
READ_FRAMES = 4096  # decoded at once; what precedes damage is lost in units of this
PEAK = 32_768.0  # floats are clipped here: loud is fine, but their power must stay finite in float32
STDIN = "-"

Source = str | os.PathLike[str]


class Readable(Protocol):
    """What bytes can be read from."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""
        ...


INTEGER_SCALES = {"int16": (0, 2**15), "int32": (0, 2**31), "uint8": (128, 2**7)}  # dtype: (zero, full scale)
HEADERS = {b"RIFF": "WAV", b"fLaC": "FLAC", b"OggS": "Ogg", b"ID3": "MP3", b"caff": "CAF", b"FORM": "AIFF"}
# libsndfile's own words for these codes mislead
REASONS = {7: "no MPEG audio in it", 24: "its header gives a sample rate below 1 Hz"}
MEDIA_REMEDY = 'to read m4a, mp4, webm, mov and others: pip install ".[media]" in the checkout'
UNRECOGNISED = 1  # libsndfile's code for a format it does not know
UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's count where the header gives none


def check_rate(rate: float, what: str = "The sample rate") -> int:
    """`rate` in Hz as an int; ASRError unless it is a whole number between MIN_RATE and MAX_RATE."""
    if isinstance(rate, bool) or not MIN_RATE <= rate <= MAX_RATE or int(rate) != rate:
        raise ASRError(f"{what} is {rate} Hz; wanted a whole number from {MIN_RATE} to {MAX_RATE}")
    return int(rate)


def as_mono_float32(samples: object) -> np.ndarray:
    """Samples of any usual type as mono float32, channels averaged.

    samples: shape (n,) or (n, channels); int16, int32 and uint8 are scaled to [-1, 1), floats taken as they are.
    Returns float32 (n,). ASRError for other types and shapes and for NaN or infinite samples.
    """
    array = _as_float(np.asarray(samples))
    if len(bad := _bad_frames(array)):
        raise ASRError(f"The array holds {len(bad)} NaN or infinite samples, the first at index {bad[0]}; wanted none")
    return _as_mono(array)


def _as_float(array: np.ndarray) -> np.ndarray:
    """The array with full scale at 1.0, of float32 or wider."""
    if array.ndim not in (1, 2):
        raise ASRError(f"The array has {array.ndim} dimensions; wanted (n,) or (n, channels)")
    if array.ndim == 2 and not 1 <= array.shape[1] <= MAX_CHANNELS:
        raise ASRError(
            f"The array of shape {array.shape} has {array.shape[1]} channels; wanted (n, channels) with 1 to "
            f"{MAX_CHANNELS} of them: transpose it if the channels come first"
        )
    if array.dtype.kind != "f" and array.dtype.name in INTEGER_SCALES:  # the name takes a while to find
        zero, scale = INTEGER_SCALES[array.dtype.name]
        return (array.astype(np.float32) - zero) / np.float32(scale)
    if array.dtype.kind != "f":
        raise ASRError(f"The array is of type {array.dtype}; wanted float, {', '.join(INTEGER_SCALES)}: convert it")
    return array.astype(np.result_type(array.dtype, np.float32), copy=False)


def _bad_frames(array: np.ndarray) -> np.ndarray:
    """Indices of the frames with a NaN or infinite sample."""
    finite = np.isfinite(array)
    if finite.all():
        return np.zeros(0, np.intp)
    return np.flatnonzero(~(finite if array.ndim == 1 else finite.all(axis=1)))


def _as_mono(array: np.ndarray) -> np.ndarray:
    clipped = np.minimum(np.maximum(array, -PEAK), PEAK).astype(np.float32, copy=False)
    if array.ndim == 1:
        return clipped
    channels = array.shape[1]
    return clipped @ np.full(channels, 1 / channels, np.float32)  # mean(axis=1), many times as fast


class Resampler:
    """Samples at one rate in, at another out, with state: any cutting of the same samples gives the same output.

    After `flush` n samples in have given round(n * target_rate / source_rate) out; a new signal needs a new Resampler.
    """

    def __init__(self, source_rate: float, target_rate: float = SAMPLE_RATE) -> None:
        source, target = check_rate(source_rate), check_rate(target_rate, "The target sample rate")
        self._soxr = None if source == target else soxr.ResampleStream(source, target, 1, dtype="float32", quality="HQ")

    def step(self, samples: np.ndarray) -> np.ndarray:
        """samples: float32 (n,) -> float32 (m,), as much as is complete by now."""
        return samples if self._soxr is None else self._soxr.resample_chunk(np.ascontiguousarray(samples, np.float32))

    def flush(self) -> np.ndarray:
        """The samples still held, float32 (m,)."""
        nothing = np.zeros(0, np.float32)
        return nothing if self._soxr is None else self._soxr.resample_chunk(nothing, last=True)


def read_blocks(
    source: Source,
    sample_rate: float | None = None,
    target_rate: float = SAMPLE_RATE,
    block_seconds: float = 1.0,
) -> Generator[np.ndarray, None, None]:
    """The recording as float32 (n,) mono blocks of about `block_seconds` at `target_rate`.

    source: a path, or "-" for mono 16-bit little-endian PCM on standard input at `sample_rate`.
    ASRError where it cannot be read. Of a damaged recording what comes before the damage is yielded, then the error is
    raised; formats made to be cut anywhere (mp3, ogg, webm) simply end where they are cut.
    """
    with _opened(source, sample_rate) as recording:
        yield from _resampled(recording, target_rate, block_seconds)


def read_container(
    stream: Readable, target_rate: float = SAMPLE_RATE, block_seconds: float = 0.1
) -> Generator[np.ndarray, None, None]:
    """As `read_blocks`, of a container that comes piece by piece, such as Ogg or WebM; needs the `media` extra."""
    with ExitStack() as stack:
        recording = _open_container("the container", stream, stack, "it is in no format that can be read as it comes")
        yield from _resampled(recording, target_rate, block_seconds)


def duration(source: Source) -> float | None:
    """Seconds of the recording as its header has them (an estimate for some mp3), None where it does not say.

    ASRError where it cannot be opened.
    """
    if os.fspath(source) == STDIN:
        return None
    with _opened(source, None) as recording:
        return recording.seconds


@dataclass(frozen=True)
class _Recording:
    """An opened source: `pieces` are (n,) or (n, channels) as decoded, `seconds` what its header promises."""

    name: str
    sample_rate: int
    seconds: float | None
    pieces: Iterator[np.ndarray]


class _DecodingError(Exception):
    """Decoding cannot go on; the message is the reason."""


class _SoundFile(soundfile.SoundFile):
    """A sound file read straight on.

    soundfile seeks after each read of a seekable file, which makes mp3 decoding restart (inexact, and noisy on stderr)
    and turns damage in a flac into a failed seek that loses samples already decoded.
    """

    def seekable(self) -> bool:
        return False


@contextmanager
def _opened(source: Source, sample_rate: float | None) -> Iterator[_Recording]:
    if os.fspath(source) == STDIN:
        yield _open_stdin(sample_rate)
        return
    path = Path(source)
    _check_file(path)
    with ExitStack() as stack:
        try:
            handle = stack.enter_context(path.open("rb"))
        except OSError as error:
            raise ASRError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            recording = _open_sound(path, handle, stack)
        except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: .raw, which has no header
            recording = _open_media(path, handle, stack, error)
        if sample_rate is not None and check_rate(sample_rate) != recording.sample_rate:
            raise ASRError(
                f"{path} is recorded at {recording.sample_rate} Hz, not at the {sample_rate} Hz given: leave the rate "
                "out, it is for raw samples on standard input"
            )
        yield recording


def _check_file(path: Path) -> None:
    if not path.exists():
        raise ASRError(f"{path} does not exist: check the name")
    if path.is_dir():
        raise ASRError(f"{path} is a folder; wanted a recording")
    if not path.is_file():
        raise ASRError(f"{path} is no regular file: raw samples can be piped into - with a sample rate")
    if path.stat().st_size == 0:
        raise ASRError(f"{path} is empty (0 bytes): copy or record it again")


def _open_sound(path: Path, handle: BinaryIO, stack: ExitStack) -> _Recording:
    # By handle, not by path: libsndfile then goes by the content and not by a suffix that may be wrong.
    sound = stack.enter_context(_SoundFile(handle))
    rate = check_rate(sound.samplerate, f"The sample rate of {path}")
    seconds = sound.frames / rate if sound.frames < UNKNOWN_FRAMES else None
    return _Recording(str(path), rate, seconds, _sound_pieces(sound))


def _sound_pieces(sound: soundfile.SoundFile) -> Iterator[np.ndarray]:
    try:
        while len(piece := sound.read(READ_FRAMES, dtype="float32", always_2d=True)):
            yield piece
    except soundfile.LibsndfileError as error:
        raise _DecodingError(f"damaged or incomplete ({_reason(error)})") from error


def _open_media(path: Path, handle: BinaryIO, stack: ExitStack, sound_error: Exception) -> _Recording:
    known_format = isinstance(sound_error, soundfile.LibsndfileError) and sound_error.code != UNRECOGNISED
    handle.seek(0)
    return _open_container(
        str(path), handle, stack, _reason(sound_error) if known_format else "", with_remedy=not known_format
    )


def _open_container(
    name: str, stream: Readable, stack: ExitStack, reason: str = "", *, with_remedy: bool = True
) -> _Recording:
    unreadable = f"{name} cannot be read as audio: {reason or 'it is damaged or in no format known here'}"
    try:
        import av
    except ImportError as error:
        raise ASRError(f"{unreadable}; {MEDIA_REMEDY}" if with_remedy else unreadable) from error
    try:
        # Read by handle, and with no protocol allowed: nothing in it may make FFmpeg open a file or an address.
        options = {"protocol_whitelist": "none"}
        container = stack.enter_context(av.open(stream, "r", options=options))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ASRError(unreadable) from error
    audio = container.streams.best("audio")
    if not isinstance(audio, av.AudioStream):
        raise ASRError(unreadable if container.streams.audio else f"{name} has no audio track; wanted one")
    rate = check_rate(audio.rate, f"The sample rate of {name}")
    seconds = None if container.duration is None else container.duration / av.time_base
    return _Recording(name, rate, seconds, _media_pieces(container, audio))


def _media_pieces(container: "av.container.InputContainer", stream: "av.AudioStream") -> Iterator[np.ndarray]:
    import av

    to_float = av.AudioResampler(format="fltp", rate=stream.rate)
    try:
        for decoded in container.decode(stream):
            for frame in to_float.resample(decoded):
                yield frame.to_ndarray().T  # (channels, n) -> (n, channels)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _DecodingError(f"damaged or incomplete ({getattr(error, 'strerror', error)})") from error


def _open_stdin(sample_rate: float | None) -> _Recording:
    if sample_rate is None:
        raise ASRError("Raw samples on standard input do not tell their rate: add --sample-rate, for example 16000")
    return _Recording("standard input", check_rate(sample_rate), None, _stdin_pieces())


def _stdin_pieces() -> Iterator[np.ndarray]:
    stdin = cast(io.BufferedReader, sys.stdin.buffer)
    data = stdin.read(4)
    if form := next((HEADERS[magic] for magic in HEADERS if data.startswith(magic)), None):
        raise ASRError(f"Standard input holds a {form} file; wanted raw samples: give the file by name instead")
    while data:
        whole = len(data) // 2 * 2
        yield np.frombuffer(data[:whole], "<i2").astype(np.int16, copy=False)
        read = stdin.read1(2 * READ_FRAMES)
        if not read and len(data) > whole:
            raise _DecodingError("it ends within a 16-bit sample")
        data = data[whole:] + read


def _resampled(recording: _Recording, target_rate: float, block_seconds: float) -> Generator[np.ndarray, None, None]:
    resampler = Resampler(recording.sample_rate, target_rate)
    block_frames = max(1, round(block_seconds * recording.sample_rate))
    held: list[np.ndarray] = [np.zeros(0, np.float32)]
    held_frames = 0
    failure: ASRError | None = None
    try:
        for piece in _mono_pieces(recording):
            held.append(piece)
            held_frames += len(piece)
            if held_frames >= block_frames:
                block = resampler.step(np.concatenate(held))
                if len(block):
                    yield block
                del held[1:]
                held_frames = 0
    except ASRError as error:
        failure = error
    last = np.concatenate([resampler.step(np.concatenate(held)), resampler.flush()])
    if len(last):
        yield last
    if failure:
        raise failure


def _mono_pieces(recording: _Recording) -> Iterator[np.ndarray]:
    """Mono float32 pieces; ASRError that names the place where the recording breaks off, or that it holds nothing."""
    frames = 0
    try:
        for piece in recording.pieces:
            samples = _as_float(piece)
            if len(bad := _bad_frames(samples)):
                raise _DecodingError(f"NaN or infinite samples at {(frames + bad[0]) / recording.sample_rate:.2f} s")
            yield _as_mono(samples)
            frames += len(samples)
    except _DecodingError as error:
        end = "" if recording.seconds is None else f" of {recording.seconds:.2f}"
        raise ASRError(
            f"{recording.name} can be read for {frames / recording.sample_rate:.2f}{end} s only: {error}"
        ) from error
    if not frames:
        raise ASRError(f"{recording.name} holds no samples: copy or record it again")


def _reason(error: Exception) -> str:
    """libsndfile's reason as the end of a sentence."""
    if not isinstance(error, soundfile.LibsndfileError):
        return str(error)
    return REASONS.get(error.code, error.error_string.removeprefix("Error : ").rstrip("."))
