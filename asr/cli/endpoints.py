"""The options that say when words become final and when the recogniser sleeps, for every verb that has them."""

import argparse
from typing import TYPE_CHECKING

from asr.cli import UsageError
from asr.errors import ASRError

if TYPE_CHECKING:
    from asr.segmenter import EndpointRules
    from asr.vad import GateRules

# Option, field of EndpointRules, default, help; defaults stand here too because importing asr.segmenter is slow.
ENDPOINTS = (
    ("--end-silence", "silence_seconds", 0.8, "of silence after words make them final"),
    ("--idle-silence", "idle_seconds", 2.4, "without any word, after which the decoder starts afresh"),
    ("--max-segment", "max_seconds", 20.0, "that a segment lasts at most; a longer one is cut between words"),
    ("--cut-window", "cut_seconds", 6.0, "at the end of a too long segment, in whose longest pause it is cut"),
    ("--tail", "tail_seconds", 0.5, "of silence added at the end, so that the last word comes out"),
)
GATE = (
    ("--gate-preroll", "preroll_seconds", 0.5, "before speech that are heard too, so that no onset is lost"),
    ("--gate-hangover", "hangover_seconds", 1.0, "without speech, after which the gate closes and words are final"),
)
THRESHOLD = 0.5
GATE_HELP = "a voice activity detector keeps the recogniser asleep while nobody speaks"


def add_arguments(parser: argparse.ArgumentParser, *, gate: bool) -> None:
    """Declares the options. gate: whether the gate is used unless the user says otherwise."""
    group = parser.add_argument_group("endpoints", "when words become final; all in seconds")
    for option, field, default, text in ENDPOINTS:
        group.add_argument(option, dest=field, type=float, default=default, metavar="S", help=_help(text, default))
    group = parser.add_argument_group("speech gate")
    usual = f"{GATE_HELP} (default: {'on' if gate else 'off'})"
    group.add_argument("--gate", action=argparse.BooleanOptionalAction, default=gate, help=usual)
    threshold = f"probability of speech from 0 to 1 at which the gate opens (default: {THRESHOLD:g})"
    group.add_argument("--gate-threshold", dest="threshold", type=float, default=THRESHOLD, metavar="P", help=threshold)
    for option, field, default, text in GATE:
        group.add_argument(option, dest=field, type=float, default=default, metavar="S", help=_help(text, default))


def rules(args: argparse.Namespace) -> "EndpointRules":
    """The endpoint rules of these arguments; UsageError where they cannot be."""
    from asr.segmenter import EndpointRules

    try:
        return EndpointRules(**{field: getattr(args, field) for _, field, _, _ in ENDPOINTS})
    except ASRError as error:
        raise UsageError(f"{error}; see --help") from None


def gate(args: argparse.Namespace) -> "GateRules | None":
    """The gate of these arguments, if there is to be one; UsageError where it cannot be."""
    from asr.vad import GateRules

    if not args.gate:
        return None
    try:
        return GateRules(args.threshold, **{field: getattr(args, field) for _, field, _, _ in GATE})
    except ASRError as error:
        raise UsageError(f"{error}; see --help") from None


def _help(text: str, default: float) -> str:
    return f"seconds {text} (default: {default:g})"
