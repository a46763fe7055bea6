"""How a stream feels, by chunk size: the table of `asr evaluate --streaming`, for the README.

    python -m benchmarks.streaming [SOURCE] [--model M] [--limit N] [--json OUT] [--markdown OUT]

What streams cost is `benchmarks.stream`'s to say.
"""

from itertools import count

from asr.cli.bar import Bar
from asr.recognizer import load
from asr.training.manifest import read
from asr.training.streaming import CHUNKS, measure, table
from benchmarks.common import guarded, parser, publish, spread_evenly


def main() -> None:
    """Prints a table and writes it where asked."""
    options = parser(__doc__)
    options.add_argument("--limit", type=int, metavar="N", help="only N recordings, evenly spread")
    args = options.parse_args()

    utterances = spread_evenly(read(args.source, args.data), args.limit)
    done = count()
    with Bar(len(utterances)) as bar:
        recognizer = load(args.model)
        rows = measure(recognizer, utterances, CHUNKS, lambda utterance: bar.update(next(done), utterance.path.name))
    text = table(rows)
    print(text)
    publish(args, "streaming", rows, text)


if __name__ == "__main__":
    guarded(main)
