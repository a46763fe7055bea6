"""What importing and transcribing load: nothing that is not needed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "tests" / "data" / "1462-170138-0007.ogg"
TIME_LIMIT = 300  # seconds
MOST_MEMORY = 200  # MiB; 88 of them with compiled code and tree.bin, 172 with neither


def loaded(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has after some code."""
    script = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}}, file=sys.stderr)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=TIME_LIMIT)
    return set(done.stderr.split())


def test_importing_the_package_loads_nothing() -> None:
    assert not loaded("import asr") & {"numpy", "onnxruntime", "rich", "soundfile", "sounddevice", "soxr", "argparse"}


@pytest.mark.parametrize("verb", ["transcribe", "live", "evaluate"])
def test_the_command_line_loads_its_verb_alone(verb: str) -> None:
    code = f"import asr.cli\ntry:\n    asr.cli.main([{verb!r}, '--help'])\nexcept SystemExit:\n    pass"
    assert not loaded(code) & {"numpy", "onnxruntime", "rich", "soundfile", "sounddevice", "soxr", "torch"}


def test_transcribing_loads_no_screen_no_microphone_and_no_training() -> None:
    code = f"import asr.cli\nasr.cli.main(['transcribe', {str(CLIP)!r}])"
    assert not loaded(code) & {"rich", "sounddevice", "torch", "inflect", "ray", "aiohttp", "av"}


def test_a_short_recording_takes_little_memory() -> None:
    code = (
        f"import asr\nassert asr.load().transcribe({str(CLIP)!r}).text\n"
        # getrusage would count what the parent held when it forked.
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=TIME_LIMIT)
    assert int(done.stdout) / 1024 < MOST_MEMORY
