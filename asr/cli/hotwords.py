"""The option that names words and phrases to listen for, for every verb that has it."""

import argparse

from asr.cli import UsageError
from asr.errors import ASRError

DESCRIPTION = """
"Nuffield Kaliko=12" are two words to listen for, the second with a boost of its own in nats. Where there are commas,
these separate phrases of one word or more: "general relativity=20, Nuffield", or "general relativity," for a single
one. @FILE is a file with a phrase a line; lines that begin with # are left out.
"""


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Declares the option."""
    group = parser.add_argument_group("hot-words", DESCRIPTION)
    group.add_argument(
        "--hotwords", metavar="WORDS", help="words, phrases or @FILE, whether the model knows them or not"
    )


def wanted(args: argparse.Namespace) -> tuple[str, ...]:
    """The phrases, as asr.load takes them; UsageError where they cannot be listened for."""
    from asr.decoding.hotwords import phrases

    if args.hotwords is None:
        return ()
    if getattr(args, "greedy", False):
        raise UsageError("--hotwords needs the beam search; leave out --greedy")
    try:
        boosts = phrases(args.hotwords)
    except ASRError as error:
        raise UsageError(str(error)) from None
    return tuple(phrase if boost is None else f"{phrase}={boost}" for phrase, boost in boosts.items())
