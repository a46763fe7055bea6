"""The options that say when words become final and when the recogniser sleeps, for every verb that has them."""

import argparse
from collections.abc import Sequence

from asr.cli import UsageError
from asr.errors import ASRError
from asr.rules import EndpointRules, GateRules

# Option, field of EndpointRules or GateRules, help.
ENDPOINTS = (
    ("--end-silence", "silence_seconds", "of silence after words make them final"),
    ("--idle-silence", "idle_seconds", "without any word, after which the decoder starts afresh"),
    ("--max-segment", "max_seconds", "that a segment lasts at most; a longer one is cut between words"),
    ("--cut-window", "cut_seconds", "at the end of a too long segment, in whose longest pause it is cut"),
    ("--tail", "tail_seconds", "of silence added at the end, so that the last word comes out"),
)
GATE = (
    ("--gate-preroll", "preroll_seconds", "before speech that are heard too, so that no onset is lost"),
    ("--gate-hangover", "hangover_seconds", "without speech, after which the gate closes and words are final"),
)
GATE_HELP = "a voice activity detector keeps the recogniser asleep while nobody speaks"


def add_arguments(parser: argparse.ArgumentParser, *, gate: bool) -> None:
    """Declares the options. gate: whether the gate is used unless the user says otherwise."""
    group = parser.add_argument_group("endpoints", "when words become final; all in seconds")
    _add_seconds(group, ENDPOINTS, EndpointRules())
    group = parser.add_argument_group("speech gate")
    usual = f"{GATE_HELP} (default: {'on' if gate else 'off'})"
    group.add_argument("--gate", action=argparse.BooleanOptionalAction, default=gate, help=usual)
    usual_gate = GateRules()
    threshold = f"probability of speech from 0 to 1 at which the gate opens (default: {usual_gate.threshold:g})"
    group.add_argument(
        "--gate-threshold", dest="threshold", type=float, default=usual_gate.threshold, metavar="P", help=threshold
    )
    _add_seconds(group, GATE, usual_gate)


def rules(args: argparse.Namespace) -> EndpointRules:
    """The endpoint rules of these arguments; UsageError where they cannot be."""
    try:
        return EndpointRules(**{field: getattr(args, field) for _, field, _ in ENDPOINTS})
    except ASRError as error:
        raise UsageError(f"{error}; see --help") from None


def gate(args: argparse.Namespace) -> GateRules | None:
    """The gate of these arguments, if there is to be one; UsageError where it cannot be."""
    if not args.gate:
        return None
    try:
        return GateRules(args.threshold, **{field: getattr(args, field) for _, field, _ in GATE})
    except ASRError as error:
        raise UsageError(f"{error}; see --help") from None


def _add_seconds(
    group: argparse._ArgumentGroup, options: Sequence[tuple[str, str, str]], rules: EndpointRules | GateRules
) -> None:
    for option, field, text in options:
        default = getattr(rules, field)
        explained = f"seconds {text} (default: {default:g})"
        group.add_argument(option, dest=field, type=float, default=default, metavar="S", help=explained)
