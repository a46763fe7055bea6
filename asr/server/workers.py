"""One server in several processes, each with a recogniser of its own: a parent listens and hands connections out.

A connection goes to the worker with the fewest streams and stays there. The parent knows nothing of what is said on it;
it starts the workers, replaces one that dies, and tells them when to stop.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
from collections import Counter, deque
from collections.abc import Callable, MutableSequence
from multiprocessing.process import BaseProcess

from prometheus_client.multiprocess import mark_process_dead

from asr.errors import ASRError
from asr.recognizer import Recognizer
from asr.server.app import Listening, Place, Server, listen, settle
from asr.server.census import Census
from asr.server.metrics import SHARED

log = logging.getLogger(__name__)

HTTP, WYOMING, STOP, HURRY = b"c", b"w", b"s", b"h"  # what the parent says; with the first two comes a connection
READY = b"r"  # what a worker says; or in place of it why it cannot serve
FRESH_SECONDS = 1.0  # for which a connection counts as a stream, until it is known whether it is one
LONGEST_REASON = 10_000  # bytes


async def serve(load: Callable[[], Recognizer], place: Place, ready: Callable[[Listening], None]) -> None:
    """Serves until SIGINT or SIGTERM; a second one skips the wait for live streams.

    load: makes the recogniser of a worker; it must be something that can be pickled. Raises ASRError where a worker
    cannot be started, or an address not be had.
    """
    with tempfile.TemporaryDirectory(prefix="asr-") as folder:
        os.environ[SHARED] = folder
        parent = _Parent(load, place)
        await parent.run(ready)


class _Worker:
    """A process, as its parent sees it."""

    def __init__(self, number: int, process: BaseProcess, control: socket.socket) -> None:
        self.number, self.process, self.control = number, process, control

    async def prepared(self) -> None:
        """Waits until it can serve; ASRError where it cannot."""
        said = await asyncio.get_running_loop().sock_recv(self.control, LONGEST_REASON)
        if said != READY:
            raise ASRError(said.decode() or "a worker of the server ended before it could serve")

    def tell(self, what: bytes, connection: socket.socket | None = None) -> bool:
        """Whether it could be told."""
        try:
            socket.send_fds(self.control, [what], [connection.fileno()] if connection else [])
        except OSError:
            return False
        return True


class _Parent:
    def __init__(self, load: Callable[[], Recognizer], place: Place) -> None:
        self._load = load
        self._place = place
        self._listening = listen(place)
        self._context = multiprocessing.get_context("spawn")
        self._counts = self._context.RawArray("q", place.workers)
        self._workers: dict[int, _Worker] = {}
        self._fresh: deque[tuple[float, int]] = deque()  # connections given out, when and to whom
        self._stopping = False
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def run(self, ready: Callable[[Listening], None]) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._stop)
        try:
            started = [self._start(number) for number in range(self._place.workers)]
            for worker in started:
                await worker.prepared()
                self._employ(worker)
        except ASRError:
            for worker in started:
                worker.process.kill()
            raise
        self._accept(self._listening.http, HTTP)
        if self._listening.wyoming:
            self._accept(self._listening.wyoming, WYOMING)
        ready(self._listening)
        await self._ended.wait()

    def _start(self, number: int) -> _Worker:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        census = self._counts, number
        process = self._context.Process(target=work, args=(self._load, self._place, theirs, *census), daemon=True)
        process.start()
        theirs.close()
        return _Worker(number, process, ours)

    def _employ(self, worker: _Worker) -> None:
        self._workers[worker.number] = worker
        self._loop.add_reader(worker.process.sentinel, self._bury, worker)
        if self._stopping:
            worker.tell(STOP)

    def _bury(self, worker: _Worker) -> None:
        """A worker has ended, as it was told to or not."""
        self._loop.remove_reader(worker.process.sentinel)
        worker.process.join()
        worker.control.close()
        del self._workers[worker.number]
        self._counts[worker.number] = 0
        mark_process_dead(worker.process.pid)
        if not self._stopping:
            log.error("worker %d ended with code %s; another takes its place", worker.number, worker.process.exitcode)
            self._replacing = asyncio.create_task(self._replace(worker.number))
        elif not self._workers:
            self._ended.set()

    async def _replace(self, number: int) -> None:
        worker = self._start(number)
        try:
            await worker.prepared()
        except ASRError as error:
            log.error("worker %d could not be replaced: %s", number, error)
            worker.process.kill()
            if not self._workers:
                self._ended.set()
        else:
            self._employ(worker)

    def _accept(self, listening: socket.socket, kind: bytes) -> None:
        listening.setblocking(False)
        self._loop.add_reader(listening, self._hand_out, listening, kind)

    def _hand_out(self, listening: socket.socket, kind: bytes) -> None:
        """Gives a connection to the worker that has the least to do; the next one, where that cannot take it."""
        try:
            connection, _ = listening.accept()
        except OSError:  # the client has left again
            return
        now = self._loop.time()
        while self._fresh and self._fresh[0][0] < now - FRESH_SECONDS:
            self._fresh.popleft()
        fresh = Counter(number for _, number in self._fresh)
        with connection:
            for number in sorted(self._workers, key=lambda number: self._counts[number] + fresh[number]):
                if self._workers[number].tell(kind, connection):
                    self._fresh.append((now, number))
                    return

    def _stop(self) -> None:
        for worker in self._workers.values():
            worker.tell(HURRY if self._stopping else STOP)
        self._stopping = True


def work(
    load: Callable[[], Recognizer], place: Place, control: socket.socket, counts: MutableSequence[int], number: int
) -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent says what is to be done
    try:
        recognizer = load()
        asyncio.run(_work(recognizer, place, control, Census(counts, number)))
    except ASRError as error:
        control.sendall(str(error).encode()[:LONGEST_REASON])


async def _work(recognizer: Recognizer, place: Place, control: socket.socket, census: Census) -> None:
    server = Server(recognizer, place, census)
    await server.prepare()
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    taking: set[asyncio.Task[None]] = set()

    def listen() -> None:
        said, handles, _, _ = socket.recv_fds(control, 1, 1)
        if said in (HTTP, WYOMING):
            connection = socket.socket(fileno=handles[0])
            connection.setblocking(False)
            task = loop.create_task(server.take(connection, is_wyoming=said == WYOMING))
            taking.add(task)
            task.add_done_callback(taking.discard)
        else:
            stopping.set()
            if said != STOP:  # HURRY, or the parent is gone
                server.service.hurry()
            if not said:
                loop.remove_reader(control)

    control.setblocking(False)
    loop.add_reader(control, listen)
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    settle()
    control.sendall(READY)
    await stopping.wait()
    await server.stop()
