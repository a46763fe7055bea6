"""Memory of one stream over hours of speech and pauses: one line an hour, which must not grow.

    python -m benchmarks.endurance [SOURCE] [--model M] [--hours 10] [--every 1] [--block 0.1] [--gate] [--json OUT]

The recordings are streamed one after another, again and again, with 0 to 4 seconds of faint noise between them, in
blocks of 100 ms; longer ones take less time. Memory is what the process holds (Linux: VmRSS), and what of it is its own
(RssAnon): the rest are pages of files, such as the language model, which the system can drop and read again.
"""

import time
from collections.abc import Iterable, Iterator
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

LONGEST_PAUSE = 4.0  # seconds
NOISE = 3e-4  # RMS, of full scale


@dataclass(frozen=True)
class Row:
    """After so many hours of audio."""

    hours: float
    resident_mb: float
    own_mb: float
    words: int
    cpu_hours: float


def main() -> None:
    """Prints a line an hour and writes them where asked."""
    options = parser(__doc__)
    options.add_argument("--hours", type=float, default=10.0, metavar="H", help="of audio (default: 10)")
    options.add_argument("--every", type=float, default=1.0, metavar="H", help="hours between two lines (default: 1)")
    options.add_argument("--block", type=float, default=0.1, metavar="S", help="seconds of a block (default: 0.1)")
    options.add_argument("--gate", action="store_true", help="with the speech gate")
    args = options.parse_args()

    recognizer = load(args.model, gate=GateRules() if args.gate else None)
    rate = recognizer.model.config.features.sample_rate
    stream = recognizer.stream(rate)
    rows: list[Row] = []
    words, heard = 0, 0
    table = Table("hours", "resident MB", "of it own MB", "words", "processor hours")
    for block in joined(cycle(read(args.source, args.data)), rate, args.block, LONGEST_PAUSE):
        words += sum(len(hypothesis.words) for hypothesis in stream.accept(block) if hypothesis.is_final)
        heard += len(block)
        hours = heard / rate / 3600
        if hours >= args.every * (len(rows) + 1):
            row = Row(hours, memory_mb(), memory_mb("RssAnon"), words, time.process_time() / 3600)
            table.add(f"{row.hours:.2f}", f"{row.resident_mb:.1f}", f"{row.own_mb:.1f}", row.words, row.cpu_hours)
            rows.append(row)
        if hours >= args.hours:
            break
    publish(args, "endurance", rows, table)


def joined(utterances: Iterable[Utterance], rate: int, block_seconds: float, longest_pause: float) -> Iterator[Samples]:
    """Recordings with pauses of up to so many seconds after each, in blocks of so many seconds or less."""
    rng = np.random.default_rng(1)
    size = max(1, round(block_seconds * rate))
    for utterance in utterances:
        yield from read_blocks(utterance.path, target_rate=rate, block_seconds=block_seconds)
        pause = round(rng.uniform(0, longest_pause) * rate)
        for begin in range(0, pause, size):
            yield rng.normal(0, NOISE, min(size, pause - begin)).astype(np.float32)


if __name__ == "__main__":
    guarded(main)
