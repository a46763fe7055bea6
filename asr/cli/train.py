"""`asr train`: trains an encoder as a recipe's configuration says."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

HELP = "train a model as a recipe's configuration says"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.add_argument("config", type=Path, help="a recipe's TOML file, such as recipes/starter/streaming.toml")
    data = "folder of the sources, or a manifest to learn from instead of them (default: $ASR_SPEECH)"
    parser.add_argument("--data", type=Path, default=os.environ.get("ASR_SPEECH"), help=data)
    parser.add_argument("--output", type=Path, help="folder of the run (default: exp/NAME)")
    init = "begin with the weights of this run, checkpoint or model, such as pretrained/en"
    parser.add_argument("--init", type=Path, metavar="WHAT", help=init)
    parser.add_argument("--no-resume", action="store_true", help="begin afresh where --output holds a run")
    parser.add_argument("--steps", type=_count, help="stop after this many more steps; the schedule stays")
    parser.add_argument("--workers", type=_count, default=1, help="processes that prepare batches (default: 1)")
    parser.add_argument("--threads", type=_count, help="threads of computation (default: all cores)")
    parser.add_argument("--set", action="append", metavar="SECTION.NAME=VALUE", help="change a setting; repeatable")


def run(args: argparse.Namespace) -> int:
    """Trains until the configured steps are done; interrupted, the same command goes on where it stopped."""
    import torch

    from asr.cli import UsageError
    from asr.training.config import read_config
    from asr.training.restore import starting_point
    from asr.training.trainer import train

    if args.data is None:
        raise UsageError("no data folder is named; give --data FOLDER or set ASR_SPEECH")
    if args.threads:
        torch.set_num_threads(args.threads)
    config = read_config(args.config, args.set, starting_point(args.init).config if args.init else None)
    folder = Path(args.data)
    if folder.is_file():
        config = replace(config, data=replace(config.data, train=[folder.name]))
        folder = folder.parent
    output = args.output or Path("exp") / config.name
    train(config, folder, output, args.init, not args.no_resume, args.workers, args.steps)
    return 0


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value
