"""What is installed: every module, the models, the licence; and a runtime that needs no training package."""

import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from asr import __version__
from asr.cli import TRAIN_PACKAGES

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "tests" / "data" / "26-495-0007.flac"
TIME_LIMIT = 300  # seconds
TRAINING_ONLY = ("asr.encoder", "asr.lstm", "asr.training")  # modules, and packages of modules, that may import torch


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that `pip install .` makes, built from a copy because building leaves files behind."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("asr", "pretrained"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, timeout=TIME_LIMIT)
    return zipfile.ZipFile(next(source.glob("*.whl")))


def test_every_module_and_model_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "asr").rglob("*.py")}
    models = {f"asr/{path.relative_to(ROOT)}" for path in (ROOT / "pretrained").rglob("*") if path.is_file()}
    packed = {name for name in wheel.namelist() if name.startswith("asr/")}
    assert "asr/pretrained/en/config.json" in packed
    kinds = {".typed", ".pyi", ".md", ".html", ".js", ".css", ".svg"}
    others = {str(path.relative_to(ROOT)) for path in (ROOT / "asr").rglob("*") if path.suffix in kinds}
    assert {name for name in packed if not name.endswith((".so", ".pyd"))} == modules | models | others


def test_the_wheel_has_the_licence_the_version_and_the_command(wheel: zipfile.ZipFile) -> None:
    info = f"asr-{__version__}.dist-info"
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert wheel.read(f"{info}/entry_points.txt").decode().split() == ["[console_scripts]", "asr", "=", "asr.cli:main"]
    metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert metadata["License"] == "Apache-2.0"
    base = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert {re.split("[<>=]", line)[0] for line in base}.isdisjoint(TRAIN_PACKAGES)


def test_the_runtime_works_without_the_training_packages(tiny_model: Path) -> None:
    modules = [
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for path in (ROOT / "asr").rglob("*.py")
    ]
    runtime = [module for module in modules if not module.startswith(TRAINING_ONLY)]
    program = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({TRAIN_PACKAGES}))  # None: importing it fails\n"
        f"for module in {runtime}: importlib.import_module(module)\n"
        "from asr.cli import main\n"
        f"sys.exit(main(['transcribe', {str(CLIP)!r}, '--model', {str(tiny_model)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=TIME_LIMIT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
