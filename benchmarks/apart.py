"""A function in a process of its own, on chosen cores: what it gives, how long it took, and the most memory it held.

Only the standard library is imported here, so that the process holds what the function needs and no more, and may be
one of another virtual environment.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BEGAN = "ASR_BENCHMARK_BEGAN"  # environment variable: the moment at which the process was asked for
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Failed(RuntimeError):
    """The process has ended without a result; the message is the last line that it wrote."""


@dataclass(frozen=True)
class Result:
    """What the function gave, which is JSON, and what its process took."""

    value: Any
    seconds: float  # from asking for the process to its end
    cpu_seconds: float
    peak_mb: float


class Process:
    """A function under way, as "module:function" with arguments that JSON can hold."""

    def __init__(
        self, function: str, arguments: dict[str, Any], cores: Sequence[int], python: str | Path = sys.executable
    ) -> None:
        self._began = time.monotonic()
        reading, writing = os.pipe()
        call = json.dumps([function, arguments, list(cores), writing])
        environment = os.environ | {name: str(len(cores)) for name in THREADS} | {BEGAN: str(self._began)}
        command = [str(python), "-m", "benchmarks.apart", call]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (no pipe, which fills up while nobody reads it)
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": self._errors, "pass_fds": [writing]}
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
        os.close(writing)
        self._pipe = os.fdopen(reading)

    def result(self) -> Result:
        """Waits for the end; Failed where there is no result."""
        with self._pipe as pipe, self._errors as errors:
            text = pipe.read()
            code = self._process.wait()
            errors.seek(0)
            lines = errors.read().strip().splitlines()
        if code or not text:
            raise Failed(lines[-1] if lines else f"exit code {code}")
        value, cpu_seconds, peak_mb = json.loads(text)
        return Result(value, time.monotonic() - self._began, cpu_seconds, peak_mb)


def run(function: str, cores: Sequence[int], python: str | Path = sys.executable, **arguments: Any) -> Result:
    """Runs "module:function" of this checkout in a new process on these cores, with as many threads."""
    return Process(function, arguments, cores, python).result()


def age() -> float:
    """Seconds since this process was asked for."""
    return time.monotonic() - float(os.environ[BEGAN])


def memory_mb(field: str = "VmRSS") -> float:
    """Memory of this process that is in use now, or with VmHWM the most that was (Linux)."""
    return int(Path("/proc/self/status").read_text().partition(f"{field}:")[2].split()[0]) / 1000


def _main() -> None:
    function, arguments, cores, pipe = json.loads(sys.argv[1])
    os.sched_setaffinity(0, cores)
    module, _, name = function.partition(":")
    value = getattr(importlib.import_module(module), name)(**arguments)
    with os.fdopen(pipe, "w") as out:
        json.dump([value, time.process_time(), memory_mb("VmHWM")], out)


if __name__ == "__main__":
    _main()
