"""`asr calibrate`: measure a model's word times and confidence on recordings whose words are known."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from asr.cli import UsageError
from asr.cli.bar import Bar
from asr.errors import ASRError

if TYPE_CHECKING:
    from asr.training.calibrate import Heard

HELP = "measure word times and confidence on known recordings"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.add_argument("model", help="name or folder of a model whose decoder is tuned")
    parser.add_argument("source", type=Path, help="a manifest (.tsv) or LibriSpeech; never one that a test uses")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the manifest's paths (default: its own)")
    parser.add_argument("--limit", type=int, metavar="N", help="only N utterances, evenly spread over the source")
    parser.add_argument("--write", action="store_true", help="put what is found into the model's config.json")


def run(args: argparse.Namespace) -> int:
    """Prints what is found and how good it is on speakers it was not found on."""
    from asr.recognizer import find_model, load
    from asr.training import calibrate
    from asr.training.manifest import read

    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit is {args.limit}; it must be 1 or more")
    directory = find_model(args.model)
    recognizer = load(directory)
    rate = recognizer.model.config.features.sample_rate
    if rate != calibrate.ALIGNER_RATE:
        raise ASRError(f"{directory} hears {rate} Hz; only models of {calibrate.ALIGNER_RATE} Hz can be calibrated")
    utterances = read(args.source, args.data)
    count = min(args.limit or len(utterances), len(utterances))
    utterances = [utterances[i * len(utterances) // count] for i in range(count)]
    heard: dict[str, list[Heard]] = {name: [] for name in calibrate.decoders(recognizer)}
    with Bar(len(utterances)) as bar:
        for done, utterance in enumerate(utterances):
            bar.update(done, utterance.path.name)
            samples = calibrate.read_samples(utterance)
            chunks = recognizer.emissions(samples)
            for name, decoder in calibrate.decoders(recognizer).items():
                heard[name].append(calibrate.hear(recognizer, decoder, utterance, samples, chunks))
    times = calibrate.fit_times(next(iter(heard.values())))
    confidence = {name: calibrate.fit_confidence(found) for name, found in heard.items()}
    for name, found in heard.items():
        for corpus, quality in calibrate.quality(found).items():
            print(f"{name}, {corpus}: {quality}")
    print(f"times: {times.to_config()}")
    for name, calibration in confidence.items():
        weights = ", ".join(f"{e} {w:.2f}" for e, w in zip(calibration.evidence, calibration.weight, strict=True))
        print(f"confidence, {name}: bias {calibration.bias:.2f}, weights {weights}")
    if args.write:
        values = {name: calibration.to_config() for name, calibration in confidence.items()}
        replace(recognizer.model.config, times=times.to_config(), confidence=values).save(directory)
        print(f"{directory}: written")
    return 0
