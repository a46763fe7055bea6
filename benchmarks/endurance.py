"""Memory of one stream over hours of speech and pauses: one line an hour, which must not grow.

    python -m benchmarks.endurance [SOURCE] [--model M] [--hours 10] [--gate] [--json OUT] [--markdown OUT]

The recordings are streamed one after another, again and again, in blocks of 100 ms, with 0 to 4 seconds of faint noise
between them. Memory is what the process holds (Linux: VmRSS).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from asr.audio import read_blocks
from asr.features import Samples
from asr.recognizer import load
from asr.training.manifest import Utterance, read
from asr.vad import GateRules
from benchmarks.apart import memory_mb
from benchmarks.common import Table, guarded, parser, publish

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
    """Prints a line an hour and writes them where asked."""
    options = parser(__doc__)
    options.add_argument("--hours", type=float, default=10.0, metavar="H", help="of audio (default: 10)")
    options.add_argument("--every", type=float, default=1.0, metavar="H", help="hours between two lines (default: 1)")
    options.add_argument("--gate", action="store_true", help="with the speech gate")
    args = options.parse_args()

    recognizer = load(args.model, gate=GateRules() if args.gate else None)
    rate = recognizer.model.config.features.sample_rate
    stream = recognizer.stream(rate)
    rows: list[Row] = []
    words, heard = 0, 0
    table = Table("hours", "resident MB", "words", "processor hours")
    for block in sound(read(args.source, args.data), rate):
        words += sum(len(hypothesis.words) for hypothesis in stream.accept(block) if hypothesis.is_final)
        heard += len(block)
        hours = heard / rate / 3600
        if hours >= args.every * (len(rows) + 1):
            row = Row(hours, memory_mb(), words, time.process_time() / 3600)
            table.add(f"{row.hours:.2f}", f"{row.resident_mb:.1f}", row.words, row.cpu_hours)
            rows.append(row)
        if hours >= args.hours:
            break
    publish(args, "endurance", rows, table)


def sound(utterances: list[Utterance], rate: int) -> Iterator[Samples]:
    """Recordings with pauses, without end."""
    rng = np.random.default_rng(1)
    size = round(BLOCK_SECONDS * rate)
    for utterance in cycle(utterances):
        pause = rng.normal(0, NOISE, round(rng.uniform(0, LONGEST_PAUSE) * rate)).astype(np.float32)
        samples = np.concatenate([*read_blocks(utterance.path, target_rate=rate), pause])
        yield from np.split(samples, range(size, len(samples), size))


if __name__ == "__main__":
    guarded(main)
