"""How a stream feels, by chunk size, and what it costs while nobody speaks: the table of the README.

    python benchmarks/streaming.py MODEL MANIFEST [--data DIR] [--limit N] [--json OUT] [--markdown OUT]

The first table is that of `asr evaluate --streaming`. The second is the share of one core that a live stream takes in
quiet and in noise without speech, in blocks of 20 ms as a microphone gives them, with the speech gate and without it.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import numpy as np

from asr.cli.bar import Bar
from asr.features import Samples
from asr.recognizer import Recognizer, load
from asr.training.manifest import read
from asr.training.streaming import CHUNKS, measure, table
from asr.vad import GateRules

BLOCK_SECONDS = 0.02
IDLE_SECONDS = 60.0
LEVELS = {"digital silence": 0.0, "quiet room, -70 dB": 3e-4, "noisy room, -46 dB": 5e-3}  # RMS, of full scale


@dataclass(frozen=True)
class Idle:
    """Share of one core that a stream takes in which nobody speaks."""

    sound: str
    gate: float
    no_gate: float


def main() -> None:
    """Prints both tables and writes them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model directory or the name of a bundled model")
    parser.add_argument("source", type=Path, help="a manifest (.tsv) or LibriSpeech")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the manifest's paths (default: its own)")
    parser.add_argument("--limit", type=int, metavar="N", help="only N recordings, evenly spread")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write both tables as JSON")
    parser.add_argument("--markdown", type=Path, metavar="OUT", help="write both tables as Markdown")
    args = parser.parse_args()

    utterances = read(args.source, args.data)
    chosen = min(args.limit or len(utterances), len(utterances))
    utterances = [utterances[i * len(utterances) // chosen] for i in range(chosen)]
    recognizer = load(args.model)
    done = count()
    with Bar(len(utterances)) as bar:
        rows = measure(recognizer, utterances, CHUNKS, lambda utterance: bar.update(next(done), utterance.path.name))
    resting = idle(recognizer)
    text = f"{table(rows)}\n\n{idle_table(resting)}"
    print(text)
    if args.markdown:
        args.markdown.write_text(text + "\n")
    if args.json:
        document = {"streaming": [row.to_dict() for row in rows], "idle": [asdict(row) for row in resting]}
        args.json.write_text(json.dumps(document, indent=1) + "\n")


def idle(recognizer: Recognizer) -> list[Idle]:
    """What a minute without speech costs, by its noise."""
    gated = Recognizer(recognizer.model, recognizer.decoder, recognizer.rules, GateRules())
    rate = recognizer.model.config.features.sample_rate
    rows = []
    for sound, level in LEVELS.items():
        samples = np.random.default_rng(1).normal(0, level, round(IDLE_SECONDS * rate)).astype(np.float32)
        rows.append(Idle(sound, _cost(gated, samples, rate), _cost(recognizer, samples, rate)))
    return rows


def _cost(recognizer: Recognizer, samples: Samples, rate: int) -> float:
    """Processor seconds per second of sound."""
    stream = recognizer.stream(rate)
    blocks = np.split(samples, range(round(BLOCK_SECONDS * rate), len(samples), round(BLOCK_SECONDS * rate)))
    began = time.process_time()
    for block in blocks:
        stream.accept(block)
    return (time.process_time() - began) / (len(samples) / rate)


def idle_table(rows: list[Idle]) -> str:
    """The rows as a Markdown table."""
    lines = ["| nobody speaks | core, with the gate | core, without it |", "|-|-|-|"]
    return "\n".join(lines + [f"| {r.sound} | {100 * r.gate:.2f} % | {100 * r.no_gate:.2f} % |" for r in rows])


if __name__ == "__main__":
    main()
