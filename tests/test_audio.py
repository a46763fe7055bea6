"""Every format in, the same samples out, in constant memory, and one clear sentence for whatever is no recording."""

import io
import re
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.audio import MAX_RATE, MIN_RATE, Resampler, as_mono_float32, check_rate, duration, read_blocks
from asr.errors import ASRError

DATA = Path(__file__).parent / "data"
CLIP = DATA / "26-495-0007.flac"  # 4.11 s
LONGER_CLIP = DATA / "19-198-0001.flac"  # 11.77 s
RATE = 16_000


def read(source: Path | str, **options: float) -> np.ndarray:
    return np.concatenate(list(read_blocks(source, **options)))


def read_until_error(source: Path | str, **options: float) -> tuple[np.ndarray, str]:
    """The samples that came before the error, and its sentence."""
    blocks = [np.zeros(0, np.float32)]
    with pytest.raises(ASRError, match=r"^[^\n]+$") as caught:
        blocks.extend(read_blocks(source, **options))
    return np.concatenate(blocks), str(caught.value)


def speech(path: Path = CLIP) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


def encode(path: Path, samples: np.ndarray, codec: str, rate: int = RATE, picture: bool = False) -> Path:
    """Write mono samples at RATE with FFmpeg's `codec` in the container that the suffix names."""
    with av.open(str(path), "w") as container:
        screen = add_picture(container) if picture else None
        stream = container.add_stream(codec, rate=rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        whole = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        whole.sample_rate = RATE
        resampler = av.AudioResampler(stream.format, "mono", rate, stream.codec_context.frame_size)
        if screen:
            show_picture(container, screen)
        for frame in [*resampler.resample(whole), *resampler.resample(None)]:
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def add_picture(container: av.container.OutputContainer) -> av.VideoStream:
    stream = container.add_stream("mpeg4", rate=5, width=32, height=32, pix_fmt="yuv420p")
    assert isinstance(stream, av.VideoStream)
    return stream


def show_picture(container: av.container.OutputContainer, stream: av.VideoStream) -> None:
    container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
    container.mux(stream.encode(None))


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """The highest correlation over all shifts: codecs delay and pad."""
    size = len(one) + len(other)
    correlation = np.fft.irfft(np.fft.rfft(one, size) * np.fft.rfft(other, size).conj(), size)
    return float(correlation.max() / np.linalg.norm(one.astype(float)) / np.linalg.norm(other.astype(float)))


# Formats


@pytest.mark.parametrize(
    ("suffix", "subtype", "least"),
    [
        (".wav", "PCM_16", 1.0),
        (".wav", "PCM_24", 1.0),
        (".wav", "FLOAT", 1.0),
        (".wav", "ULAW", 0.99),
        (".flac", "PCM_16", 1.0),
        (".ogg", "OPUS", 0.9),
        (".ogg", "VORBIS", 0.9),
        (".mp3", "MPEG_LAYER_III", 0.9),
    ],
)
def test_formats_of_soundfile(tmp_path: Path, suffix: str, subtype: str, least: float) -> None:
    path = tmp_path / f"clip{suffix}"
    soundfile.write(path, speech(), RATE, subtype=subtype)
    samples = read(path)
    assert samples.dtype == np.float32
    assert len(samples) == len(speech())
    assert similarity(speech(), samples) >= least - 1e-6
    assert duration(path) == pytest.approx(len(speech()) / RATE)


@pytest.mark.parametrize(
    ("suffix", "codec", "rate"),
    [
        (".m4a", "aac", RATE),
        (".mp4", "aac", 44_100),
        (".mov", "aac", RATE),
        (".webm", "libopus", 48_000),
        (".mkv", "aac", RATE),
        (".aac", "aac", RATE),
        (".m4a", "alac", RATE),
    ],
)
def test_formats_of_ffmpeg(tmp_path: Path, suffix: str, codec: str, rate: int) -> None:
    path = encode(tmp_path / f"clip{suffix}", speech(), codec, rate)
    samples = read(path)
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(len(speech()), abs=RATE / 5)
    assert similarity(speech(), samples) > 0.9
    assert duration(path) == pytest.approx(len(speech()) / RATE, abs=0.5)


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp3"
    path.write_bytes(CLIP.read_bytes())
    np.testing.assert_array_equal(read(path), speech())


def test_mp3_is_decoded_exactly_and_quietly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "clip.mp3"
    soundfile.write(path, speech(LONGER_CLIP), RATE)
    samples = read(path, block_seconds=0.1)
    np.testing.assert_array_equal(samples, read(path))
    np.testing.assert_allclose(samples, soundfile.read(path, dtype="float32")[0], atol=1e-6)
    assert capfd.readouterr().err == ""


def test_the_track_with_sound_is_taken_from_a_video(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    encode(path, speech(), "aac", picture=True)
    assert similarity(speech(), read(path)) > 0.9


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_channels_are_averaged(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "clip.wav"
    gains = np.linspace(0.0, 1.0, channels) if channels > 1 else np.ones(1)
    soundfile.write(path, speech()[:, None] * gains, RATE, subtype="FLOAT")
    np.testing.assert_allclose(read(path), speech() * gains.mean(), atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_any_rate_becomes_the_target_rate(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "clip.wav"
    resampler = Resampler(RATE, rate)
    at_rate = np.concatenate([resampler.step(speech()), resampler.flush()])
    soundfile.write(path, at_rate, rate, subtype="FLOAT")
    samples = read(path)
    assert len(samples) == round(len(at_rate) * RATE / rate)
    assert similarity(speech(), samples) > (0.999 if rate > RATE else 0.97)  # 8 kHz has lost its upper half


@pytest.mark.parametrize("block_seconds", [0.001, 0.3, 1.0, 1000.0])
def test_blocks_join_to_the_same_samples(block_seconds: float) -> None:
    blocks = list(read_blocks(LONGER_CLIP, target_rate=22_050, block_seconds=block_seconds))
    assert all(block.ndim == 1 and len(block) for block in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks), read(LONGER_CLIP, target_rate=22_050))


def test_blocks_have_about_the_size_asked_for() -> None:
    sizes = [len(block) / RATE for block in read_blocks(LONGER_CLIP, block_seconds=2.0)]
    assert all(2.0 <= size < 2.5 for size in sizes[:-1])


def test_a_recording_is_read_as_a_stream(tmp_path: Path) -> None:
    """The first block comes after a small part of the file has been decoded, whatever its length."""
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(RATE * 600, np.int16), RATE)
    handles = []

    class Counting(soundfile.SoundFile):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)
            handles.append(self)

    assert duration(path) == 600.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asr.audio._SoundFile", Counting)
        blocks = read_blocks(path, block_seconds=1.0)
        next(blocks)
        assert handles[0].tell() < RATE * 2
        blocks.close()
        assert handles[0].closed


# Raw samples on standard input


class Trickle(io.BytesIO):
    """Standard input that gives an odd number of bytes at a time, as a pipe may."""

    def read1(self, size: int | None = -1) -> bytes:
        return super().read1(777)


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Trickle(data)))


def test_raw_samples_are_read_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = soundfile.read(CLIP, dtype="int16")[0]
    pipe(monkeypatch, samples.astype("<i2").tobytes())
    np.testing.assert_array_equal(read("-", sample_rate=RATE), speech())
    assert duration("-") is None


def test_raw_samples_are_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, bytes(2 * 8_000))
    assert len(read("-", sample_rate=8_000)) == RATE


@pytest.mark.parametrize(
    ("data", "rate", "before", "named"),
    [
        (b"", RATE, 0, "holds no samples"),
        (bytes(10), None, 0, "--sample-rate"),
        (bytes(10), 0, 0, "0 Hz"),
        (bytes(2001), RATE, 1000, "16-bit"),
        (b"x", RATE, 0, "16-bit"),
        (CLIP.read_bytes(), RATE, 0, "FLAC file"),
    ],
)
def test_bad_standard_input(
    monkeypatch: pytest.MonkeyPatch, data: bytes, rate: float | None, before: int, named: str
) -> None:
    pipe(monkeypatch, data)
    options = {} if rate is None else {"sample_rate": rate}
    samples, message = read_until_error("-", **options)
    assert len(samples) == before
    assert named in message


# What is no recording


def test_missing_file(tmp_path: Path) -> None:
    assert "talk.wav does not exist" in read_until_error(tmp_path / "talk.wav")[1]


def test_folder(tmp_path: Path) -> None:
    assert "is a folder" in read_until_error(tmp_path)[1]


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg", ".m4a", ".xyz"])
@pytest.mark.parametrize(("content", "named"), [(b"", "is empty"), (b"No sound here.\n" * 99, "no format known")])
def test_empty_files_and_texts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], suffix: str, content: bytes, named: str
) -> None:
    path = tmp_path / f"talk{suffix}"
    path.write_bytes(content)
    samples, message = read_until_error(path)
    assert len(samples) == 0
    assert named in message
    assert path.name in message
    with pytest.raises(ASRError, match=named):
        duration(path)
    assert capfd.readouterr().err == ""


def test_without_the_media_extra_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "clip.m4a", speech(), "aac")
    monkeypatch.setitem(sys.modules, "av", None)
    assert 'pip install ".[media]"' in read_until_error(path)[1]


@pytest.mark.parametrize("part", [0.3, 0.6, 0.99])
def test_truncated_flac_is_read_as_far_as_it_goes(tmp_path: Path, part: float) -> None:
    path = tmp_path / "talk.flac"
    content = LONGER_CLIP.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    samples, message = read_until_error(path)
    assert re.search(r"of 11\.7[67] s only: damaged or incomplete", message)
    np.testing.assert_array_equal(samples, speech(LONGER_CLIP)[: len(samples)])
    assert len(samples) == pytest.approx(len(speech(LONGER_CLIP)) * part, abs=RATE / 2)


def test_flac_damaged_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "talk.flac"
    content = LONGER_CLIP.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(2000) + content[middle + 2000 :])
    samples, message = read_until_error(path)
    assert len(samples) == pytest.approx(len(speech(LONGER_CLIP)) / 2, abs=RATE)
    assert "damaged" in message


def test_flac_without_frames(tmp_path: Path) -> None:
    path = tmp_path / "talk.flac"
    path.write_bytes(LONGER_CLIP.read_bytes()[:1000])
    samples, message = read_until_error(path)
    assert len(samples) == 0
    assert "unknown error in flac decoder" in message


@pytest.mark.parametrize("suffix", [".mp3", ".ogg"])
def test_formats_that_may_be_cut_end_where_they_are_cut(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"talk{suffix}"
    soundfile.write(path, speech(LONGER_CLIP), RATE)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert len(read(path)) == pytest.approx(len(speech(LONGER_CLIP)) / 2, rel=0.2)


def test_damaged_aac_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = encode(tmp_path / "talk.aac", speech(LONGER_CLIP), "aac")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    samples, message = read_until_error(path)
    assert len(samples) == pytest.approx(len(speech(LONGER_CLIP)) / 2, abs=RATE)
    assert "damaged or incomplete" in message


def test_a_picture_without_sound(tmp_path: Path) -> None:
    path = tmp_path / "silent.mp4"
    with av.open(str(path), "w") as container:
        show_picture(container, add_picture(container))
    assert "has no audio track" in read_until_error(path)[1]


@pytest.mark.parametrize("suffix", [".wav", ".ogg"])
def test_no_samples(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"talk{suffix}"
    soundfile.write(path, np.zeros(0, np.float32), RATE)
    samples, message = read_until_error(path)
    assert len(samples) == 0
    assert "holds no samples" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    path = tmp_path / "talk.wav"
    samples = speech()
    samples[RATE * 2] = value
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    before, message = read_until_error(path)
    assert RATE < len(before) <= RATE * 2
    assert "at 2.00 s" in message


@pytest.mark.parametrize(
    ("offset", "value", "named"),
    [
        (24, (0).to_bytes(4, "little"), "below 1 Hz"),
        (24, (-16_000).to_bytes(4, "little", signed=True), "below 1 Hz"),
        (24, (2**31 - 1).to_bytes(4, "little"), "2147483647 Hz"),
        (24, (1).to_bytes(4, "little"), "1 Hz; wanted a whole number from 1000 to 768000"),
        (22, bytes(2), "Channel count is zero"),
    ],
)
def test_headers_with_absurd_numbers(tmp_path: Path, offset: int, value: bytes, named: str) -> None:
    path = tmp_path / "talk.wav"
    soundfile.write(path, speech(), RATE, subtype="PCM_16")
    header = bytearray(path.read_bytes())
    header[offset : offset + len(value)] = value
    path.write_bytes(header)
    samples, message = read_until_error(path)
    assert len(samples) == 0
    assert named in message


def test_a_file_states_its_own_rate() -> None:
    assert "16000 Hz, not at the 8000 Hz" in read_until_error(CLIP, sample_rate=8_000)[1]
    np.testing.assert_array_equal(read(CLIP, sample_rate=RATE), speech())


def test_loud_samples_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "loud.wav"
    soundfile.write(path, speech() * 20, RATE, subtype="FLOAT")
    np.testing.assert_allclose(read(path), speech() * 20, rtol=1e-6)


# Arrays


@given(
    st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=50), st.sampled_from(["int16", "int32", "uint8"])
)
def test_integers_become_fractions_of_full_scale(values: list[int], dtype: str) -> None:
    shift = {"int16": 0, "int32": 16, "uint8": -8}[dtype]
    array = np.array([value << shift if shift >= 0 else (value >> -shift) + 128 for value in values]).astype(dtype)
    unit = 2.0**-15 if shift >= 0 else 2.0**-7
    expected = np.array([value if shift >= 0 else value >> -shift for value in values]) * unit
    np.testing.assert_array_equal(as_mono_float32(array), expected.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "longdouble"])
def test_floats_are_taken_as_they_are(dtype: str) -> None:
    array = np.array([0.0, 0.5, -1.0, 3.0]).astype(dtype)
    samples = as_mono_float32(array)
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, [0.0, 0.5, -1.0, 3.0])
    assert not np.shares_memory(array, samples)  # the caller may reuse its buffer


def test_huge_floats_stay_finite() -> None:
    assert np.isfinite(as_mono_float32(np.array([1e300, -1e300])) ** 2).all()


def test_array_channels_are_averaged() -> None:
    np.testing.assert_allclose(as_mono_float32(np.array([[1.0, 0.0], [0.5, 0.5], [-1.0, 1.0]])), [0.5, 0.5, 0.0])
    np.testing.assert_array_equal(as_mono_float32(np.array([[2**14, -(2**14)]], np.int16)), [0.0])


def test_an_empty_array_is_an_empty_block() -> None:
    assert as_mono_float32(np.zeros(0)).shape == as_mono_float32([]).shape == (0,)


@pytest.mark.parametrize(
    ("array", "named"),
    [
        (np.zeros((2, 2, 2)), "3 dimensions"),
        (np.float32(1.0), "0 dimensions"),
        (np.zeros((1, RATE)), "transpose"),
        (np.zeros((5, 0)), "0 channels"),
        (np.zeros(5, np.int64), "type int64"),
        (np.zeros(5, bool), "type bool"),
        (np.zeros(5, complex), "type complex128"),
        (["a", "b"], "type <U1"),
        (np.array([0.0, np.nan, np.inf]), "2 NaN or infinite samples, the first at index 1"),
        (np.array([[0.0, 0.0], [np.inf, -np.inf]]), "the first at index 1"),
    ],
)
def test_arrays_that_are_no_samples(array: object, named: str) -> None:
    with pytest.raises(ASRError, match=named):
        as_mono_float32(array)


@pytest.mark.parametrize("rate", [0, -8_000, MIN_RATE - 1, MAX_RATE + 1, 1e12, 44_100.5, float("nan"), True])
def test_absurd_rates(rate: float) -> None:
    with pytest.raises(ASRError, match=r"wanted a whole number from 1000 to 768000"):
        check_rate(rate)
    with pytest.raises(ASRError):
        Resampler(rate, RATE)
    with pytest.raises(ASRError):
        Resampler(RATE, rate)


@given(st.integers(MIN_RATE, MAX_RATE))
def test_sane_rates(rate: int) -> None:
    assert check_rate(rate) == check_rate(float(rate)) == rate


# Resampling


@settings(deadline=None)
@given(
    rate=st.sampled_from([8_000, 11_025, 12_345, 16_000, 22_050, 44_100, 48_000, 192_000]),
    cuts=st.lists(st.integers(0, 12_000), max_size=8).map(sorted),
)
def test_resampling_is_the_same_for_any_cutting(rate: int, cuts: list[int]) -> None:
    samples = speech()[RATE : RATE + 12_000]
    whole, cut = Resampler(rate, RATE), Resampler(rate, RATE)
    expected = np.concatenate([whole.step(samples), whole.flush()])
    found = np.concatenate([*(cut.step(piece) for piece in np.split(samples, cuts)), cut.flush()])
    np.testing.assert_array_equal(found, expected)


@settings(deadline=None)
@given(source=st.integers(4_000, 96_000), target=st.integers(4_000, 96_000), length=st.integers(0, 5_000))
def test_resampled_length(source: int, target: int, length: int) -> None:
    resampler = Resampler(source, target)
    samples = np.concatenate([resampler.step(np.zeros(length, np.float32)), resampler.flush()])
    assert abs(len(samples) - length * target / source) <= 0.5
