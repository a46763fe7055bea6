"""Fetches and checks LibriSpeech (https://www.openslr.org/12), or checks a copy that is there already.

    python recipes/librispeech/prepare.py --output data --splits train-clean-100 dev-clean test-clean
    python recipes/librispeech/prepare.py --from /corpora/LibriSpeech

Interrupted, the same command goes on where it stopped: a download in the middle of its archive, and splits that are
complete are left alone.
"""

import argparse
import hashlib
import os
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, be it installed or not

from asr.errors import ASRError
from asr.training.manifest import read

URL = "https://www.openslr.org/resources/12"  # mirrors: https://us.openslr.org, https://openslr.elda.org
CORPUS = "LibriSpeech"  # the folder in every archive
BLOCK = 1 << 20  # bytes
TIMEOUT = 60.0  # seconds without a byte
TRIES = 5  # in a row without a byte more
UNPACKED_SHARE = 1.1  # of an archive's size: flac hardly compresses further


@dataclass(frozen=True)
class Split:
    """One archive: its SHA-256, as torchaudio 2.11 has it, and how many utterances it holds."""

    sha256: str
    utterances: int


SPLITS = {
    "train-clean-100": Split("d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2", 28_539),
    "train-clean-360": Split("146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf", 104_014),
    "train-other-500": Split("ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2", 148_688),
    "dev-clean": Split("76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3", 2_703),
    "dev-other": Split("12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365", 2_864),
    "test-clean": Split("39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23", 2_620),
    "test-other": Split("d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29", 2_939),
}
DEFAULT_SPLITS = ["train-clean-100", "dev-clean", "dev-other", "test-clean", "test-other"]


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 failed, 130 interrupted; errors are one sentence on standard error."""
    parser = argparse.ArgumentParser(description="Fetches and checks LibriSpeech, or checks a copy of it.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--output", type=Path, metavar="DIR", help=f"download into DIR/{CORPUS}")
    where.add_argument("--from", type=Path, metavar="DIR", dest="existing", help="check this copy; no network")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, metavar="SPLIT", help=f"of {', '.join(SPLITS)}")
    parser.add_argument("--url", default=URL, help=f"where the archives are (default: {URL})")
    parser.add_argument("--keep-archives", action="store_true", help="do not remove them once they are unpacked")
    args = parser.parse_args(argv)
    try:
        if args.existing:
            check_copy(args.existing, args.splits)
        else:
            for split in args.splits or DEFAULT_SPLITS:
                prepare(split, args.output, args.url, args.keep_archives)
            print(f"ready: give --data {args.output} to train")
    except KeyboardInterrupt:
        return 130
    except ASRError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"prepare: {error.filename or args.output}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def prepare(split: str, output: Path, url: str, keep_archive: bool) -> None:
    """Downloads, verifies and unpacks one split into output/LibriSpeech, unless it is there."""
    if (output / CORPUS / split).is_dir():
        report(output / CORPUS / split, whole=True)
        return
    output.mkdir(parents=True, exist_ok=True)
    archive = output / f"{split}.tar.gz"
    download(f"{url.rstrip('/')}/{archive.name}", archive, SPLITS[split].sha256)
    unpack(archive, split, output)
    report(output / CORPUS / split, whole=True)
    if not keep_archive:
        archive.unlink()


def check_copy(folder: Path, splits: list[str] | None) -> None:
    """Reads every transcript and recording header of a copy, which may lack splits or utterances."""
    corpus = folder / CORPUS if (folder / CORPUS).is_dir() else folder
    found = [split for split in SPLITS if (corpus / split).is_dir()]
    for split in splits or found:
        if split not in found:
            raise ASRError(f"{corpus} has no {split}; it has {', '.join(found) or 'no split of LibriSpeech'}")
        report(corpus / split, whole=False)
    if not found:
        raise ASRError(f"{corpus} has no split of LibriSpeech, such as {DEFAULT_SPLITS[0]}; name the folder of splits")
    if corpus.absolute().name != CORPUS:
        raise ASRError(
            f"{corpus} holds the corpus but must be called {CORPUS} for the recipes; rename it or link to it"
        )
    print(f"ready: give --data {corpus.parent} to train")


def report(folder: Path, whole: bool) -> None:
    """Prints what a split holds; ASRError where a recording is missing or broken, or where it should be whole."""
    utterances = read(folder)
    recordings = sum(1 for _ in folder.rglob("*.flac"))
    if recordings != len(utterances):
        raise ASRError(
            f"{folder} has {recordings} recordings and {len(utterances)} transcripts; remove it and fetch it again"
        )
    wanted = SPLITS[folder.name].utterances
    if whole and len(utterances) != wanted:
        raise ASRError(f"{folder} has {len(utterances)} utterances instead of {wanted}; remove it and fetch it again")
    hours = sum(u.seconds for u in utterances) / 3600
    speakers = len({u.speaker for u in utterances})
    part = "" if len(utterances) == wanted else f" of {wanted}"
    print(f"{folder}: {len(utterances)}{part} utterances, {speakers} speakers, {hours:.2f} hours", flush=True)


def download(url: str, path: Path, sha256: str) -> None:
    """Fetches a file, going on with what is there of it; ASRError unless its SHA-256 is right."""
    if not path.exists():
        partial = path.with_suffix(".partial")
        fetch(url, partial)
        partial.replace(path)
    with path.open("rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    if found != sha256:
        raise ASRError(f"{path} has SHA-256 {found} instead of {sha256}; remove it and run the same command again")


def fetch(url: str, partial: Path) -> None:
    """Fetches what `partial` lacks of a file, over as many connections as it takes."""
    tries = 0
    while tries < TRIES:
        before = size(partial)
        try:
            return fetch_rest(url, partial)
        except HTTPError as error:
            raise ASRError(f"{url}: the server says {error.code} {error.reason}; try a mirror with --url") from None
        except (OSError, HTTPException) as error:
            problem = error.reason if isinstance(error, URLError) else error
        tries = 0 if size(partial) > before else tries + 1
    raise ASRError(
        f"cannot fetch {url} ({problem}); the same command goes on later, --url names a mirror, --from a copy"
    )


def fetch_rest(url: str, partial: Path) -> None:
    """Appends what `partial` lacks of a file; an error where the connection ends too early."""
    have = size(partial)
    try:
        response = urlopen(Request(url, headers={"Range": f"bytes={have}-"} if have else {}), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416:  # nothing is left to fetch
            return
        raise
    with response:
        if response.status != 206:  # the server sends the whole file
            have = 0
        left = int(response.headers.get("Content-Length", 0))
        check_space(partial.parent, left + UNPACKED_SHARE * (have + left))
        with partial.open("ab") as f, bar(partial.stem, have, have + left) as advance:
            f.truncate(have)
            while block := response.read1(BLOCK):
                f.write(block)
                left -= len(block)
                advance(len(block))
    if left > 0:
        raise ConnectionError(f"the connection ended {left} bytes early")


def check_space(folder: Path, wanted: float) -> None:
    """ASRError where fewer than `wanted` bytes are free."""
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise ASRError(f"{folder} has {free / 1e9:.1f} GB free and {wanted / 1e9:.1f} GB are needed; make room")


def size(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def unpack(archive: Path, split: str, output: Path) -> None:
    """Unpacks beside its place and moves the split there, so that a split is whole or absent."""
    aside = output / f"{split}.unpacking"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(aside, filter="data")  # no absolute names, links out of the folder or devices
    except (tarfile.TarError, EOFError, OSError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        reason = str(error).splitlines()[0]
        raise ASRError(f"cannot unpack {archive} ({reason}); remove it and fetch it again") from None
    if not (aside / CORPUS / split).is_dir():
        shutil.rmtree(aside)
        raise ASRError(f"{archive} holds no {CORPUS}/{split}; remove it and fetch it again")
    (output / CORPUS).mkdir(exist_ok=True)
    for path in (aside / CORPUS).iterdir():
        if path.name != split:  # README.TXT, SPEAKERS.TXT and others are the same in every archive
            os.replace(path, output / CORPUS / path.name)
    os.replace(aside / CORPUS / split, output / CORPUS / split)
    shutil.rmtree(aside)


@contextmanager
def bar(name: str, done: int, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, one line elsewhere; what it gives is to be called with the bytes that came."""
    if not sys.stderr.isatty():
        print(f"fetching {name}: {done / 1e6:.1f} of {total / 1e6:.1f} MB are there", file=sys.stderr, flush=True)
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, completed=done, total=total)
        yield lambda count: progress.advance(task, count)


if __name__ == "__main__":
    sys.exit(main())
