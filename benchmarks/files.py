"""Seconds that an hour of recordings takes, in one file or many, on one core and on all.

    python -m benchmarks.files [SOURCE] [--minutes 10] [--model M] [--json OUT] [--markdown OUT]

The source's recordings are joined, and cut into so many FLAC files of equal length. "cold" is a process from its start
to the last word, with import and loading of the model; "warm" is the median (and quartiles) of further passes in the
same process. On several cores several files are transcribed at a time, and of one file a part is read while the part
before is encoded and the one before decoded. "processor" is the processor time of a warm pass, which other programs
disturb less than the clock on the wall.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import apart
from benchmarks.common import Spread, Table, all_cores, guarded, parser, publish, speech, write_files

COUNTS = (1, 10, 100)  # files
DECODERS = ("greedy", "auto")


@dataclass(frozen=True)
class Row:
    """One way to transcribe an hour; seconds per hour of audio, but for the memory."""

    files: int
    cores: int
    decoder: str
    cold: float
    warm: Spread
    processor: Spread
    peak_mb: float


def main() -> None:
    """Prints a table and writes it where asked."""
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=10.0, metavar="M", help="of audio in all (default: 10)")
    options.add_argument("--files", type=int, nargs="+", default=COUNTS, metavar="N", help="default: 1 10 100")
    options.add_argument("--passes", type=int, default=5, metavar="N", help="warm passes (default: 5)")
    args = options.parse_args()

    samples = speech(args, 60 * args.minutes)
    cores = all_cores()
    rows = []
    table = Table("files", "cores", "decoder", "cold, s/h", "warm, s/h", "processor, s/h", "peak MB")
    with tempfile.TemporaryDirectory() as folder:
        for count in args.files:
            paths = write_files(samples, count, Path(folder, str(count)))
            for used in [cores[:1], cores][: len(cores)]:
                for decoder in DECODERS:
                    row = measure(paths, args.model, decoder, used, args.passes, args.minutes / 60)
                    name = "greedy" if decoder == "greedy" else "beam + LM"
                    table.add(count, row.cores, name, row.cold, row.warm, row.processor, row.peak_mb)
                    rows.append(row)
    publish(args, "files", rows, table, minutes=args.minutes)


def measure(paths: list[str], model: str, decoder: str, cores: list[int], passes: int, hours: float) -> Row:
    """One process that transcribes the files again and again."""
    given: dict[str, Any] = {"paths": paths, "model": model, "decoder": decoder, "threads": len(cores)}
    found = apart.run("benchmarks.inside:passes", cores, count=passes, **given)
    cold, walls, processor = found.value
    warm = Spread.of([seconds / hours for seconds in walls])
    cost = Spread.of([seconds / hours for seconds in processor])
    return Row(len(paths), len(cores), decoder, cold / hours, warm, cost, found.peak_mb)


if __name__ == "__main__":
    guarded(main)
