"""`asr live`: what a microphone hears, while it is being said."""

import argparse
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from asr.errors import ASRError

if TYPE_CHECKING:
    from asr.microphone import Microphone
    from asr.segmenter import Hypothesis

HELP = "write down what a microphone hears, while it is being said"
EPILOG = """
A line changes while it is being said and stays as it is after a pause. Ctrl-C ends, with the last words written.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.epilog = EPILOG
    parser.add_argument("--device", metavar="D", help="number, name or part of a name (see: asr devices)")
    parser.add_argument("--model", default="en", metavar="M", help="name or folder of a model (default: en)")
    parser.add_argument("--plain", action="store_true", help="finished lines only, as always where output is piped")


def run(args: argparse.Namespace) -> int:
    """Listens until Ctrl-C; 0 then, an ASRError where the microphone cannot be opened or goes away."""
    import asr
    from asr.microphone import Microphone

    microphone = Microphone(args.device)
    stream = asr.load(args.model).stream(microphone.sample_rate)
    failure: ASRError | None = None
    with _ended_by_signals(microphone), microphone:
        device = microphone.device
        print(f'listening to "{device.name}" ({device.host}, {device.sample_rate} Hz); Ctrl-C ends', file=sys.stderr)
        with _screen(args.plain) as screen:
            try:
                for block in microphone:
                    screen.show(stream.accept(block), microphone.overflows)
            except ASRError as error:
                failure = error
            screen.show(stream.finish(), microphone.overflows)
    if failure:
        raise failure
    if microphone.overflows:
        print(f"asr: {_lost(microphone.overflows)}", file=sys.stderr)
    return 0


@contextmanager
def _ended_by_signals(microphone: "Microphone") -> Iterator[None]:
    """The first SIGINT or SIGTERM ends the microphone, a second one has its usual effect."""
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def end(number: int, frame: FrameType | None) -> None:
        restore()
        microphone.stop()

    for number in usual:
        signal.signal(number, end)
    try:
        yield
    finally:
        restore()


class _Screen(Protocol):
    def show(self, hypotheses: "Iterable[Hypothesis]", overflows: int) -> None:
        """Shows what is new."""


def _screen(plain: bool) -> "AbstractContextManager[_Screen]":
    return nullcontext(_Lines()) if plain or not sys.stdout.isatty() else _Terminal()


class _Lines:
    """Final hypotheses, a line each."""

    def show(self, hypotheses: "Iterable[Hypothesis]", overflows: int) -> None:
        for hypothesis in hypotheses:
            if hypothesis.is_final and hypothesis.text:
                print(hypothesis.text, flush=True)


class _Terminal:
    """Final hypotheses as lines, and below them the partial one, which changes in place."""

    def __init__(self) -> None:
        from rich.live import Live
        from rich.text import Text

        self._text = Text
        self._live = Live(transient=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._partial = ""
        self._overflows = 0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, hypotheses: "Iterable[Hypothesis]", overflows: int) -> None:
        for hypothesis in hypotheses:
            self._partial = "" if hypothesis.is_final else hypothesis.text
            self._draw()
            if hypothesis.is_final and hypothesis.text:
                self._live.console.print(self._text(hypothesis.text), soft_wrap=True)
        if overflows != self._overflows:
            self._overflows = overflows
            self._draw()

    def _draw(self) -> None:
        warning = f"\n[{_lost(self._overflows)}]" if self._overflows else ""
        self._live.update(self._text(self._partial, style="dim").append(warning, style="red"), refresh=True)


def _lost(overflows: int) -> str:
    times = "once" if overflows == 1 else f"{overflows} times"
    return f"sound was lost {times}: the computer is too busy to keep up"
