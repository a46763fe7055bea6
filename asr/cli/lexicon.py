"""`asr lexicon`: build a pronunciation lexicon, pronounce words, spell phones."""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from asr.cli import UsageError

HELP = "build a pronunciation lexicon, pronounce words or spell phones"
MANIFEST = ".tsv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")

    build = actions.add_parser("build", help="write the pronunciations of all words of models and texts")
    build.add_argument(
        "texts",
        nargs="*",
        type=Path,
        metavar="TEXT",
        help="texts, manifests (.tsv) or LibriSpeech folders with more words",
    )
    build.add_argument(
        "--dictionary",
        required=True,
        nargs="+",
        type=Path,
        metavar="FILE",
        help="known pronunciations, such as cmudict.dict of https://github.com/cmusphinx/cmudict; the first file leads",
    )
    build.add_argument("--words", nargs="+", type=Path, default=[], metavar="FILE", help="language models (lm.bin)")
    build.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="where lexicon.txt and graphones.bin go"
    )

    pronounce = actions.add_parser("pronounce", help="say how unknown words sound")
    pronounce.add_argument("model", type=Path, help="graphones.bin")
    pronounce.add_argument("words", nargs="+", metavar="WORD")
    pronounce.add_argument("--best", type=int, default=1, metavar="N", help="pronunciations of each word (default: 1)")

    spell = actions.add_parser("spell", help="spell a sequence of phones")
    spell.add_argument("model", type=Path, help="graphones.bin")
    spell.add_argument("phones", nargs="+", metavar="PHONE", help="phones of one word, such as D AO G")


def run(args: argparse.Namespace) -> int:
    """Does what the action says."""
    {"build": _build, "pronounce": _pronounce, "spell": _spell}[args.action](args)
    return 0


def _build(args: argparse.Namespace) -> None:
    from asr.decoding.tree import write_tree
    from asr.graphones import Graphones, align
    from asr.lexicon import GRAPHONES_FILE, LEXICON_FILE
    from asr.training.lexicon import build_lexicon, read_dictionary

    if not args.words and not args.texts:
        raise UsageError("no words are asked for; name a language model (--words lm.bin) or texts")
    dictionary = read_dictionary(args.dictionary)
    words = set(_words(args.words, args.texts))
    labels = align((word, phones) for word, said in dictionary.items() for phones in said)
    args.output.mkdir(parents=True, exist_ok=True)
    lexicon = build_lexicon(words, dictionary, Graphones.from_alignment(labels, pruning=0))
    commonness = _commonness(args.words[0]) if args.words else {}
    lexicon.save(args.output / LEXICON_FILE, commonness)
    Graphones.from_alignment(labels).save(args.output / GRAPHONES_FILE)
    write_tree(args.output)
    sources = ", ".join(f"{count:,} from {source}" for source, count in lexicon.sources.most_common())
    print(f"{args.output / 'lexicon.txt'}: {len(lexicon.pronunciations):,} words, {sources}")
    print(f"{args.output / 'graphones.bin'}: {(args.output / 'graphones.bin').stat().st_size / 1e6:.2f} MB")


def _commonness(model: Path) -> dict[str, float]:
    """Log-probability of each word of a language model."""
    from asr.decoding.lm import NgramModel

    lm = NgramModel.load(model)
    return dict(zip(lm.words, lm.unigrams().tolist(), strict=True))


def _words(models: Iterable[Path], texts: Iterable[Path]) -> Iterator[str]:
    from asr.decoding.kneser_ney import read_passages
    from asr.decoding.lm import SPECIALS, NgramModel
    from asr.text import normalize
    from asr.training.manifest import read

    for model in models:
        yield from NgramModel.load(model).words[len(SPECIALS) :]
    for path in texts:
        is_speech = path.suffix == MANIFEST or path.is_dir()
        passages = (normalize(u.text) for u in read(path)) if is_speech else read_passages([path])
        for passage in passages:
            yield from passage.split()


def _pronounce(args: argparse.Namespace) -> None:
    from asr.graphones import Graphones

    if args.best < 1:
        raise UsageError(f"--best is {args.best}; it must be 1 or more")
    graphones = Graphones.load(args.model)
    for word, candidates in zip(args.words, graphones.pronounce_all(args.words, args.best), strict=True):
        for candidate in candidates:
            print(f"{word}\t{' '.join(candidate.symbols)}\t{candidate.log_prob:.2f}")


def _spell(args: argparse.Namespace) -> None:
    from asr.graphones import Graphones

    print(Graphones.load(args.model).spell(args.phones))
