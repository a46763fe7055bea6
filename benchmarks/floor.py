"""The least time that recognition can take on this machine, and where the measured time goes.

    python -m benchmarks.floor [SOURCE] [--model M] [--minutes 5] [--json OUT] [--markdown OUT]

Counts multiply-adds and weights by stage from the model's configuration; measures, on one core and on all, how fast a
matrix of a layer's shape is multiplied by so many rows (int8 in ONNX Runtime, bf16 and fp32 in PyTorch), and how fast
caches and memory are read; derives the least time; and measures the stages. FLOOR.md says what follows from it. A rate
is the best of many attempts, a time the median of passes in processor seconds, on one core.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from asr.features import FeatureConfig
from asr.recognizer import find_model
from asr.runtime import Model, ModelConfig
from benchmarks import apart
from benchmarks.common import Spread, Table, all_cores, guarded, parser, publish, speech, write_files

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
KERNEL = 5  # frames under each of the two convolutions, of stride two
ENCODER = ("convolutions", "layers, input", "layers, recurrent", "output and softmax")
ROWS = (1, 4, 64, 1024)  # of a multiplication: frames times streams
READS = {"second level cache": 0.5e6, "third level cache": 8e6, "memory": 256e6}  # bytes that are read again and again
READING = "read"
ATTEMPT_SECONDS = 0.02
HOUR = 3600.0


@dataclass(frozen=True)
class Work:
    """A stage's work."""

    stage: str
    multiply_adds: float  # for a second of audio
    weights: int  # that are multiplied by, each a byte in int8


@dataclass(frozen=True)
class Rate:
    """What so many cores reach, by what limits it: rows of a multiplication, or the place that is read from."""

    what: str
    cores: int
    rates: dict[str, float]  # in 1e9 multiply-adds or bytes a second


@dataclass(frozen=True)
class Stage:
    """Processor seconds that a stage takes for an hour of audio."""

    stage: str
    measured: Spread


def main() -> None:
    """Prints four tables and writes them where asked."""
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=5.0, metavar="M", help="of audio (default: 5)")
    options.add_argument("--passes", type=int, default=5, metavar="N", help="default: 5")
    options.add_argument("--attempts", type=int, default=40, metavar="N", help="at every rate (default: 40)")
    args = options.parse_args()
    model = Model.load(find_model(args.model))
    config, piece = model.config, model.piece_frames * seconds_per_frame(model.config)
    cores = all_cores()

    works = work(config)
    counted = Table("stage", "multiply-adds for a second, M", "weights, million")
    for each in works:
        counted.add(each.stage, each.multiply_adds / 1e6, each.weights / 1e6)

    rates: list[Rate] = []
    for used in [cores[:1], cores][: len(cores)]:
        found = apart.run("benchmarks.floor:rates", used, attempts=args.attempts, width=config.encoder["width"])
        rates += [Rate(what, len(used), reached) for what, reached in found.value.items()]
    multiplied = Table("G multiply-adds a second", "cores", *(f"rows: {rows}" for rows in ROWS))
    for rate in rates:
        if rate.what != READING:
            multiplied.add(rate.what, rate.cores, *rate.rates.values())
    read = Table("read, GB a second", *READS)
    for rate in rates:
        if rate.what == READING:
            read.add(f"cores: {rate.cores}", *rate.rates.values())

    bounds = least(config, piece, works, {rate.what: rate.rates for rate in rates if rate.cores == 1})
    limits = Table("the encoder's least time on one core", f"{1000 * piece:.0f} ms of audio, ms", "an hour, s")
    for name, seconds in bounds.items():
        limits.add(name, 1000 * seconds * piece, seconds * HOUR)

    with tempfile.TemporaryDirectory() as folder:
        (path,) = write_files(speech(args, 60 * args.minutes), 1, Path(folder, "one"))
        found = apart.run("benchmarks.floor:stages", cores[:1], path=path, model=args.model, passes=args.passes)
    stages = [Stage(name, Spread.of(seconds)) for name, seconds in found.value.items()]
    spent = Table("stage", "an hour, s")
    for stage in stages:
        spent.add(stage.stage, stage.measured)
    publish(args, "floor", [*works, *rates, *stages], counted, multiplied, read, limits, spent, least_per_second=bounds)


def seconds_per_frame(config: ModelConfig) -> float:
    """Of audio, from one feature frame to the next."""
    return config.features.hop / config.features.sample_rate


def work(config: ModelConfig) -> list[Work]:
    """By stage; the search multiplies nothing and is counted in hypotheses looked at."""
    features, decoder = config.features, config.decoder
    frames = features.sample_rate / features.hop
    spectrum = front_end(features)
    parts = encoder(config.encoder, frames)
    return [Work("front end", frames * spectrum, (features.n_fft // 2 + 1) * features.n_mels), *parts] + [
        Work("search, hypotheses looked at, at most", frames / config.subsampling * beam * tokens, 0)
        for beam, tokens in [(decoder.get("beam", 0), decoder.get("tokens", 0))]
        if beam * tokens
    ]


def front_end(config: FeatureConfig) -> float:
    """Multiply-adds for a frame: window, real FFT (5/2 n log2 n operations), power and mel filters."""
    bins = config.n_fft // 2 + 1
    return config.window + 1.25 * config.n_fft * np.log2(config.n_fft) + 2 * bins + bins * config.n_mels


def encoder(shape: Mapping[str, Any], frames: float) -> list[Work]:
    """Of an encoder of this shape that hears so many feature frames a second."""
    width, channels, layers = shape["width"], shape["conv_channels"], shape["layers"]
    directions = 2 if shape["kind"] == "bidirectional" else 1
    hidden = shape["hidden"] or width // directions
    gates, emissions = GATES[shape["cell"]] * hidden * directions, frames / 4
    first, second = shape["n_mels"] * channels * KERNEL, channels * width * KERNEL
    inputs, recurrent = layers * gates * width, layers * gates * hidden
    projection = layers * hidden * directions * width if hidden * directions != width else 0
    output = width * (shape["vocabulary"])
    return [
        Work("convolutions", frames / 2 * first + emissions * second, first + second),
        Work("layers, input", emissions * (inputs + projection), inputs + projection),
        Work("layers, recurrent", emissions * recurrent, recurrent),
        Work("output and softmax", emissions * output, output),
    ]


def least(
    config: ModelConfig, piece: float, works: list[Work], rates: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """Seconds for a second of audio on one core, for each thing that limits.

    Whatever is heard at a time (a piece of so many seconds of a stream, or a file), every weight is read once, from the
    third level cache where they do not fit in the second, and a layer's recurrent weights once more for each further
    emission, from the second level. For a file the first is nothing.
    """
    parts = {each.stage: each for each in works if each.stage in ENCODER}
    speeds = {place: 1e9 * rate for place, rate in rates[READING].items()}
    recurrent = parts["layers, recurrent"]
    once = sum(part.weights for part in parts.values()) / speeds["third level cache"] / piece
    emissions = 1 / (seconds_per_frame(config) * config.subsampling)
    again = recurrent.weights / speeds["second level cache"]
    int8 = {rows: 1e9 * rate for rows, rate in rates["int8"].items()}
    operations = sum(part.multiply_adds for part in parts.values())
    rest = operations - recurrent.multiply_adds
    return {
        "int8 arithmetic at its best": operations / max(int8.values()),
        "int8 arithmetic in ONNX Runtime, one row or four": recurrent.multiply_adds / int8["1"] + rest / int8["4"],
        "reading int8 weights, one stream": once + (emissions - 1 / piece) * again,
        "reading int8 weights, one file": emissions * again,
    }


def rates(attempts: int, width: int) -> dict[str, dict[str, float]]:
    """What this process reaches with the cores it has, in 1e9 multiply-adds or bytes a second."""
    import torch

    threads = len(all_cores())
    torch.set_num_threads(threads)
    found: dict[str, dict[str, float]] = {}
    for rows in ROWS:
        size = rows * width * 4 * width
        for name, multiply in multiplications(rows, width, threads).items():
            found.setdefault(name, {})[str(rows)] = size / best_seconds(multiply, attempts) / 1e9
    found[READING] = {}
    for place, read in READS.items():
        halves = np.ones((2, round(read / 8)), np.float32)
        found[READING][place] = read / best_seconds(partial(np.dot, *halves), attempts) / 1e9
    return found


def multiplications(rows: int, width: int, threads: int) -> dict[str, Callable[[], object]]:
    """A layer's input weights, shape = (width, 4 * width), times so many rows, by type of number."""
    import torch

    random = torch.Generator().manual_seed(1)
    a = torch.randn(rows, width, generator=random)
    b = torch.randn(width, 4 * width, generator=random)
    half_a, half_b = a.bfloat16(), b.bfloat16()
    session = int8_graph((b * 20).clamp(-127, 127).to(torch.int8).numpy(), threads)
    given = {"a": (a * 20 + 128).clamp(0, 255).to(torch.uint8).numpy()}
    return {
        "int8": lambda: session.run(None, given),
        "bf16": lambda: half_a @ half_b,
        "fp32": lambda: a @ b,
    }


def int8_graph(weights: np.ndarray, threads: int) -> Any:
    """A session that multiplies the input "a" of uint8 by these weights of int8."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    inputs = [helper.make_tensor_value_info("a", TensorProto.UINT8, [None, len(weights)])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.INT32, None)]
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    graph = helper.make_graph([node], "int8", inputs, outputs, [numpy_helper.from_array(weights, "b")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(onnx.ModelProto.SerializeToString(made), options)


def best_seconds(call: Callable[[], object], attempts: int) -> float:
    """Of one call, in the best attempt, each of which is as many calls as take a while."""
    call()
    began = time.perf_counter()
    call()
    calls = max(1, round(ATTEMPT_SECONDS / (time.perf_counter() - began)))
    taken = []
    for _ in range(attempts):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        taken.append((time.perf_counter() - began) / calls)
    return min(taken)


def stages(path: str, model: str, passes: int) -> dict[str, list[float]]:
    """Processor seconds for an hour of audio by stage, of several passes over a file."""
    import asr
    from asr.audio import read_blocks
    from asr.features import LogMel

    beam, greedy = asr.load(model), asr.load(model, decoder="greedy")
    samples = np.concatenate(list(read_blocks(path)))
    hours = len(samples) / beam.model.config.features.sample_rate / HOUR
    log_mel = LogMel(beam.model.config.features)

    def cost(call: Callable[[], object]) -> float:
        began = time.process_time()
        call()
        return (time.process_time() - began) / hours

    found: dict[str, list[float]] = {}
    for number in range(passes + 1):
        reading = cost(lambda: list(read_blocks(path)))
        features = cost(lambda: log_mel(samples))
        emissions = cost(lambda: beam.emissions(samples))
        plain, full = cost(lambda: greedy.transcribe(path)), cost(lambda: beam.transcribe(path))
        parts = {
            "reading the file": reading,
            "front end": features,
            "encoder": emissions - features,
            "greedy search, end points and words": plain - emissions - reading,
            "or beam search, end points and words": full - emissions - reading,
            "all, greedy": plain,
            "all, beam + LM": full,
        }
        for name, seconds in parts.items():
            found.setdefault(name, []).extend([seconds] if number else [])
    return found


if __name__ == "__main__":
    guarded(main)
