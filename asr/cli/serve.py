"""`asr serve`: live captions and transcription for browsers and other programs, over the network."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from asr.cli import UsageError, endpoints

if TYPE_CHECKING:
    from asr.server.app import Server

HELP = "serve captions and transcripts to browsers and other programs"
EPILOG = """
The server answers browsers (a page to speak to), its own WebSocket protocol, clients of vosk-server and of OpenAI's
transcription, and Home Assistant (Wyoming); /docs describes them. Where the environment has ASR_TOKEN, clients must
send it. The first SIGTERM or Ctrl-C lets streams end, with their last words; a second one does not wait.
"""
TOKEN = "ASR_TOKEN"
MIB = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.epilog = EPILOG
    add = parser.add_argument
    add("--host", default="127.0.0.1", metavar="H", help="address to listen at (default: this machine alone)")
    add("--port", type=int, default=8300, metavar="P", help="of HTTP and WebSockets (default: 8300; 0: any free one)")
    add("--wyoming-port", type=int, metavar="P", help="of Home Assistant's protocol (usual: 10300; default: none)")
    add("--model", default="en", metavar="M", help="name or folder of a model (default: en)")
    add("--greedy", action="store_true", help="no beam search: more streams, a little less accurate")
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
    for name in ("port", "wyoming_port"):
        if not 0 <= (getattr(args, name) or 0) < 2**16:
            raise UsageError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be from 0 to 65535")

    import asyncio

    import asr
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
    place = Place(args.host, args.port, args.wyoming_port, token, origins, limits, args.drain)
    decoder = "greedy" if args.greedy else "auto"
    recognizer = asr.load(args.model, decoder=decoder, rules=endpoints.rules(args), gate=endpoints.gate(args))
    asyncio.run(serve(recognizer, place, lambda server: _announce(server, args.host, token)))
    return 0


def _announce(server: "Server", host: str, token: str | None) -> None:
    """Says where, once that is so: a program that starts the server can wait for this line."""
    name = f"[{host}]" if ":" in host else host
    print(f"serving at http://{name}:{server.port} (Ctrl-C ends)", file=sys.stderr, flush=True)
    if server.wyoming_port:
        print(f"Wyoming at tcp://{name}:{server.wyoming_port}", file=sys.stderr, flush=True)
    if host not in ("127.0.0.1", "::1", "localhost") and not token:
        print(f"asr: whoever reaches {host} may use this server; set {TOKEN} to keep others out", file=sys.stderr)
