"""What the benchmarks share: speech of any length, medians with spread, tables, and results as JSON and Markdown."""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from asr.audio import SAMPLE_RATE, read_blocks
from asr.errors import ASRError
from asr.features import Samples
from asr.training.manifest import Utterance, read
from benchmarks.apart import Failed

ROOT = Path(__file__).resolve().parents[1]
CLIPS = ROOT / "tests" / "data" / "clips.tsv"
PACKAGES = ("numpy", "onnxruntime", "torch")  # whose versions matter


@dataclass(frozen=True)
class Spread:
    """Median of repeated measurements, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """That of some values, at least one."""
        low, median, high = np.percentile(values, [25, 50, 75]).tolist()
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{figure(self.median)} ({figure(self.low)} to {figure(self.high)})"


def figure(value: float) -> str:
    """A number with three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


class Table:
    """A Markdown table that is printed line by line as it grows."""

    def __init__(self, *columns: str) -> None:
        self._lines: list[str] = []
        self.add(*columns)
        self._keep("|" + "-|" * len(columns))

    def add(self, *cells: object) -> None:
        """One more row; numbers get three digits that count."""
        texts = (figure(cell) if isinstance(cell, float) else str(cell) for cell in cells)
        self._keep("| " + " | ".join(texts) + " |")

    def _keep(self, line: str) -> None:
        self._lines.append(line)
        print(line, flush=True)

    def __str__(self) -> str:
        return "\n".join(self._lines)


def parser(doc: str | None, model: bool = True, source: bool = True, results: bool = True) -> argparse.ArgumentParser:
    """A benchmark's options, its docstring as help; with those of a model, a source of speech, and files of results."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if model:
        made.add_argument("--model", default="en", metavar="M", help="name or folder of a model (default: en)")
    if source:
        manifest = "a manifest (.tsv) or LibriSpeech (default: the clips of the tests)"
        made.add_argument("source", type=Path, nargs="?", default=CLIPS, help=manifest)
        made.add_argument("--data", type=Path, metavar="DIR", help="folder of the manifest's paths (default: its own)")
    if results:
        made.add_argument("--json", type=Path, metavar="OUT", help="write all figures as JSON")
        made.add_argument("--markdown", type=Path, metavar="OUT", help="write the tables as Markdown")
    return made


def publish(args: argparse.Namespace, name: str, rows: Sequence[Any], *tables: Table | str, **others: object) -> None:
    """Writes rows, which are dataclasses, and tables where the options ask for it."""
    if args.markdown:
        args.markdown.write_text("\n\n".join(map(str, tables)) + "\n")
    if args.json:
        document = {"benchmark": name, "command": command(), "machine": machine(), **others}
        document["rows"] = [asdict(row) for row in rows]
        args.json.write_text(json.dumps(document, indent=1) + "\n")


def command() -> str:
    """How this program was called, as one would type it."""
    return shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])


def guarded(main: Callable[[], None]) -> None:
    """Runs a benchmark; what is wrong with its input is one sentence and exit code 1."""
    try:
        main()
    except (ASRError, Failed) as error:
        sys.exit(str(error))


def spread_evenly(utterances: list[Utterance], limit: int | None) -> list[Utterance]:
    """At most `limit` of the utterances, at equal distances: a list's first ones are all of one speaker."""
    count = min(limit or len(utterances), len(utterances))
    return [utterances[i * len(utterances) // count] for i in range(count)]


def speech(args: argparse.Namespace, seconds: float) -> Samples:
    """The source's recordings one after the other, again and again if need be, for so long; at 16 kHz."""
    utterances = read(args.source, args.data)
    mean = sum(utterance.seconds for utterance in utterances) / len(utterances)
    wanted = round(seconds * SAMPLE_RATE)
    parts = [np.zeros(0, np.float32)]
    for utterance in cycle(spread_evenly(utterances, max(1, round(seconds / mean)))):
        parts += read_blocks(utterance.path, target_rate=SAMPLE_RATE)
        wanted -= sum(map(len, parts)) - len(parts[0])
        parts = [np.concatenate(parts)]
        if wanted <= 0:
            break
    return parts[0][: round(seconds * SAMPLE_RATE)]


def write_files(samples: Samples, count: int, folder: Path) -> list[str]:
    """Samples at 16 kHz in so many FLAC files of equal length."""
    folder.mkdir(parents=True)
    paths = [str(folder / f"{number}.flac") for number in range(count)]
    for path, part in zip(paths, np.array_split(samples, count), strict=True):
        soundfile.write(path, part, SAMPLE_RATE)
    return paths


def all_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    info = _cpu_info()
    return {
        "processor": info.get("model name", platform.processor()),
        "family": info.get("cpu family"),
        "cores": len(all_cores()),
        "instructions": [flag for flag in INSTRUCTIONS if flag in info.get("flags", "").split()],
        "caches": _caches(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "load": round(os.getloadavg()[0], 2),  # processes that wanted to run in the last minute, this one among them
    }


INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm")


def describe(found: dict[str, Any]) -> str:
    """A machine in one line."""
    caches = ", ".join(f"{name} {size}" for name, size in found["caches"].items())
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
    return (
        f"{found['processor']} (family {found['family']}, {', '.join(found['instructions'])}; {caches}), "
        f"{found['cores']} cores, {found['memory_gb']} GB, Python {found['python']}, {packages}; "
        f"load {found['load']}, commit {found['commit']}"
    )


def _cpu_info() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _caches() -> dict[str, str]:
    """Size by level of the first core's data caches."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (index / "type").read_text().strip() != "Instruction":
            found[f"L{(index / 'level').read_text().strip()}"] = (index / "size").read_text().strip()
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        found = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.strip() or None
