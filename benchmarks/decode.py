"""Cost of decoding, by width of the beam: one core, emissions of real recordings, offline and chunk by chunk.

    python -m benchmarks.decode [SOURCE] [--model M] [--limit N] [--beams 32,64,128] [--json OUT] [--markdown OUT]

Seconds are those of the search alone, without the encoder, the median of three passes. "chunk" is one step of the
stream (four emissions, 160 ms) with the best hypothesis read after it, as the recogniser does. Every width is measured
twice: as it runs here, compiled where a compiler was, and in NumPy.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from asr.cli.bar import Bar
from asr.compiled import SWITCH
from asr.decoding import Decoder
from asr.decoding.beam import BeamConfig, BeamSearch
from asr.decoding.greedy import Greedy
from asr.decoding.lm import NgramModel
from asr.decoding.words import reader
from asr.recognizer import load
from asr.runtime import LANGUAGE_MODEL_FILE, Model
from asr.training.manifest import read
from asr.training.tune import Emissions, record_all, transcribe, word_error_rate
from benchmarks.common import Spread, Table, guarded, parser, publish, spread_evenly

BEAMS = (32, 64, 128, 256, 512)
PASSES = 3


@dataclass(frozen=True)
class Row:
    """One decoder: its word error rate (share), and milliseconds of search."""

    decoder: str
    wer: float
    offline_ms: Spread  # per second of audio
    stream_ms: float  # per second of audio, chunk by chunk
    chunk_p50_ms: float
    chunk_p99_ms: float


def main() -> None:
    """Prints a table and writes it where asked."""
    options = parser(__doc__)
    options.add_argument("--limit", type=int, metavar="N", help="only N recordings, evenly spread")
    options.add_argument("--beams", type=_widths, default=BEAMS, metavar="N,N...", help="widths of the beam")
    args = options.parse_args()

    recognizer = load(args.model, decoder="greedy")
    utterances = spread_evenly(read(args.source, args.data), args.limit)
    with Bar(len(utterances)) as bar:
        recordings = record_all(recognizer, utterances, progress=bar.update)
    rows = []
    table = Table("decoder", "word errors, %", "whole, ms for a second", "chunk by chunk", "chunk, p50, ms", "p99")
    for name, decoder in decoders(recognizer.model, args.beams).items():
        row = measure(name, decoder, recordings, recognizer.model)
        table.add(name, f"{100 * row.wer:.2f}", row.offline_ms, row.stream_ms, row.chunk_p50_ms, row.chunk_p99_ms)
        rows.append(row)
    publish(args, "decode", rows, table)


def decoders(model: Model, beams: Sequence[int]) -> dict[str, Decoder]:
    """Greedy, the beam alone, and beams of several widths with the model's language model, compiled and in NumPy."""
    settings, tokenizer = model.config.decoder, model.tokenizer
    lm = NgramModel.load(model.directory / LANGUAGE_MODEL_FILE)
    found: dict[str, Decoder] = {
        "greedy": Greedy(reader(tokenizer)),
        "beam, no LM": BeamSearch(BeamConfig(**settings), tokens=tokenizer.tokens),
    }
    for beam in beams:
        config = BeamConfig(**{**settings, "beam": beam})
        search = BeamSearch.with_language_model(lm, tokenizer.tokens, config, tokenizer.lexicon)
        os.environ[SWITCH] = "1"
        in_numpy = BeamSearch(config, search.scorer, tokenizer.tokens)
        del os.environ[SWITCH]
        found |= {f"beam {beam}, LM": search, f"beam {beam}, LM, NumPy": in_numpy}
    return found


def _widths(text: str) -> list[int]:
    return [int(width) for width in text.split(",")]


def measure(name: str, decoder: Decoder, recordings: list[Emissions], model: Model) -> Row:
    """Decodes all recordings whole, then chunk by chunk."""
    emission_seconds = model.config.emission_seconds
    seconds = emission_seconds * sum(len(segment) for recording in recordings for segment in recording.segments)
    passes = []
    for _ in range(PASSES):
        began = time.process_time()
        found = [transcribe(decoder, recording) for recording in recordings]
        passes.append(time.process_time() - began)
    offline = Spread.of([1000 * taken / seconds for taken in passes])

    size = model.config.chunk_frames // model.config.subsampling
    chunks = []
    for recording in recordings:
        for segment in recording.segments:
            state = decoder.start()
            for begin in range(0, len(segment), size):
                began = time.process_time()
                state = decoder.step(segment[begin : begin + size], state)
                decoder.best(state)
                chunks.append(time.process_time() - began)
    wer = word_error_rate([recording.reference for recording in recordings], found)
    p50, p99 = 1000 * np.percentile(chunks, [50, 99])
    return Row(name, wer, offline, 1000 * sum(chunks) / seconds, float(p50), float(p99))


if __name__ == "__main__":
    guarded(main)
