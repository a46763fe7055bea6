"""Draws the course of training runs, from the losses.tsv that `asr train` keeps: losses above, error rates below.

python recipes/losses.py exp/en --output exp/en/losses.png
python recipes/losses.py exp/lstm exp/gru --output both.png
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, be it installed or not

from asr.errors import ASRError
from asr.training.log import LOSSES_FILE

Curve = tuple[list[int], list[float]]  # steps and values

SMOOTHED = 100  # training losses are shown as means over at least a hundredth of the run


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description="Draws the losses of training runs.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--output", type=Path, default=Path("losses.png"), help="picture (default: losses.png)")
    args = parser.parse_args(argv)
    try:
        draw({str(run): read(run) for run in args.runs}, args.output)
    except ASRError as error:
        print(f"losses.py: {error}", file=sys.stderr)
        return 1
    return 0


def read(run: Path) -> dict[str, Curve]:
    """The curves of a run by quantity: train, dev, dev WER and dev CER; not finite values are left out."""
    path = run / LOSSES_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        raise ASRError(f"there is no {path}; name the folder of a run of `asr train`") from None
    curves: dict[str, Curve] = defaultdict(lambda: ([], []))
    for line in lines:
        if not line.endswith("\n"):
            break  # a run that is going on is still writing it
        step, quantity, value = line.rstrip("\n").split("\t")
        if np.isfinite(float(value)):
            curves[quantity][0].append(int(step))
            curves[quantity][1].append(float(value))
    if not curves:
        raise ASRError(f"{path} holds no step yet; wait for the run's first checkpoint")
    return dict(curves)


def smoothed(curve: Curve) -> Curve:
    """Means over neighbouring steps, at most SMOOTHED of them."""
    size = -(-len(curve[0]) // SMOOTHED)
    starts = np.arange(0, len(curve[0]), size)
    sums = [np.add.reduceat(np.asarray(values, float), starts) for values in curve]
    steps, means = (total / np.diff([*starts, len(curve[0])]) for total in sums)
    return steps.tolist(), means.tolist()


def draw(runs: dict[str, dict[str, Curve]], path: Path) -> None:
    """One colour for each run; training pale, dev dark."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (losses, rates) = pyplot.subplots(2, 1, figsize=(8, 7), sharex=True, layout="constrained")
    for (name, curves), colour in zip(runs.items(), pyplot.cm.tab10.colors * len(runs), strict=False):  # type: ignore[attr-defined]
        if "train" in curves:
            losses.plot(*smoothed(curves["train"]), color=colour, alpha=0.4, label=f"{name}, training")
        for quantity, axes, line in (("dev", losses, "-"), ("dev WER", rates, "-"), ("dev CER", rates, ":")):
            if quantity in curves:
                axes.plot(*curves[quantity], line, color=colour, marker=".", label=f"{name}, {quantity}")
    losses.set(ylabel="CTC loss, nats per token")
    rates.set(ylabel="greedy error rate", xlabel="step")
    for axes in (losses, rates):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
