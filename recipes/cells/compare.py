"""LSTM, GRU and plain RNN at equal parameters: trains all three, measures how far back they hear, draws the picture.

    python recipes/cells/compare.py --data SPEECH --output exp/cells --picture recipes/cells/cells.png

Interrupted, the same command goes on where it stopped. The table is printed and kept in OUTPUT/table.md.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, be it installed or not

from asr.cli import main as asr
from asr.encoder import SUBSAMPLING, Encoder
from asr.errors import ASRError
from asr.features import log_mel
from asr.text import normalize
from asr.training import checkpoint
from asr.training.config import TrainingConfig, read_config
from asr.training.data import AudioStore
from asr.training.log import LOSSES_FILE
from asr.training.manifest import COLUMNS, Utterance, read
from asr.training.trainer import PACKED_FILE

CONFIG = Path(__file__).with_name("cells.toml")
WIDTHS = {"lstm": 128, "gru": 147, "rnn": 243}  # of equal parameters: four, three and one matrix per layer
COLOURS = {"lstm": "tab:blue", "gru": "tab:orange", "rnn": "tab:green"}
NAMES = {"lstm": "LSTM", "gru": "GRU", "rnn": "plain RNN"}
RATES = (2e-3, 5e-3)  # peak learning rates from which each cell may choose
TRIAL_SHARE = 0.15  # of the steps that each rate is tried for
CORPORA = ("cmu-arctic", "kathleen", "ljspeech", "ljtext-matthes")  # five voices
HELD_OUT = 25  # one text in so many is for measuring, whoever reads it
REACH = 100  # emission frames, of 40 ms, back to which gradients are followed
CLIPS, POSITIONS = 24, 8  # recordings, and emissions of each, whose gradients are taken
FAINT = 0.01  # of the largest gradient: what is further back counts as forgotten


@dataclass(frozen=True)
class Run:
    """One training run of a cell."""

    cell: str
    rate: float
    seed: int
    folder: Path

    def train(self, data: Path, steps: int, stop: int) -> None:
        """Trains until step `stop` of `steps`, going on from where the run is."""
        _share_audio(self.folder)
        done = _last_step(self.folder)
        if done >= stop:
            return
        command = ["train", str(CONFIG), "--data", str(data), "--output", str(self.folder), "--threads", "1"]
        command += ["--workers", "0", "--steps", str(stop - done)]
        for change in changes(self.cell, self.rate, self.seed, steps):
            command += ["--set", change]
        print(f"{NAMES[self.cell]}, rate {self.rate:g}, seed {self.seed}, to step {stop}", file=sys.stderr)
        if code := asr(command):
            raise SystemExit(code)

    def curve(self, quantity: str) -> tuple[list[int], list[float]]:
        """Steps and values of a quantity in losses.tsv."""
        rows = [line.split("\t") for line in (self.folder / LOSSES_FILE).read_text().splitlines()]
        chosen = [(int(step), float(value)) for step, name, value in rows if name == quantity]
        return [step for step, _ in chosen], [value for _, value in chosen]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description="Compares recurrent cells at equal parameters.")
    parser.add_argument("--data", type=Path, default=os.environ.get("ASR_SPEECH"), help="folder with train.tsv")
    parser.add_argument("--output", type=Path, default=Path("exp/cells"), help="folder of the runs")
    parser.add_argument("--picture", type=Path, help="PNG to draw (default: OUTPUT/cells.png)")
    parser.add_argument("--steps", type=int, help="of every run (default: as cells.toml says)")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="peak learning rates to choose from")
    parser.add_argument("--seeds", type=int, default=1, help="runs of every cell (default: 1)")
    args = parser.parse_args(argv)
    if args.data is None:
        parser.error("no data folder is named; give --data FOLDER or set ASR_SPEECH")
    try:
        steps = args.steps or read_config(CONFIG).optimizer.steps
        runs = train_all(args.data, args.output, steps, args.rates, args.seeds)
        table = measure(runs, args.output, args.picture or args.output / "cells.png")
    except ASRError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 1
    print(table)
    return 0


def train_all(data: Path, output: Path, steps: int, rates: Sequence[float], seeds: int) -> dict[str, list[Run]]:
    """Trains all cells, each at the rate that suits it best; the cells take turns, one seed after the other."""
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
    split(read(data / "train.tsv"), output)
    best = {cell: _best_rate(cell, rates, output, steps) for cell in WIDTHS}
    for seed in range(1, seeds + 1):
        for cell, rate in best.items():
            _run(cell, rate, seed, output).train(output, steps, steps)
    return {cell: [_run(cell, rate, seed, output) for seed in range(1, seeds + 1)] for cell, rate in best.items()}


def measure(runs: dict[str, list[Run]], output: Path, picture: Path) -> str:
    """Measures all runs and draws the picture; returns the table, in Markdown."""
    clips = read(output / "dev.tsv")
    trained = {cell: [gradients(checkpoint.load(run.folder).encoder(), clips) for run in runs[cell]] for cell in runs}
    untrained = {cell: gradients(_untrained(runs[cell][0]), clips) for cell in runs}
    draw(runs, trained, untrained, picture)
    table = _table(runs, trained)
    (output / "table.md").write_text(table + "\n")
    return table


def split(utterances: Sequence[Utterance], output: Path) -> None:
    """Writes train.tsv and dev.tsv: the same voices, but no text of one is in the other."""
    chosen = [u for u in utterances if u.corpus in CORPORA]
    if not chosen:
        raise ASRError(f"the manifest lists none of the corpora {', '.join(CORPORA)}; give the folder of another")
    for name, held_out in (("train.tsv", False), ("dev.tsv", True)):
        rows = [
            "\t".join((str(u.path.resolve()), str(u.seconds), u.speaker, u.corpus, u.text))
            for u in chosen
            if _is_held_out(u.text) == held_out
        ]
        (output / name).write_text("\n".join(("\t".join(COLUMNS), *rows, "")), encoding="utf-8")


def changes(cell: str, rate: float, seed: int, steps: int) -> list[str]:
    """What a run sets in cells.toml."""
    return [
        f'encoder.cell="{cell}"',
        f"encoder.width={WIDTHS[cell]}",
        f"optimizer.peak_rate={rate}",
        f"optimizer.seed={seed}",
        f"optimizer.steps={steps}",
        f"optimizer.decay_steps={steps // 2}",
        f"optimizer.dev_every={trial_steps(steps)}",
    ]


def trial_steps(steps: int) -> int:
    """How many steps each learning rate is tried for; the dev set is measured as often."""
    return max(1, round(steps * TRIAL_SHARE))


def gradients(encoder: Encoder, clips: Sequence[Utterance]) -> NDArray[np.float64]:
    """How strongly what came k emission frames before an emission acts on it, for k from 0 to REACH - 1.

    The norm of the gradient of an emission's logits, in a random direction, with respect to the input of the lowest
    recurrent layer; relative to the largest of an emission, then the median over emissions of the longest clips.
    """
    config = TrainingConfig()
    clips = sorted(clips, key=lambda u: -u.seconds)[:CLIPS]
    store = AudioStore(clips, config.features.sample_rate)
    generator = torch.Generator().manual_seed(1)
    curves = []
    for i in range(len(clips)):
        frames = torch.from_numpy(log_mel(store[i], config.features))
        last = len(frames) // SUBSAMPLING - 1
        if last < REACH:
            continue
        positions = torch.linspace(REACH, last, POSITIONS).long()
        curves.append(_norms(encoder, frames, positions, generator))
    if not curves:
        raise ASRError(f"no dev recording is longer than {REACH} emission frames; add longer ones")
    norms = torch.cat(curves)
    return (norms / norms.amax(1, keepdim=True)).median(0).values.double().numpy()


def _norms(encoder: Encoder, frames: Tensor, positions: Tensor, generator: torch.Generator) -> Tensor:
    """Gradient norms, shape = (positions, REACH), the nearest frame first; frames: shape = (n, n_mels)."""
    inputs: list[Tensor] = []

    def keep(dropout: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        inputs.append(output.detach().requires_grad_())
        return inputs[0]

    count = len(positions)
    hook = encoder.dropout.register_forward_hook(keep)  # the last thing before the lowest layer
    log_probs, _ = encoder(frames.expand(count, -1, -1), torch.full((count,), len(frames)))
    hook.remove()
    emissions = log_probs[torch.arange(count), positions]
    direction = torch.randn(emissions.shape, generator=generator)
    direction -= direction.mean(1, keepdim=True)  # so that the normalisation of the probabilities drops out
    (gradient,) = torch.autograd.grad((emissions * direction).sum(), inputs[0])
    back = positions[:, None] - torch.arange(REACH)
    return gradient.norm(dim=-1).gather(1, back)


def reach(curve: NDArray[np.float64]) -> float:
    """Seconds back to the last frame that counts for more than FAINT of the largest."""
    return float(np.flatnonzero(curve > FAINT)[-1]) * _emission_seconds()


def draw(
    runs: dict[str, list[Run]],
    trained: dict[str, list[NDArray[np.float64]]],
    untrained: dict[str, NDArray[np.float64]],
    path: Path,
) -> None:
    """The dev loss over the steps, and the gradient over the distance in time, for all cells."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    seconds = np.arange(REACH) * _emission_seconds()
    for cell, colour in COLOURS.items():
        for number, (run, curve) in enumerate(zip(runs[cell], trained[cell], strict=True)):
            label = NAMES[cell] if number == 0 else None
            left.plot(*run.curve("train"), color=colour, alpha=0.15, linewidth=0.5)
            left.plot(*run.curve("dev"), color=colour, label=label, marker=".")
            right.semilogy(seconds, curve, color=colour, label=label)
        right.semilogy(seconds, untrained[cell], color=colour, linestyle=":")
    right.plot([], [], color="grey", linestyle=":", label="before training")
    left.set(xlabel="step", ylabel="CTC loss, nats per letter", ylim=(0, 3.5))
    left.set_title("Loss on held-out sentences (pale: on training batches)", fontsize=10)
    right.set(xlabel="distance back in time, s", ylabel="gradient, relative to its largest", ylim=(1e-6, 2))
    right.set_title("How strongly an emission depends on the past", fontsize=10)
    right.axhline(FAINT, color="grey", linewidth=0.5)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _table(runs: dict[str, list[Run]], trained: dict[str, list[NDArray[np.float64]]]) -> str:
    lines = [
        f"| cell | width | parameters | rate | steps | hours heard | loss | CER % | WER % | back to {FAINT:.0%}, s |",
        "|-|-|-|-|-|-|-|-|-|-|",
    ]
    for cell, cell_runs in runs.items():
        last = checkpoint.load(cell_runs[0].folder)
        parameters = sum(p.numel() for p in last.encoder().parameters())
        loss, cer, wer = ([run.curve(name)[1][-1] for run in cell_runs] for name in ("dev", "dev CER", "dev WER"))
        figures = [
            _spread(loss, "{:.2f}"),
            _spread([100 * x for x in cer], "{:.1f}"),
            _spread([100 * x for x in wer], "{:.1f}"),
            _spread([reach(curve) for curve in trained[cell]], "{:.2f}"),
        ]
        hours = last.audio_seconds / 3600
        lines.append(
            f"| {NAMES[cell]} | {WIDTHS[cell]} | {parameters:,} | {cell_runs[0].rate:g} | {last.step} | {hours:.1f} | "
            + " | ".join(figures)
            + " |"
        )
    return "\n".join(lines)


def _spread(values: Sequence[float], form: str) -> str:
    """The mean, and the least and greatest where there are several."""
    mean = form.format(np.mean(values))
    return mean if len(values) == 1 else f"{mean} ({form.format(min(values))}-{form.format(max(values))})"


def _run(cell: str, rate: float, seed: int, output: Path) -> Run:
    return Run(cell, rate, seed, output / f"{cell}-{rate:g}-{seed}")


def _best_rate(cell: str, rates: Sequence[float], output: Path, steps: int) -> float:
    """The rate with the least dev loss after the trial."""
    found = {}
    for rate in rates:
        run = _run(cell, rate, 1, output)
        run.train(output, steps, trial_steps(steps))
        found[rate] = run.curve("dev")[1][0]
    print(f"{NAMES[cell]}: dev loss after the trial by rate: {found}", file=sys.stderr)
    return min(found, key=lambda rate: found[rate])


def _untrained(run: Run) -> Encoder:
    """The encoder as the run began."""
    given = checkpoint.load(run.folder)
    torch.manual_seed(run.seed)
    encoder = Encoder(given.config.encoder).eval()
    encoder.mean.copy_(given.average["mean"])
    encoder.std.copy_(given.average["std"])
    return encoder


def _last_step(folder: Path) -> int:
    return checkpoint.load(folder).step if (folder / checkpoint.LAST).exists() else 0


def _share_audio(folder: Path) -> None:
    """Lets a new run use the recordings that another has decoded."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (PACKED_FILE, str(Path(PACKED_FILE).with_suffix(".npz"))):
        for other in sorted(folder.parent.glob(f"*/{name}")):
            if not (folder / name).exists():
                os.link(other, folder / name)


def _is_held_out(text: str) -> bool:
    return int(hashlib.sha256(normalize(text).encode()).hexdigest(), 16) % HELD_OUT == 0


def _emission_seconds() -> float:
    features = TrainingConfig().features
    return SUBSAMPLING * features.hop / features.sample_rate


if __name__ == "__main__":
    sys.exit(main())
