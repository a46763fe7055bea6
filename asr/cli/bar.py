"""A progress bar on standard error, where that is a terminal."""

import sys
from types import TracebackType
from typing import Self


class Bar:
    """Share done, time taken and time left; nothing at all unless `wanted` and standard error is a terminal."""

    def __init__(self, total: float, wanted: bool = True) -> None:
        self._progress = None
        if wanted and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=sys.stdout.isatty(),  # else it would send piped results to the screen
            )
            self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> Self:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()

    def update(self, done: float, text: str) -> None:
        """Shows that `done` of the total is done and what is being worked on."""
        if self._progress:
            self._progress.update(self._task, completed=done, description=text)
