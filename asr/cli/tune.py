"""`asr tune`: choose a model's decoder settings on recordings whose words are known."""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from asr.cli import UsageError
from asr.cli.bar import Bar

HELP = "choose the decoder's settings on recordings whose words are known"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.add_argument("model", type=Path, help="a model directory")
    parser.add_argument("source", type=Path, help="a manifest (.tsv) or LibriSpeech; never one that a test uses")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the manifest's paths (default: its own)")
    parser.add_argument("--lm", type=Path, metavar="FILE", help="language model (default: the model's own)")
    parser.add_argument(
        "--emissions", type=Path, metavar="FILE", help="keep the emissions in an .npz, or take them from it"
    )
    parser.add_argument(
        "--rounds", type=int, default=2, metavar="N", help="times to go through the settings (default: 2)"
    )
    parser.add_argument("--write", action="store_true", help="put the best settings into the model's config.json")


def run(args: argparse.Namespace) -> int:
    """Prints every trial, then the best."""
    from asr.decoding.beam import BeamConfig
    from asr.decoding.lm import NgramModel
    from asr.recognizer import load
    from asr.runtime import LANGUAGE_MODEL_FILE, ModelConfig
    from asr.tokenizer import Tokenizer
    from asr.training import tune
    from asr.training.manifest import read

    if args.rounds < 1:
        raise UsageError(f"--rounds is {args.rounds}; it must be 1 or more")
    model = ModelConfig.load(args.model)
    lm = NgramModel.load(args.lm or args.model / LANGUAGE_MODEL_FILE)
    utterances = read(args.source, args.data)
    with Bar(len(utterances)) as bar:
        recordings = tune.record_all(load(args.model, decoder="greedy"), utterances, args.emissions, bar.update)
    tokenizer = Tokenizer.load(args.model)
    best = None
    for best in tune.tune(recordings, tokenizer, lm, BeamConfig(**model.decoder), rounds=args.rounds):
        print(best, flush=True)
    if args.write and best:
        replace(model, decoder=asdict(best.config)).save(args.model)
        print(f"{args.model}: settings written")
    return 0
