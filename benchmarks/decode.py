"""Cost of decoding, by width of the beam: one core, emissions of real recordings, offline and chunk by chunk.

    python benchmarks/decode.py MODEL MANIFEST [--data DIR] [--limit N] [--beams 32,64,128] [--json OUT]

Seconds are those of the search alone, without the encoder, the median of three passes. "chunk" is one step of the
stream (four emissions, 160 ms) with the best hypothesis read after it, as the recogniser does. Every width is measured
twice: as it runs here, compiled where a compiler was, and in NumPy.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from asr.cli.bar import Bar
from asr.decoding import Decoder
from asr.decoding.beam import BeamConfig, BeamSearch
from asr.decoding.greedy import Greedy
from asr.decoding.kernel import SWITCH
from asr.decoding.lm import NgramModel
from asr.decoding.words import reader
from asr.recognizer import load
from asr.runtime import LANGUAGE_MODEL_FILE, Model
from asr.training.manifest import read
from asr.training.tune import Emissions, record, transcribe, word_error_rate

BEAMS = (32, 64, 128, 256, 512)
PASSES = 3


@dataclass(frozen=True)
class Row:
    """One decoder: its word error rate (share), and milliseconds of search."""

    decoder: str
    wer: float
    offline_ms: float  # per second of audio
    stream_ms: float  # per second of audio, chunk by chunk
    chunk_p50_ms: float
    chunk_p99_ms: float


def main() -> None:
    """Prints a table and writes it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model directory or the name of a bundled model")
    parser.add_argument("source", type=Path, help="a manifest (.tsv) or LibriSpeech")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the manifest's paths (default: its own)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N recordings")
    parser.add_argument("--beams", type=_widths, default=BEAMS, metavar="N,N...", help="widths of the beam")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the table as JSON")
    args = parser.parse_args()

    recognizer = load(args.model, decoder="greedy")
    utterances = read(args.source, args.data)[: args.limit]
    recordings = []
    with Bar(len(utterances)) as bar:
        for done, utterance in enumerate(utterances):
            bar.update(done, utterance.path.name)
            recordings.append(record(recognizer, utterance))
    model = recognizer.model
    rows = [measure(name, decoder, recordings, model) for name, decoder in decoders(model, args.beams).items()]
    print(
        f"{'decoder':<22}{'WER %':>8}{'offline':>10}{'stream':>10}{'chunk p50':>11}{'p99':>8}   ms, per second of audio"
    )
    for row in rows:
        print(
            f"{row.decoder:<22}{100 * row.wer:8.2f}{row.offline_ms:10.2f}{row.stream_ms:10.2f}"
            f"{row.chunk_p50_ms:11.2f}{row.chunk_p99_ms:8.2f}"
        )
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


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
    offline = float(np.median(passes))

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
    return Row(name, wer, 1000 * offline / seconds, 1000 * sum(chunks) / seconds, float(p50), float(p99))


if __name__ == "__main__":
    main()
