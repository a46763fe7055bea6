"""Many streams through one encoder: a thread takes the chunks that are ready as one batch, and decodes them in turn.

While it works, chunks of other streams gather for its next batch; it waits only when there are none. So a batch is as
large as the load, and nothing is put off in order to fill one. The numbers of a stream do not depend on which others
share its batches: see `asr.runtime.Model.step`.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from asr.errors import ASRError
from asr.features import Frames
from asr.recognizer import Steps
from asr.runtime import Model, State
from asr.segmenter import Hypothesis, LogProbs
from asr.server.metrics import Metrics

MOST_IN_BATCH = 64  # streams; more would be no faster each, and would wait longer for the first result
MOST_AT_EASE = 3  # streams that wait while the thread is not behind
MOST_MORE = 4  # pieces that it takes at once beyond the first when it is far behind
REPORT_SECONDS = 0.01  # for which reports gather, so that the event loop is woken once for many

Report = Callable[[list[Hypothesis], Exception | None], None]


class Engine:
    """Runs the steps of streams on a thread of its own, for the event loop that makes it."""

    def __init__(self, model: Model, metrics: Metrics) -> None:
        if not model.config.streaming:
            raise ASRError(
                f"the model {model.config.name} reads whole recordings in both directions; serve a streaming model"
            )
        self._model = model
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._tasks: deque[_Task] = deque()
        self._over: list[_Task] = []  # to be reported
        self._reported = 0.0  # when
        self._waiting = 0  # tasks that are begun
        self._closed = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, steps: Steps, report: Report) -> None:
        """Runs the steps of a stream and reports the hypotheses, or the error, on the event loop."""
        with self._change:
            self._tasks.append(_Task(steps, report))
            self._change.notify()

    @property
    def more(self) -> int:
        """Pieces for which a stream should wait beyond the next: when many wait, larger and fewer ones serve all."""
        return min(MOST_MORE, (self._waiting + len(self._tasks)) // MOST_AT_EASE)

    def close(self) -> None:
        """Ends the thread after the steps already given."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()

    def _work(self) -> None:
        ready: deque[_Task] = deque()  # they have a chunk for the encoder
        while True:
            with self._change:
                self._change.wait_for(lambda: self._tasks or ready or self._closed)
                arrived = list(self._tasks)
                self._tasks.clear()
                if self._closed and not arrived and not ready:
                    return
            ready.extend(task for task in arrived if self._has_chunk(task, None))
            batch = _taken(ready)
            self._waiting = len(batch) + len(ready)
            if batch:
                results = zip(batch, self._encode(batch), strict=True)
                ready.extend(task for task, result in results if self._has_chunk(task, result))
            self._report()

    def _has_chunk(self, task: "_Task", result: tuple[LogProbs, State] | None) -> bool:
        """Takes a task to its next chunk; one that is over is reported."""
        if task.advance(result):
            return True
        self._over.append(task)
        if time.monotonic() - self._reported > REPORT_SECONDS:
            self._report()
        return False

    def _report(self) -> None:
        over, self._over = self._over, []
        self._reported = time.monotonic()
        if over:
            self._loop.call_soon_threadsafe(_tell, over)

    def _encode(self, batch: "list[_Task]") -> list[tuple[LogProbs, State]]:
        """The encoder on one chunk of each task; every state is a copy, so that none keeps those of others alive."""
        self._metrics.batch.observe(len(batch))
        features = np.concatenate([task.features for task in batch])
        states = {name: np.concatenate([task.state[name] for task in batch]) for name in batch[0].state}
        log_probs, following = self._model.step(features, states)
        rows = [slice(i, i + 1) for i in range(len(batch))]
        return [(log_probs[row], {name: value[row].copy() for name, value in following.items()}) for row in rows]


class _Task:
    """Steps of a stream under way, with the chunk that they wait for."""

    features: Frames
    state: State

    def __init__(self, steps: Steps, report: Report) -> None:
        self._steps = steps
        self._report = report
        self._found: list[Hypothesis] = []
        self._error: Exception | None = None

    def advance(self, result: tuple[LogProbs, State] | None) -> bool:
        """Goes on with what the encoder made of the chunk, None before the first; False where the steps are over."""
        try:
            self.features, self.state = next(self._steps) if result is None else self._steps.send(result)
        except StopIteration as done:
            self._found = done.value
        except Exception as error:  # a stream that fails must not take the others along
            self._error = error
        else:
            return True
        return False

    def report(self) -> None:
        """Tells what came of it."""
        self._report(self._found, self._error)


def _taken(ready: deque[_Task]) -> list[_Task]:
    """Takes the task that has waited longest, and others whose chunks are as long."""
    batch: list[_Task] = []
    for _ in range(len(ready)):
        task = ready.popleft()
        alike = not batch or (task.features.shape == batch[0].features.shape and len(batch) < MOST_IN_BATCH)
        (batch if alike else ready).append(task)
    return batch


def _tell(tasks: list[_Task]) -> None:
    for task in tasks:
        task.report()
