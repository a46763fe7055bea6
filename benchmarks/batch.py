"""Cost of the encoder by how many streams, or how many frames, one call takes: one core.

    python -m benchmarks.batch [--model M] [--json OUT] [--markdown OUT]

Says whether the pieces of a long recording should go through the encoder together. For the first bundled model they
should not: of 0.015 of real time the int8 encoder takes 0.003, eight streams a call make that 0.002, and the search,
which is most of the rest, takes one stream at a time. Longer calls gain no more and give other words than the stream,
because dynamic int8 takes one range of numbers for a whole call.
"""

import time
from dataclasses import dataclass

import numpy as np

from asr.recognizer import find_model
from asr.runtime import GRAPH_FILES, Model
from benchmarks.common import Table, guarded, parser, publish

SHAPES = ((1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (32, 1), (1, 4), (1, 16), (8, 16))  # streams, chunks of a call
REPEATS = 3


@dataclass(frozen=True)
class Row:
    """Processor seconds per second of audio, all streams of the batch together."""

    precision: str
    streams: int
    chunks: int
    rtf: float


def main() -> None:
    """Prints a table and writes it where asked."""
    options = parser(__doc__, source=False)
    options.add_argument(
        "--seconds", type=float, default=30.0, metavar="S", help="of audio a measurement (default: 30)"
    )
    args = options.parse_args()
    directory = find_model(args.model)
    rows = []
    table = Table("precision", "streams", "chunks", "share of real time")
    for precision in (name for name, file in GRAPH_FILES.items() if (directory / file).is_file()):
        model = Model.load(directory, precision=precision)
        for streams, chunks in SHAPES:
            rows.append(Row(precision, streams, chunks, measure(model, streams, chunks, args.seconds)))
            table.add(precision, streams, chunks, rows[-1].rtf)
    publish(args, "batch", rows, table)


def measure(model: Model, streams: int, chunks: int, audio_seconds: float) -> float:
    """The best of a few repetitions, which is that with the least disturbance."""
    features = model.config.features
    frames = chunks * model.config.chunk_frames
    seconds = streams * frames * features.hop / features.sample_rate
    x = np.random.default_rng(1).normal(-8, 3, (streams, frames, features.n_mels)).astype(np.float32)
    state = model.start(streams)
    model.step(x, state)
    times = []
    for _ in range(REPEATS):
        calls = max(2, round(audio_seconds / seconds))
        began = time.process_time()
        for _ in range(calls):
            model.step(x, state)
        times.append((time.process_time() - began) / (calls * seconds))
    return min(times)


if __name__ == "__main__":
    guarded(main)
