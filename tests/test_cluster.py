"""Transcription on a Ray cluster: what one process gives, even where a worker is killed in mid-job."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

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


def command(address: str, *arguments: str) -> list[str]:
    return [sys.executable, "run_asr.py", "transcribe", *map(str, CLIPS), "--ray", address, *arguments]


def workers() -> list[int]:
    """Processes of this cluster that transcribe now: they are named after it, and children of a child of this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, parent = (folder / "cmdline").read_bytes(), parent_of(int(folder.name))
            if name.startswith(b"ray::_transcribe") and parent_of(parent) == os.getpid():
                found.append(int(folder.name))
        except FileNotFoundError:
            pass  # it has ended
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_killed_worker_loses_nothing(address: str) -> None:
    recognizer = load("en")
    wanted = [recognizer.transcribe(path).text for path in CLIPS]
    process = subprocess.Popen(command(address, "--format", "json"), stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout
    first = process.stdout.readline()  # the others are under way
    busy = workers()  # none, where the machine was quicker than this
    for pid in busy:
        os.kill(pid, signal.SIGKILL)
    lines = [first, *process.stdout]
    assert process.wait(300) == 0
    assert [json.loads(line)["text"] for line in lines] == wanted, lines


def test_what_cannot_be_read_is_told_and_the_others_go_on(address: str, tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    found = subprocess.run(
        [*command(address)[:3], str(tmp_path / "empty.wav"), str(CLIPS[0]), "--ray", address],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert found.returncode == 1
    assert "empty.wav is empty (0 bytes)" in found.stderr
    assert load("en").transcribe(CLIPS[0]).text.split()[0] in found.stdout


def test_a_cluster_that_is_not_there_is_named() -> None:
    found = subprocess.run(command("127.0.0.1:1"), capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert found.returncode == 1
    assert "there is no Ray cluster at 127.0.0.1:1" in found.stderr
    assert "Traceback" not in found.stderr
