"""Words lost on the way through a microphone: recordings played into a virtual one, against the same in a file.

    python -m benchmarks.live MANIFEST [--data DIR] [--limit N] [--model M] [--no-gate] [--json OUT]

All recordings are joined to one file with a second and a half of silence after each. It is transcribed as a file, and
played in real time into a PulseAudio of its own on whose microphone `asr live --plain` listens. Needs the system
packages that the tests need (see README.md). On a busy machine run it under `chrt --rr 50`, or the player stalls.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import jiwer
import numpy as np
import soundfile

import asr
from asr.audio import SAMPLE_RATE, read_blocks
from asr.text import normalize
from asr.training.manifest import Utterance, read
from tests import sound_server

PAUSE_SECONDS = 1.5
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Result:
    """Word error rates as shares, and what the microphone lost."""

    words: int
    seconds: float
    file_wer: float
    live_wer: float
    messages: str  # of `asr live`, after its first line: of lost sound, if there was any


def main() -> None:
    """Prints the two error rates and writes them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a manifest (.tsv) or LibriSpeech")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the manifest's paths (default: its own)")
    parser.add_argument("--limit", type=int, metavar="N", help="only every so many, N in all")
    parser.add_argument("--model", default="en", help="a model directory or the name of a bundled model")
    parser.add_argument(
        "--no-gate", action="store_true", help="live without its speech gate, which files go without too"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the result as JSON")
    args = parser.parse_args()
    utterances = read(args.source, args.data)
    step = len(utterances) // min(args.limit or len(utterances), len(utterances))
    result = measure(utterances[::step][: args.limit], args.model, ["--no-gate"] if args.no_gate else [])
    print(f"{result.words} words in {result.seconds / 60:.1f} minutes")
    print(f"from the file        {100 * result.file_wer:.1f} % word errors")
    print(f"from the microphone  {100 * result.live_wer:.1f} % word errors")
    print(result.messages, end="")
    if args.json:
        args.json.write_text(json.dumps(asdict(result), indent=1) + "\n")


def measure(utterances: list[Utterance], model: str, options: list[str]) -> Result:
    """Both roads for the same utterances; takes as long as they are."""
    reference = " ".join(normalize(utterance.text) for utterance in utterances)
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder, "sound.wav")
        seconds = join(utterances, sound)
        from_file = asr.load(model).transcribe(sound).text
        from_microphone, messages = hear(sound, model, options)
    file_wer, live_wer = (float(jiwer.wer(reference, text)) for text in (from_file, from_microphone))
    return Result(len(reference.split()), seconds, file_wer, live_wer, messages)


def join(utterances: list[Utterance], path: Path) -> float:
    """Writes one recording of them all, and gives its seconds."""
    pause = np.zeros(round(PAUSE_SECONDS * SAMPLE_RATE), np.float32)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1) as file:
        file.write(pause)
        for utterance in utterances:
            for block in read_blocks(utterance.path):
                file.write(block)
            file.write(pause)
        return file.frames / SAMPLE_RATE


def hear(sound: Path, model: str, options: list[str]) -> tuple[str, str]:
    """What `asr live --plain` writes to standard output, and to standard error after its first line."""
    command = [sys.executable, str(ROOT / "run_asr.py"), "live", "--plain", "--device", "pulse"]
    command += ["--model", model, *options]
    with sound_server.running() as environment, tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.PIPE, text=True)
        with process:
            assert process.stderr is not None
            process.stderr.readline()  # it listens
            subprocess.run(["paplay", sound], env=environment, check=True)
            process.send_signal(signal.SIGINT)
            messages = process.stderr.read()
        output.seek(0)
        return " ".join(output.read().split()), messages


if __name__ == "__main__":
    main()
