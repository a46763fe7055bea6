"""`asr evaluate`: word and character error rates on recordings whose words are known."""

import argparse
import json
import sys
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from asr.cli import FAILURE, UsageError, hotwords
from asr.cli.bar import Bar
from asr.errors import ASRError

if TYPE_CHECKING:
    from asr.training.evaluate import Recognised
    from asr.training.manifest import Utterance

HELP = "measure a model on recordings whose words are known"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.add_argument("source", type=Path, help="a manifest (.tsv), or LibriSpeech: a split, or any folder of it")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the manifest's paths (default: its own)")
    parser.add_argument("--model", default="en", metavar="M", help="name or folder of a model (default: en)")
    parser.add_argument("--greedy", action="store_true", help="no beam search")
    parser.add_argument("--compare", action="store_true", help="the model's fp32 graph beside its int8 graph")
    parser.add_argument("--limit", type=int, metavar="N", help="only N utterances, evenly spread over the source")
    parser.add_argument("--speakers", action="store_true", help="a row for each speaker too")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")
    streaming = "instead: when words show, change, stay and are final in a live stream, and what it costs"
    parser.add_argument("--streaming", action="store_true", help=streaming)
    sizes = "of a stream's chunks with --streaming (default: 80,160,320,640)"
    parser.add_argument("--chunks", default="80,160,320,640", metavar="MS,...", help=sizes)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures and every utterance as JSON")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write every utterance, aligned, the worst first")
    hotwords.add_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the error rates; 1 where a recording could not be read, and they are of the others."""
    from asr.training.evaluate import evaluate, report, summary, versus
    from asr.training.manifest import read

    for option, value in (("--limit", args.limit), ("--jobs", args.jobs)):
        if value is not None and value < 1:
            raise UsageError(f"{option} is {value}; it must be 1 or more")
    utterances = _spread(read(args.source, args.data), args.limit)
    if args.streaming:
        return _stream(args, utterances)
    results, problems = _recognise(args, utterances, "int8" if args.compare else "auto")
    for problem in problems:
        print(f"asr: {problem}", file=sys.stderr)
    evaluation = evaluate(results)
    print(summary(evaluation, args.speakers))
    document = {"source": str(args.source), "model": args.model, "decoder": _decoder(args), **evaluation.to_dict()}
    if args.compare:
        exact = evaluate(_recognise(args, utterances, "fp32")[0])
        print(versus({"int8": evaluation, "fp32": exact}))
        document["fp32"] = exact.to_dict()
    if args.json:
        document["unread"] = problems
        document["utterances"] = [result.to_dict() for result in results]
        _write(args.json, json.dumps(document, ensure_ascii=False, indent=1) + "\n")
    if args.report:
        _write(args.report, report(results))
    return FAILURE if problems else 0


def _stream(args: argparse.Namespace, utterances: "list[Utterance]") -> int:
    """Prints how the recordings are heard live."""
    from asr.recognizer import load
    from asr.training.streaming import measure, table

    if args.compare or args.report or args.speakers or args.jobs > 1:
        raise UsageError("--streaming goes with none of --compare, --report, --speakers and --jobs; leave them out")
    try:
        chunks = [int(size) for size in args.chunks.split(",")]
    except ValueError:
        chunks = []
    if not chunks or min(chunks) < 1:
        raise UsageError(f"--chunks is {args.chunks!r}; it must be sizes in ms, such as 80,160")
    recognizer = load(args.model, decoder=_decoder(args), hotwords=hotwords.wanted(args))
    done = count()
    with Bar(len(utterances)) as bar:
        rows = measure(recognizer, utterances, chunks, lambda utterance: bar.update(next(done), utterance.path.name))
    print(table(rows))
    if args.json:
        document = {"source": str(args.source), "model": args.model, "decoder": _decoder(args)}
        _write(args.json, json.dumps({**document, "streaming": [row.to_dict() for row in rows]}, indent=1) + "\n")
    return 0


def _recognise(
    args: argparse.Namespace, utterances: "list[Utterance]", precision: str
) -> "tuple[list[Recognised], list[str]]":
    """What was heard, and a sentence for each recording that could not be read."""
    from asr.training.evaluate import recognise_all

    results, problems = [], []
    with Bar(len(utterances)) as bar:
        decoder, wanted = _decoder(args), hotwords.wanted(args)
        heard = recognise_all(args.model, utterances, args.jobs, decoder, precision, wanted)
        for number, result in enumerate(heard, start=1):
            bar.update(number, args.source.name)
            if isinstance(result, ASRError):
                problems.append(str(result))
            else:
                results.append(result)
    return results, problems


def _spread(utterances: "list[Utterance]", limit: int | None) -> "list[Utterance]":
    """`limit` of the utterances at equal distances: a list's first ones are all of one speaker."""
    count = min(limit or len(utterances), len(utterances))
    return [utterances[i * len(utterances) // count] for i in range(count)]


def _decoder(args: argparse.Namespace) -> str:
    return "greedy" if args.greedy else "auto"


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ASRError(f"cannot write {path}: {error.strerror}; name another file") from None
