"""`asr explain`: one picture of what a model heard: sound, spectrum, tokens, and words with their confidence."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.cli import UsageError
from asr.errors import ASRError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from asr.runtime import ModelConfig
    from asr.transcript import Word

HELP = "draw what a model heard in a recording, and how sure it was"

SUFFIXES = (".png", ".pdf", ".svg")
SECONDS = 10.0  # drawn unless another length is asked for
INCHES_PER_SECOND, LEAST_INCHES, MOST_INCHES = 1.6, 8.0, 60.0
HEIGHT = 9.0  # inches
LIKELY = 0.1  # a token that is never likelier in the section is not drawn
MOST_TOKENS = 48
WORD_ROWS = 2  # words side by side stand in turn in these, so that their letters have room


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.add_argument("recording", type=Path, help="a recording of any kind")
    parser.add_argument("picture", type=Path, help=f"file to write: {', '.join(SUFFIXES)}")
    parser.add_argument("--start", type=float, default=0.0, metavar="S", help="second to begin at (default: 0)")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help="to draw (default: 10)")
    parser.add_argument("--text", metavar="WORDS", help="what is really said, to stand above the words heard")
    parser.add_argument("--model", default="en", metavar="M", help="name or folder of a model (default: en)")
    parser.add_argument("--greedy", action="store_true", help="no beam search")


def run(args: argparse.Namespace) -> int:
    """Recognises the recording up to the end of the section and draws the section."""
    if args.picture.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{args.picture} is no picture's name; end it in {', '.join(SUFFIXES)}")
    if not (0 <= args.start < float("inf") and 0 < args.seconds < float("inf")):
        raise UsageError(
            f"the section begins at {args.start:g} s and has {args.seconds:g} s; it must not begin before 0, and last"
        )
    import matplotlib

    matplotlib.use("Agg")

    from itertools import islice

    import numpy as np

    from asr.audio import read_blocks
    from asr.recognizer import load

    recognizer = load(args.model, decoder="greedy" if args.greedy else "auto")
    config = recognizer.model.config
    rate = config.features.sample_rate
    blocks = read_blocks(args.recording, target_rate=rate, block_seconds=1.0)
    samples = np.concatenate(list(islice(blocks, int(args.start + args.seconds) + 2)) or [np.zeros(0, np.float32)])
    end = min(args.start + args.seconds, len(samples) / rate)
    if args.start >= end:
        raise UsageError(
            f"{args.recording} has {len(samples) / rate:.1f} s; begin before its end, not at {args.start:g} s"
        )
    words = recognizer.transcribe(samples, rate).words
    figure = draw(
        samples,
        words,
        np.concatenate(recognizer.emissions(samples)),
        recognizer.model.tokenizer.tokens,
        config,
        (args.start, end),
    )
    said = f"\nsaid: {args.text}" if args.text else ""
    figure.suptitle(f"{args.recording.name}, heard by {config.name}{said}", x=0.01, ha="left", fontsize=11)
    try:
        figure.savefig(args.picture, dpi=110)
    except OSError as error:
        raise ASRError(f"cannot write {args.picture}: {error.strerror}; name another file") from None
    print(f"{args.picture}: {args.start:g} to {end:g} s")
    return 0


def draw(
    samples: "NDArray[np.float32]",
    words: "tuple[Word, ...]",
    log_probs: "NDArray[np.float32]",
    tokens: list[str],
    config: "ModelConfig",
    section: tuple[float, float],
) -> Any:
    """A figure of the section's waveform, log-mel frames, token posteriors and words, one above the other.

    log_probs: emissions of all samples, shape = (emissions, tokens); tokens are drawn when they are said, as nearly as
    the model's measured delay tells.
    """
    import librosa.display
    import matplotlib
    import numpy as np
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import MultipleLocator, ScalarFormatter

    from asr.features import log_mel

    begin, end = section
    features = config.features
    width = float(np.clip((end - begin) * INCHES_PER_SECOND, LEAST_INCHES, MOST_INCHES))
    figure = Figure(figsize=(width, HEIGHT), layout="constrained")
    wave, mel, posterior, spoken = figure.subplots(4, 1, sharex=True, height_ratios=(1, 2, 3.2, 0.9))

    first, last = round(begin * features.sample_rate), round(end * features.sample_rate)
    times = np.arange(first, last) / features.sample_rate
    wave.plot(times, samples[first:last], linewidth=0.4, color="0.3")
    wave.set_yticks([])
    wave.set_ylabel("sound")

    hop = features.hop / features.sample_rate
    frames = log_mel(samples[first:last], features)
    half = features.window / features.sample_rate / 2
    librosa.display.specshow(
        frames.T,
        x_coords=begin + half + hop * np.arange(len(frames)),
        y_axis="mel",
        sr=features.sample_rate,
        fmin=features.low_hz,
        fmax=features.high_hz,
        htk=True,
        cmap="magma",
        vmin=float(np.percentile(frames, 5)) if frames.size else None,
        ax=mel,
    )
    mel.set(ylabel="Hz", xlabel="")

    delay = config.times.get("start", config.delay_seconds)
    step = config.emission_seconds
    rows = slice(max(0, int((begin + delay) / step)), int((end + delay) / step) + 1)
    shares = np.exp(log_probs[rows])
    drawn = _tokens_to_draw(shares)
    edges = (rows.start + np.arange(len(shares) + 1)) * step - delay
    image = posterior.pcolormesh(
        edges, np.arange(len(drawn) + 1), shares[:, drawn].T, cmap="Greys", norm=Normalize(0, 1), rasterized=True
    )
    posterior.set_yticks(np.arange(len(drawn)) + 0.5, [_label(tokens[i]) for i in drawn], fontsize=8)
    posterior.invert_yaxis()
    posterior.set_ylabel("tokens, drawn when said")
    figure.colorbar(image, ax=posterior, label="probability", pad=0.005, fraction=0.02)

    shown = [word for word in words if word.end > begin and word.start < end]
    scale, colours = Normalize(0, 1), matplotlib.colormaps["RdYlGn"]
    for i, word in enumerate(shown):
        left, right = max(word.start, begin), min(word.end, end)
        colour, row = colours(scale(word.confidence)), i % WORD_ROWS
        spoken.axvspan(left, right, color=colour, alpha=0.9, linewidth=0)
        if right - left >= (word.end - word.start) / 2:  # else the section cuts it off
            place, label = ((left + right) / 2, 0.75 - 0.5 * row), f"{word.text}\n{word.confidence:.2f}"
            spoken.text(*place, label, ha="center", va="center", fontsize=8)
        for axes in (wave, mel, posterior, spoken):
            axes.axvline(left, color="tab:blue", linewidth=0.6, alpha=0.7)
            axes.axvline(right, color="tab:blue", linewidth=0.6, alpha=0.7, linestyle=":")
    spoken.set(ylim=(0, 1), yticks=[], ylabel="words", xlabel="seconds", xlim=(begin, end))
    spoken.xaxis.set_major_locator(MultipleLocator(0.5))  # librosa.display takes the shared axis's numbers away
    spoken.xaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    for axes in (wave, mel, posterior):
        axes.tick_params(labelbottom=False)
    spoken.tick_params(labelbottom=True)
    confidence = matplotlib.cm.ScalarMappable(scale, colours)
    figure.colorbar(confidence, ax=spoken, label="confidence", pad=0.005, fraction=0.02)
    return figure


def _tokens_to_draw(shares: "NDArray[np.float32]") -> "NDArray[np.int64]":
    """The tokens that matter in emissions, shape = (emissions, tokens), the blank and boundary first, by number."""
    import numpy as np

    most = shares.max(axis=0, initial=0.0)
    ranked = np.argsort(-most, kind="stable")[:MOST_TOKENS]
    return np.sort(ranked[most[ranked] >= LIKELY])


def _label(token: str) -> str:
    from asr.tokenizer import BLANK, BOUNDARY

    return {BLANK: "blank", BOUNDARY: "space"}.get(token, token)
