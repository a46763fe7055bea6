"""Where somebody speaks: a gate before the recogniser, which passes speech and sleeps through the rest.

    samples -> blocks of 160 ms -> no louder than silence? or else Silero's detector -> open or closed -> passages

Everything is decided on the sample clock of the stream, once per block: the passages are the same however the samples
are cut.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from asr.errors import ASRError
from asr.features import Samples
from asr.rules import GateRules
from asr.runtime import open_graph

if TYPE_CHECKING:
    import onnxruntime

SAMPLE_RATE = 16_000  # Hz, the only one that the detector's graph knows
FRAME = 512  # samples of one probability
CONTEXT = 64  # samples before a frame that the graph wants too
UNITS = 128  # of its recurrent layer
BLOCK = 5 * FRAME  # samples of one decision, 160 ms: a longer call costs a third less than its frames one by one
BLOCK_SECONDS = BLOCK / SAMPLE_RATE

DROP = 0.15  # by which the probability must fall below the threshold before speech may end
MARGIN = 1.4  # factor (3 dB) on the amplitude of known silence, up to which a block is taken for silence too
MEMORY = 8  # blocks without speech, of which the quietest says how loud silence is

PACKAGE = Path(__file__).parent
GRAPH = Path("pretrained", "silero-vad", "silero_vad_16k_sequence.onnx")  # below a checkout's root, or the package


@dataclass(frozen=True)
class DetectorState:
    """The recurrent layer's state and the samples before the next frame."""

    hidden: NDArray[np.float32]
    cell: NDArray[np.float32]
    context: Samples


class Detector:
    """Silero's voice activity detector, version 6; threads may share it."""

    def __init__(self, session: "onnxruntime.InferenceSession") -> None:
        self._session = session

    @classmethod
    @lru_cache(maxsize=1)
    def load(cls) -> "Detector":
        """The detector that comes with this package; ASRError where its file is missing or damaged."""
        for root in (PACKAGE.parent, PACKAGE):
            if (root / GRAPH).is_file():
                try:
                    return cls(open_graph(root / GRAPH))
                except ASRError:
                    raise ASRError(
                        f"{root / GRAPH} is damaged or needs a newer ONNX Runtime; install asr again"
                    ) from None
        raise ASRError(
            f"the voice activity detector {GRAPH.name} is missing; install asr again, or switch the gate off"
        )

    def start(self) -> DetectorState:
        """The state before the first sample."""
        zero = np.zeros((1, 1, UNITS), np.float32)
        return DetectorState(zero, zero, np.zeros(CONTEXT, np.float32))

    def step(self, samples: Samples, state: DetectorState) -> tuple[NDArray[np.float32], DetectorState]:
        """Whole frames, shape = (n * FRAME,), to the probability of speech in each, shape = (n,), and the next state.

        How many frames a call has does not change the probabilities by a single bit.
        """
        with_context = np.concatenate([state.context, samples])
        frames = np.lib.stride_tricks.sliding_window_view(with_context, CONTEXT + FRAME)[::FRAME]
        inputs = {"input": np.ascontiguousarray(frames), "h": state.hidden, "c": state.cell}
        speech, hidden, cell = self._session.run(["speech_probs", "hn", "cn"], inputs)
        return speech, DetectorState(hidden, cell, with_context[-CONTEXT:])


@dataclass(frozen=True)
class Passage:
    """Samples that the gate lets through, which follow those of the passage before unless a new region begins.

    begin: sample of the stream at which these begin, where they begin a region; known: how many of them the region
    before has had already; ends: whether the region ends with them.
    """

    samples: Samples
    begin: int | None = None
    known: int = 0
    ends: bool = False


class Gate:
    """Samples of a stream to passages in which somebody speaks."""

    def __init__(self, rules: GateRules, detector: Detector | None = None) -> None:
        self.rules = rules
        self.is_open = False
        self._detector = detector or Detector.load()
        self._state = self._detector.start()
        self._patience = max(1, round(rules.hangover_seconds / BLOCK_SECONDS))  # blocks without speech
        self._silent = 0  # blocks since the last speech
        self._levels: deque[float] = deque(maxlen=MEMORY)  # of blocks in which no speech was heard
        self._before: deque[Samples] = deque(maxlen=math.ceil(rules.preroll_seconds / BLOCK_SECONDS))
        self._block = np.zeros(BLOCK, np.float32)
        self._count = 0  # samples so far
        self._passed = 0  # of them, those up to the end of the last region

    def step(self, samples: Samples) -> Iterator[Passage]:
        """The passages that samples at SAMPLE_RATE bring; an open gate passes them at once."""
        while len(samples):
            filled = self._count % BLOCK
            piece, samples = samples[: BLOCK - filled], samples[BLOCK - filled :]
            self._block[filled : filled + len(piece)] = piece
            self._count += len(piece)
            if self.is_open:
                yield Passage(piece)
            if self._count % BLOCK == 0:
                yield from self._decide(self._block.copy())

    def flush(self) -> Iterator[Passage]:
        """What the last, incomplete block brings; then the stream is over and an open region ends."""
        filled = self._count % BLOCK
        if filled and not self.is_open:
            self._block[filled:] = 0.0
            self._count += BLOCK - filled
            yield from self._decide(self._block.copy())
        if self.is_open:
            self.is_open = False
            yield Passage(np.zeros(0, np.float32), ends=True)

    def _decide(self, block: Samples) -> Iterator[Passage]:
        """Opens or closes the gate after a complete block."""
        speaks = self._hears_speech(block)
        self._silent = 0 if speaks else self._silent + 1
        if self.is_open and self._silent >= self._patience:
            self.is_open = False
            self._passed = self._count
            yield Passage(np.zeros(0, np.float32), ends=True)
        elif not self.is_open and speaks:
            self.is_open = True
            passed = np.concatenate([*self._before, block])
            begin = self._count - len(passed)
            yield Passage(passed, begin, max(0, self._passed - begin))
        self._before.append(block)

    def _hears_speech(self, block: Samples) -> bool:
        """Whether somebody speaks; a block no louder than silence before is not looked at while the gate is closed."""
        if not self.is_open:
            level = _level(block)
            if self._levels and level <= MARGIN * min(self._levels):
                return False
        probabilities, self._state = self._detector.step(block, self._state)
        threshold = self.rules.threshold - DROP if self.is_open else self.rules.threshold
        speaks = bool(probabilities.max() >= max(threshold, 0.01))
        if not self.is_open and not speaks:
            self._levels.append(level)
        return speaks


def _level(block: Samples) -> float:
    """Root mean square of the loudest frame, without its mean."""
    return float(block.reshape(-1, FRAME).std(axis=1).max())
