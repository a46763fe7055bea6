"""Memory of one stream over hours of speech and pauses: one line an hour, which must not grow.

    python benchmarks/endurance.py MODEL MANIFEST --hours 10 [--data DIR] [--gate] [--json OUT]

The recordings are streamed one after another, again and again, in blocks of 100 ms, with 0 to 4 seconds of faint noise
between them. Memory is what the process holds (Linux: VmRSS).
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path

import numpy as np

from asr.audio import read_blocks
from asr.features import Samples
from asr.recognizer import load
from asr.training.manifest import Utterance, read
from asr.vad import GateRules

BLOCK_SECONDS = 0.1
LONGEST_PAUSE = 4.0  # seconds
NOISE = 3e-4  # RMS, of full scale


@dataclass(frozen=True)
class Row:
    """After so many hours of audio."""

    hours: float
    resident_mb: float
    words: int
    cpu_hours: float


def main() -> None:
    """Prints a line an hour and writes them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model directory or the name of a bundled model")
    parser.add_argument("source", type=Path, help="a manifest (.tsv) or LibriSpeech")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the manifest's paths (default: its own)")
    parser.add_argument("--hours", type=float, default=10.0, metavar="H", help="of audio (default: 10)")
    parser.add_argument("--every", type=float, default=1.0, metavar="H", help="hours between two lines (default: 1)")
    parser.add_argument("--gate", action="store_true", help="with the speech gate")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the lines as JSON")
    args = parser.parse_args()

    recognizer = load(args.model, gate=GateRules() if args.gate else None)
    rate = recognizer.model.config.features.sample_rate
    stream = recognizer.stream(rate)
    rows: list[Row] = []
    words, heard = 0, 0
    print(f"{'hours':>6}{'resident MB':>13}{'words':>9}{'CPU hours':>11}")
    for block in sound(read(args.source, args.data), rate):
        words += sum(len(hypothesis.words) for hypothesis in stream.accept(block) if hypothesis.is_final)
        heard += len(block)
        hours = heard / rate / 3600
        if hours >= args.every * (len(rows) + 1):
            row = Row(hours, resident_mb(), words, time.process_time() / 3600)
            rows.append(row)
            print(
                f"{row.hours:6.2f}{row.resident_mb:13.1f}{row.words:9}{row.cpu_hours:11.3f}",
                flush=True,
            )
        if hours >= args.hours:
            break
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def sound(utterances: list[Utterance], rate: int) -> Iterator[Samples]:
    """Recordings with pauses, without end."""
    rng = np.random.default_rng(1)
    size = round(BLOCK_SECONDS * rate)
    for utterance in cycle(utterances):
        pause = rng.normal(0, NOISE, round(rng.uniform(0, LONGEST_PAUSE) * rate)).astype(np.float32)
        samples = np.concatenate([*read_blocks(utterance.path, target_rate=rate), pause])
        yield from np.split(samples, range(size, len(samples), size))


def resident_mb() -> float:
    """Memory of this process that is in use now."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1000


if __name__ == "__main__":
    main()
