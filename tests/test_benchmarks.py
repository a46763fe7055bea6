"""Every benchmark runs, says what it measured on, and gives figures of the shape that the README quotes."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.encoder import Encoder, EncoderConfig
from asr.errors import ASRError
from asr.training.manifest import read
from benchmarks import all as everything
from benchmarks import apart, floor, stream
from benchmarks.common import CLIPS, Spread, all_cores, figure, parser, speech, spread_evenly

ROOT = Path(__file__).parents[1]
SEVERAL_CORES = ("files",)  # are tested there, the others on one: threads of a busy machine mostly wait
TINY, BUNDLED, NONE = "tiny", "bundled", "none"  # models that a benchmark is run with

# fmt: off
RUNS = {
    "files": (TINY, ["--minutes", "0.1", "--files", "1", "3", "--passes", "1"]),
    "stream": (TINY, ["--chunks", "160,640", "--seconds", "2", "--passes", "1", "--crowd-seconds", "0"]),
    "startup": (TINY, ["--repeats", "1", "--seconds", "1"]),
    "train": (NONE, ["--steps", "1", "--processes", "1", "--batch-seconds", "12"]),
    "peers": (TINY, ["--minutes", "0.03", "--peers", "pocketsphinx"]),
    "floor": (TINY, ["--minutes", "0.1", "--passes", "1", "--attempts", "1"]),
    "batch": (TINY, ["--seconds", "1"]),
    "decode": (BUNDLED, ["--limit", "1", "--beams", "8"]),
    "endurance": (TINY, ["--hours", "0.002", "--every", "0.001"]),
    "gate": (TINY, ["--limit", "1", "--longest-pause", "0.5"]),
    "hotwords": (BUNDLED, ["--limit", "1"]),
    "streaming": (TINY, ["--limit", "1"]),
}
# fmt: on


@pytest.mark.parametrize("name", RUNS)
def test_benchmark(name: str, tiny_model: Path, tmp_path: Path) -> None:
    model, arguments = RUNS[name]
    options = {TINY: ["--model", str(tiny_model)], BUNDLED: ["--model", "en"], NONE: []}[model]
    written = [tmp_path / "out.json", tmp_path / "out.md"]
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments, *options]
    command += ["--json", str(written[0]), "--markdown", str(written[1])]
    taskset = [] if name in SEVERAL_CORES else ["taskset", "--cpu-list", str(all_cores()[0])]
    done = subprocess.run([*taskset, *command], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr

    document = json.loads(written[0].read_text())
    assert document["benchmark"] == name
    assert document["command"].startswith(f"python -m benchmarks.{name} ")
    assert document["machine"].keys() >= {"processor", "cores", "caches", "packages", "load"}
    assert document["rows"]
    assert not [row for row in document["rows"] if row.get("failure")]
    assert all(math.isfinite(number) for number in numbers(document["rows"]))
    lines = written[1].read_text().splitlines()
    assert all(line.startswith("|") and line.endswith("|") for line in lines if line)
    assert [line for line in lines if line] == [line for line in done.stdout.splitlines() if line.startswith("|")]


def numbers(value: Any) -> Iterator[float]:
    """All numbers of a document."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif isinstance(value, float | int):
        yield value


def test_many_streams_are_heard(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "speech.npy"
    np.save(path, speech(parser(None).parse_args([str(CLIPS)]), 3.0))
    heard_by = {"model": str(tiny_model), "decoder": "greedy", "path": str(path)}
    found = stream.crowd(160, all_cores()[:1], 3, 1.0, heard_by)
    assert found.streams == 3 * found.cores
    assert 0 < found.p50_ms <= found.p99_ms


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_the_most_streams_are_found(capacity: int, guess: int) -> None:
    def crowd(chunk_ms: int, cores: list[int], each: int, *others: object) -> stream.Crowd:
        return stream.Crowd(chunk_ms, len(cores), each * len(cores), 1.0, 100.0 if each <= capacity else 200.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "crowd", crowd)
        found = stream.most(160, 120.0, [0, 1], guess, 1.0, {})
        none = stream.most(160, 99.0, [0, 1], guess, 1.0, {})
    assert found.streams <= 2 * capacity <= max(stream.STEP * found.streams, found.streams + 2)
    assert none.streams == 0


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_spread_surrounds_the_median(values: list[float]) -> None:
    spread = Spread.of(values)
    assert min(values) <= spread.low <= spread.median <= spread.high <= max(values)
    assert str(Spread(4.123, 3.9, 1234.5)) == "4.12 (3.9 to 1,234)"
    assert figure(0.00123456) == "0.00123"


@given(
    st.sampled_from(["lstm", "gru", "rnn"]),
    st.sampled_from(["streaming", "bidirectional"]),
    st.sampled_from([0, 8, 24]),
    st.integers(1, 3),
)
def test_weights_are_counted(cell: str, kind: str, hidden: int, layers: int) -> None:
    config = EncoderConfig(kind=kind, cell=cell, hidden=hidden, layers=layers, width=16, conv_channels=12)
    counted = sum(part.weights for part in floor.encoder(vars(config), 100.0))
    # Matrices of the blocks and the output, and both convolutions; a row convolution has hardly any weights.
    there = {name: p for name, p in Encoder(config).named_parameters() if p.ndim > 1 and not name.startswith("ahead")}
    assert counted == sum(weights.numel() for weights in there.values())


def test_a_process_apart_tells_why_it_failed() -> None:
    with pytest.raises(apart.Failed, match="No module named 'nothing'"):
        apart.run("nothing:at_all", all_cores())


@given(st.integers(1, 20))
def test_speech_of_any_length(seconds: int) -> None:
    assert len(speech(parser(None).parse_args([str(CLIPS)]), seconds)) == 16_000 * seconds


@given(st.integers(1, 12))
def test_limits_spread_over_the_source(limit: int) -> None:
    utterances = read(CLIPS)
    chosen = spread_evenly(utterances, limit)
    assert len(chosen) == min(limit, len(utterances))
    assert chosen == sorted(set(chosen), key=utterances.index)


def test_tables_go_between_their_marks(tmp_path: Path) -> None:
    machine = {"processor": "P", "family": "1", "instructions": ["avx2"], "caches": {"L2": "1M"}, "cores": 2}
    machine |= {"memory_gb": 8, "python": "3", "packages": {"numpy": "2"}, "load": 0.1, "commit": "c"}
    (tmp_path / "files.json").write_text(json.dumps({"machine": machine}))
    (tmp_path / "files.md").write_text("| a |\n|-|\n| 1 |\n")
    text = everything.section(tmp_path, ["peers", "files"], Path("folder/dev.tsv"))
    assert "`python -m benchmarks.files SPEECH/dev.tsv" in text
    assert text.endswith("| 1 |")
    for path, mark in ((everything.README, "numbers"), (everything.FLOOR, "floor")):
        copy = tmp_path / path.name
        copy.write_text(path.read_text())
        for _ in range(2):
            everything.insert(copy, mark, text)
        before, _, _ = path.read_text().partition(f"<!-- {mark} -->")
        assert copy.read_text().count(text) == 1
        assert copy.read_text().startswith(before)
    with pytest.raises(ASRError, match="lacks <!-- other -->"):
        everything.insert(tmp_path / "README.md", "other", text)
