"""`asr export`: a trained checkpoint to the model directory that the other verbs read."""

import argparse
from pathlib import Path

HELP = "turn a checkpoint into a model directory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.add_argument("checkpoint", type=Path, help="a .pt file, or the folder of a training run")
    parser.add_argument("directory", type=Path, help="the model directory to write, such as pretrained/en")
    parser.add_argument("--name", help="what the model is called (default: as in its recipe)")
    parser.add_argument("--version", default="1", help="of the model (default: 1)")
    parser.add_argument("--chunk-frames", type=int, metavar="N", help="10 ms frames the encoder reads at once")
    like = "name or folder of a model with the same tokens, whose language model and decoder settings are taken over"
    parser.add_argument("--like", metavar="M", help=like)
    parser.add_argument("--delay", type=float, metavar="SECONDS", help="taken off word times, as tokens come late")


def run(args: argparse.Namespace) -> int:
    """Writes the model directory whole, or not at all."""
    from asr.decoding.tree import write_tree
    from asr.training.checkpoint import load
    from asr.training.export import copy_language_model, decoder_settings, export_model

    checkpoint = load(args.checkpoint)
    extra = {"chunk_frames": args.chunk_frames, "delay_seconds": args.delay}
    settings = decoder_settings(args.like, checkpoint.tokenizer) if args.like else {}
    export_model(
        checkpoint.encoder(),
        checkpoint.tokenizer,
        checkpoint.config.features,
        args.directory,
        name=args.name or checkpoint.config.name,
        version=args.version,
        **(settings | {name: value for name, value in extra.items() if value is not None}),
    )
    if args.like:
        copy_language_model(args.like, args.directory)
    write_tree(args.directory)
    print(f"{args.directory}: {checkpoint.config.name} after {checkpoint.step} steps")
    return 0
