"""Transcription on a Ray cluster: what one process gives, even where a worker is killed in mid-job."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import ray
import soundfile

from asr.audio import SAMPLE_RATE, read_blocks
from asr.recognizer import load

ROOT = Path(__file__).parent.parent
CLIPS = sorted((ROOT / "tests" / "data").glob("*.flac"))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster with two workers."""
    os.environ["PYTHONPATH"] = str(ROOT)
    context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield context.address_info["gcs_address"]  # type: ignore[attr-defined]
    ray.shutdown()


def command(address: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "run_asr.py", "transcribe", *map(str, arguments), "--ray", address]


def long_recording(path: Path, clips: list[Path]) -> Path:
    """Minutes of speech, so that a worker is at it for long enough to be met there."""
    joined = [block for clip in clips * 2 for block in read_blocks(clip)]
    soundfile.write(path, np.concatenate(joined), SAMPLE_RATE)
    return path


def stop_at_work(recording: Path, process: subprocess.Popen[str]) -> int:
    """Stops the worker that has a recording open, whose number is returned; it gets no further."""
    while process.poll() is None:
        for pid in readers(recording):
            os.kill(pid, signal.SIGSTOP)
            if pid in readers(recording):
                return pid
            os.kill(pid, signal.SIGCONT)  # it was done with it in the meantime
    raise AssertionError(f"no worker was met at {recording}")


def readers(recording: Path) -> list[int]:
    """The workers that have a recording open."""
    found = []
    for name in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            if name.read_bytes().startswith(b"ray::_transcribe"):
                open_files = [os.readlink(link) for link in (name.parent / "fd").iterdir()]
                found += [int(name.parent.name)] * (str(recording) in open_files)
    return found


def test_killed_workers_lose_nothing(address: str, tmp_path: Path) -> None:
    long = [long_recording(tmp_path / f"{i}.wav", clips) for i, clips in enumerate((CLIPS, CLIPS[::-1]))]
    recordings = [CLIPS[0], *long, *CLIPS[1:]]
    recognizer = load("en")
    wanted = [recognizer.transcribe(path).text for path in recordings]
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(
            command(address, *recordings, "--format", "json"),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
        )
        killed = []
        for recording in long:
            killed.append(stop_at_work(recording, process))
            os.kill(killed[-1], signal.SIGKILL)
        lines, _ = process.communicate(timeout=300)
    told = (tmp_path / "errors").read_text()
    assert process.returncode == 0, told
    assert len(set(killed)) == len(long)
    assert "_transcribe failed" in told, told
    results = [json.loads(line) for line in lines.splitlines()]
    assert [Path(result["file"]) for result in results] == recordings
    assert [result["text"] for result in results] == wanted


def test_what_cannot_be_read_is_told_and_the_others_go_on(address: str, tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    found = subprocess.run(
        command(address, tmp_path / "empty.wav", CLIPS[0]), capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert found.returncode == 1
    assert "empty.wav is empty (0 bytes)" in found.stderr
    assert load("en").transcribe(CLIPS[0]).text.split()[0] in found.stdout


def test_a_cluster_that_is_not_there_is_named() -> None:
    found = subprocess.run(command("127.0.0.1:1", CLIPS[0]), capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert found.returncode == 1
    assert "there is no Ray cluster at 127.0.0.1:1" in found.stderr
    assert "Traceback" not in found.stderr
