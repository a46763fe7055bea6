"""How fast training goes: seconds of audio a second, through the trainer with its loader, augmentation and averaging.

    python -m benchmarks.train [SOURCE] [--steps 20] [--processes N] [--json OUT] [--markdown OUT]

A streaming model of 8 million parameters learns from the source for a few steps, the first of which do not count, in
bf16 on the first GPU or else in as many processes as there are cores. The share is that of the multiplications that a
step needs (three times those of hearing the audio once) in what large bf16 matrices reach on the same cores or GPU.
Beside it is what the LSTM layers alone reach in as many processes, forwards and backwards on texts of one length: those
of PyTorch and, on a CPU that they are made for, those of asr.lstm, in turns.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from asr.encoder_kernel import SUBSAMPLING
from asr.errors import ASRError
from asr.training.log import WINDOW
from benchmarks import apart
from benchmarks.common import ROOT, Spread, Table, all_cores, guarded, parser, publish
from benchmarks.floor import best_seconds, encoder

WARM_STEPS = 3
SHAPE = {"width": 480, "layers": 4, "lookahead": 4}
FRAMES = 100.0  # feature frames a second
SIZE = 4096  # of the matrices
TEXT_SECONDS = 7.0  # of each text that the layers alone hear
TURNS = 4  # of their measuring


@dataclass(frozen=True)
class Row:
    """One device. speed: seconds of audio a second; share: of what its matrix multiplication reaches.

    theirs, ours: seconds of audio a second of the LSTM layers alone; ours is 0 where they do not fit the processor.
    """

    device: str
    processes: int
    parameters: int
    batch_seconds: float
    speed: Spread
    share: float
    theirs: float
    ours: float


def main() -> None:
    """Prints a table and writes it where asked."""
    options = parser(__doc__, model=False)
    options.add_argument("--steps", type=int, default=20, metavar="N", help="that count (default: 20)")
    options.add_argument("--processes", type=int, metavar="N", help="default: the cores, or 1 with a GPU")
    options.add_argument("--batch-seconds", type=float, default=96.0, metavar="S", help="a process (default: 96)")
    args = options.parse_args()
    if not 1 <= args.steps <= WINDOW - WARM_STEPS:
        raise ASRError(f"--steps is {args.steps}; it must be from 1 to {WINDOW - WARM_STEPS}")

    device = apart.run("benchmarks.train:device", all_cores()).value
    processes = args.processes or (1 if device["gpu"] else len(all_cores()))
    with tempfile.TemporaryDirectory() as folder:
        run(args.source.absolute(), args.data, Path(folder), args.steps, processes, args.batch_seconds)
        found = apart.run("benchmarks.train:speeds", all_cores(), folder=folder).value
    operations = sum(part.multiply_adds for part in encoder(found["encoder"], FRAMES))
    speed = Spread.of(found["speeds"])
    share = 3 * operations * speed.median / device["rate"]
    places = [all_cores()] if device["gpu"] else [[core] for core in all_cores()[:processes]]
    alone = [apart.Process("benchmarks.train:layers", {"batch_seconds": args.batch_seconds}, at) for at in places]
    theirs, ours = map(sum, zip(*(process.result().value for process in alone), strict=True))
    row = Row(device["name"], processes, found["parameters"], args.batch_seconds, speed, share, theirs, ours)
    columns = ("training on", "processes", "parameters, M", "audio s a second", "of the matrix rate, %")
    table = Table(*columns, "PyTorch's LSTM layers alone, audio s a second", "ours alone")
    table.add(row.device, row.processes, row.parameters / 1e6, row.speed, 100 * share, theirs, ours or "none")
    publish(args, "train", [row], table, matrix_multiply_adds=device["rate"])


def run(source: Path, data: Path | None, folder: Path, steps: int, processes: int, batch_seconds: float) -> None:
    """Trains in a folder, as the command line does."""
    if data:
        raise ASRError("training reads a manifest's recordings from the manifest's own folder; leave out --data")
    sections: dict[str, dict[str, Any]] = {
        "data": {"train": [str(source)], "batch_seconds": batch_seconds, "max_seconds": min(17.0, batch_seconds)},
        "encoder": SHAPE,
        "optimizer": {"steps": WARM_STEPS + steps, "warmup_steps": 10, "decay_steps": 0},
    }
    lines = [
        f"[{name}]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
        for name, values in sections.items()
    ]
    recipe = folder / "recipe.toml"
    recipe.write_text("\n".join(lines) + "\n")
    start = [sys.executable, str(ROOT / "run_asr.py")]
    if processes > 1:
        workers = ["--standalone", "--nproc-per-node", str(processes)]
        start = [sys.executable, "-m", "torch.distributed.run", *workers, str(ROOT / "run_asr.py")]
    command = [*start, "train", str(recipe), "--data", str(source.parent), "--output", str(folder / "run")]
    threads = str(max(1, len(all_cores()) // processes))
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": threads}, capture_output=True, text=True)
    if done.returncode:
        raise apart.Failed(f"training has failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")


def speeds(folder: str) -> dict[str, object]:
    """Seconds of audio a second at every step that counts, from what the trainer has noted, and the encoder's shape."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from asr.training.checkpoint import LAST, load

    events = EventAccumulator(str(Path(folder, "run", "tensorboard")), size_guidance={"scalars": 0})
    events.Reload()
    means = events.Scalars("audio seconds per second")  # since the first step, as long as they are few
    began = means[0].wall_time
    heard = [mean.value * (mean.wall_time - began) for mean in means]
    times = [mean.wall_time for mean in means]
    found = [(heard[i] - heard[i - 1]) / (times[i] - times[i - 1]) for i in range(WARM_STEPS, len(means))]
    last = load(Path(folder, "run", LAST))
    parameters = sum(weights.numel() for weights in last.weights.values())
    return {"speeds": found, "encoder": vars(last.config.encoder), "parameters": parameters}


def device() -> dict[str, object]:
    """Name of what the trainer uses, whether that is a GPU, and the bf16 multiply-adds a second that it reaches."""
    import torch

    gpu = torch.cuda.is_available()
    place = torch.device("cuda" if gpu else "cpu")
    size = SIZE if gpu else SIZE // 4
    a, b = torch.randn(2, size, size, dtype=torch.bfloat16, device=place)

    def multiply() -> None:
        _ = a @ b
        if gpu:
            torch.cuda.synchronize()

    name = torch.cuda.get_device_name() if gpu else f"{len(all_cores())} cores"
    return {"name": name, "gpu": gpu, "rate": size**3 / best_seconds(multiply, 100)}


def layers(batch_seconds: float) -> tuple[float, float]:
    """Seconds of audio a second that LSTM layers of the shape learn from in bf16: PyTorch's, and ours."""
    import torch

    from asr import lstm

    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    width, rows = SHAPE["width"], max(1, round(batch_seconds / TEXT_SECONDS))
    cells = [torch.nn.LSTM(width, width, batch_first=True).to(place) for _ in range(SHAPE["layers"])]
    heard = torch.randn(rows, round(TEXT_SECONDS * FRAMES / SUBSAMPLING), width, device=place)

    def learn(ours: bool) -> None:
        x = heard
        with torch.autocast(place.type, torch.bfloat16):
            for cell in cells:
                x = lstm.whole(cell, x) if ours else cell(x)[0]
            x.float().sum().backward()
        if place.type == "cuda":
            torch.cuda.synchronize()

    with torch.autocast(place.type, torch.bfloat16):
        fits = lstm.fits(cells[0], heard)
    best = [float("inf")] * 2
    for _ in range(TURNS):
        for ours in range(1 + fits):
            best[ours] = min(best[ours], best_seconds(partial(learn, bool(ours)), 1))
    theirs, own = (rows * TEXT_SECONDS / seconds for seconds in best)
    return theirs, own


if __name__ == "__main__":
    guarded(main)
