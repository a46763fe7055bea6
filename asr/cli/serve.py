"""`asr serve`: live captions and transcription for browsers and other programs, over the network."""

import argparse
import os
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING

from asr.cli import UsageError, endpoints

if TYPE_CHECKING:
    from asr.server.app import Listening

HELP = "serve captions and transcripts to browsers and other programs"
EPILOG = """
The server answers browsers (a page to speak to), its own WebSocket protocol, clients of vosk-server and of OpenAI's
transcription, and Home Assistant (Wyoming); /docs describes them. Where the environment has ASR_TOKEN, clients must
send it. The first SIGTERM or Ctrl-C lets streams end, with their last words; a second one does not wait.
"""
TOKEN = "ASR_TOKEN"
MOST_WORKERS = 4  # unless more are asked for: each has a model of its own in memory
MIB = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.epilog = EPILOG
    add = parser.add_argument
    add("--host", default="127.0.0.1", metavar="H", help="address to listen at (default: this machine alone)")
    add("--port", type=int, default=8300, metavar="P", help="of HTTP and WebSockets (default: 8300; 0: any free one)")
    add("--wyoming-port", type=int, metavar="P", help="of Home Assistant's protocol (usual: 10300; default: none)")
    add("--model", default="en", metavar="M", help="name or folder of a model (default: en)")
    add("--greedy", action="store_true", help="no beam search: more streams, nearly thrice the errors")
    add("--workers", type=int, metavar="N", help=f"processes (default: one for each core, up to {MOST_WORKERS})")
    add("--allow-origin", action="append", default=[], metavar="URL", help="a site whose pages may connect; repeatable")
    add("--max-streams", type=int, default=100, metavar="N", help="live at the same time (default: 100)")
    add("--max-upload", type=float, default=1024, metavar="MIB", help="of a recording (default: 1024)")
    add("--max-message", type=float, default=1, metavar="MIB", help="of a WebSocket's message (default: 1)")
    add("--max-stream", type=float, default=14400, metavar="S", help="seconds of a stream (default: 14400)")
    add("--idle-timeout", type=float, default=30, metavar="S", help="seconds of a client's silence (default: 30)")
    add("--drain", type=float, default=0, metavar="S", help="seconds for streams to end when told to stop (default: 0)")
    endpoints.add_arguments(parser, gate=False)


def run(args: argparse.Namespace) -> int:
    """Serves until it is told to stop."""
    for name in ("max_streams", "max_upload", "max_message", "max_stream", "idle_timeout"):
        if not getattr(args, name) > 0:
            raise UsageError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be above 0")
    if args.workers is not None and not (args.workers == 1 or (args.workers > 1 and hasattr(socket, "send_fds"))):
        raise UsageError(f"--workers is {args.workers}; it must be 1 or more, and 1 on Windows")
    for name in ("port", "wyoming_port"):
        if not 0 <= (getattr(args, name) or 0) < 2**16:
            raise UsageError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be from 0 to 65535")

    import asyncio

    import asr
    from asr.server import workers
    from asr.server.app import Place, serve
    from asr.server.settings import Limits

    limits = Limits(
        streams=args.max_streams,
        upload=int(args.max_upload * MIB),
        message=int(args.max_message * MIB),
        stream_seconds=args.max_stream,
        idle_seconds=args.idle_timeout,
    )
    token = os.environ.get(TOKEN) or None
    origins = tuple(args.allow_origin)
    processes = args.workers or _usual_workers()
    place = Place(args.host, args.port, args.wyoming_port, token, origins, limits, args.drain, processes)
    decoder = "greedy" if args.greedy else "auto"
    load = partial(asr.load, args.model, decoder=decoder, rules=endpoints.rules(args), gate=endpoints.gate(args))

    def announce(listening: "Listening") -> None:
        _announce(listening, args.host, token)

    asyncio.run(workers.serve(load, place, announce) if processes > 1 else serve(load(), place, announce))
    return 0


def _usual_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS) if hasattr(socket, "send_fds") else 1


def _announce(listening: "Listening", host: str, token: str | None) -> None:
    """Says where, once that is so: a program that starts the server can wait for this line."""
    name = f"[{host}]" if ":" in host else host
    print(f"serving at http://{name}:{listening.port} (Ctrl-C ends)", file=sys.stderr, flush=True)
    if listening.wyoming_port:
        print(f"Wyoming at tcp://{name}:{listening.wyoming_port}", file=sys.stderr, flush=True)
    if host not in ("127.0.0.1", "::1", "localhost") and not token:
        print(f"asr: whoever reaches {host} may use this server; set {TOKEN} to keep others out", file=sys.stderr)
