"""`asr lm`: train n-gram language models, turn them into ARPA text and back, measure them on text."""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from asr.cli import UsageError

if TYPE_CHECKING:
    from asr.decoding.lm import NgramModel

HELP = "train, convert or measure an n-gram language model"
ARPA = ".arpa"
MANIFEST = ".tsv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")

    train = actions.add_parser("train", help="train a model on texts")
    train.add_argument("texts", nargs="+", type=Path, metavar="TEXT", help="prose (.txt, .xz), or manifests (.tsv)")
    train.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="the model; as ARPA text if named *.arpa"
    )
    train.add_argument("--order", type=int, default=3, metavar="N", help="longest n-gram (default: 3)")
    train.add_argument("--vocab", type=int, default=65_533, metavar="N", help="words to know (default: 65533)")
    train.add_argument(
        "--prune",
        type=float,
        default=1e-7,
        metavar="X",
        help="leave out n-grams whose loss raises perplexity by less than this share of it (default: 1e-7)",
    )
    train.add_argument(
        "--passage-words",
        type=int,
        default=30,
        metavar="N",
        help="cut prose at the first pause after N words, as utterances are; 0: at the ends of lines (default: 30)",
    )
    train.add_argument(
        "--held-out",
        nargs="+",
        type=Path,
        default=[],
        metavar="TEXT",
        help="leave out passages that share eight words in a row with these texts or manifests",
    )

    convert = actions.add_parser("convert", help="turn a model into ARPA text, or ARPA text into a model")
    convert.add_argument("source", type=Path, help="a model, or ARPA text if named *.arpa")
    convert.add_argument("out", type=Path, help="the same for what to write")

    perplexity = actions.add_parser("perplexity", help="measure a model on texts, one utterance a line")
    perplexity.add_argument("model", type=Path, help="a model, or ARPA text if named *.arpa")
    perplexity.add_argument("texts", nargs="+", type=Path, metavar="TEXT", help="texts, or manifests (.tsv)")


def run(args: argparse.Namespace) -> int:
    """Does what the action says."""
    {"train": _train, "convert": _convert, "perplexity": _perplexity}[args.action](args)
    return 0


def _train(args: argparse.Namespace) -> None:
    from asr.decoding.kneser_ney import build_corpus, train

    for option, value, low in (
        ("--order", args.order, 1),
        ("--vocab", args.vocab, 1),
        ("--prune", args.prune, 0),
        ("--passage-words", args.passage_words, 0),
    ):
        if not value >= low:
            raise UsageError(f"{option} is {value}; it must be {low} or more")
    held_out = list(_passages(args.held_out, 0))
    corpus = build_corpus(_passages(args.texts, args.passage_words), args.vocab, held_out)
    model = train(corpus, args.order, args.prune)
    _write(model, args.out)
    print(f"{args.out}: {_counts(model)}, {args.out.stat().st_size / 1e6:.1f} MB, from {len(corpus.ids):,} words")
    if corpus.left_out:
        print(f"left out: {corpus.left_out} passages that share words with held-out text")


def _convert(args: argparse.Namespace) -> None:
    model = _read(args.source)
    _write(model, args.out)
    print(f"{args.out}: {_counts(model)}")


def _perplexity(args: argparse.Namespace) -> None:
    from asr.decoding.kneser_ney import perplexity

    model = _read(args.model)
    sentences = [model.ids(passage.split()) for passage in _passages(args.texts, 0)]
    words = sum(map(len, sentences))
    unknown = sum(int((ids == 0).sum()) for ids in sentences)
    print(f"{words:,} words in {len(sentences):,} utterances, {unknown / max(1, words):.2%} outside the vocabulary")
    print(f"perplexity of known words:                   {perplexity(model, sentences, end=False):.1f}")
    print(f"perplexity of known words and utterance ends: {perplexity(model, sentences, end=True):.1f}")


def _passages(paths: Iterable[Path], passage_words: int) -> Iterator[str]:
    from asr.decoding.kneser_ney import read_passages
    from asr.text import normalize
    from asr.training.manifest import read

    for path in paths:
        if path.suffix == MANIFEST:
            yield from filter(None, (normalize(utterance.text) for utterance in read(path)))
        else:
            yield from read_passages([path], passage_words)


def _read(path: Path) -> "NgramModel":
    from asr.decoding.lm import NgramModel

    if path.suffix != ARPA:
        return NgramModel.load(path)
    with open(path, encoding="utf-8-sig") as file:
        return NgramModel.read_arpa(file)


def _write(model: "NgramModel", path: Path) -> None:
    """As ARPA text if named so; as the language model of a directory with the tree that belongs to it."""
    from asr.decoding.tree import write_tree
    from asr.runtime import LANGUAGE_MODEL_FILE

    if path.suffix != ARPA:
        model.save(path)
        if path.name == LANGUAGE_MODEL_FILE:
            write_tree(path.parent)
        return
    with open(path, "w", encoding="utf-8") as file:
        model.write_arpa(file)


def _counts(model: "NgramModel") -> str:
    return ", ".join(f"{count:,} {order}-grams" for order, count in enumerate(model.counts, 1))
