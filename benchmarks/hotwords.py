"""What hot-words find, what they disturb and what they cost: rare words of a manifest, alone and among distractors.

    python -m benchmarks.hotwords [SOURCE] [--model M] [--limit N] [--emissions FILE] [--json OUT] [--markdown OUT]

Listed are the RARE rarest words that are said: first all outside the language model's vocabulary, then those of the
lowest unigram probability. Distractors are words that nobody says, drawn from the rarest of the vocabulary. "recall" is
the share of the listed words' occurrences that are heard right; "elsewhere" are the errors at all other words,
insertions included; "false" counts listed words and distractors heard more often than they are said. Milliseconds are
those of the search alone on one core, without the encoder.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np

from asr.cli.bar import Bar
from asr.decoding.beam import BeamSearch
from asr.decoding.lm import UNKNOWN_ID, NgramModel
from asr.recognizer import Recognizer, load
from asr.runtime import LANGUAGE_MODEL_FILE
from asr.training import tune
from asr.training.manifest import read
from benchmarks.common import Table, guarded, parser, publish

RARE = 100  # words listed
DISTRACTORS = (0, 100, 1000, 4900)
RAREST = 30_000  # words of the vocabulary from which distractors are drawn
SHORTEST = 4  # letters of a distractor


@dataclass(frozen=True)
class Row:
    """One list of hot-words; rates are shares."""

    listed: int
    distractors: int
    build_ms: float
    recall: float
    wer: float
    wer_elsewhere: float
    false: int
    search_ms: float  # per second of audio


def main() -> None:
    """Prints a table and writes it where asked."""
    options = parser(__doc__)
    options.add_argument("--limit", type=int, metavar="N", help="only N recordings, evenly spread over the source")
    options.add_argument("--boost", type=float, metavar="NATS", help="of every word (default: the model's)")
    options.add_argument("--emissions", type=Path, metavar="FILE", help="keep the emissions, or take them from it")
    args = options.parse_args()

    recognizer = load(args.model, decoder="beam")
    search = recognizer.decoder
    if not isinstance(search, BeamSearch):
        options.error(f"{args.model} has no beam search")
    utterances = read(args.source, args.data)
    with Bar(len(utterances)) as bar:
        recordings = tune.record_all(load(args.model, decoder="greedy"), utterances, args.emissions, bar.update)
    references = [recording.reference for recording in recordings]
    count = min(args.limit or len(recordings), len(recordings))
    recordings = [recordings[i * len(recordings) // count] for i in range(count)]
    lm = NgramModel.load(recognizer.model.directory / LANGUAGE_MODEL_FILE)
    rare = rarest_said(references, lm)
    lists = [None, *(distractors(references, lm, number) for number in DISTRACTORS)]
    table = Table(
        "hot-words", "to prepare, ms", "recall, %", "word errors, %", "elsewhere, %", "false", "search, ms for a second"
    )
    rows = []
    for others in lists:
        row = measure(recognizer, search, recordings, rare, others, args.boost)
        name = f"{row.listed} and {row.distractors} others" if row.listed else "none"
        shares = (f"{100 * share:.2f}" for share in (row.recall, row.wer, row.wer_elsewhere))
        table.add(name, row.build_ms, *shares, row.false, row.search_ms)
        rows.append(row)
    publish(args, "hotwords", rows, table)


def rarest_said(references: Sequence[str], lm: NgramModel) -> list[str]:
    """The RARE rarest words of the references."""
    words = sorted({word for reference in references for word in reference.split()})
    ids = lm.ids(words)
    rank = np.where(ids == UNKNOWN_ID, -np.inf, lm.unigrams()[ids])
    return [words[i] for i in np.argsort(rank, kind="stable")[:RARE]]


def distractors(references: Sequence[str], lm: NgramModel, number: int) -> list[str]:
    """Rare words of the vocabulary that nobody says."""
    said = {word for reference in references for word in reference.split()}
    rarest = [lm.words[i] for i in np.argsort(lm.unigrams(), kind="stable")[:RAREST]]
    unsaid = [word for word in rarest if word not in said and len(word) >= SHORTEST and word.isalpha()]
    return [unsaid[i] for i in np.random.default_rng(1).permutation(len(unsaid))[:number]]


def measure(
    recognizer: Recognizer,
    search: BeamSearch,
    recordings: Sequence[tune.Emissions],
    rare: list[str],
    others: list[str] | None,
    boost: float | None,
) -> Row:
    """Decodes all recordings with the rare words and the others as hot-words, or with none where others is None."""
    listed = [] if others is None else [*rare, *others]
    began = time.process_time()
    hotwords = recognizer.hotwords(dict.fromkeys(listed, boost))
    build = time.process_time() - began
    decoder = search.with_hotwords(hotwords)
    began = time.process_time()
    heard = [tune.transcribe(decoder, recording) for recording in recordings]
    spent = time.process_time() - began

    references = [recording.reference for recording in recordings]
    aligned = jiwer.process_words(references, heard)
    errors, words = Counter[bool](), Counter[bool]()  # at rare words, and elsewhere
    for said, chunks in zip(aligned.references, aligned.alignments, strict=True):
        for chunk in chunks:
            for word in said[chunk.ref_start_idx : chunk.ref_end_idx]:
                words[word in rare] += 1
                errors[word in rare] += chunk.type != "equal"
            if chunk.type == "insert":
                errors[False] += chunk.hyp_end_idx - chunk.hyp_start_idx
    false = sum(
        n
        for reference, text in zip(references, heard, strict=True)
        for word, n in (Counter(text.split()) - Counter(reference.split())).items()
        if word in listed
    )
    frames = sum(len(segment) for recording in recordings for segment in recording.segments)
    return Row(
        len(rare) if listed else 0,
        len(others or []),
        1000 * build,
        1 - errors[True] / max(1, words[True]),
        errors.total() / words.total(),
        errors[False] / max(1, words[False]),
        false,
        1000 * spent / (frames * recognizer.model.config.emission_seconds),
    )


if __name__ == "__main__":
    guarded(main)
