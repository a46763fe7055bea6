"""The service unit starts and ends a server as it says; behind the balancer, replicas drain without loss."""

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect

import asr
from tests.serving import CLIP, expected, samples, serving

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
FINISH = json.dumps({"type": "finish"})


def test_the_unit_starts_and_stops_a_replica() -> None:
    unit = (DEPLOY / "asr@.service").read_text()
    command = shlex.split(re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)[0].replace("%i", "0"))
    stop = re.findall(r"^KillSignal=(.*)$", unit, re.MULTILINE)[0]
    command[:1] = [sys.executable, "run_asr.py"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr
    assert any("serving at" in line for line in process.stderr)
    process.send_signal(signal.Signals[stop])
    assert process.wait(60) == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def balancer(ports: list[int], folder: Path) -> Iterator[str]:
    """HAProxy with the configuration of this project, at ports of its own."""
    port = free_port()
    text = (DEPLOY / "haproxy.cfg").read_text()
    for given, own in zip((8300, 8301, 8302), (port, *ports), strict=True):
        assert text.count(f"127.0.0.1:{given}") == 1
        text = text.replace(f"127.0.0.1:{given}", f"127.0.0.1:{own}")
    (folder / "haproxy.cfg").write_text(text)
    haproxy = "haproxy" if os.access("/usr/bin/haproxy", os.X_OK) else "/usr/sbin/haproxy"
    process = subprocess.Popen([haproxy, "-db", "-f", str(folder / "haproxy.cfg")])
    try:
        yield f"ws://127.0.0.1:{port}/v1/stream"
    finally:
        process.terminate()
        process.wait(30)


async def begun(url: str) -> ClientConnection:
    """A stream that is ready; asks again while the balancer does not listen yet, or knows of no replica."""
    for _ in range(200):
        try:
            client = await connect(url)
            await client.send('{"type": "start"}')
            if json.loads(await client.recv())["type"] == "ready":
                return client
            await client.close()
        except OSError:
            await asyncio.sleep(0.05)
    raise AssertionError("the balancer let nobody through")


async def finished(client: ClientConnection, speech: bytes) -> str:
    await client.send(speech)
    await client.send(FINISH)
    events = [json.loads(message) async for message in client]
    return " ".join(event["text"] for event in events if event["type"] == "final")


def test_behind_the_balancer_a_replica_drains_without_loss(tmp_path: Path) -> None:
    recognizer = asr.load("en")
    speech, wanted = samples(CLIP)[0].tobytes(), expected(recognizer, CLIP).text
    with ExitStack() as stack:
        replicas = [stack.enter_context(serving(recognizer)) for _ in range(2)]
        url = stack.enter_context(balancer([replica.port for replica in replicas], tmp_path))

        async def drained() -> None:
            clients = [await begun(url) for _ in range(4)]
            assert sorted(replica.service.streams for replica in replicas) == [2, 2]
            first, second = replicas
            first.service.draining = True
            while second.service.streams < 5:  # until the balancer has noticed, some are refused
                clients.append(await begun(url))
            assert first.service.streams == 2
            assert await asyncio.gather(*(finished(client, speech) for client in clients)) == [wanted] * len(clients)

        asyncio.run(drained())
