"""What measured processes do whose memory counts: nothing is imported here that a user's program would not import."""

import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks import apart


def passes(
    paths: list[str], model: str, decoder: str, threads: int, count: int
) -> tuple[float, list[float], list[float]]:
    """Age of the process after a first pass over the files, then seconds and processor seconds of each further one."""
    import asr

    recognizer = asr.load(model, decoder=decoder, threads=threads if len(paths) < threads else 1)
    walls, processor = [], []
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(recognizer.transcribe, paths))
        cold = apart.age()
        for _ in range(count):
            wall, cpu = time.perf_counter(), time.process_time()
            list(pool.map(recognizer.transcribe, paths))
            walls.append(time.perf_counter() - wall)
            processor.append(time.process_time() - cpu)
    return cold, walls, processor


def command(arguments: list[str]) -> int:
    """The exit code of `asr` with these arguments."""
    from asr.cli import main

    return main(arguments)


def listen(path: str, model: str, decoder: str, seconds: float) -> float:
    """MB held after so many seconds of a live stream of a recording at 16 kHz, again and again, in blocks of 100 ms."""
    import numpy as np

    import asr

    stream = asr.load(model, decoder=decoder).stream(16_000)
    samples = np.fromfile(path, np.int16)
    for begin in range(0, round(seconds * 16_000), 1600):
        stream.accept(samples.take(range(begin, begin + 1600), mode="wrap"))
    stream.finish()
    return apart.memory_mb()
