"""How a run is going: losses.tsv, TensorBoard, and a bar on a terminal or a line now and then elsewhere."""

import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from types import TracebackType

LOSSES_FILE = "losses.tsv"
LINE_SECONDS = 30.0  # between lines where standard error is no terminal
WINDOW = 50  # steps over which speed and loss are averaged


def counting(count: int, work: str) -> Iterable[int]:
    """range(count) with what is being done on standard error: a bar on a terminal, one line elsewhere."""
    if not sys.stderr.isatty():
        print(work, file=sys.stderr, flush=True)
        return range(count)
    from rich.console import Console
    from rich.progress import track

    return track(range(count), work, console=Console(stderr=True))


class Progress:
    """Steps done and to come, loss, audio seconds per second and the time left, on standard error."""

    def __init__(self, steps: int, done: int = 0) -> None:
        self._steps, self._done = steps, done
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=WINDOW)  # time, loss, audio seconds
        self._last_line = -math.inf
        self._bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (BarColumn(), TextColumn("{task.completed}/{task.total}"), TextColumn("{task.fields[text]}"))
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("", total=steps, completed=done, text="")
            self._bar.start()

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar:
            self._bar.stop()

    @property
    def speed(self) -> float:
        """Audio seconds per second over the last steps; 0 before there are two."""
        if len(self._recent) < 2:
            return 0.0
        elapsed = self._recent[-1][0] - self._recent[0][0]
        return sum(seconds for _, _, seconds in list(self._recent)[1:]) / elapsed if elapsed else 0.0

    def advance(self, loss: float, audio_seconds: float) -> None:
        """One more step is done."""
        now = time.monotonic()
        self._done += 1
        self._recent.append((now, loss, audio_seconds))
        if self._bar:
            self._bar.update(self._task, completed=self._done, text=self._text())
        elif now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self.note(f"step {self._done}/{self._steps}, {self._text()}")

    def note(self, text: str) -> None:
        """A line that stays."""
        if self._bar:
            self._bar.console.print(text, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _text(self) -> str:
        loss = sum(row[1] for row in self._recent) / len(self._recent)
        text = f"loss {loss:.3f}, {self.speed:.0f} audio s/s"
        if len(self._recent) > 1:
            per_step = (self._recent[-1][0] - self._recent[0][0]) / (len(self._recent) - 1)
            text += f", {timedelta(seconds=round(per_step * (self._steps - self._done)))} left"
        return text


class RunLog:
    """Keeps the course of a run, step by step; lines of steps that will be taken again are dropped first.

    losses.tsv has the columns step, quantity and value: `train` and `dev` are losses in nats per token with all their
    digits, `dev WER` and `dev CER` greedy error rates of the averaged weights.
    """

    def __init__(self, output: Path, step: int, steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = output / LOSSES_FILE
        self._file = path.open("a+", encoding="utf-8")
        self._best = self._rewind(step)
        self._board = SummaryWriter(str(output / "tensorboard"), purge_step=step)
        self._progress = Progress(steps, step)
        self.note = self._progress.note

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.close()
        self._file.close()
        self._board.close()

    def train(self, step: int, loss: float, norm: float, rate: float, audio_seconds: float) -> None:
        """One training step is done."""
        self._progress.advance(loss, audio_seconds)
        if not math.isfinite(norm):
            self.note(f"step {step}: the gradient is not finite; the weights stay as they were")
        self._file.write(f"{step}\ttrain\t{loss!r}\n")
        self._board.add_scalar("loss/train", loss, step)
        self._board.add_scalar("gradient norm", norm, step)
        self._board.add_scalar("rate", rate, step)
        self._board.add_scalar("audio seconds per second", self._progress.speed, step)

    def dev(self, step: int, loss: float, wer: float, cer: float) -> bool:
        """The dev sources were measured; true where the loss is the least so far."""
        self.note(f"step {step}: dev loss {loss:.3f}, WER {wer:.1%}, CER {cer:.1%} greedy")
        self._file.write(f"{step}\tdev\t{loss!r}\n{step}\tdev WER\t{wer!r}\n{step}\tdev CER\t{cer!r}\n")
        for name, value in (("loss/dev", loss), ("dev/WER", wer), ("dev/CER", cer)):
            self._board.add_scalar(name, value, step)
        is_best, self._best = loss < self._best, min(loss, self._best)
        return is_best

    def flush(self) -> None:
        """Puts on disk what a checkpoint will rely on."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()

    def _rewind(self, step: int) -> float:
        """Cuts off what follows the lines of `step`; returns the least dev loss before."""
        self._file.seek(0)
        kept, best = 0, math.inf
        for line in self._file:
            number, *rest = line.rstrip("\n").split("\t")
            if not line.endswith("\n") or int(number) > step:
                break
            kept += len(line.encode())
            if rest[0] == "dev":
                best = min(best, float(rest[1]))
        self._file.truncate(kept)
        return best
