"""What the speech gate costs in words: recordings joined with pauses, heard without the gate and with it.

    python -m benchmarks.gate [SOURCE] [--limit 60] [--longest-pause 6] [--model M] [--json OUT] [--markdown OUT]

The recordings, evenly spread over the source, are streamed as one, with 0 to 6 seconds of faint noise after each.
"""

import time
from dataclasses import dataclass

import jiwer

from asr.recognizer import Recognizer, load
from asr.text import normalize
from asr.training.manifest import Utterance, read
from asr.vad import GateRules
from benchmarks.common import Table, guarded, parser, publish, spread_evenly
from benchmarks.endurance import joined

BLOCK_SECONDS = 1.0


@dataclass(frozen=True)
class Row:
    """Errors of all words, as a share and by kind, and processor time for an hour of the sound."""

    gate: bool
    words: int
    wer: float
    substitutions: int
    deletions: int
    insertions: int
    hour_seconds: float


def main() -> None:
    """Prints a row without the gate and one with it, and writes them where asked."""
    options = parser(__doc__)
    options.add_argument("--limit", type=int, default=60, metavar="N", help="recordings (default: 60)")
    options.add_argument(
        "--longest-pause", type=float, default=6.0, metavar="S", help="between two of them (default: 6)"
    )
    args = options.parse_args()
    utterances = spread_evenly(read(args.source, args.data), args.limit)
    table = Table("gate", "words", "word errors, %", "substituted", "left out", "put in", "processor, s/h")
    rows = []
    for rules in (None, GateRules()):
        row = measure(load(args.model, gate=rules), utterances, args.longest_pause)
        errors = (row.substitutions, row.deletions, row.insertions)
        table.add("on" if row.gate else "off", row.words, f"{100 * row.wer:.1f}", *errors, row.hour_seconds)
        rows.append(row)
    publish(args, "gate", rows, table)


def measure(recognizer: Recognizer, utterances: list[Utterance], longest_pause: float) -> Row:
    """Streams the recordings."""
    rate = recognizer.model.config.features.sample_rate
    stream = recognizer.stream(rate, partials=False)
    said = " ".join(normalize(utterance.text) for utterance in utterances)
    heard: list[str] = []
    samples = 0
    began = time.process_time()
    for block in joined(utterances, rate, BLOCK_SECONDS, longest_pause):
        heard += (hypothesis.text for hypothesis in stream.accept(block))
        samples += len(block)
    heard += (hypothesis.text for hypothesis in stream.finish())
    seconds = time.process_time() - began
    found = jiwer.process_words(said, " ".join(heard))
    errors = (found.substitutions, found.deletions, found.insertions)
    return Row(recognizer.gate is not None, len(said.split()), found.wer, *errors, 3600 * seconds * rate / samples)


if __name__ == "__main__":
    guarded(main)
