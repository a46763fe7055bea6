"""How a run is going: losses.tsv, TensorBoard, and a bar on a terminal or a line now and then elsewhere."""

import sys
import time
from collections import deque
from datetime import timedelta
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

LOSSES_FILE = "losses.tsv"
LINE_SECONDS = 30.0  # between lines where standard error is no terminal
WINDOW = 50  # steps over which speed and loss are averaged


class Progress:
    """Steps done and to come, loss, audio seconds per second and the time left, on standard error."""

    def __init__(self, steps: int, done: int = 0) -> None:
        self._steps, self._done = steps, done
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=WINDOW)  # time, loss, audio seconds
        self._last_line = 0.0
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
            print(f"step {self._done}/{self._steps}, {self._text()}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """A line that stays."""
        if self._bar:
            self._bar.console.print(text)
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
    """Keeps the losses of a run, step by step; lines of steps that will be taken again are dropped first.

    losses.tsv has the columns step, train or dev, and the loss in nats per token with all its digits.
    """

    def __init__(self, output: Path, step: int, steps: int) -> None:
        path = output / LOSSES_FILE
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and int(line.split("\t")[0]) <= step]
        self._file = path.open("w")
        self._file.writelines(kept)
        self._best = min((float(line.split("\t")[2]) for line in kept if "\tdev\t" in line), default=float("inf"))
        self._board = SummaryWriter(str(output / "tensorboard"), purge_step=step)
        self._progress = Progress(steps, step)

    def train(self, step: int, loss: float, norm: float, rate: float, audio_seconds: float) -> None:
        """One training step is done."""
        self._progress.advance(loss, audio_seconds)
        self._file.write(f"{step}\ttrain\t{loss!r}\n")
        self._board.add_scalar("loss/train", loss, step)
        self._board.add_scalar("gradient norm", norm, step)
        self._board.add_scalar("rate", rate, step)
        self._board.add_scalar("audio seconds per second", self._progress.speed, step)

    def dev(self, step: int, loss: float, wer: float, cer: float) -> bool:
        """The dev sources were measured; true where the loss is the least so far."""
        self._progress.note(f"step {step}: dev loss {loss:.3f}, WER {wer:.1%}, CER {cer:.1%} greedy")
        self._file.write(f"{step}\tdev\t{loss!r}\n")
        for name, value in (("loss/dev", loss), ("dev/WER", wer), ("dev/CER", cer)):
            self._board.add_scalar(name, value, step)
        is_best, self._best = loss < self._best, min(loss, self._best)
        return is_best

    def flush(self) -> None:
        """Puts on disk what a checkpoint will rely on."""
        self._file.flush()

    def close(self) -> None:
        """Ends the log."""
        self._progress.close()
        self._file.close()
        self._board.close()
