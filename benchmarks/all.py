"""All benchmarks that README.md and FLOOR.md quote, one after the other: a quarter of an hour, alone on a machine.

    python -m benchmarks.all SPEECH/dev-librispeech.tsv [--output exp/benchmarks] [--only files peers] [--write]

Every one leaves NAME.json and NAME.md in the output folder. --write puts the tables that are there between the marks
`<!-- numbers -->` and `<!-- /numbers -->` of README.md and `<!-- floor -->` and `<!-- /floor -->` of FLOOR.md. One that
fails is reported, and the others go on.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from asr.errors import ASRError
from benchmarks.common import ROOT, describe, guarded, parser

COMMANDS = {
    "peers": ["--minutes", "4"],
    "files": ["--minutes", "6", "--passes", "3"],
    "stream": ["--passes", "3", "--crowd-seconds", "4"],
    "startup": [],
    "train": [],
    "floor": ["--minutes", "4", "--passes", "3"],
}
HEADINGS = {
    "peers": "Beside others, on the same core, with the same recordings",
    "files": "An hour of recordings",
    "stream": "Live streams",
    "startup": "Start and size",
    "train": "Training",
    "floor": "Measured",
}
SOURCELESS, MODELLESS = ("startup",), ("train",)
README, FLOOR = ROOT / "README.md", ROOT / "benchmarks" / "FLOOR.md"


def main() -> None:
    """Runs the benchmarks and puts their tables where they belong."""
    options = parser(__doc__, results=False)
    options.add_argument("--output", type=Path, default=ROOT / "exp" / "benchmarks", metavar="DIR", help="of results")
    options.add_argument("--only", nargs="*", choices=COMMANDS, default=list(COMMANDS), metavar="NAME")
    options.add_argument("--write", action="store_true", help="put the tables into README.md and FLOOR.md")
    args = options.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in args.only:
        command = [sys.executable, "-m", f"benchmarks.{name}", *COMMANDS[name]]
        command += [] if name in SOURCELESS else [str(args.source.absolute())]
        command += ["--data", str(args.data.absolute())] if args.data and name not in SOURCELESS else []
        command += [] if name in MODELLESS else ["--model", args.model]
        for kind, suffix in (("json", "json"), ("markdown", "md")):
            command += [f"--{kind}", str(args.output.absolute() / f"{name}.{suffix}")]
        print(f"\n{HEADINGS[name]} (benchmarks.{name})", flush=True)
        began = time.monotonic()
        if subprocess.run(command, cwd=ROOT).returncode:
            failed.append(name)
        print(f"{time.monotonic() - began:.0f} s", flush=True)
    if args.write:
        insert(README, "numbers", section(args.output, [name for name in COMMANDS if name != "floor"], args.source))
        insert(FLOOR, "floor", section(args.output, ["floor"], args.source))
    if failed:
        raise ASRError(f"failed: {', '.join(failed)}; what is above says why")


def section(output: Path, names: list[str], source: Path) -> str:
    """The tables that are in the output folder, each after heading, command, and the machine where that changes."""
    parts = []
    measured_on = ""
    for name in names:
        if not (output / f"{name}.md").exists():
            continue
        found = describe(json.loads((output / f"{name}.json").read_text())["machine"])
        words = ["python -m", f"benchmarks.{name}", *([] if name in SOURCELESS else [f"SPEECH/{source.name}"])]
        parts.append(f"**{HEADINGS[name]}**: `{' '.join([*words, *COMMANDS[name]])}`")
        if found != measured_on:
            parts[-1] += f" on {found}"
            measured_on = found
        parts.append((output / f"{name}.md").read_text().strip())
    return "\n\n".join(parts)


def insert(path: Path, mark: str, text: str) -> None:
    """Puts a text between two marks in place of what is there."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, found, rest = path.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ASRError(f"{path} lacks {begin} or, after it, {end}; put them where the tables shall stand")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")


if __name__ == "__main__":
    guarded(main)
