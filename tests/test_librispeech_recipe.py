"""The LibriSpeech recipe: archives arrive whole over a bad line, and a small model learns from the folder they make."""

import hashlib
import importlib.util
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torchaudio.datasets.librispeech import _CHECKSUMS

from asr.cli import main
from asr.training.manifest import read

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "recipes" / "librispeech" / "prepare.py"
FLACS = [u for u in read(Path(__file__).parent / "data" / "clips.tsv") if u.path.suffix == ".flac"]
SPLIT = "dev-clean"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["prepare"] = module
    spec.loader.exec_module(module)
    return module


prepare: Any = load_script()


def lay_out(folder: Path, split: str) -> Path:
    """The six original clips as a split of LibriSpeech in `folder`; returns the folder of splits."""
    for clip in FLACS:
        speaker, chapter, _ = clip.path.stem.split("-")
        place = folder / "LibriSpeech" / split / speaker / chapter
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip.path, place)
        with (place / f"{speaker}-{chapter}.trans.txt").open("a") as transcript:
            transcript.write(f"{clip.path.stem} {clip.text}\n")
    (folder / "LibriSpeech" / "README.TXT").write_text("read me")
    return folder / "LibriSpeech"


def archive_of(corpus: Path) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(corpus, "LibriSpeech")
    return packed.getvalue()


class Server(ThreadingHTTPServer):
    """One archive over HTTP, with ranges or without, and connections that end early where `cuts` says so."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.has_ranges = content, True
        self.cuts: list[int] = []  # how many bytes each answer sends of what it promises
        self.asked: list[str | None] = []  # the Range of each request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if self.path != f"/{SPLIT}.tar.gz":
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.has_ranges else 0
        if start >= len(server.content):
            self.send_error(416)
            return
        self.send_response(206 if asked and server.has_ranges else 200)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        self.wfile.write(server.content[start : start + (server.cuts.pop(0) if server.cuts else len(server.content))])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves the six clips as dev-clean; the script is told the archive's checksum and count."""
    content = archive_of(lay_out(tmp_path / "origin", SPLIT))
    monkeypatch.setattr(prepare, "SPLITS", {SPLIT: prepare.Split(hashlib.sha256(content).hexdigest(), len(FLACS))})
    with Server(content) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(server: Server, output: Path, *options: str) -> int:
    return int(prepare.main(["--output", str(output), "--splits", SPLIT, "--url", server.url, *options]))


def assert_whole(output: Path) -> None:
    utterances = read(output / "LibriSpeech" / SPLIT)
    assert sorted(u.text for u in utterances) == sorted(clip.text for clip in FLACS)
    for clip in FLACS:
        (copy,) = (output / "LibriSpeech" / SPLIT).rglob(clip.path.name)
        assert copy.read_bytes() == clip.path.read_bytes()
    assert [p.name for p in output.iterdir()] == ["LibriSpeech"]
    assert (output / "LibriSpeech" / "README.TXT").exists()


def test_checksums_are_those_that_torchaudio_publishes() -> None:
    ours = {f"http://www.openslr.org/resources/12/{name}.tar.gz": s.sha256 for name, s in prepare.SPLITS.items()}
    assert ours == _CHECKSUMS


def test_a_split_is_fetched_checked_and_unpacked_once(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "data"
    assert fetch(server, output) == 0
    assert_whole(output)
    assert "dev-clean: 6 utterances, 3 speakers, 0.01 hours" in capsys.readouterr().out
    assert fetch(server, output) == 0
    assert server.asked == [None]


def test_archives_stay_where_that_is_asked_for(server: Server, tmp_path: Path) -> None:
    assert fetch(server, tmp_path / "data", "--keep-archives") == 0
    assert (tmp_path / "data" / "dev-clean.tar.gz").read_bytes() == server.content
    shutil.rmtree(tmp_path / "data" / "LibriSpeech")
    assert fetch(server, tmp_path / "data") == 0  # from the archive
    assert_whole(tmp_path / "data")
    assert len(server.asked) == 1


def test_a_line_that_breaks_is_taken_up_again(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000, 0, 50_000, 1]
    assert fetch(server, tmp_path / "data") == 0
    assert_whole(tmp_path / "data")
    assert server.asked == [None, "bytes=100000-", "bytes=100000-", "bytes=150000-", "bytes=150001-"]


def test_a_server_without_ranges_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.has_ranges, server.cuts = False, [100_000]
    assert fetch(server, tmp_path / "data") == 0
    assert_whole(tmp_path / "data")


KILLED = """
import os, signal, sys
sys.path.insert(0, {folder!r})
import prepare
prepare.BLOCK = 1 << 14
prepare.SPLITS = {{{split!r}: prepare.Split({sha256!r}, {count})}}
got = 0
def advance(size):
    global got
    got += size
    if got > {limit}:
        os.kill(os.getpid(), signal.SIGKILL)
class Bar:
    def __init__(self, *_): pass
    def __enter__(self): return advance
    def __exit__(self, *_): pass
prepare.bar = Bar
prepare.main(["--output", {output!r}, "--splits", {split!r}, "--url", {url!r}])
"""


def test_killed_in_the_middle_of_a_download_it_goes_on_there(server: Server, tmp_path: Path) -> None:
    output, split = tmp_path / "data", prepare.SPLITS[SPLIT]
    program = KILLED.format(
        folder=str(SCRIPT.parent), split=SPLIT, sha256=split.sha256, count=split.utterances,
        limit=len(server.content) // 2, output=str(output), url=server.url,
    )  # fmt: skip
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    there = (output / "dev-clean.tar.partial").stat().st_size
    assert 0 < there < len(server.content)
    assert fetch(server, output) == 0
    assert_whole(output)
    assert server.asked == [None, f"bytes={there}-"]


def test_killed_between_download_and_check_it_goes_on_there(server: Server, tmp_path: Path) -> None:
    output = tmp_path / "data"
    output.mkdir()
    (output / "dev-clean.tar.partial").write_bytes(server.content)
    (output / "dev-clean.unpacking").mkdir()
    assert fetch(server, output) == 0
    assert_whole(output)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("content", "has SHA-256"),
        ("count", "has 6 utterances instead of 7; remove it and fetch it again"),
        ("absent", "the server says 404 Not Found; try a mirror with --url"),
        ("dead", "the same command goes on later, --url names a mirror, --from a copy"),
        ("space", "GB are needed; make room"),
        ("other split", "holds no LibriSpeech/dev-clean; remove it"),
        ("outside", "cannot unpack"),
        ("no tar", "cannot unpack"),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: str,
    message: str,
) -> None:
    output, url, count = tmp_path / "data", server.url, len(FLACS)
    if damage == "content":
        server.content = server.content[:-1] + b"?"
    elif damage == "count":
        count += 1
    elif damage == "absent":
        url += "/nowhere"
    elif damage == "dead":
        server.cuts = [0] * 99
    elif damage == "space":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    elif damage == "other split":
        server.content = archive_of(lay_out(tmp_path / "other", "dev-other"))
    elif damage == "outside":
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            tar.addfile(tarfile.TarInfo("../../escaped.txt"), io.BytesIO())
        server.content = packed.getvalue()
    else:
        server.content = b"this is no archive"
    if damage != "content":
        sha256 = hashlib.sha256(server.content).hexdigest()
        monkeypatch.setattr(prepare, "SPLITS", {SPLIT: prepare.Split(sha256, count)})
    assert prepare.main(["--output", str(output), "--splits", SPLIT, "--url", url]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("prepare: ")
    assert message in said[-1]
    assert all(line.startswith(("fetching ", "prepare: ")) for line in said)
    assert not list(tmp_path.rglob("escaped.txt"))
    assert not (output / "LibriSpeech" / SPLIT).exists() or damage == "count"


def test_a_copy_that_is_there_is_checked_without_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = lay_out(tmp_path, "train-clean-100")
    for folder in (tmp_path, corpus):
        assert prepare.main(["--from", str(folder)]) == 0
        said = capsys.readouterr().out
        assert "train-clean-100: 6 of 28539 utterances, 3 speakers, 0.01 hours" in said
        assert f"ready: give --data {tmp_path} to train" in said
    assert prepare.main(["--from", str(corpus), "--splits", "test-other"]) == 1
    assert "has no test-other; it has train-clean-100" in capsys.readouterr().err
    assert prepare.main(["--from", str(tmp_path / "nowhere")]) == 1
    assert "has no split of LibriSpeech" in capsys.readouterr().err
    corpus.rename(tmp_path / "speech")
    assert prepare.main(["--from", str(tmp_path / "speech")]) == 1
    assert "must be called LibriSpeech" in capsys.readouterr().err


def test_a_damaged_copy_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chapter = lay_out(tmp_path, SPLIT) / SPLIT / "26" / "495"
    shutil.copy(FLACS[0].path, chapter / "26-495-9999.flac")
    assert prepare.main(["--from", str(tmp_path)]) == 1
    assert "has 7 recordings and 6 transcripts" in capsys.readouterr().err
    (chapter / "26-495-9999.flac").unlink()
    (chapter / "26-495-0007.flac").write_bytes(b"fLaC")
    assert prepare.main(["--from", str(tmp_path)]) == 1
    assert "names 26-495-0007.flac, which cannot be read as audio" in capsys.readouterr().err


def test_the_recipe_learns_the_clips_from_preparation_to_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path, "train-clean-100")
    assert prepare.main(["--from", str(tmp_path)]) == 0
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    recipe = str(ROOT / "recipes/librispeech/mini.toml")
    assert main(["train", recipe, "--data", ".", "--output", "run", "--workers", "0", "--threads", "1"]) == 0
    torch.set_num_threads(threads)
    assert main(["export", "run", "model"]) == 0
    assert main(["evaluate", "LibriSpeech/train-clean-100", "--model", "model", "--json", "report.json"]) == 0
    score = json.loads(Path("report.json").read_text())["overall"]
    assert score["utterances"] == 6
    assert score["wer"] < 0.05
