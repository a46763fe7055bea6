"""Averages the weights of runs of one kind, where a later one was begun from an earlier one: often better than either.

python recipes/average.py exp/en-5=0.7 exp/en-4=0.3 --output exp/en-average
asr export exp/en-average my-model

After "Model soups" (Wortsman et al., 2022). All but the weights is taken from the first run.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, be it installed or not

import torch

from asr.errors import ASRError
from asr.training import checkpoint
from asr.training.checkpoint import LAST, Checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description="Averages the weights of runs.")
    parser.add_argument("runs", type=_share, nargs="+", metavar="RUN=SHARE", help="folder of a run, and its share")
    parser.add_argument("--output", type=Path, required=True, help="folder for the averaged run")
    args = parser.parse_args(argv)
    try:
        found = average([checkpoint.load(run) for run, _ in args.runs], [share for _, share in args.runs])
        args.output.mkdir(parents=True, exist_ok=True)
        checkpoint.save(found, args.output / LAST)
    except ASRError as error:
        print(f"average.py: {error}", file=sys.stderr)
        return 1
    return 0


def average(runs: Sequence[Checkpoint], shares: Sequence[float]) -> Checkpoint:
    """The first run with the mean of all averaged weights, by shares; ASRError where the runs differ in shape."""
    shapes = [{name: weight.shape for name, weight in run.average.items()} for run in runs]
    if any(shape != shapes[0] for shape in shapes):
        raise ASRError("the runs differ in the shapes of their weights; only those of one encoder can be averaged")
    total = sum(shares)
    weights = {
        name: torch.stack(
            [run.average[name].float() * (share / total) for run, share in zip(runs, shares, strict=True)]
        )
        .sum(dim=0)
        .to(weight.dtype)
        for name, weight in runs[0].average.items()
    }
    return replace(runs[0], weights=weights, average=weights, optimizer={**runs[0].optimizer, "state": {}})


def _share(text: str) -> tuple[Path, float]:
    run, _, share = text.rpartition("=")
    try:
        value = float(share)
    except ValueError:
        value = 0.0
    if not run or not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no run with a share above 0, such as exp/en=0.7")
    return Path(run), value


if __name__ == "__main__":
    sys.exit(main())
