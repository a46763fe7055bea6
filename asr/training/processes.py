"""The processes of a training run: which one this is, what they tell each other, and being asked to stop."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=6)  # of processes for the first one, which decodes the audio and measures the dev sources


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is, and where its tensors live."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True for the process that writes files and reports."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every process has come here."""
        if self.world > 1:
            dist.barrier()

    def sum(self, values: Tensor) -> Tensor:
        """The sum of every process's `values`, which are overwritten."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """True where it is so in any process."""
        return flag if self.world == 1 else bool(self.sum(torch.tensor(float(flag), device=self.device)))


@contextmanager
def joined() -> Iterator[Place]:
    """This process's place by torchrun's environment; alone where there is none. NCCL on CUDA, gloo on the CPU.

    A group that is there already is used and left open: torchrun's processes can form one only once.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    is_ours = world > 1 and not dist.is_initialized()
    if is_ours:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield Place(rank, world, device)
    finally:
        if is_ours:
            dist.destroy_process_group()


class Interruption:
    """While this is open Ctrl-C and SIGTERM are only noted, so that a step can be finished; a second one acts."""

    def __init__(self) -> None:
        self.wanted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # the only one that may set handlers
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.wanted = True
        self.__exit__()
