"""A server of several processes is one server: its limits, figures and end, and what a lost process takes along."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

import asr
from asr.server.census import Census
from tests.serving import CLIP, expected, samples

ROOT = Path(__file__).parent.parent
FINISH = json.dumps({"type": "finish"})
WORKERS = 2


@dataclass
class Running:
    """A server of WORKERS processes."""

    process: subprocess.Popen[str]
    address: str

    @property
    def workers(self) -> list[int]:
        """Process numbers of those that hold a recogniser."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=30) as response:
            return str(response.read().decode())

    def figure(self, name: str) -> float:
        return float(re.findall(rf"^{re.escape(name)} (.*)$", self.get("/metrics"), re.MULTILINE)[0])

    async def begun(self) -> ClientConnection:
        client = await connect(f"ws://{self.address}/v1/stream")
        with suppress(ConnectionClosed):  # a refusal may come before it
            await client.send('{"type": "start"}')
        return client


@contextmanager
def serving(*options: str) -> Iterator[Running]:
    command = [sys.executable, "run_asr.py", "serve", "--port", "0", "--workers", str(WORKERS), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr
    try:
        line = next(line for line in process.stderr if "serving at" in line)
        yield Running(process, line.split()[2].removeprefix("http://"))
    finally:
        process.terminate()
        process.wait(30)
        process.stderr.close()


async def finished(client: ClientConnection, speech: bytes) -> str:
    for begin in range(0, len(speech), 6400):
        await client.send(speech[begin : begin + 6400])
    await client.send(FINISH)
    events = [json.loads(message) async for message in client]
    return " ".join(event["text"] for event in events if event["type"] == "final")


async def answered(client: ClientConnection) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(await client.recv())
    return answer


def test_workers_are_one_server() -> None:
    speech, wanted = samples(CLIP)[0].tobytes(), expected(asr.load("en"), CLIP).text

    async def busy(server: Running) -> None:
        clients = [await server.begun() for _ in range(4)]
        assert {(await answered(client))["type"] for client in clients} == {"ready"}
        assert json.loads(server.get("/healthz")) == {"status": "ok", "streams": 4, "max_streams": 4}
        assert server.figure('asr_streams{protocol="asr"}') == 4
        refused = [await answered(await server.begun()) for _ in range(3)]
        assert {answer["code"] for answer in refused} == {"overloaded"}
        assert await asyncio.gather(*(finished(client, speech) for client in clients)) == [wanted] * len(clients)

    with serving("--max-streams", "4") as server:
        assert len(server.workers) == WORKERS
        asyncio.run(busy(server))
        assert server.figure("asr_audio_seconds_total") == pytest.approx(4 * len(speech) / 2 / 16_000)
        assert server.figure('asr_refusals_total{code="overloaded"}') == 3
        assert server.figure('asr_streams{protocol="asr"}') == 0


def test_a_lost_worker_takes_its_own_streams_alone() -> None:
    speech, wanted = samples(CLIP)[0].tobytes(), expected(asr.load("en"), CLIP).text

    async def text(client: ClientConnection) -> str:
        try:
            return await finished(client, speech)
        except ConnectionClosed:
            return "lost"

    async def bereft(server: Running) -> None:
        clients = [await server.begun() for _ in range(4)]
        for client in clients:
            await answered(client)
        os.kill(server.workers[0], signal.SIGKILL)
        assert server.process.stderr
        await asyncio.to_thread(server.process.stderr.readline)  # which says that it knows
        assert sorted(await asyncio.gather(*map(text, clients))) == ["lost", "lost", wanted, wanted]
        assert json.loads(server.get("/healthz"))["streams"] == 0
        assert await text(await server.begun()) == wanted

    with serving() as server:
        asyncio.run(bereft(server))
        assert len(server.workers) == WORKERS


def test_all_streams_get_their_last_words_and_all_processes_end() -> None:
    speech, wanted = samples(CLIP)[0].tobytes(), expected(asr.load("en"), CLIP).text

    async def stopped(server: Running) -> None:
        clients = [await server.begun() for _ in range(4)]
        for client in clients:
            assert (await answered(client))["type"] == "ready"
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.gather(*(finished(client, speech) for client in clients)) == [wanted] * len(clients)

    with serving("--drain", "60") as server:
        workers = server.workers
        asyncio.run(stopped(server))
        assert server.process.wait(30) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_a_model_that_is_missing_is_named_once() -> None:
    command = [sys.executable, "run_asr.py", "serve", "--port", "0", "--workers", "2", "--model", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "nowhere" in done.stderr


@given(st.lists(st.integers(0, 3)), st.integers(0, 8))
def test_there_are_never_more_streams_than_places(visitors: list[int], limit: int) -> None:
    counts = [0] * 4
    inside = [number for number in visitors if Census(counts, number).enter(limit)]
    assert len(inside) == min(len(visitors), limit) == sum(counts)
    for number in inside:
        Census(counts, number).leave()
    assert counts == [0] * 4
