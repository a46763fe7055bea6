"""The command line as users meet it: what it writes, what it says when something is wrong, and how it exits."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from asr.cli import VERBS, UsageError, devices, main
from asr.cli.transcribe import FORMATS, SUFFIXES, find, output_names, write_out
from asr.errors import ASRError
from asr.transcript import WRITERS, Segment, Word

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data"
CLIP = DATA / "26-495-0007.flac"
OTHER_CLIP = DATA / "1462-170138-0007.ogg"
TIME_LIMIT = 120  # seconds for one command

Transcribe = Callable[..., subprocess.CompletedProcess[str]]


def asr(*arguments: str | Path, stdin: bytes = b"", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs the real command."""
    command = [sys.executable, str(ROOT / "run_asr.py"), *map(str, arguments)]
    done = subprocess.run(command, input=stdin, cwd=cwd, capture_output=True, timeout=TIME_LIMIT, check=False)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def transcribe(tiny_model: Path) -> Transcribe:
    """Runs `asr transcribe` with a small model."""

    def run(*arguments: str | Path, stdin: bytes = b"", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        return asr("transcribe", "--model", tiny_model, *arguments, stdin=stdin, cwd=cwd)

    return run


def python(program: str) -> subprocess.CompletedProcess[str]:
    """Runs a program with the checkout on its path."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)


# Help, exit codes and errors of any verb


@pytest.mark.parametrize("verb", [[], *([verb] for verb in VERBS)], ids=["asr", *VERBS])
def test_help_is_short_and_imports_no_heavy_package(verb: list[str]) -> None:
    program = (
        "import sys; from asr.cli import main\n"
        f"try: main({[*verb, '--help']})\n"
        "finally: print({'numpy', 'onnxruntime', 'rich', 'torch'} & sys.modules.keys(), file=sys.stderr)"
    )
    environment = {**os.environ, "COLUMNS": "80"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT)
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert done.stderr == "set()\n"
    assert 5 < len(lines) <= (64 if verb else 24)
    assert max(map(len, lines)) <= 80


def test_the_top_level_help_names_every_verb() -> None:
    text = asr("--help").stdout
    assert all(f"\n  {verb} " in text for verb in VERBS)


def test_every_file_that_declares_a_verb_is_one() -> None:
    files = (ROOT / "asr" / "cli").glob("*.py")
    verbs = {path.stem for path in files if "def run(args: argparse.Namespace) -> int" in path.read_text()}
    assert verbs == set(VERBS)


@pytest.mark.parametrize("arguments", [[], ["nosuch"], ["transcribe"], ["transcribe", "--nosuch", "a.wav"]])
def test_wrong_use_is_exit_2_with_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = main(arguments)
    except SystemExit as end:  # argparse's own way
        code = end.code
    assert code == 2
    assert "usage: asr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ASRError("the thing is broken; mend it"), 1, "asr: the thing is broken; mend it\n"),
        (UsageError("the command is wrong; mend it"), 2, "asr: the command is wrong; mend it\n"),
        (PermissionError(13, "Permission denied", "a.txt"), 1, "asr: a.txt: Permission denied\n"),
        (KeyError("x"), 1, "asr: KeyError: 'x' (a fault of this program; ASR_TRACEBACK=1 shows where)\n"),
        (ModuleNotFoundError("", name="torch.nn"), 1, "asr: the package torch is needed and not installed: "),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_error_is_one_sentence(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(devices, "run", fail)
    assert main(["devices"]) == code
    assert capsys.readouterr().err.startswith(said)


def test_a_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASR_TRACEBACK", "1")
    monkeypatch.setattr(devices, "run", lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main(["devices"])


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("torch", ["train", "x.toml", "--data", "."]),
        ("torch", ["export", "x", "y"]),
        ("jiwer", ["evaluate", str(DATA / "clips.tsv")]),
    ],
)
def test_a_missing_train_extra_is_named(package: str, arguments: list[str]) -> None:
    program = f"import sys; sys.modules['{package}'] = None; from asr.cli import main; sys.exit(main({arguments}))"
    done = python(program)
    assert done.returncode == 1
    assert (
        done.stderr
        == f'asr: the package {package} is needed and not installed: pip install ".[train]" in the checkout\n'
    )


def test_ctrl_c_is_quiet(tiny_model: Path) -> None:
    command = [sys.executable, str(ROOT / "run_asr.py"), "transcribe", "-", "--sample-rate", "16000"]
    command += ["--model", str(tiny_model)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(bytes(1 << 20))  # more than a pipe holds: when it is written the command is reading
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == 130
    assert (output, errors) == (b"", b"")


def test_a_closed_pipe_is_quiet(tiny_model: Path) -> None:
    command = [sys.executable, str(ROOT / "run_asr.py"), "transcribe", str(CLIP), str(OTHER_CLIP)]
    command += ["--model", str(tiny_model)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(TIME_LIMIT) == 141


# transcribe: which recordings, under which names


def test_folders_patterns_and_files_are_found_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["b.wav", "a/z.MP3", "a/deep/y.m4a", "a/notes.txt", "a/.hidden.wav", "odd[1].dat", "x.flac"]
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    recordings, problems = find(["x.flac", "a", "*.wav", "**/y.*", "odd[1].dat", "missing.wav", "./x.flac", "-"])
    expected = ["x.flac", "a/deep/y.m4a", "a/z.MP3", "b.wav", "odd[1].dat", "missing.wav", "-"]
    assert recordings == [Path(name) for name in expected]
    assert problems == []


def test_what_names_no_recording_is_told(tmp_path: Path) -> None:
    recordings, problems = find([str(tmp_path), str(tmp_path / "*.wav"), ""])
    assert recordings == []
    assert [problem.partition(";")[0] for problem in problems] == [
        f"{tmp_path} holds no recording",
        f'no recording matches "{tmp_path}/*.wav"',
        "a name on the command line is empty",
    ]


@given(st.lists(st.sampled_from(["a/x.wav", "b/x.wav", "b/X.mp3", "x-2.wav", "x-2-2.ogg", "y.z.wav", "-"])))
def test_no_two_recordings_share_a_name(recordings: list[str]) -> None:
    names = output_names(map(Path, recordings))
    assert len({name.casefold() for name in names}) == len(recordings)
    assert all(
        name.startswith("stdin" if r == "-" else Path(r).stem) for name, r in zip(names, recordings, strict=True)
    )


def test_the_formats_are_those_of_the_writers() -> None:
    assert tuple(WRITERS) == FORMATS


def test_suffixes_are_written_as_they_are_compared() -> None:
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in SUFFIXES)


# transcribe: real speech through the real command


def words_of(text: str) -> set[str]:
    return set(text.split())


def test_a_recording_is_printed() -> None:
    done = asr("transcribe", CLIP)
    assert done.returncode == 0
    assert done.stderr == ""
    assert len(words_of(done.stdout) & words_of("or rather at the upper end of drury lane")) >= 5


def test_every_format_is_written_under_the_recordings_name(tmp_path: Path, transcribe: Transcribe) -> None:
    done = transcribe(CLIP, OTHER_CLIP, "--format", "all", "--output-dir", tmp_path / "new" / "folder")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    files = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert files == {f"{clip.stem}.{name}" for clip in (CLIP, OTHER_CLIP) for name in FORMATS}
    for name in FORMATS:
        alone = transcribe(CLIP, "--format", name)
        assert alone.stdout == (tmp_path / "new" / "folder" / f"{CLIP.stem}.{name}").read_text()


def test_json_has_text_segments_and_words_with_times(tmp_path: Path, transcribe: Transcribe) -> None:
    document = json.loads(transcribe(CLIP, "--format", "json").stdout)
    assert list(document) == ["model", "text", "segments", "words"]
    assert " ".join(word["text"] for word in document["words"]) == document["text"]
    times = [time for word in document["words"] for time in (word["start"], word["end"])]
    assert times == sorted(times)
    assert all(0 <= time <= 4.2 for time in times)
    assert all(0 <= word["confidence"] <= 1 for word in document["words"])


def test_several_recordings_are_told_apart_on_standard_output(transcribe: Transcribe) -> None:
    text = transcribe(CLIP, OTHER_CLIP).stdout
    assert [line for line in text.splitlines() if line.startswith("==>")] == [
        f"==> {CLIP} <==",
        f"==> {OTHER_CLIP} <==",
    ]
    lines = transcribe(CLIP, OTHER_CLIP, "--format", "json").stdout.splitlines()
    assert [json.loads(line)["file"] for line in lines] == [str(CLIP), str(OTHER_CLIP)]


@pytest.mark.parametrize("name", ["txt", "tsv", "srt", "vtt"])
def test_segments_are_printed_as_they_come(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    def segments() -> Iterator[Segment]:
        for number, text in enumerate(("one", "two", "three")):
            yield Segment.of((Word(text, number, number + 0.5, 1.0),))
            assert text in capsys.readouterr().out

    write_out(sys.stdout, segments(), name, "a.wav", "en")


def test_a_bar_is_shown_on_a_terminal_and_only_there(tiny_model: Path) -> None:
    command = [sys.executable, str(ROOT / "run_asr.py"), "transcribe", str(CLIP), str(OTHER_CLIP)]
    command += ["--model", str(tiny_model)]
    terminal, other_end = os.openpty()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=other_end, timeout=TIME_LIMIT, check=True)
    os.close(other_end)
    assert b"100%" in os.read(terminal, 100_000)
    os.close(terminal)
    assert done.stdout == subprocess.run(command, capture_output=True, timeout=TIME_LIMIT, check=True).stdout


def test_raw_samples_on_standard_input_give_the_words_of_their_file(tmp_path: Path, transcribe: Transcribe) -> None:
    samples, rate = soundfile.read(CLIP, dtype="int16")
    piped = transcribe("-", "--sample-rate", str(rate), "--output-dir", tmp_path, stdin=samples.tobytes())
    assert (piped.returncode, piped.stderr) == (0, "")
    assert (tmp_path / "stdin.txt").read_text() == transcribe(CLIP).stdout


def test_recordings_of_one_name_do_not_overwrite_each_other(tmp_path: Path, transcribe: Transcribe) -> None:
    twin = tmp_path / "in" / "26-495-0007.wav"
    twin.parent.mkdir()
    soundfile.write(twin, np.zeros(16_000), 16_000)
    done = transcribe(CLIP, twin, "--output-dir", tmp_path)
    assert done.returncode == 0
    assert done.stderr == f"asr: {twin} goes to 26-495-0007-2.*, because another recording is named 26-495-0007 too\n"
    assert (tmp_path / "26-495-0007.txt").read_text() == transcribe(CLIP).stdout
    assert (tmp_path / "26-495-0007-2.txt").read_text() == ""


# transcribe: what cannot be read


def broken_recordings(folder: Path) -> list[Path]:
    """One recording for each thing that can be wrong with it."""
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("No recording at all.\n" * 100)
    flac = CLIP.read_bytes()
    (folder / "truncated.flac").write_bytes(flac[: len(flac) // 2])
    samples = np.zeros(16_000, np.float32)
    samples[8_000] = np.nan
    soundfile.write(folder / "nan.wav", samples, 16_000, subtype="FLOAT")
    soundfile.write(folder / "rate.wav", np.zeros(16_000), 16_000)
    wav = bytearray((folder / "rate.wav").read_bytes())
    wav[24:28] = bytes(4)  # the sample rate
    (folder / "rate.wav").write_bytes(wav)
    return [*sorted(folder.iterdir()), folder / "missing.wav"]


def test_broken_recordings_are_reported_and_the_others_transcribed(tmp_path: Path, transcribe: Transcribe) -> None:
    source = tmp_path / "in"
    source.mkdir()
    broken = broken_recordings(source)
    (source / "nothing").mkdir()
    done = transcribe(*broken, CLIP, source / "nothing", "--format", "json", "--output-dir", tmp_path / "out")
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == len(broken) + 1
    for path in (*broken, source / "nothing"):
        assert len([line for line in lines if line.startswith(f"asr: {path} ")]) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["26-495-0007.json"]


@pytest.mark.parametrize("kind", ["empty.wav", "text.wav", "truncated.flac", "nan.wav", "rate.wav", "missing.wav"])
def test_a_broken_recording_alone_is_exit_1(kind: str, tmp_path: Path, transcribe: Transcribe) -> None:
    broken_recordings(tmp_path)
    done = transcribe(tmp_path / kind)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_what_was_heard_before_the_damage_is_printed(tmp_path: Path, transcribe: Transcribe) -> None:
    samples, rate = soundfile.read(CLIP, dtype="float32")
    soundfile.write(tmp_path / "a.wav", np.concatenate([samples, [np.nan]]), rate, subtype="FLOAT")
    done = transcribe(tmp_path / "a.wav")
    assert done.returncode == 1
    assert done.stdout != ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["."], "there is nothing to transcribe"),
        (["-"], "add --sample-rate"),
        (["-", "--sample-rate", "0"], "--sample-rate is 0 Hz"),
        ([CLIP, "--sample-rate", "0"], "--sample-rate is 0 Hz"),
        ([CLIP, "--format", "all"], "add --output-dir"),
        ([CLIP, "--output-dir", CLIP], "cannot make the folder"),
    ],
)
def test_a_wrong_command_is_exit_2(
    arguments: Sequence[str | Path], said: str, tmp_path: Path, transcribe: Transcribe
) -> None:
    done = transcribe(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_an_unknown_model_is_exit_1() -> None:
    done = asr("transcribe", CLIP, "--model", "nosuch")
    assert done.returncode == 1
    assert done.stderr.startswith("asr: there is no model 'nosuch'")


def test_a_name_that_no_terminal_can_show_does_no_harm(tmp_path: Path, transcribe: Transcribe) -> None:
    clip = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.flac"))
    shutil.copy(CLIP, clip)
    done = transcribe(clip, CLIP)
    assert done.returncode == 0
    assert "\\udcff.flac <==" in done.stdout
