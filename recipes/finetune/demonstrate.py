"""What adapting the model to a voice gains: half of a dev reader's recordings to learn from, the other half to measure.

    python recipes/finetune/demonstrate.py --data SPEECH --output exp/finetune

A demonstration: nothing of the model that it begins with is chosen by it, and the adapted models are thrown away.
Interrupted, the same command goes on where it stopped.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, be it installed or not

from asr.cli import main as asr
from asr.errors import ASRError
from asr.training.manifest import COLUMNS, Utterance, read

CONFIG = Path(__file__).with_name("finetune.toml")
READERS = ("1462", "251", "2902", "1993")  # all of dev-librispeech.tsv
MANIFEST = "dev-librispeech.tsv"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; prints a table in Markdown."""
    parser = argparse.ArgumentParser(description="Shows what adapting the model to a voice gains.")
    parser.add_argument("--data", type=Path, default=os.environ.get("ASR_SPEECH"), help=f"folder with {MANIFEST}")
    parser.add_argument("--output", type=Path, default=Path("exp/finetune"), help="folder of the runs")
    parser.add_argument("--model", default="en", help="the model to adapt (default: en)")
    parser.add_argument("--readers", nargs="+", default=READERS, help=f"(default: {' '.join(READERS)})")
    args = parser.parse_args(argv)
    if args.data is None:
        parser.error("no data folder is named; give --data FOLDER or set ASR_SPEECH")
    try:
        utterances = read(args.data / MANIFEST)
        rows = [demonstrate(reader, utterances, args.model, args.output / reader) for reader in args.readers]
    except ASRError as error:
        print(f"demonstrate.py: {error}", file=sys.stderr)
        return 1
    print("| reader | learnt from | measured on | greedy before | greedy after | beam + LM before | beam + LM after |")
    print("|-|-|-|-|-|-|-|")
    print("\n".join(rows))
    return 0


def demonstrate(reader: str, utterances: Sequence[Utterance], model: str, output: Path) -> str:
    """Adapts the model to one reader; returns a row of the table."""
    own = [u for u in utterances if u.speaker.rpartition("-")[2] == reader]
    halves = {name: [u for u in own if is_for_learning(u) == (name == "learn")] for name in ("learn", "measure")}
    if not all(halves.values()):
        raise ASRError(f"{MANIFEST} has too few recordings of reader {reader}; name another with --readers")
    output.mkdir(parents=True, exist_ok=True)
    for name, half in halves.items():
        write(half, output / f"{name}.tsv")
    run, adapted = output / "run", output / "model"
    train = ["train", str(CONFIG), "--init", model, "--data", str(output / "learn.tsv"), "--output", str(run)]
    _asr(*train, "--threads", "1", "--workers", "0")
    _asr("export", str(run), str(adapted), "--like", model)
    figures = [
        word_error_rate(output / "measure.tsv", which, options, output)
        for options in (["--greedy"], [])
        for which in (model, str(adapted))
    ]
    lengths = [f"{len(half)} utterances, {sum(u.seconds for u in half) / 60:.1f} min" for half in halves.values()]
    return f"| {reader} | {' | '.join(lengths)} | {' | '.join(figures)} |"


def is_for_learning(utterance: Utterance) -> bool:
    """Every second recording, by the hash of its file's name, so that the halves never change."""
    return hashlib.sha256(utterance.path.stem.encode()).digest()[0] % 2 == 0


def write(utterances: Sequence[Utterance], manifest: Path) -> None:
    """Writes a manifest with absolute paths."""
    rows = ["\t".join((str(u.path.resolve()), str(u.seconds), u.speaker, u.corpus, u.text)) for u in utterances]
    manifest.write_text("\n".join(("\t".join(COLUMNS), *rows, "")), encoding="utf-8")


def word_error_rate(manifest: Path, model: str, options: Sequence[str], output: Path) -> str:
    """In per cent, as `asr evaluate` finds it."""
    result = output / "result.json"
    _asr("evaluate", str(manifest), "--model", model, "--json", str(result), *options)
    return f"{100 * json.loads(result.read_text())['overall']['wer']:.1f}"


def _asr(*command: str) -> None:
    print("asr", *command, file=sys.stderr)
    if code := asr(command):
        raise SystemExit(code)


if __name__ == "__main__":
    sys.exit(main())
