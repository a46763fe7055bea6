"""`asr transcribe`: recordings in, their words out, on standard output or in files."""

import argparse
import glob
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from asr.cli import FAILURE, UsageError, endpoints, hotwords
from asr.cli.bar import Bar
from asr.errors import ASRError

if TYPE_CHECKING:
    from asr.transcript import Segment, Writer

HELP = "write down what is said in recordings"
EPILOG = """
FILES are recordings of any kind, folders of them, quoted patterns such as "talks/**/*.mp3", or - for raw 16-bit mono
samples on standard input. A recording that cannot be read is reported, the others go on, and the exit code is 1.
"""

FORMATS = ("txt", "json", "srt", "vtt", "tsv")  # the keys of asr.transcript.WRITERS, whose import is slow
FORMAT_HELP = "txt (default), json, srt, vtt, tsv, or all of them"
STDIN = Path("-")
LONG = 30.0  # seconds from which a single recording gets a progress bar

# What a folder is searched for; a file that is named is tried whatever its suffix.
# fmt: off
SUFFIXES = frozenset((
    ".3gp", ".aac", ".aif", ".aifc", ".aiff", ".amr", ".au", ".avi", ".caf", ".flac", ".flv", ".m4a", ".m4b", ".m4v",
    ".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".mpg", ".oga", ".ogg", ".ogv", ".opus", ".snd", ".ts", ".w64",
    ".wav", ".wave", ".webm", ".wma", ".wmv",
))
# fmt: on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.epilog = EPILOG
    parser.add_argument("files", nargs="+", metavar="FILES", help="recordings, folders, patterns, or -")
    parser.add_argument("--format", choices=(*FORMATS, "all"), metavar="F", default="txt", help=FORMAT_HELP)
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="write DIR/NAME.FORMAT for each recording")
    parser.add_argument("--model", default="en", metavar="M", help="name or folder of a model (default: en)")
    parser.add_argument("--greedy", action="store_true", help="no beam search: twice as fast, nearly thrice the errors")
    parser.add_argument("--sample-rate", type=int, metavar="HZ", help="of the raw samples on standard input")
    nbest = "show the N likeliest readings of each segment with their scores in nats (--format txt or json)"
    parser.add_argument("--nbest", type=int, default=1, metavar="N", help=nbest)
    cluster = "let the workers of a Ray cluster do it; ADDRESS is its address, or auto (needs the ray extra)"
    parser.add_argument("--ray", metavar="ADDRESS", help=cluster)
    hotwords.add_argument(parser)
    endpoints.add_arguments(parser, gate=False)


def run(args: argparse.Namespace) -> int:
    """Transcribes every recording; 0 when all could be read, 1 when some could not."""
    if args.format == "all" and args.output_dir is None:
        raise UsageError("--format all writes several files a recording; add --output-dir DIR")
    _check_nbest(args)
    rules, gate, wanted = endpoints.rules(args), endpoints.gate(args), hotwords.wanted(args)
    recordings, problems = find(args.files)
    _check_sample_rate(args.sample_rate, recordings)
    if args.ray and STDIN in recordings:
        raise UsageError("--ray takes recordings by name; leave one of - and --ray out")
    for problem in problems:
        _complain(problem)
    if not recordings:
        raise UsageError("there is nothing to transcribe; name a recording, or a folder that holds some")
    if args.output_dir:
        _make_folder(args.output_dir)

    import asr

    decoder = "greedy" if args.greedy else "beam" if args.nbest > 1 else "auto"
    options: dict[str, Any] = {"decoder": decoder, "rules": rules, "gate": gate, "hotwords": wanted}
    names = output_names(recordings)
    failed = len(problems)
    with Bar(len(recordings), _worth_a_bar(recordings)) as bar, ExitStack() as stack:
        out = sys.stdout
        if args.ray:
            from asr.cli import cluster
            from asr.recognizer import find_model
            from asr.runtime import ModelConfig

            directory = find_model(args.model)
            model = ModelConfig.load(directory).name
            named = {"name_or_dir": str(directory.resolve()), **options}
            heard = stack.enter_context(cluster.transcribe(args.ray, recordings, named, args.nbest))
        else:
            recognizer = asr.load(args.model, threads=min(2, _cores()), **options)
            model = recognizer.model.config.name
        for number, (recording, name) in enumerate(zip(recordings, names, strict=True)):
            if args.output_dir and name != _stem(recording):
                _complain(f"{recording} goes to {name}.*, because another recording is named {_stem(recording)} too")
            try:
                show = _shower(bar, number, recording)
                if args.ray:
                    segments = heard[number].segments()
                else:
                    segments = recognizer.segments(recording, args.sample_rate, progress=show, nbest=args.nbest)
                if args.output_dir:
                    formats = FORMATS if args.format == "all" else (args.format,)
                    write(segments, args.output_dir / name, formats, model)
                else:
                    write_out(out, segments, args.format, str(recording) if len(recordings) > 1 else None, model)
            except ASRError as error:
                _complain(str(error))
                failed += 1
    return FAILURE if failed else 0


def find(arguments: Iterable[str]) -> tuple[list[Path], list[str]]:
    """The recordings that arguments name, each once and in order, and a sentence for each argument that names none."""
    found: dict[Path, Path] = {}
    problems = []
    for argument in arguments:
        path = Path(argument)
        if not argument:
            matches, problem = [], "a name on the command line is empty; check the command"
        elif glob.has_magic(argument) and not path.exists():
            matches = [Path(match) for match in sorted(glob.glob(argument, recursive=True))]
            problem = f'no recording matches "{argument}"; check the pattern'
        else:
            matches, problem = [path], f"{path} holds no recording; name a file to have it tried whatever its suffix"
        recordings = [recording for match in matches for recording in _in_folder(match)]
        if not recordings:
            problems.append(problem)
        for recording in recordings:
            found.setdefault(recording.resolve(), recording)
    return list(found.values()), problems


def _in_folder(path: Path) -> list[Path]:
    """The recordings of a folder and its subfolders, by name; a file itself."""
    if not path.is_dir():
        return [path]
    return sorted(
        p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    )


def output_names(recordings: Iterable[Path]) -> list[str]:
    """A name without suffix for each recording's results: its stem, with -2, -3 and so on where that is taken.

    Names that differ only in case count as the same, as they do for some file systems.
    """
    names: list[str] = []
    taken: set[str] = set()
    for recording in recordings:
        name, number = _stem(recording), 1
        while name.casefold() in taken:
            number += 1
            name = f"{_stem(recording)}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _stem(recording: Path) -> str:
    return "stdin" if recording == STDIN else recording.stem


def write(segments: "Iterable[Segment]", path: Path, formats: Iterable[str], model: str) -> None:
    """Writes PATH.FORMAT for each format; all appear whole at the end, or none after an error.

    model: the name of the one that heard them.
    """
    from asr.transcript import WRITERS

    with ExitStack() as stack:
        writers = [stack.enter_context(WRITERS[name].open(f"{path}.{name}", model)) for name in formats]
        for segment in segments:
            for writer in writers:
                writer.write(segment)


def write_out(out: TextIO, segments: "Iterator[Segment]", name: str, heading: str | None, model: str) -> None:
    """Prints each segment as it comes; a heading sets the recording apart from others.

    Where there is a heading, JSON is one line a recording with the heading as "file".
    """
    from asr.transcript import WRITERS

    if heading is not None and name == "json":
        text = io.StringIO()
        _write_all(WRITERS[name](text, model), segments)
        print(json.dumps({"file": heading, **json.loads(text.getvalue())}, ensure_ascii=False), file=out, flush=True)
        return
    first = list(islice(segments, 1))  # a recording that cannot be read gets no heading
    if heading is not None:
        print(f"==> {heading} <==", file=out)
    _write_all(WRITERS[name](out, model), chain(first, segments))


def _write_all(writer: "Writer", segments: "Iterable[Segment]") -> None:
    for segment in segments:
        writer.write(segment)
        writer.out.flush()
    writer.close()
    writer.out.flush()


def _shower(bar: Bar, done: int, recording: Path) -> Callable[[float], None]:
    """What shows the seconds heard of a recording on the bar, after `done` whole recordings."""
    from asr.audio import duration

    bar.update(done, recording.name)
    length = duration(recording)

    def show(seconds: float) -> None:
        bar.update(done + min(1.0, seconds / length if length else 0.0), recording.name)

    return show


def _check_sample_rate(rate: int | None, recordings: list[Path]) -> None:
    if rate is None and STDIN in recordings:
        raise UsageError("raw samples on standard input do not tell their rate; add --sample-rate, such as 16000")
    if rate is not None:
        from asr.audio import check_rate

        try:
            check_rate(rate, "--sample-rate")
        except ASRError as error:
            raise UsageError(str(error)) from None


def _check_nbest(args: argparse.Namespace) -> None:
    if args.nbest < 1:
        raise UsageError(f"--nbest is {args.nbest}; it must be 1 or more")
    if args.nbest > 1 and args.greedy:
        raise UsageError("--nbest needs the beam search; leave out --greedy")
    if args.nbest > 1 and args.format not in ("txt", "json", "all"):
        raise UsageError(f"--format {args.format} has no place for --nbest; choose txt or json")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}; choose another --output-dir") from None


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _worth_a_bar(recordings: list[Path]) -> bool:
    from asr.audio import duration

    try:
        return len(recordings) > 1 or (duration(recordings[0]) or LONG) >= LONG
    except ASRError:
        return False


def _complain(problem: str) -> None:
    print(f"asr: {problem}", file=sys.stderr)
