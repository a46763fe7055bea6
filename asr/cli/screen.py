"""What `asr live` shows: lines for a pipe, lines of JSON for a program, or a view that changes in place."""

import json
import math
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from asr.transcript import Seconds

if TYPE_CHECKING:
    from rich.text import Text

    from asr.segmenter import Hypothesis

DRAW_SECONDS = 0.1  # of sound between two drawings of the level
METER_CELLS = 16
METER_DB = 60.0  # below full scale, where the meter begins
WARM_DB, HOT_DB = 12.0, 3.0  # below full scale, where its colour changes
EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass
class State:
    """What there is to know about a session of listening, besides its words."""

    device: str
    seconds: Seconds = 0.0  # heard
    busy: Seconds = 0.0  # taken to recognise it
    peak: float = 0.0  # of the samples since it was last shown, 1 is full scale
    overflows: int = 0  # how often sound was lost
    waiting: str = ""  # why nothing is heard at the moment

    @property
    def real_time_factor(self) -> float:
        """Seconds of work a second of sound."""
        return self.busy / self.seconds if self.seconds else 0.0


class Screen(Protocol):
    """Where hypotheses and the state of the session are shown."""

    def show(self, hypotheses: "Iterable[Hypothesis]") -> None:
        """Shows what is new: hypotheses, none perhaps, and the state."""

    def tell(self, message: str) -> None:
        """Tells the user something that is not speech."""


def screen(state: State, *, plain: bool, json_lines: bool) -> AbstractContextManager[Screen]:
    """The screen that suits standard output and the options."""
    if json_lines:
        return nullcontext(JsonLines())
    if plain or not sys.stdout.isatty():
        return nullcontext(Lines())
    return Terminal(state)


def lost(overflows: int) -> str:
    """How often sound was lost, for people."""
    return f"sound lost {'once' if overflows == 1 else f'{overflows} times'}"


class Lines:
    """Final hypotheses, a line each."""

    def show(self, hypotheses: "Iterable[Hypothesis]") -> None:
        for hypothesis in hypotheses:
            if hypothesis.is_final and hypothesis.text:
                print(hypothesis.text, flush=True)

    def tell(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)


class JsonLines(Lines):
    """Every hypothesis, a line of JSON each: type, text, start and end in seconds, words with their confidence.

    `committed` is how many of the words will not change any more.
    """

    def show(self, hypotheses: "Iterable[Hypothesis]") -> None:
        for hypothesis in hypotheses:
            event = {
                "type": "final" if hypothesis.is_final else "partial",
                "text": hypothesis.text,
                "start": round(hypothesis.start, 3),
                "end": round(hypothesis.end, 3),
                "committed": hypothesis.committed,
                "words": [
                    {k: v if k == "text" else round(v, 3) for k, v in asdict(w).items()} for w in hypothesis.words
                ],
            }
            print(json.dumps(event, ensure_ascii=False), flush=True)


class Terminal:
    """Final hypotheses scroll by; below them are the partial one, dim as far as it may change, and a footer."""

    def __init__(self, state: State) -> None:
        from rich.console import Console
        from rich.live import Live

        self._state = state
        self._console = Console(highlight=False, markup=False)
        self._live = Live(
            console=self._console,
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="visible",
        )
        self._partial: Hypothesis | None = None
        self._next_draw = 0.0  # seconds heard

    def __enter__(self) -> Self:
        self._live.start()
        self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, hypotheses: "Iterable[Hypothesis]") -> None:
        news = list(hypotheses)
        for hypothesis in news:
            self._partial = None if hypothesis.is_final else hypothesis
            if hypothesis.is_final and hypothesis.text:
                self._draw(refresh=False)
                self._console.print(hypothesis.text)
        if news or self._state.seconds >= self._next_draw:
            self._draw()

    def tell(self, message: str) -> None:
        self._draw()

    def _draw(self, refresh: bool = True) -> None:
        from rich.console import Group
        from rich.rule import Rule

        below = footer(self._state, self._console.options.ascii_only)
        self._live.update(Group(unfinished(self._partial), Rule(style="dim"), below), refresh=refresh)
        if refresh:
            self._state.peak = 0.0
        self._next_draw = self._state.seconds + DRAW_SECONDS


def unfinished(partial: "Hypothesis | None") -> "Text":
    """The words of a partial hypothesis, dim where they may still change."""
    from rich.text import Text

    words = [word.text for word in partial.words] if partial else []
    styles = ["" if partial and i < partial.committed else "dim" for i in range(len(words))]
    return Text(" ").join(Text(word, style) for word, style in zip(words, styles, strict=True))


def footer(state: State, ascii_only: bool = False) -> "Text":
    """One line: the level, how long and how fast, what was lost, the device; or why nothing is heard."""
    from rich.text import Text

    if state.waiting:
        return Text(state.waiting, style="bold red")
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append_text(meter(state.peak, ascii_only))
    minutes, seconds = divmod(int(state.seconds), 60)
    line.append(f"  {minutes}:{seconds:02}", style="dim")
    line.append(f"  {state.real_time_factor:.2f} x real time", style="dim" if state.real_time_factor < 1 else "red")
    line.append(
        f"  {lost(state.overflows)}" if state.overflows else "  no sound lost", "red" if state.overflows else "dim"
    )
    return line.append(f"  {state.device}", style="dim")


def meter(peak: float, ascii_only: bool = False) -> "Text":
    """A bar from METER_DB below full scale to full scale; green, then yellow, then red."""
    from rich.text import Text

    below = -20 * math.log10(max(peak, 1e-9))  # dB
    filled = round(8 * METER_CELLS * min(max(1 - below / METER_DB, 0.0), 1.0))
    whole, eighths = divmod(filled, 8)
    bar = "#" * whole if ascii_only else EIGHTHS[8] * whole + (EIGHTHS[eighths] if eighths else "")
    colour = "green" if below > WARM_DB else "yellow" if below > HOT_DB else "red"
    empty = "-" if ascii_only else "·"
    return Text(bar, style=colour).append(empty * (METER_CELLS - len(bar)), style="dim")
