"""The kernels compiled from this checkout, for their tests."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIME_LIMIT = 300  # seconds


def build(folder: Path, name: str) -> Path | None:
    """Compiles into a folder, which must succeed wherever a compiler is; the extension `name`, such as asr/_kernel."""
    command = ["setup.py", "build_ext", "--build-lib", str(folder), "--build-temp", str(folder)]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True, timeout=TIME_LIMIT)
    built = list(folder.glob(f"{name}*{sysconfig.get_config_var('EXT_SUFFIX')}"))
    has_compiler = shutil.which("cc") and Path(sysconfig.get_path("include"), "Python.h").exists()
    assert built or not has_compiler
    return built[0] if built else None
