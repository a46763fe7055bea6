"""Cost of the encoder by how many streams, or how many chunks, one call takes, compiled and in ONNX Runtime: one core.

    python -m benchmarks.batch [--model M] [--json OUT] [--markdown OUT]

One stream of one chunk is a live stream, one stream of many chunks a recording, many streams of one chunk a server.
"""

import time
from dataclasses import dataclass

import numpy as np

from asr.encoder_kernel import encoder_kernel
from asr.recognizer import find_model
from asr.runtime import GRAPH_FILES, Graph, Model, ModelConfig
from asr.tokenizer import Tokenizer
from benchmarks.common import Table, guarded, parser, publish

SHAPES = ((1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (32, 1), (64, 1), (1, 4), (1, 16), (1, 64))  # streams, chunks
REPEATS = 3


@dataclass(frozen=True)
class Row:
    """Processor time of a call, and of an hour of audio, all streams of the batch together."""

    encoder: str
    streams: int
    chunks: int
    call_ms: float
    hour_seconds: float


def main() -> None:
    """Prints a table and writes it where asked."""
    options = parser(__doc__, source=False)
    options.add_argument(
        "--seconds", type=float, default=30.0, metavar="S", help="of audio a measurement (default: 30)"
    )
    args = options.parse_args()
    directory = find_model(args.model)
    config, tokenizer = ModelConfig.load(directory), Tokenizer.load(directory)
    rows = []
    table = Table("encoder", "streams", "chunks", "ms a call", "s an audio hour")
    for precision, file in GRAPH_FILES.items():
        if not (directory / file).is_file():
            continue
        graph = directory / file
        for name, encoder in (("compiled", encoder_kernel(graph)), ("ONNX Runtime", Graph(graph))):
            if not encoder:
                continue
            model = Model(config, tokenizer, encoder, directory)
            for streams, chunks in SHAPES:
                row = measure(f"{precision}, {name}", model, streams, chunks, args.seconds)
                rows.append(row)
                table.add(row.encoder, streams, chunks, row.call_ms, row.hour_seconds)
    publish(args, "batch", rows, table)


def measure(name: str, model: Model, streams: int, chunks: int, audio_seconds: float) -> Row:
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
        times.append((time.process_time() - began) / calls)
    return Row(name, streams, chunks, 1e3 * min(times), 3600 * min(times) / seconds)


if __name__ == "__main__":
    guarded(main)
