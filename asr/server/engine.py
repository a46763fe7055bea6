"""Many streams through one encoder: a thread takes the chunks that are ready as one batch, and decodes them in turn.

While it works, chunks of other streams gather for its next batch; it waits only when there are none. So a batch is as
large as the load, and nothing is put off in order to fill one. The numbers of a stream do not depend on which others
share its batches: see `asr.runtime.Model.step`.
"""

import threading
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

Report = Callable[[list[Hypothesis], Exception | None], None]


class Engine:
    """Runs the steps of streams on a thread of its own."""

    def __init__(self, model: Model, metrics: Metrics) -> None:
        if not model.config.streaming:
            raise ASRError(
                f"the model {model.config.name} reads whole recordings in both directions; serve a streaming model"
            )
        self._model = model
        self._metrics = metrics
        self._tasks: deque[_Task] = deque()
        self._closed = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, steps: Steps, report: Report) -> None:
        """Runs the steps of a stream and reports the hypotheses, or the error, from the engine's thread."""
        with self._change:
            self._tasks.append(_Task(steps, report))
            self._change.notify()

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
            ready.extend(task for task in arrived if task.begin())
            batch = [ready.popleft() for _ in range(min(len(ready), MOST_IN_BATCH))]
            if batch:
                ready.extend(
                    task for task, result in zip(batch, self._encode(batch), strict=True) if task.go_on(result)
                )

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

    def begin(self) -> bool:
        """To the first chunk; False where the steps are over before one, which is reported."""
        return self._advance(lambda: next(self._steps))

    def go_on(self, result: tuple[LogProbs, State]) -> bool:
        """With what the encoder has made of the chunk; False where the steps are over, which is reported."""
        return self._advance(lambda: self._steps.send(result))

    def _advance(self, step: Callable[[], tuple[Frames, State]]) -> bool:
        try:
            self.features, self.state = step()
        except StopIteration as done:
            self._report(done.value, None)
        except Exception as error:  # a stream that fails must not take the others along
            self._report([], error)
        else:
            return True
        return False
