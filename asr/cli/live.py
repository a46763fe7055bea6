"""`asr live`: what a microphone hears, while it is being said."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from asr.cli import TRACEBACK, endpoints, hotwords
from asr.errors import ASRError

if TYPE_CHECKING:
    import numpy as np

    from asr.cli.saving import Recording, Saved
    from asr.cli.screen import Screen, State
    from asr.microphone import Microphone
    from asr.recognizer import Recognizer
    from asr.segmenter import Hypothesis

HELP = "write down what a microphone hears, while it is being said"
EPILOG = """
A line changes while it is being said and stays as it is after a pause. Ctrl-C ends, with the last words written. When
the microphone is unplugged, this waits until it is back. Times are of the sound heard, as in the file of --record.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.epilog = EPILOG
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--device", metavar="D", help="number, name or part of a name (see: asr devices)")
    source.add_argument("--loopback", action="store_true", help="hear what this computer plays instead of a microphone")
    parser.add_argument("--model", default="en", metavar="M", help="name or folder of a model (default: en)")
    parser.add_argument("--plain", action="store_true", help="finished lines only, as always where output is piped")
    parser.add_argument("--json-lines", action="store_true", help="all that is heard, unfinished too, as lines of JSON")
    save_help = "write it down in a new FILE.txt, .json, .srt, .vtt or .tsv too, as it is said; may be repeated"
    parser.add_argument("--save", action="append", type=Path, default=[], metavar="FILE", help=save_help)
    parser.add_argument("--record", type=Path, metavar="FILE", help="keep the sound in a new FILE.flac, .wav or .ogg")
    hotwords.add_argument(parser)
    endpoints.add_arguments(parser, gate=True)


def run(args: argparse.Namespace) -> int:
    """Listens until Ctrl-C; 0 then, an ASRError where the microphone cannot be opened or a file not be written."""
    from asr.cli.saving import SOUNDS, Recording, check, saved
    from asr.cli.screen import State, lost, screen
    from asr.transcript import WRITERS

    for path in args.save:
        check(path, "--save", {f".{name}" for name in WRITERS})
    if args.record:
        check(args.record, "--record", set(SOUNDS))
    rules, gate, wanted = endpoints.rules(args), endpoints.gate(args), hotwords.wanted(args)

    import asr
    from asr.microphone import Microphone, find_loopback

    with _quiet_libraries(), ExitStack() as stack:
        microphone = Microphone(find_loopback().index if args.loopback else args.device)
        recognizer = asr.load(args.model, rules=rules, gate=gate, hotwords=wanted)
        stack.enter_context(_ended_by_signals(microphone))
        stack.enter_context(microphone)
        files = [stack.enter_context(saved(path)) for path in args.save]
        recording = stack.enter_context(Recording(args.record, microphone.sample_rate)) if args.record else None
        print(f"listening to {_described(microphone)}; Ctrl-C ends", file=sys.stderr, flush=True)
        state = State(microphone.device.name)
        view = stack.enter_context(screen(state, plain=args.plain, json_lines=args.json_lines))
        _Session(recognizer, microphone, state, view, files, recording).run()
    if state.overflows:
        print(f"asr: {lost(state.overflows)}: the computer is too busy to keep up", file=sys.stderr)
    return 0


class _Session:
    """From the microphone through the recogniser to the screen and the files, over any number of reconnections."""

    def __init__(
        self,
        recognizer: "Recognizer",
        microphone: "Microphone",
        state: "State",
        screen: "Screen",
        files: "list[Saved]",
        recording: "Recording | None",
    ) -> None:
        self._recognizer = recognizer
        self._microphone = microphone
        self._state = state
        self._screen = screen
        self._files = files
        self._recording = recording
        self._begin = 0.0  # of the present stream, in seconds heard

    def run(self) -> None:
        """Until the microphone is stopped."""
        from asr.microphone import Disconnected

        while True:
            try:
                self._listen()
                return
            except Disconnected as error:
                self._state.waiting = f"{error}; waiting for it, Ctrl-C ends"
                self._screen.tell(f"asr: {self._state.waiting}")
            if not self._microphone.reconnect():
                return
            self._state.waiting = ""
            self._state.device = self._microphone.device.name
            self._screen.tell(f"listening to {_described(self._microphone)} again")

    def _listen(self) -> None:
        """One connection of the microphone, to its end or loss; all that was said in it is shown in either case."""
        rate = self._microphone.sample_rate
        stream = self._recognizer.stream(rate)
        self._begin = self._state.seconds
        if self._recording:
            self._recording.at(rate)
        failure: ASRError | None = None
        try:
            for block in self._microphone:
                self._hear(block, rate)
                started = time.perf_counter()
                hypotheses = stream.accept(block)
                self._state.busy += time.perf_counter() - started
                self._show(hypotheses)
        except ASRError as error:
            failure = error
        self._show(stream.finish())
        if failure:
            raise failure

    def _hear(self, block: "np.ndarray", rate: int) -> None:
        if self._recording:
            self._recording.write(block)
        self._state.seconds += len(block) / rate
        self._state.peak = max(self._state.peak, float(abs(block).max(initial=0.0)))
        self._state.overflows = self._microphone.overflows

    def _show(self, hypotheses: "list[Hypothesis]") -> None:
        hypotheses = [_later(hypothesis, self._begin) for hypothesis in hypotheses]
        for hypothesis in hypotheses:
            if hypothesis.is_final and hypothesis.words:
                for file in self._files:
                    file.write(hypothesis.segment)
        self._screen.show(hypotheses)


def _later(hypothesis: "Hypothesis", seconds: float) -> "Hypothesis":
    """The hypothesis with all its times moved."""

    def moved(timed: Any) -> Any:
        return replace(timed, start=timed.start + seconds, end=timed.end + seconds)

    return replace(moved(hypothesis), words=tuple(map(moved, hypothesis.words))) if seconds else hypothesis


def _described(microphone: "Microphone") -> str:
    device = microphone.device
    return f'"{device.name}" ({device.host}, {device.sample_rate} Hz)'


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keeps what PortAudio and ALSA print about a lost device off standard error, which stays Python's own."""
    usual = sys.__stderr__
    if os.environ.get(TRACEBACK) or usual is None or sys.stderr is not usual:
        yield
        return
    usual.flush()
    own = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    with os.fdopen(os.dup(own), "w", buffering=1, errors="backslashreplace") as sys.stderr:
        try:
            yield
        finally:
            sys.stderr = usual
            os.dup2(own, 2)
            os.close(own)


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
