"""How soon the first word is there, and how much the program takes with it.

    python -m benchmarks.startup [--model M] [--repeats 15] [--json OUT] [--markdown OUT]

"first word" is from the start of the process `asr transcribe CLIP` to the first byte that it prints, of a clip of two
seconds; "import asr" is an interpreter that does so less one that does nothing. Every figure of time is the median (and
quartiles) of new processes that find the files in the disk cache, and no interpreter looks at what is in the user's
folder. "installed" are the files, bytecode included, of the packages that `pip install .` brings, without the bundled
models, which are listed by themselves. Memory is the most that a process holds.
"""

import os
import subprocess
import sys
import tempfile
import time
from configparser import ConfigParser
from dataclasses import dataclass
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import soundfile

from asr.recognizer import find_model
from benchmarks import apart
from benchmarks.common import CLIPS, ROOT, Spread, Table, all_cores, figure, guarded, parser, publish

CLIP = CLIPS.with_name("19-198-0008.flac")
CLIP_SECONDS = 2.0
DECODERS: dict[str, tuple[str, list[str]]] = {"beam + LM": ("auto", []), "greedy": ("greedy", ["--greedy"])}  # options
MB = 2**20  # as `du -m` has it


@dataclass(frozen=True)
class Row:
    """One figure; quartiles where it was measured again and again."""

    what: str
    unit: str
    value: Spread | float


def main() -> None:
    """Prints a table and writes it where asked."""
    options = parser(__doc__, source=False)
    options.add_argument("--repeats", type=int, default=15, metavar="N", help="processes of each kind (default: 15)")
    options.add_argument("--seconds", type=float, default=60.0, metavar="S", help="of the live stream (default: 60)")
    args = options.parse_args()

    table = Table("start and size", "figure")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder, "clip.wav")
        samples, rate = soundfile.read(CLIP)
        soundfile.write(clip, samples[: round(CLIP_SECONDS * rate)], rate)
        measured = times(args.model, clip, args.repeats), sizes(args.model), memory(args.model, clip, args.seconds)
        for row in chain(*measured):
            value = row.value if isinstance(row.value, Spread) else figure(row.value)
            table.add(row.what, f"{value} {row.unit}")
            rows.append(row)
    publish(args, "startup", rows, table)


def times(model: str, clip: Path, repeats: int) -> list[Row]:
    """Of new processes."""
    nothing, imported = [], []
    for _ in range(repeats + 1):
        nothing.append(until_output("-c", "print()"))
        imported.append(until_output("-c", "import asr; print()"))
    costs = [with_asr - without for with_asr, without in zip(imported, nothing, strict=True)]
    rows = [
        Row("an interpreter that does nothing", "s", Spread.of(nothing[1:])),
        Row("import asr", "s", Spread.of(costs[1:])),
    ]
    for name, (_, option) in DECODERS.items():
        command = [str(ROOT / "run_asr.py"), "transcribe", str(clip), "--model", model, *option]
        taken = [until_output(*command) for _ in range(repeats + 1)]
        rows.append(Row(f"first word of a clip of two seconds, {name}", "s", Spread.of(taken[1:])))
    return rows


def until_output(*arguments: str) -> float:
    """Seconds from the start of a Python process to its first output."""
    began = time.perf_counter()
    command = [sys.executable, "-s", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        first = process.stdout.read(1)
        taken = time.perf_counter() - began
        process.stdout.read()
    if process.returncode or not first:
        raise apart.Failed(f"{' '.join(command)} has printed nothing and ended with code {process.returncode}")
    return taken


def sizes(model: str) -> list[Row]:
    """On disk."""
    package = folder_bytes(ROOT / "asr") / MB
    needed = sum(map(distribution_bytes, requirements())) / MB
    return [
        Row("installed without extras", "MB", package + needed),
        Row("model directory", "MB", folder_bytes(find_model(model)) / MB),
    ]


def requirements() -> set[str]:
    """Names of the distributions that the project needs here, without extras, and that these need."""
    from packaging.requirements import Requirement

    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    waiting = setup["options"]["install_requires"].split("\n")
    found: set[str] = set()
    while waiting:
        text = waiting.pop()
        wanted = Requirement(text) if text else None
        if wanted and wanted.name not in found and (not wanted.marker or wanted.marker.evaluate({"extra": ""})):
            found.add(wanted.name)
            waiting += metadata.requires(wanted.name) or []
    return found


def distribution_bytes(name: str) -> int:
    """Of all files of an installed distribution."""
    paths = {Path(str(file.locate())) for file in metadata.files(name) or []}
    return sum(path.stat().st_size for path in paths if path.is_file())


def folder_bytes(folder: Path) -> int:
    """Of all files in a folder and below."""
    paths = [Path(place, name) for place, _, names in os.walk(folder) for name in names]
    return sum(path.stat().st_size for path in paths)


def memory(model: str, clip: Path, seconds: float) -> list[Row]:
    """Of a process each."""
    core = all_cores()[:1]
    samples, _ = soundfile.read(clip, dtype="int16")
    raw = clip.with_suffix(".raw")
    samples.tofile(raw)
    rows = []
    for name, (decoder, option) in DECODERS.items():
        arguments = ["transcribe", str(clip), "--model", model, *option]
        short = apart.run("benchmarks.inside:command", core, arguments=arguments)
        given: dict[str, Any] = {"path": str(raw), "decoder": decoder, "seconds": seconds}
        live = apart.run("benchmarks.inside:listen", core, model=model, **given)
        rows += [
            Row(f"most memory of asr transcribe, {name}", "MB", short.peak_mb),
            Row(f"memory of a live stream, {name}", "MB", live.value),
            Row(f"most memory of a live stream, {name}", "MB", live.peak_mb),
        ]
    return rows


if __name__ == "__main__":
    guarded(main)
