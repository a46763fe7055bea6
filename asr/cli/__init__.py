"""The command line: `asr VERB ...`, one module per verb, of which only the one asked for is imported."""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence

from asr import __version__
from asr.errors import ASRError

VERBS = (
    "transcribe",
    "live",
    "serve",
    "devices",
    "train",
    "evaluate",
    "export",
    "lm",
    "lexicon",
    "tune",
    "calibrate",
    "explain",
)
DESCRIPTION = "Speech recognition on your own machine: sound in, words out."
TRACEBACK = "ASR_TRACEBACK"  # environment variable: where it is set, errors show where they come from

FAILURE, WRONG_USE = 1, 2  # exit codes
INTERRUPTED, CLOSED_PIPE = 130, 141  # 128 and the number of the signal, as shells have it

# Packages that only the train extra installs.
TRAIN_PACKAGES = (
    "inflect",
    "jiwer",
    "librosa",
    "matplotlib",
    "onnx",
    "pocketsphinx",
    "scipy",
    "sentencepiece",
    "tensorboard",
    "torch",
    "torchaudio",
)
# Packages that only one extra installs.
EXTRAS = {"train": TRAIN_PACKAGES, "serve": ("aiohttp", "prometheus_client", "wyoming"), "ray": ("ray",)}


class UsageError(ASRError):
    """The command itself is wrong: exit code 2, where any other ASRError gives 1."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code: 0 done, 1 failed, 2 wrong use; errors are one sentence each."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal cannot show
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output once more as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        print(f"asr: {_sentence(error)}", file=sys.stderr)
        return WRONG_USE if isinstance(error, UsageError) else FAILURE


def _run(arguments: list[str]) -> int:
    verbs = VERBS if not arguments or arguments[0] not in VERBS else (arguments[0],)
    modules = {verb: importlib.import_module(f"asr.cli.{verb}") for verb in verbs}
    listed = "\n".join(f"  {verb:10}  {module.HELP}" for verb, module in modules.items())
    parser = argparse.ArgumentParser(
        prog="asr",
        usage="asr VERB ...",
        description=f"{DESCRIPTION}\n\nverbs:\n{listed}\n\nasr VERB --help says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"asr {__version__}", help="show the version and exit")
    verb_parsers = parser.add_subparsers(prog="asr", dest="verb", metavar="VERB", help=argparse.SUPPRESS)
    for verb, module in modules.items():
        description = f"{module.HELP[0].upper()}{module.HELP[1:]}."
        module.add_arguments(verb_parsers.add_parser(verb, description=description))
    args = parser.parse_args(arguments)
    if args.verb is None:
        parser.print_help(sys.stderr)
        return WRONG_USE
    return modules[args.verb].run(args)


def _sentence(error: Exception) -> str:
    if isinstance(error, ASRError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("asr"):
        package = error.name.partition(".")[0]
        extra = next((name for name, packages in EXTRAS.items() if package in packages), None)
        wanted = f'".[{extra}]"' if extra else "."
        return f"the package {package} is needed and not installed: pip install {wanted} in the checkout"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error} (a fault of this program; {TRACEBACK}=1 shows where)"
